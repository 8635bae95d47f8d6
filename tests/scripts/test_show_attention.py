"""show_attention.py: figures of where a model looked, and the numbers behind them."""

import io
import os

import numpy as np
import pytest
import torch
from PIL import Image
from toy import draw

from captioning.config import FeatureSpec, ModelConfig
from captioning.decoder.search import Search
from captioning.encoder.factory import build_encoder
from captioning.encoder.provenance import internal_spec
from captioning.images.image_file import open_image
from captioning.text.tokens import END
from inference.attention_maps import SHADE, columns_for, draw_attention, enlarge, shaded
from model import Captioner, build_model, load_captioner, save_captioner
from vocabulary import Vocabulary

WORDS = ["<pad>", "<start>", "<end>", "<unk>", "a", "red", "ball", "$x$", "on", "box", "."]
SIZES = {"embed_size": 16, "hidden_size": 24, "value_size": 16, "attention_size": 16}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """a.model attends to maps made from photos, file.model to those of a file; plain.model has no attention."""
    root = tmp_path_factory.mktemp("attention")
    extractor = build_encoder("efficientnet_lite0-conv")
    spec = internal_spec("efficientnet_lite0-conv", extractor)
    for name, config in {
        "a.model": ModelConfig(features=[spec], attention="soft", **SIZES),
        "file.model": ModelConfig(
            features=[FeatureSpec("maps.lmdb", spec.shape, True, spec.provenance)], attention="soft", **SIZES
        ),
        "tokens.model": ModelConfig(
            features=[FeatureSpec("t.npy", (6, 10, 1), True)], decoder="transformer", hidden_size=8, num_layers=1
        ),
        "plain.model": ModelConfig(features=[FeatureSpec("x.npy", (3,), True)], embed_size=8, hidden_size=8),
    }.items():
        torch.manual_seed(1)
        built = build_model(config, Vocabulary(WORDS), extractors={spec.name: extractor})
        with torch.no_grad():
            for key, parameter in built.decoder.named_parameters():
                torch.nn.init.uniform_(parameter, -0.9, 0.9)
                parameter.mul_(0.3 if key.startswith("init") else 1.0)
            built.decoder.linear.bias[[END, WORDS.index(".")]] -= 30.0
        save_captioner(Captioner(built, Vocabulary(WORDS)), root / name)
    for index in range(2):
        draw(index, 120).resize((160, 120)).save(root / f"p{index}.jpg")
    (root / "bad.jpg").write_bytes(b"\xff\xd8\xff\xe0 nothing")
    return root


def size_of(path) -> tuple[int, int]:
    with Image.open(path) as image:
        image.load()
        return image.size


def test_a_photo_beside_which_the_caption_stands(world, script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = script("show_attention.py", "--model", world / "a.model", world / "p0.jpg", "--dpi", 60)
    assert (done.status, done.err) == (0, "")
    expected = load_captioner(world / "a.model")
    text = expected.caption_images([open_image(world / "p0.jpg")], Search(beam_size=3))[0][0].text
    assert done.out == f"{world / 'p0.jpg'}: {text} -> p0_attention.png\n"
    width, height = size_of(tmp_path / "p0_attention.png")
    assert width > 300 and height > 150


def test_a_model_of_a_feature_file_and_other_formats(world, script, tmp_path):
    for name, begins in (("o.pdf", b"%PDF"), ("o.svg", b"<?xml"), ("o.png", b"\x89PNG")):
        model = "file.model" if name == "o.pdf" else "a.model"
        out = tmp_path / name
        options = ("--beam_size", 1, "--columns", 2, "--dpi", 40, "--max_seq_length", 4)
        done = script("show_attention.py", "--model", world / model, world / "p1.jpg", "--output", out, *options)
        assert done.status == 0, done.err
        assert out.read_bytes().startswith(begins)


def test_a_backend_that_is_not_installed(world, script_alone, tmp_path):
    """Figures go into files, whatever MPLBACKEND names."""
    arguments = ("--model", world / "a.model", world / "p0.jpg", "--output", tmp_path / "o.png", "--dpi", 30)
    env = {**os.environ, "MPLBACKEND": "module://no_such_package.backend"}
    done = script_alone("show_attention.py", *arguments, "--max_seq_length", 3, env=env)
    assert (done.status, done.err) == (0, "") and (tmp_path / "o.png").exists()


def test_several_photos_one_of_them_broken(world, script, tmp_path):
    photos = (world / "p0.jpg", world / "bad.jpg", world / "p1.jpg")
    short = ("--dpi", 30, "--max_seq_length", 3)
    done = script("show_attention.py", "--model", world / "a.model", *photos, "--output", tmp_path / "all.pdf", *short)
    assert done.status == 1 and "bad.jpg" in done.err and "2 pages" in done.out
    assert (tmp_path / "all.pdf").read_bytes().count(b"/Type /Page ") == 2
    done = script("show_attention.py", "--model", world / "a.model", *photos, "--output", f"{tmp_path}/new/", *short)
    assert done.status == 1
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["p0_attention.png", "p1_attention.png"]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["{root}/p0.jpg", "--model", "{root}/plain.model"], "no attention to show"),
        (["{root}/p0.jpg", "--model", "{root}/tokens.model"], "its regions lie in no grid"),
        (["{root}/gone.jpg"], "no such image"),
        (["{root}"], "is a folder"),
        (["{root}/bad.jpg"], "none of the 1 photos"),
        (["{root}/p0.jpg", "{root}/p1.jpg", "--output", "x.png"], "need a .pdf"),
        (["{root}/p0.jpg", "{root}/p0.jpg"], "would both be drawn"),
        (["{root}/p0.jpg", "--output", "x.gif"], "--output x.gif"),
        (["{root}/p0.jpg", "--model", "gone.model"], "gone.model"),
        (["{root}/p0.jpg", "--beam_size", "0"], "--beam_size 0"),
        (["{root}/p0.jpg", "--length_penalty", "nan"], "--length_penalty"),
    ],
)
def test_mistakes_are_one_line(world, script, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    texts = [text.format(root=world) for text in arguments]
    model_file = () if "--model" in texts else ("--model", world / "a.model")
    done = script("show_attention.py", *model_file, *texts)
    assert done.status == 2 and done.out == "" and words in done.err and "Traceback" not in done.err
    assert not list(tmp_path.iterdir())


# ---- numbers ----


def test_enlarged_weights_stay_where_they_were():
    """A single region lit: its middle is the centre of mass and the maximum; sums are kept; nothing is negative."""
    weights = np.zeros((7, 5))
    weights[4, 1] = 1.0
    big = enlarge(weights, 140, 200)
    assert big.shape == (140, 200) and big.min() >= 0
    assert big.mean() == pytest.approx(weights.mean())
    rows, columns = np.indices(big.shape)
    assert (big * rows).sum() / big.sum() == pytest.approx(20 * 4.5 - 0.5, abs=1.0)
    assert (big * columns).sum() / big.sum() == pytest.approx(40 * 1.5 - 0.5, abs=2.0)
    assert np.abs(np.array(np.unravel_index(big.argmax(), big.shape)) - (89.5, 59.5)).max() <= 1
    assert np.allclose(enlarge(np.full((3, 3), 0.2), 50, 40), 0.2)


def test_enlarging_is_a_gaussian_over_the_interpolated_map():
    """Against the convolution written out, away from the border."""
    weights = np.random.default_rng(0).random((4, 4))
    grid = torch.tensor(weights, dtype=torch.float32)[None, None]
    plain = torch.nn.functional.interpolate(grid, (64, 64), mode="bicubic").clamp(min=0)[0, 0].numpy()
    blurred = enlarge(weights, 64, 64)
    sigma = 0.25 * 16
    offsets = np.arange(-12, 13)
    kernel = np.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = np.outer(kernel, kernel) / kernel.sum() ** 2
    expected = np.array(
        [[(plain[y - 12 : y + 13, x - 12 : x + 13] * kernel).sum() for x in (20, 40)] for y in (25, 33)]
    )
    ratio = blurred[np.ix_((25, 33), (20, 40))] / expected
    assert np.allclose(ratio, ratio[0, 0], atol=1e-4) and ratio[0, 0] == pytest.approx(1, abs=0.05)  # the mean is kept


def test_shading():
    photo = np.full((30, 40, 3), 200, np.uint8)
    assert (shaded(photo, np.full((3, 3), 1 / 9)) == 200).all()  # looking everywhere darkens nothing
    lit = np.zeros((3, 4))
    lit[0, 0] = 1.0
    out = shaded(photo, lit)
    assert out.max() == 200 and out[-1, -1, 0] == round(200 * SHADE)


def test_panels_and_titles():
    figure = draw_attention(draw(0), ["a", "$ball$"], np.full((2, 7, 7), 1 / 49), "A $ball$.", [0.5, 0.25])
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert texts == ["a", "0.50", "$ball$", "0.25"] and [text.get_text() for text in figure.texts] == ["A $ball$."]
    assert len(figure.axes) == 3
    figure.savefig(io.BytesIO())  # no formula is seen in it
    assert len(draw_attention(draw(0), [], []).axes) == 1
    assert columns_for(12, 1.0) in (4, 5, 6) and columns_for(1, 1.5) == 1

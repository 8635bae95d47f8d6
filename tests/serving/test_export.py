"""export.py: the graphs compute what PyTorch does, and the example that drives them writes the same captions."""

import importlib.util
import json

import numpy as np
import pytest
import torch
from running import ROOT
from torch import nn
from toy_captioner import SIZES, captioner_for, picture

from captioning.config import FeatureSpec, ModelConfig, ParagraphConfig
from captioning.decoder.search import Search
from captioning.encoder.encoder import ImageEncoder
from captioning.encoder.factory import build_encoder
from captioning.encoder.provenance import internal_spec
from captioning.errors import UserError
from captioning.text.function_words import content_words
from model import Captioner

onnxruntime = pytest.importorskip("onnxruntime")
for package in ("onnx", "onnxscript"):
    pytest.importorskip(package)

from serving.graphs import export_graphs
from serving.int8 import quantised
from serving.onnx_folder import describe, largest_difference, write_folder

POOLED, MAP = "tiny", "tiny-conv"
MODELS = {
    "soft attention, persistent features": ([MAP], [POOLED], {"attention": "soft"}),
}
GRU = [POOLED], [], {"rnn_arch": "GRU", "num_layers": 2, "skip_start_token": True}
MORE = {
    "two GRU layers, the image in place of <start>": GRU,
    "a Transformer": (
        [MAP],
        [POOLED],
        {"decoder": "transformer", "heads": 4, "num_layers": 2, "region_layers": 1},
    ),
    "the image read first": ([POOLED], [], {"share_embedding_weights": True}),
    "spatial attention, persistent features": ([MAP], [POOLED], {"attention": "spatial"}),
    "the state from the image": ([POOLED], [], {"rnn_hidden_init": "from_features", "num_layers": 2}),
}


@pytest.fixture(scope="module")
def example():
    """recipes/onnx/caption.py"""
    spec = importlib.util.spec_from_file_location("onnx_example", ROOT / "recipes/onnx/caption.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tiny_encoder(name: str) -> ImageEncoder:
    """An encoder that torch traces in no time: of a map (8, 4, 4), or of its mean."""
    torch.manual_seed(1)
    network = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.ReLU())
    if not name.endswith("-conv"):
        network.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten()])
    shape = (8, 4, 4) if name.endswith("-conv") else (8,)
    transform = {"size": 16, "interpolation": "bicubic", "mean": [0.5] * 3, "std": [0.1] * 3}
    return ImageEncoder(name, network, transform, shape, [], [])


def captioner_of(features: list[str], persist: list[str], settings: dict) -> Captioner:
    """An untrained captioner of small photos."""
    encoders = [tiny_encoder(name) for name in (*features, *persist)]
    specs = [FeatureSpec(x.name, x.shape, True, {"transform": x.transform}) for x in encoders]
    specs = {"features": specs[: len(features)], "persist_features": specs[len(features) :]}
    captioner = captioner_for(ModelConfig(**specs, **settings, **SIZES))
    captioner.model.extractors = nn.ModuleList(encoders)
    captioner.model.eval()
    return captioner


@pytest.fixture(scope="module", params=[*MODELS, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)])
def exported(request, tmp_path_factory):
    """(captioner, graphs, the folder written)"""
    captioner = captioner_of(*{**MODELS, **MORE}[request.param])
    graphs = export_graphs(captioner)
    folder = tmp_path_factory.mktemp("exported")
    write_folder(folder, describe(captioner, graphs, "toy.model", "float32"), graphs)
    return captioner, graphs, folder


def open_sessions(folder) -> tuple:
    return tuple(onnxruntime.InferenceSession(folder / f"{name}.onnx") for name in ("encoder", "step"))


def test_numbers_are_those_of_pytorch_for_any_number_of_images(exported):
    captioner, graphs, _ = exported
    assert largest_difference(captioner, graphs, 1) < 1e-4
    assert largest_difference(captioner, graphs, 5) < 1e-4


@pytest.mark.parametrize(("beams", "penalty", "once"), [(1, 0.0, False), (3, 0.7, False), (3, 0.7, True)])
def test_the_example_writes_the_same_captions(exported, example, tmp_path, beams, penalty, once):
    captioner, _, folder = exported
    info = json.loads((folder / "captioner.json").read_text(encoding="utf-8"))
    assert info["once"] == []
    info["once"] = content_words(info["words"]) if once else ()
    sessions, texts = open_sessions(folder), set()
    for seed in range(6):
        path = tmp_path / f"{seed}.png"
        picture(seed).save(path)
        pixels = example.read_pixels(path, info["size"], info["interpolation"])
        tensor = captioner.transform(picture(seed), None).unsqueeze(0)
        assert np.array_equal(pixels, tensor.numpy())
        found = example.search(*sessions, info, pixels, beams, penalty)
        memory = captioner.encode(tensor, [None] * len(captioner.config.specs))
        wanted = captioner.caption(memory, Search(beams, length_penalty=penalty, once=info["once"]))[0][0]
        assert found == wanted.tokens
        texts.add(example.as_text([info["words"][word] for word in found]))
    assert len(texts) > 1 or not captioner.config.attention  # untrained models without it may say the same of all


def test_the_example_ends_with_one_line_where_a_file_is_missing_or_broken(exported, example, tmp_path, capsys):
    folder = exported[2]
    picture(1).save(tmp_path / "good.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:200])
    (tmp_path / "text.jpg").write_text("no photo")
    for path, reason in (("no.jpg", "No such file"), ("text.jpg", "cannot identify"), ("cut.png", "truncated")):
        with pytest.raises(SystemExit) as stop:
            example.main(example.parse_args([str(folder), str(tmp_path / "good.png"), str(tmp_path / path)]))
        out, err = capsys.readouterr()
        assert stop.value.code == 2 and out.startswith(f"{tmp_path / 'good.png'}: ")
        assert err.count("\n") == 1 and err.startswith(f"caption.py: error: {tmp_path / path}: ") and reason in err
    with pytest.raises(SystemExit) as stop:
        example.main(example.parse_args([str(tmp_path / "none"), str(tmp_path / "good.png")]))
    assert stop.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_tensors_have_names(exported):
    _, graphs, _ = exported
    assert [x.name for x in graphs.encoder.graph.output] == graphs.state + graphs.memory
    assert [x.name for x in graphs.step.graph.input] == ["tokens", *graphs.state, *graphs.memory]


def test_int8_is_small_and_near(exported):
    captioner, graphs, _ = exported
    photos = [captioner.transform(picture(seed), None).numpy()[None] for seed in range(4)]
    for reduce_range in (False, True):
        small = quantised(graphs, photos, reduce_range)
        assert small.step.ByteSize() < graphs.step.ByteSize()
        sessions = [onnxruntime.InferenceSession(x.encoder.SerializeToString()) for x in (graphs, small)]
        plain, coarse = (session.run(None, {"pixels": photos[0]})[-1] for session in sessions)
        assert np.linalg.norm(plain - coarse) < 0.4 * np.linalg.norm(plain)


@pytest.mark.slow
def test_a_map_and_classes_of_one_network_run_it_once():
    names = "efficientnet_lite0-conv", "efficientnet_lite0-classes"
    main, classes = (internal_spec(name, build_encoder(name, transform={"size": 64})) for name in names)
    config = ModelConfig(features=[main], persist_features=[classes], attention="soft", **SIZES)
    captioner = captioner_for(config)
    captioner.model.eval()
    graphs = export_graphs(captioner)
    assert largest_difference(captioner, graphs) < 1e-4
    convolutions = sum(isinstance(x, nn.Conv2d) for x in captioner.model.extractors[0].modules())
    assert sum(node.op_type == "Conv" for node in graphs.encoder.graph.node) == convolutions


# ---- the script ----


def test_script_writes_a_folder_that_the_example_reads(script, example, tmp_path, capsys, monkeypatch):
    captioner = captioner_of(*GRU)
    captioner.info["length_penalty"] = 0.7
    monkeypatch.setattr("model.load_captioner", lambda path, weights: captioner)
    (tmp_path / "toy.model").touch()
    (tmp_path / "photos").mkdir()
    picture(1).save(tmp_path / "photos/1.png")
    (tmp_path / "photos/2.png").write_bytes(b"no picture")
    flags = ["--model", tmp_path / "toy.model", "--output_dir", tmp_path / "new/out"]
    done = script("export.py", *flags, "--int8", "--image_dir", tmp_path / "photos")
    assert done.status == 0, done.err
    assert "2.png" in done.err and "captioner.json" in done.err
    info = json.loads((tmp_path / "new/out/captioner.json").read_text(encoding="utf-8"))
    assert (info["precision"], info["length_penalty"], info["size"]) == ("int8", 0.7, 16)
    example.main(example.parse_args([str(tmp_path / "new/out"), str(tmp_path / "photos/1.png")]))
    assert capsys.readouterr().out.strip().endswith(".")


def test_what_cannot_be_exported_is_one_line(script, tmp_path):
    captioner = captioner_of([MAP], [], {"attention": "soft"})
    captioner.config.paragraphs = ParagraphConfig()
    with pytest.raises(UserError, match="it writes paragraphs"):
        export_graphs(captioner)
    for flags, message in (
        (["--output_dir", tmp_path, "--int8"], "--int8 needs --image_dir"),
        (["--output_dir", tmp_path, "--image_dir", tmp_path], "--image_dir is for --int8"),
        (["--output_dir", tmp_path, "--model", tmp_path / "no.model"], "no such model file"),
        ([], "--output_dir"),
    ):
        done = script("export.py", *flags)
        assert done.status == 2 and done.err.count("\n") <= 1 + (not flags) and message in done.err


def test_a_missing_package_is_one_line(script, tmp_path, monkeypatch):
    monkeypatch.setattr("captioning.errors.find_spec", lambda name: None)
    done = script("export.py", "--output_dir", tmp_path)
    assert done.status == 2
    assert "pip install onnx onnxscript onnxruntime" in done.err

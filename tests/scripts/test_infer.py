"""infer.py: from photos, folders, datasets and feature files to captions on the screen and in files."""

import csv
import html.parser
import itertools
import json
import math
import os
import re
import resource
import stat
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from running import ROOT, run_here
from toy_captioner import SIZES, WORDS, captioner_for, picture

from captioning.config import FeatureSpec, ModelConfig
from captioning.decoder.search import Search
from captioning.encoder import factory
from captioning.encoder.factory import build_encoder
from captioning.encoder.provenance import internal_spec
from captioning.errors import UserError
from captioning.features.writer import FeatureWriter
from captioning.images.image_file import open_image
from captioning.scoring.calibration import Calibration
from captioning.text.tokens import END, START
from inference import captions, flags
from inference.results.files import ResultsFile
from inference.results.reading import read_results
from inference.results.result import Result
from model import Caption, load_captioner, save_captioner
from vocabulary import Vocabulary

NAMES = [f"p{i}.png" for i in range(5)]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """pixels.model and file.model (the same weights, attention over the same maps), a COCO-like dataset with images
    and features [c:with], without images [c:bare], without features [c:photos], and a folder with a broken image."""
    root = tmp_path_factory.mktemp("world")
    extractor = build_encoder("efficientnet_lite0-conv")
    spec = internal_spec("efficientnet_lite0-conv", extractor)
    file_spec = FeatureSpec("maps.lmdb", spec.shape, True, spec.provenance)
    pixels = captioner_for(ModelConfig(features=[spec], attention="soft", **SIZES))
    save_captioner(pixels, root / "pixels.model")
    save_captioner(captioner_for(ModelConfig(features=[file_spec], attention="soft", **SIZES)), root / "file.model")
    plain = ModelConfig(features=[FeatureSpec("plain.npy", (3,), True)], embed_size=24, hidden_size=32)
    save_captioner(captioner_for(plain), root / "plain.model")

    for folder in ("images", "mixed/sub", "empty", "features"):
        (root / folder).mkdir(parents=True)
    for seed, name in enumerate(NAMES):
        picture(seed).save(root / "images" / name)
    picture(1).save(root / "mixed/good.jpg")
    picture(2).save(root / "mixed/sub/deep.jpg")
    (root / "mixed/bad.jpg").write_bytes((root / "mixed/good.jpg").read_bytes()[:900])
    batch = torch.stack([pixels.transform(open_image(root / "images" / name), None) for name in NAMES])
    with FeatureWriter(root / "features/maps.lmdb", spec.shape, "float32", spec.provenance) as writer:
        for name, values in zip(NAMES, extractor(batch)):
            writer.write(name, values.numpy())
    np.save(root / "features/plain.npy", np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32))
    images = [{"id": 10 + i, "file_name": name} for i, name in enumerate(NAMES)]
    texts = ["a red ball is on the box", "the ball is red"]
    captions = [{"image_id": image["id"], "caption": text} for image in images for text in texts]
    (root / "captions.json").write_text(json.dumps({"images": images, "annotations": captions}))
    (root / "data.conf").write_text(
        "[c]\ndataset_class=CocoDataset\nroot_dir=%(here)s\ncaption_path=captions.json\n"
        "[c:with]\nimage_dir=images\nfeatures_path=features\n[c:bare]\nfeatures_path=features\n"
        "[c:photos]\nimage_dir=images\nfeatures_path=nowhere\n[c:nothing]\nfeatures_path=nowhere\n"
    )
    return root


@pytest.fixture
def infer_dataset(world, script):
    def call(name, *arguments, weights="file.model"):
        chosen = ("--model", world / weights, "--dataset_config_file", world / "data.conf", "--dataset", name)
        return script("infer.py", *chosen, *arguments)

    return call


@pytest.fixture(scope="module")
def expected(world):
    """Captions of the five photos, beam 3, by the model directly."""
    photos = [open_image(world / "images" / name) for name in NAMES]
    return load_captioner(world / "pixels.model").caption_images(photos, Search(beam_size=3, n_best=2))


@pytest.fixture
def no_encoder(monkeypatch):
    def refuse(*arguments, **named):
        raise AssertionError("an encoder was built")

    monkeypatch.setattr(factory, "build_encoder", refuse)


# ---- photos ----


@pytest.mark.parametrize("weights", ["pixels.model", "file.model"])
def test_a_photo_needs_nothing_but_the_model(world, script, expected, weights):
    photo = world / "images/p3.png"
    done = script("infer.py", "--model", world / weights, photo)
    assert (done.status, done.err) == (0, "")
    assert done.out == f"{photo}: {expected[3][0].text}\n"
    assert len({several[0].text for several in expected}) > 1, "the toy model says the same of every image"


def test_through_the_command_line(world, script_alone, expected, tmp_path):
    done = script_alone("infer.py", "--model", world / "file.model", world / "images/p0.png", cwd=tmp_path)
    assert (done.status, done.out) == (0, f"{world / 'images/p0.png'}: {expected[0][0].text}\n")
    done = script_alone("infer.py", "--help")
    assert done.status == 0 and "--beam_size" in done.out


def test_through_a_link_in_another_folder(world, expected, tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "caption").symlink_to(ROOT / "infer.py")
    command = [sys.executable, tmp_path / "bin" / "caption", "--model", world / "pixels.model", "images/p0.png"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=world, timeout=300)
    assert (done.returncode, done.stdout) == (0, f"images/p0.png: {expected[0][0].text}\n"), done.stderr


def test_a_folder_with_a_broken_image(world, script, tmp_path):
    out = tmp_path / "new/folder/out.json"
    arguments = ("--model", world / "pixels.model", "--image_dir", world / "mixed", "--recursive")
    done = script("infer.py", *arguments, "--output_file", out, "--print_results")
    assert done.status == 1
    assert "bad.jpg" in done.err and "1 of 3 images could not be read" in done.err
    entries = json.loads(out.read_text())
    assert [entry["image_id"] for entry in entries] == ["good.jpg", "sub/deep.jpg"]
    assert done.out == "".join(f"{entry['image_id']}: {entry['caption']}\n" for entry in entries)
    assert [path.name for path in out.parent.iterdir()] == ["out.json"]


def test_nothing_but_broken_images(world, script, tmp_path):
    done = script(
        "infer.py", "--model", world / "pixels.model", world / "mixed/bad.jpg", "--output_file", tmp_path / "o.csv"
    )
    assert done.status == 2 and "none of the 1 images" in done.err
    assert not list(tmp_path.iterdir())


def test_resize_gives_other_maps(world, script, tmp_path):
    out = tmp_path / "a.npz"
    arguments = ("--model", world / "pixels.model", world / "images/p0.png", "--attention_output", out)
    assert script("infer.py", *arguments, "--resize", 256).status == 0
    assert np.load(out)["attention"].shape[2:] == (8, 8)


# ---- datasets ----


def test_a_dataset_is_captioned_from_its_features(infer_dataset, no_encoder, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = infer_dataset("c:bare", "--scoring", "bleu,cider")
    assert done.status == 0
    path = next((tmp_path / "results").iterdir())
    assert path.name.startswith("c-bare_") and path.name.endswith("-file.json") and path.name in done.err
    entries = json.loads(path.read_text())
    assert [entry["image_id"] for entry in entries] == [10, 11, 12, 13, 14]
    assert [entry["caption"] for entry in entries] == [several[0].text for several in expected]
    assert "CIDEr" in done.out and "BLEU-4" in done.out and "distinct" in done.out


def test_scores_are_those_of_the_captions(infer_dataset, expected, tmp_path):
    from captioning.scoring.metrics import score_captions

    texts = {i: several[0].text for i, several in enumerate(expected)}
    references = dict.fromkeys(texts, ["a red ball is on the box", "the ball is red"])
    bleu = score_captions(texts, references, ("bleu",)).values["bleu_1"]
    done = infer_dataset("c:bare", "--scoring", "bleu", "--output_file", tmp_path / "o.txt")
    assert f"BLEU-1    {bleu:.4f}" in done.out


def test_photos_stand_in_for_missing_features(infer_dataset, expected, tmp_path):
    done = infer_dataset("c:photos", "--output_file", tmp_path / "out.txt")
    assert done.status == 0
    assert sum("maps.lmdb" in line for line in done.err.splitlines()) == 1
    lines = [f"{10 + i} {several[0].text}\n" for i, several in enumerate(expected)]
    assert (tmp_path / "out.txt").read_text() == "".join(lines)


@pytest.mark.parametrize("name", ["captions", "captions.results", "v1.2"])
def test_a_results_file_without_a_known_ending_is_txt(infer_dataset, tmp_path, name):
    assert infer_dataset("c:bare", "--output_file", tmp_path / "known.txt").status == 0
    done = infer_dataset("c:bare", "--output_file", tmp_path / name)
    assert done.status == 0 and f"{name}: its ending names no format, so it is a txt file" in done.err
    assert (tmp_path / name).read_bytes() == (tmp_path / "known.txt").read_bytes()
    done = infer_dataset("c:bare", "--output_file", tmp_path / name, "--output_format", "csv")
    assert done.status == 0 and "ending" not in done.err
    assert (tmp_path / name).read_text().startswith("image_id,rank,")


def test_features_that_are_not_the_models(world, infer_dataset, tmp_path):
    kept = world / "features/maps.lmdb"
    for shape, provenance, words in (
        ((8, 7, 7), None, "shape"),
        ((1280, 7, 7), {"extractor": "resnet152-conv"}, "resnet152-conv"),
    ):
        folder = tmp_path / words
        with FeatureWriter(folder / "maps.lmdb", shape, "float16", provenance) as writer:
            for name in NAMES:
                writer.write(name, np.zeros(shape))
        conf = tmp_path / f"{words}.conf"
        conf.write_text(
            (world / "data.conf").read_text().replace("%(here)s", str(world)).replace("=features", f"={folder}")
        )
        done = infer_dataset("c:bare", "--dataset_config_file", conf)
        assert done.status == 2 and words in done.err and done.err.count("\n") == 1
    assert kept.exists()


def test_n_best(infer_dataset, expected, tmp_path):
    done = infer_dataset(
        "c:bare", "--n_best", 2, "--output_file", tmp_path / "o.csv", "--print_results", "--no_capitalize"
    )
    assert done.status == 0
    vocabulary = Vocabulary(WORDS)
    with open(tmp_path / "o.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    wanted = [(n, c) for several in expected for n, c in enumerate(several, 1)]
    plain = [(n, vocabulary.decode(c.tokens).replace(" ,", ",")) for n, c in wanted]
    assert [(int(row["rank"]), row["caption"]) for row in rows] == plain
    assert [float(row["log_prob"]) for row in rows] == pytest.approx([c.log_prob for _, c in wanted], abs=1e-3)
    assert done.out.count("p0.png: ") == 2


def test_samples_follow_the_seed(infer_dataset, tmp_path):
    texts = []
    for seed in (1, 1, 2):
        out = tmp_path / "o.jsonl"
        options = ("--sample", "--seed", seed, "--n_best", 3, "--top_p", 0.9, "--temperature", 1.5)
        assert infer_dataset("c:bare", "--output_file", out, *options).status == 0
        texts.append(out.read_text())
    assert texts[0] == texts[1] != texts[2]
    best = [entry["log_prob"] for entry in json.loads(texts[0].splitlines()[0])["n_best"]]
    assert len(best) == 3 and best == sorted(best, reverse=True)


def test_another_vocabulary(infer_dataset, tmp_path):
    Vocabulary([*WORDS[:4], *(f"w{i}" for i in range(4, len(WORDS)))]).save(tmp_path / "other.json")
    done = infer_dataset("c:bare", "--vocab", tmp_path / "other.json", "--output_file", tmp_path / "o.txt")
    assert done.status == 0
    words = (tmp_path / "o.txt").read_text().replace(".", "").split()
    assert all(word.lower().startswith("w") or word.isdigit() for word in words)
    Vocabulary([*WORDS, "more"]).save(tmp_path / "other.json")
    done = infer_dataset("c:bare", "--vocab", tmp_path / "other.json", "--output_file", tmp_path / "o.txt")
    assert done.status == 2 and "does not fit" in done.err


# ---- attention ----


def test_explain_agrees_with_single_steps(world):
    """Weights and log-probabilities against the decoder's own step, word by word."""
    captioner = load_captioner(world / "file.model", photos=False)
    torch.manual_seed(0)
    memory = captioner.encode(None, [torch.randn(3, 49, 1280).relu()])
    best = [several[0] for several in captioner.caption(memory, Search(beam_size=3))]
    for caption, (_, log_probs) in zip(best, captioner.explain(memory, best)):
        assert log_probs.sum().item() == pytest.approx(caption.log_prob, abs=1e-4)
    best = [Caption("", caption.tokens[:length], 0.0, length + 1) for caption, length in zip(best, (2, 9, 0))]
    for image, (weights, log_probs) in enumerate(captioner.explain(memory, best)):
        one = memory.select(torch.tensor([image]))
        state = captioner.model.decoder.start(one)
        tokens = [START, *best[image].tokens, END]
        assert weights.shape == (len(tokens) - 1, 49)
        for t in range(len(tokens) - 1):
            logits, state, at = captioner.model.decoder.step(torch.tensor([tokens[t]]), state, one)
            torch.testing.assert_close(weights[t], at[0], atol=1e-5, rtol=1e-4)
            assert log_probs[t].item() == pytest.approx(logits.log_softmax(1)[0, tokens[t + 1]].item(), abs=1e-4)


def test_explain_without_attention(world):
    captioner = load_captioner(world / "plain.model", photos=False)
    memory = captioner.encode(None, [torch.randn(2, 3)])
    best = [several[0] for several in captioner.caption(memory, Search())]
    for caption, (weights, log_probs) in zip(best, captioner.explain(memory, best)):
        assert weights is None and log_probs.sum().item() == pytest.approx(caption.log_prob, abs=1e-4)


def test_attention_output(infer_dataset, expected, tmp_path):
    out = tmp_path / "a.npz"
    assert infer_dataset("c:bare", "--attention_output", out, "--output_file", tmp_path / "o.txt").status == 0
    saved = np.load(out)  # nothing pickled in it
    assert saved["image_ids"].tolist() == ["10", "11", "12", "13", "14"]
    for i, several in enumerate(expected):
        n = len(several[0].tokens) + 1
        assert saved["lengths"][i] == n and saved["words"][i, n - 1] == "<end>"
        assert saved["words"][i, : n - 1].tolist() == [WORDS[t] for t in several[0].tokens]
        assert saved["attention"][i, :n].sum((1, 2)) == pytest.approx(np.ones(n), abs=1e-4)
        assert not saved["attention"][i, n:].any() and np.isnan(saved["log_prob"][i, n:]).all()
        assert saved["log_prob"][i, :n].sum() == pytest.approx(several[0].log_prob, abs=1e-3)
    assert saved["attention"].shape[2:] == (7, 7)


@pytest.fixture
def odd_photos(tmp_path):
    """Photos as people have them: on their side, with transparent parts, of other modes, large."""
    images, exif = [picture(seed) for seed in range(7)], Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    images[0].save(tmp_path / "sideways.jpg", exif=exif)
    images[1].putalpha(Image.linear_gradient("L").resize(images[1].size))
    images[1].save(tmp_path / "glass.png")
    images[2].quantize(16).save(tmp_path / "palette.png", transparency=0)
    images[3].convert("CMYK").save(tmp_path / "print.jpg")
    images[4].convert("L").convert("I").point(lambda value: value * 257).convert("I;16").save(tmp_path / "deep.png")
    images[5].convert("L").save(tmp_path / "grey.webp")
    images[6].resize((3000, 2600)).save(tmp_path / "large.jpg")
    return sorted(tmp_path.iterdir())


@pytest.mark.parametrize("weights", ["pixels.model", "file.model"])
def test_photos_from_python_are_captioned_as_by_the_script(world, odd_photos, weights):
    printed = infer_here(world / weights, *odd_photos).out
    captioner = load_captioner(world / weights)
    captioner.info["length_penalty"] = 0.0
    images = [Image.open(path) for path in odd_photos if path.stem != "large"]
    found = captioner.caption_photos([*odd_photos, *images], batch_size=4)
    assert printed == "".join(f"{path}: {several[0].text}\n" for path, several in zip(odd_photos, found))
    texts = dict(zip(odd_photos, [several[0].text for several in found]))
    assert [several[0].text for several in found[7:]] == [text for p, text in texts.items() if p.stem != "large"]
    assert len(set(texts.values())) > 2, "the toy model says the same of every photo"
    assert any("exif" in image.info for image in images)  # they are the caller's, and stay as they were
    several = captioner.caption_photos([str(odd_photos[0])], Search(beam_size=3, n_best=2))
    assert len(several[0]) == 2 and captioner.caption_photos([]) == []
    assert captioner.caption([*odd_photos, *images]) == captioner.caption_photos([*odd_photos, *images])


def test_the_models_length_penalty_and_what_cannot_be_read(world, odd_photos, tmp_path):
    captioner = load_captioner(world / "pixels.model")
    captioner.info["length_penalty"] = 2.5
    found = captioner.caption_photos(odd_photos)
    printed = infer_here(world / "pixels.model", *odd_photos, "--length_penalty", 2.5).out.splitlines()
    assert [line.partition(": ")[2] for line in printed] == [several[0].text for several in found]
    with pytest.raises(UserError, match=r"cannot read image .*bad\.jpg"):
        captioner.caption_photos([odd_photos[0], world / "mixed/bad.jpg"])
    with pytest.raises(UserError, match="photo 1 cannot be read: image file is truncated"):
        captioner.caption_photos([odd_photos[0], Image.open(world / "mixed/bad.jpg")])


# ---- confidences ----


@pytest.fixture(scope="module")
def calibrated(world):
    """file.model with a calibration by which some of its captions are likelier good than others."""
    captioner = load_captioner(world / "file.model", photos=False)
    captioner.calibration = Calibration(4.0, 6.0, 0.5, 0.4, 1000, 0.03)
    save_captioner(captioner, world / "calibrated.model")
    return "calibrated.model"


def entries(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_confidences_in_every_format_that_has_room(world, calibrated, infer_dataset, expected, tmp_path):
    for form in ("jsonl", "csv", "json"):
        flags = ("--output_file", tmp_path / f"o.{form}", "--with_scores", "--n_best", 2)
        assert infer_dataset("c:bare", *flags, weights=calibrated).status == 0
    found = entries(tmp_path / "o.jsonl")
    assert json.loads((tmp_path / "o.json").read_text()) == found
    captions, calibration = [several[0] for several in expected], Calibration(4.0, 6.0, 0.5, 0.4, 1000, 0.03)
    for entry, caption in zip(found, captions):
        mean = caption.log_prob / (len(caption.tokens) + 1)
        assert entry["mean_log_prob"] == pytest.approx(mean, abs=1e-3)
        assert entry["confidence"] == pytest.approx(calibration.confidence(mean), abs=2e-3)
        assert len(entry["n_best"]) == 2 and entry["n_best"][1]["confidence"] >= 0
    with open(tmp_path / "o.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["rank"] == "1"]
    assert [float(row["confidence"]) for row in rows] == [entry["confidence"] for entry in found]
    photo = world / "images" / NAMES[0]
    done = infer_here(world / calibrated, photo, "--with_scores")
    assert re.fullmatch(r".*  \(log-probability -\d+\.\d\d, confidence 0\.\d\d\)\n", done.out), done.out


@pytest.mark.parametrize("form", ["json", "jsonl", "csv"])
def test_results_that_are_held_to_a_confidence_are_not_added_to_without(calibrated, infer_dataset, tmp_path, form):
    out = tmp_path / f"o.{form}"
    flags = ("--output_file", out, "--with_scores")
    assert infer_dataset("c:bare", *flags, "--min_confidence", 0.99, weights=calibrated).status == 0
    done = infer_dataset("c:bare", *flags, "--resume", weights=calibrated)
    assert done.status == 2 and "was begun with --min_confidence: give the same" in done.err


def infer_here(model, *arguments):
    return run_here("infer.py", "--model", model, *arguments)


def test_what_the_model_is_not_sure_of_is_not_told(calibrated, infer_dataset, tmp_path):
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    assert infer_dataset("c:bare", "--output_file", whole, weights=calibrated).status == 0
    sure = sorted(entry["confidence"] for entry in entries(whole))
    least = (sure[1] + sure[2]) / 2
    flags = ("--min_confidence", least, "--scoring", "bleu", "--print_results")
    done = infer_dataset("c:bare", "--output_file", out, *flags, weights=calibrated)
    assert done.status == 0 and "2 of 5 images have no caption" in done.err, done.err
    assert done.out.count("(not sure)\n") == 2 and "3 captions, " in done.out and "sure enough of are not" in done.out
    for before, after in zip(entries(whole), entries(out)):
        assert after == (before if before["confidence"] >= least else {**before, "caption": "", "unsure": True})
    # resuming: what was told before is held to the same, and a higher bar than now cannot be undone
    lines = whole.read_text().splitlines(keepends=True)
    for given in (lines[:3], out.read_text().splitlines(keepends=True)[:3]):
        (tmp_path / "again.jsonl").write_text("".join(given))
        done = infer_dataset(
            "c:bare", "--output_file", tmp_path / "again.jsonl", "--resume", *flags, weights=calibrated
        )
        assert done.status == 0 and entries(tmp_path / "again.jsonl") == entries(out)
    lower = ("--resume", "--min_confidence", least / 100)
    done = infer_dataset("c:bare", "--output_file", out, *lower, weights=calibrated)
    assert done.status == 2 and "was begun with a --min_confidence above" in done.err


def test_scoring_where_the_model_is_sure_of_nothing(calibrated, infer_dataset, tmp_path):
    flags = ("--output_file", tmp_path / "o.txt", "--min_confidence", 1, "--scoring", "bleu")
    done = infer_dataset("c:bare", *flags, weights=calibrated)
    assert done.status == 1 and "no captions to score" in done.err
    assert (tmp_path / "o.txt").read_text() == "".join(f"{n} \n" for n in range(10, 15))


@pytest.mark.parametrize(
    "flags, said",
    [
        (("--min_confidence", 0.5), "average_models.py"),
        (("--min_confidence", 1.5), "must be at most 1"),
        (("--min_confidence", -1), "must be at least 0"),
        (("--with_scores", "--output_format", "txt"), "--with_scores: a txt file has no room"),
    ],
)
def test_confidences_that_cannot_be_had(infer_dataset, flags, said):
    done = infer_dataset("c:bare", *flags)
    assert done.status == 2 and done.err.count("\n") == 1 and said in done.err


def test_resuming_results_without_confidences(calibrated, infer_dataset, tmp_path):
    (tmp_path / "o.jsonl").write_text('{"image_id": 10, "caption": "A dog.", "log_prob": -1.0}\n')
    flags = ("--output_file", tmp_path / "o.jsonl", "--resume")
    done = infer_dataset("c:bare", *flags, "--min_confidence", 0.5, weights=calibrated)
    assert done.status == 2 and "of which no confidence is known" in done.err
    assert infer_dataset("c:bare", *flags, weights=calibrated).status == 0
    assert ["confidence" in entry for entry in entries(tmp_path / "o.jsonl")] == [False] + [True] * 4


# ---- results files ----


@pytest.mark.parametrize("flags", [[], ["--probabilities", "--n_best", 2]], ids=["captions", "words"])
@pytest.mark.parametrize("form", ["txt", "json", "jsonl", "csv"])
def test_an_interrupted_run_is_resumed(infer_dataset, monkeypatch, tmp_path, form, flags):
    whole, out = tmp_path / f"whole.{form}", tmp_path / f"out.{form}"
    one_by_one = ["--batch_size", 1, *flags]  # another number of images in a batch may change the last digit
    assert infer_dataset("c:bare", "--output_file", whole, *one_by_one).status == 0
    loop = captions.caption_loader

    def interrupted(*arguments):
        yield from itertools.islice(loop(*arguments), 2)
        raise KeyboardInterrupt

    monkeypatch.setattr(captions, "caption_loader", interrupted)
    done = infer_dataset("c:bare", "--output_file", out, *one_by_one)
    part = tmp_path / f"out.{form}.part"
    assert done.status == 130 and "--resume" in done.err and not out.exists()
    before = part.read_text()
    done = infer_dataset("c:bare", "--output_file", out, *one_by_one)
    assert done.status == 2 and "add --resume to go on, or --force to begin anew" in done.err
    assert part.read_text() == before and sorted(os.listdir(tmp_path)) == [part.name, whole.name]
    with open(part, "a") as file:  # as if killed in the middle of a line
        file.write("12,1,A do" if form == "csv" else '{"image_id": 12, "capt')
    monkeypatch.setattr(captions, "caption_loader", loop)
    done = infer_dataset("c:bare", "--output_file", out, "--resume", "--scoring", "bleu", *one_by_one)
    assert done.status == 0 and "of 5 images are captioned already" in done.err and "5 captions" in done.out
    without_digits = [re.sub(r"\d\d\b", "", file.read_text()) for file in (out, whole)] if flags else [0, 0]
    assert without_digits[0] == without_digits[1] and not part.exists()
    assert flags or out.read_text() == whole.read_text()
    part.write_text(before)
    assert infer_dataset("c:bare", "--output_file", out, "--force", *one_by_one).status == 0
    assert flags or out.read_text() == whole.read_text()
    assert sorted(os.listdir(tmp_path)) == [out.name, whole.name]


@pytest.mark.parametrize("flags", [[], ["--with_scores", "--n_best", 2], ["--alternatives", 2]])
@pytest.mark.parametrize("form", ["json", "jsonl", "csv"])
def test_resuming_what_is_complete_needs_no_model(infer_dataset, tmp_path, form, flags):
    out = tmp_path / f"out.{form}"
    assert infer_dataset("c:bare", "--output_file", out, *flags).status == 0
    before = out.read_text()
    done = infer_dataset("c:bare", "--output_file", out, "--resume", *flags, weights="none.model")
    assert done.status == 0 and out.read_text() == before
    done = infer_dataset("c:bare", "--output_file", out, "--resume", *flags, *([] if "--alter" in str(flags) else
                         ["--probabilities"]) or ["--n_best", 2])  # fmt: skip
    assert done.status in (0, 2) and done.err.count("\n") <= 3 and "Traceback" not in done.err


def test_resuming_a_finished_text_makes_it_anew(infer_dataset, tmp_path):
    """Its lines do not say where the name of an image ends."""
    out = tmp_path / "out.txt"
    assert infer_dataset("c:bare", "--output_file", out).status == 0
    before = out.read_text()
    out.write_text("old")
    assert infer_dataset("c:bare", "--output_file", out, "--resume").status == 0 and out.read_text() == before


def test_resuming_keeps_rows_of_features_without_keys(infer_dataset, tmp_path):
    """Rows of plain.npy follow the images' order, which an image left out must not shift."""
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    assert infer_dataset("c:bare", "--output_file", whole, weights="plain.model").status == 0
    lines = whole.read_text().splitlines(keepends=True)
    out.write_text("".join(lines[:2]))
    assert infer_dataset("c:bare", "--output_file", out, "--resume", weights="plain.model").status == 0
    assert [json.loads(line)["caption"] for line in out.read_text().splitlines()] == [
        json.loads(line)["caption"] for line in lines
    ]


@pytest.mark.parametrize(
    "name, text",
    [
        ("o.jsonl", '{"image_id": 999, "caption": "A dog.", "log_prob": -1.0}\n'),
        ("o.jsonl", "hello\n"),
        ("o.json", "hello"),
        ("o.json", "[3]"),
        ("o.json", '[{"image_id": 10, "caption": 3}]'),
        ("o.json", '[{"image_id": 10, "n_best": []}]'),
        ("o.json", '[{"image_id": 10, "caption": "a=0.5", "text": "a"}]'),
        ("o.json", '[{"image_id": 999, "caption": "A dog."}]'),
        ("o.csv", "a,b\n1,2\n"),
        ("o.csv", "image_id,rank,caption,log_prob\n10,2,no first,-1\n"),
    ],
)
def test_resuming_something_else(infer_dataset, tmp_path, name, text):
    (tmp_path / name).write_text(text)
    done = infer_dataset("c:bare", "--output_file", tmp_path / name, "--resume")
    assert done.status == 2 and done.err.count("\n") == 1 and name in done.err
    assert (tmp_path / name).read_text() == text


def test_results_come_back_as_they_were(tmp_path):
    results = [
        Result("a, \"b\".jpg", [("Says \"hi\", ü.", -1.5), ("Other.", -2.25)]),
        Result("7", [("A dog.", -0.125)]),
    ]  # fmt: skip
    for form in ("csv", "jsonl"):
        with ResultsFile(tmp_path / f"r.{form}", form) as file:
            for result in results:
                file.add(result)
        assert read_results(tmp_path / f"r.{form}", form) == results


@pytest.mark.parametrize("form", ["txt", "json", "jsonl", "csv"])
def test_a_second_run_into_a_file_that_grows_is_refused(tmp_path, form):
    path = tmp_path / f"r.{form}"
    with ResultsFile(path, form) as file:
        file.add(Result("1", [("A dog.", -1.0)]))
        for resume in (False, True):
            with pytest.raises(UserError, match="another process is at work on .*r[.]"):
                ResultsFile(path, form, resume)
        file.add(Result("2", [("A cat.", -1.0)]))
    assert path.read_text().count(".") == 2 + 2 * (form == "csv") + 2 * (form == "jsonl")
    assert len(os.listdir(tmp_path)) == 1


@pytest.mark.parametrize("form", ["txt", "json", "jsonl", "csv"])
def test_results_go_through_links_and_pipes(tmp_path, form):
    whole, link, pipe = (tmp_path / f"{name}.{form}" for name in ("whole", "link", "pipe"))
    link.symlink_to(tmp_path / "target")
    os.mkfifo(pipe)
    read = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    for path in (whole, link, pipe):
        with ResultsFile(path, form) as file:
            file.add(Result(1, [("A dog.", -1.0)]))
    reader.join()
    assert link.is_symlink() and read == [whole.read_text()] == [(tmp_path / "target").read_text()]
    assert stat.S_ISFIFO(os.stat(pipe).st_mode) and len(os.listdir(tmp_path)) == 4
    with pytest.raises(UserError, match="--resume: .*pipe.* is not a plain file"):
        ResultsFile(pipe, form, resume=True)


@pytest.mark.parametrize("words", [1, 900])  # of 900 not even the first caption fits
@pytest.mark.parametrize("form", ["txt", "json", "jsonl", "csv"])
def test_a_full_disk_is_one_line_and_keeps_the_old_results(tmp_path, form, words):
    path = tmp_path / f"r.{form}"
    path.write_text("old")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, limit[1]))

    def write() -> None:
        with ResultsFile(path, form) as file:
            for n in range(100):
                file.add(Result(str(n), [("A dog." * words, -1.0)]))

    try:
        with pytest.raises(UserError, match=f"cannot write .*r.{form}: File too large"):
            write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert path.read_text() == "old" and len(os.listdir(tmp_path)) == 1 + (words == 1)
    if words == 1:
        assert len(ResultsFile(path, form, resume=True).earlier) > 4


def test_a_failed_run_leaves_the_old_file(tmp_path):
    path = tmp_path / "r.json"
    path.write_text("old")
    with pytest.raises(UserError), ResultsFile(path, "json") as file:
        file.add(Result(1, [("New.", -1.0)]))
        raise UserError("stop")
    assert path.read_text() == "old" and sorted(os.listdir(tmp_path)) == ["r.json", "r.json.part"]


def test_gallery(world, script, tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("<b>&.png", "two.png"):
        picture(1).save(tmp_path / "in" / name)
    out = tmp_path / "g.html"
    arguments = ("--model", world / "pixels.model", "--image_dir", tmp_path / "in", "--html", out, "--n_best", 2)
    assert script("infer.py", *arguments).status == 0

    seen = []

    class Parser(html.parser.HTMLParser):
        def handle_starttag(self, tag, attributes):
            seen.append((tag, dict(attributes)))

    Parser().feed(out.read_text())
    pictures = [attributes for tag, attributes in seen if tag == "img"]
    assert len(pictures) == 2 and all(p["src"].startswith("data:image/webp;base64,") and p["alt"] for p in pictures)
    text = out.read_text()
    assert "b" not in [tag for tag, _ in seen] and "http:" not in text and "https:" not in text
    assert "2 images of in<" in text and str(tmp_path) not in text and str(world) not in text  # no one else's folders


def test_gallery_of_a_dataset_beside_other_captions(world, infer_dataset, tmp_path, no_encoder):
    """Scores of photos with references, maps of words, and another results file: of one run, then of two files."""
    out, first, second = tmp_path / "g.html", tmp_path / "a.jsonl", tmp_path / "b.csv"
    assert infer_dataset("c:with", "--output_file", first).status == 0
    lines = [json.loads(line) for line in first.read_text().splitlines()]
    rows = [f'{line["image_id"]},1,"{line["caption"]}",-1' for line in lines[:-1]]
    second.write_text("\n".join(["image_id,rank,caption,log_prob", *rows, "99,1,Of no image.,-1"]))
    done = infer_dataset("c:with", "--html", out, "--html_attention", "--compare", second, "--output_file", first)
    assert done.status == 0, done.err
    text = out.read_text()
    assert text.count("data-maps=") == 5 and text.count('<b>B</b><p class="caption"') == 4
    assert text.count('<p class="absent">no caption</p>') == 1 and "<mark>" not in text
    assert text.count("<span>CIDEr ") == 9 and "<b>A</b> " in text and "<b>B</b> b.csv" in text
    keys = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])["keys"]
    assert keys["difference"] == [0, 0, 0, 0, 1] and keys["gain"][4] is None and keys["references"] == [1] * 5

    arguments = ("--dataset_config_file", world / "data.conf", "--dataset", "c:with", "--html", out)
    done = run_here("infer.py", *arguments, "--compare", second, first, "--scoring", "bleu")
    assert done.status == 0 and "BLEU-4" in done.out, done.err
    text = out.read_text()
    assert "4 images of c:with" in text and "Two results files side by side" in text and "log p" not in text
    assert text.count("<span>BLEU-4 ") == 8 and not (tmp_path / "results").exists()


# ---- mistakes ----


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([], "nothing to caption"),
        (["gone.png"], "gone.png"),
        (["{root}/empty"], "no images in {root}/empty"),
        (["{root}/*.gone"], "no file matches the pattern {root}/*.gone"),
        (["--image_dir", "{root}/empty"], "no images in"),
        (["--image_dir", "{root}/gone"], "no such image folder"),
        (["--dataset", "c:gone"], "unknown dataset"),
        (["--dataset", "c:nothing"], "maps.lmdb"),
        (["--dataset", "c:with", "{photo}"], "exclude"),
        (["--dataset", "c:bare", "--resize", "128"], "--resize"),
        (["{photo}", "--length_penalty", "1e30"], "--length_penalty 1e+30: must be at most 50"),
        (["{photo}", "--length_penalty=-51"], "--length_penalty -51.0: must be at least -50"),
        (["{photo}", "--sample", "--temperature", "1e-300"], "--temperature 1e-300: must be at least 0.001"),
        (["{photo}", "--sample", "--top_p", "1e-300"], "--top_p 1e-300: must be at least 1e-06"),
        (["{photo}", "--sample", "--top_p", "1.5"], "--top_p 1.5: must be at most 1"),
        (["{photo}", "--max_seq_length", "10001"], "--max_seq_length 10001: must be at most 10,000"),
        (["{photo}", "--num_workers", "9999"], "--num_workers 9999: must be at most 1,000"),
        (["{photo}", "--scoring", "cider"], "--scoring"),
        (["--dataset", "c:bare", "--scoring", "nonsense"], "nonsense"),
        (["{photo}", "--model", "{root}/gone.model"], "gone.model"),
        (["{photo}", "--model", "{root}/cut.model"], "damaged"),
        (["{photo}", "--model", "{root}/plain.model"], "does not say what made them"),
        (["--dataset", "c:bare", "--model", "{root}/plain.model", "--attention_output", "x.npz"], "no attention"),
        (
            ["--dataset", "c:bare", "--model", "{root}/plain.model", "--html", "g.html", "--html_attention"],
            "no attention",
        ),
        (["{photo}", "--html_attention"], "--html_attention is for the gallery: add --html FILE"),
        (["{photo}", "--compare", "x.json"], "--compare is for the gallery: add --html FILE"),
        (["{photo}", "--html", "g.html", "--compare", "gone.json"], "no such file: gone.json"),
        (["{photo}", "--html", "g.html", "--compare", "a", "b", "c"], "--compare: 3 files are too many"),
        (["{photo}", "--html", "g.html", "--compare", "a", "b"], "--compare with two files runs no model"),
        (["{photo}", "--vocab", "gone.json"], "gone.json"),
        (["{photo}", "--output_file", "{root}"], "{root}"),
        (["{photo}", "--output_file", "{photo}/x.json"], "--output_file"),
        (
            ["{photo}", "--output_file", "{root}/x/same.json", "--html", "{root}/x/../x/same.json"],
            "--output_file and --html name the same file",
        ),
        (["{photo}", "--compare", "same.json", "--html", "./same.json"], "--compare and --html name the same file"),
        (["{photo}", "--resume"], "--resume goes on with a results file: name one with --output_file"),
        (["{photo}", "--beam_size", "0"], "--beam_size"),
        (["{photo}", "--beam_size", "2", "--n_best", "3"], "--n_best"),
        (["{photo}", "--sample", "--beam_size", "2"], "--beam_size"),
        (["{photo}", "--temperature", "2"], "--sample"),
        (["{photo}", "--sample", "--temperature", "0"], "--temperature"),
        (["{photo}", "--sample", "--top_p", "1.5"], "--top_p"),
        (["{photo}", "--length_penalty", "nan"], "--length_penalty"),
        (["{photo}", "--device", "toaster"], "toaster"),
        (["{photo}", "--cpu", "--device", "cuda"], "exclude"),
        (["{photo}", "--recursive"], "--image_dir"),
    ],
)
def test_mistakes_are_one_line(world, script, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    (world / "cut.model").write_bytes((world / "file.model").read_bytes()[:20000])
    texts = [text.format(root=world, photo=world / "images/p0.png") for text in arguments]
    model_file = () if "--model" in texts else ("--model", world / "file.model")
    done = script("infer.py", *model_file, "--dataset_config_file", world / "data.conf", *texts)
    assert done.status == 2 and done.out == ""
    assert words.format(root=world) in done.err
    assert done.err.count("\n") == 1 and done.err.startswith("infer.py: error: ")


def test_without_a_bundled_model(world, script, monkeypatch, tmp_path):
    monkeypatch.setattr(flags, "BUNDLED", tmp_path / "none.model")
    done = script("infer.py", world / "images/p0.png")
    assert done.status == 2 and "give a model file" in done.err
    monkeypatch.setattr(flags, "BUNDLED", world / "pixels.model")
    assert script("infer.py", world / "images/p0.png").status == 0


def test_beams_rank_no_worse_than_greedy(infer_dataset, tmp_path):
    totals = []
    for beams in (1, 3, 8):
        out = tmp_path / "o.jsonl"
        assert infer_dataset("c:bare", "--beam_size", beams, "--output_file", out).status == 0
        totals.append(sum(json.loads(line)["log_prob"] for line in out.read_text().splitlines()))
    assert all(math.isfinite(total) for total in totals) and totals[0] <= totals[2] + 1e-3

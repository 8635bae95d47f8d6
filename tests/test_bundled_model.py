"""models/photos.model: captions of photos that it has never seen, with nothing but the photo on the command line."""

import hashlib
import json
from pathlib import Path

import pytest
import skimage.data
from running import ROOT

from captioning.files import read_json
from captioning.text.tokens import UNK
from model import load_captioner

MODEL, CARD = ROOT / "models" / "photos.model", ROOT / "models" / "photos.md"
PHOTOS = [Path(skimage.data.__file__).parent / name for name in ("astronaut.png", "chelsea.png", "coffee.png")]
PHOTOS += [Path(skimage.data.__file__).parent / name for name in ("rocket.jpg", "motorcycle_left.png", "camera.png")]


def check_sentence(text: str) -> None:
    """Capital, period, several known words, none three times in a row."""
    words = text.removesuffix(".").lower().split()
    assert text[0].isupper() and text.endswith(".") and len(words) >= 4, text
    assert "<unk>" not in words
    assert not any(a == b == c for a, b, c in zip(words, words[1:], words[2:])), text


def test_the_file_is_the_one_that_its_card_describes():
    contents = MODEL.read_bytes()
    assert len(contents) <= 48_000_000
    assert hashlib.sha256(contents).hexdigest() in CARD.read_text(encoding="utf-8")


def test_photos_without_any_flag(script_alone, tmp_path):
    env = {"PATH": "", "HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = script_alone("infer.py", *PHOTOS, env=env, cwd=tmp_path)
    assert done.status == 0, done.err
    lines = done.out.splitlines()
    assert len(lines) == len(PHOTOS)
    for path, line in zip(PHOTOS, lines):
        assert path.name in line
        check_sentence(line.split(": ", 1)[1])


@pytest.mark.parametrize("flags", [["--beam_size", 1], ["--beam_size", 5, "--length_penalty", 0]])
def test_other_searches_write_sentences_too(script, tmp_path, flags):
    results = tmp_path / "results.json"
    assert script("infer.py", *PHOTOS, "--output_file", results, *flags).status == 0
    rows = read_json(results, "results")
    assert len(rows) == len(PHOTOS)
    for row in rows:
        check_sentence(row["caption"])


def test_weights_are_half_on_disk_and_single_in_memory():
    captioner = load_captioner(MODEL)
    assert {str(p.dtype) for p in captioner.model.parameters()} == {"torch.float32"}
    assert captioner.vocabulary.words[UNK] == "<unk>"
    assert "training" not in captioner.info, "no optimizer state"


def test_the_statistics_of_its_runs_are_there():
    files = sorted((ROOT / "recipes" / "flickr8k").glob("*/train_stats.json"))
    assert files
    for file in files:
        for row in json.loads(file.read_text()).values():
            assert {"validation_cider", "validation_distinct", "validation_mean_length"} <= set(row)

"""model_info.py: what it says of our files and of DeepCaption's."""

import hashlib
import json
import shlex

import pytest
import torch
from deepcaption_toy import WORDS, OldModel, save
from hypothesis import given
from hypothesis import strategies as st

from captioning.checkpoint import command_history
from captioning.config import FeatureSpec, ModelConfig
from captioning.errors import shown
from model import Captioner, build_model, save_captioner
from model_info import lines
from vocabulary import Vocabulary


@pytest.fixture
def ours(tmp_path):
    provenance = {
        "extractor": "resnet152",
        "weights_sha256": "ab",
        "transform": {"size": 224, "interpolation": "bilinear"},
    }
    specs = [FeatureSpec("pooled.lmdb", (16,), True, provenance)]
    config = ModelConfig(specs, embed_size=6, hidden_size=8, share_embedding_weights=True, projection=True)
    vocabulary = Vocabulary(WORDS, counts=[1] * len(WORDS), threshold=4, dataset="toy:train")
    captioner = Captioner(build_model(config, vocabulary), vocabulary)
    path = tmp_path / "ep3.model"
    stats = {"training_loss": 2.5, "validation_cider": None}
    command = ["./train.py", "--dataset", "toy:train", "--model_name", "two words"]
    save_captioner(captioner, path, epoch=3, stats=stats, command=command, history=["./train.py first"])
    return path, captioner


def test_our_file(ours, script):
    path, captioner = ours
    done = script("model_info.py", path, "--json", "--verbose")
    assert done.status == 0, done.err
    (info,) = json.loads(done.out)
    assert info["made_by"] == "DeepCaption reborn" and info["epoch"] == 3
    assert info["bytes"] == path.stat().st_size and info["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert info["weights"]["total"] == sum(p.numel() for p in captioner.model.parameters()) + 2 * 6  # batch norm's
    assert info["config"]["hidden_size"] == 8 and info["vocabulary"]["words"] == len(WORDS)
    assert info["history"] == ["./train.py first", "./train.py --dataset toy:train --model_name 'two words'"]
    assert info["versions"]["torch"] and info["training_state"] is False
    assert info["tensors"]["decoder.embed.weight"] == ["float32", len(WORDS), 6]
    done = script("model_info.py", path, path)
    for text in (
        "DeepCaption reborn, epoch 3",
        "pooled.lmdb: 16 (a file, made by resnet152)",
        "18 words from toy:train, threshold 4",
        "training_loss 2.5",
        "./train.py first",
        "no",
    ):
        assert done.out.count(text) >= 2, text
    assert "attention size" not in done.out and "decoder.embed.weight" not in done.out


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=12), min_size=1, max_size=6))
def test_a_command_is_one_line_that_a_shell_splits_into_the_same_words(words):
    (line,) = command_history({"command": words})
    assert shlex.split(line) == words
    info = {"file": "x", "bytes": 1, "sha256": "ab", "made_by": "x", "weights": {"total": 0}, "settings": {}}
    info |= {"training_state": False, "history": [line], "tensors": {}}
    assert [text for text in lines(info, False) if text.startswith("command")] == [f"command         {shown(line)}"]
    if line.isprintable():
        assert shown(line) == line


def test_a_file_of_deepcaption(tmp_path, script):
    path = tmp_path / "ep4.model"
    save(OldModel(features=(["a.lmdb", "b.lmdb"], [])).contents, path)
    done = script("model_info.py", path, "--verbose")
    assert done.status == 0, done.err
    for text in ("DeepCaption, epoch 4", "a.lmdb: 16", "b.lmdb: counted with the one before", "yes: optimizer"):
        assert text in done.out, text
    assert "decoder.rnn.weight_ih_l0" in done.out and "./train.py --dataset toy:train" in done.out


def test_a_file_that_cannot_be_loaded_is_shown(tmp_path, script):
    path = tmp_path / "attention.model"
    save({**OldModel().contents, "attention": "SpatialAttention"}, path)
    done = script("model_info.py", path)
    assert done.status == 0 and "problem" in done.out and "with attention" in done.out, done.err
    assert "SpatialAttention" in done.out and "18 words" in done.out
    (info,) = json.loads(script("model_info.py", path, "--json").out)
    assert info["settings"]["features"] == {"external": ["pooled.lmdb"], "internal": []} and "tensors" not in info
    assert script("model_info.py", path, "--dump_vocabulary", "-").out.split() == WORDS


@pytest.mark.parametrize("extension", ["json", "pkl", "txt"])
def test_dump_vocabulary(ours, tmp_path, script, extension):
    file = tmp_path / f"vocab.{extension}"
    done = script("model_info.py", ours[0], "--dump_vocabulary", file)
    assert done.status == 0, done.err
    assert Vocabulary.load(file).words == WORDS
    assert script("model_info.py", ours[0], "--dump_vocabulary", "-").out.split("\n") == [*WORDS, ""]


def test_mistakes_are_one_line(ours, tmp_path, script):
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8\xff")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    for name, message in (
        ("photo.jpg", "photo.jpg is damaged"),
        ("none.model", "no such model file"),
        ("other.pth", "other.pth is not a model file"),
        (".", "is a folder"),
    ):
        done = script("model_info.py", tmp_path / name)
        assert done.status == 2 and message in done.err and len(done.err.splitlines()) == 1, done.err
    assert script("model_info.py", ours[0], ours[0], "--dump_vocabulary", "-").status == 2
    assert script("model_info.py", ours[0], "--json", "--dump_vocabulary", "-").status == 2
    done = script("model_info.py", ours[0], "--dump_vocabulary", tmp_path / "vocab.xml")
    assert done.status == 2 and "unknown ending" in done.err

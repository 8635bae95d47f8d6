"""The vocabulary that train.py makes from its captions: kept by their hash, refused where it would be of no use."""

import json

import pytest
from toy import FAST, make_coco, write_config, write_features

from captioning.datasets.factory import open_dataset
from captioning.errors import UserError
from training.build import get_vocabulary
from training.settings import DataSettings
from vocabulary import Vocabulary, build_vocabulary


@pytest.fixture
def root(tmp_path):
    make_coco(tmp_path, {"train": 6}, captions=2)
    write_config(tmp_path, ["train"])
    write_features(tmp_path, "pooled.npy")
    return tmp_path


def vocabulary(root, **settings) -> Vocabulary:
    settings = {"vocab_threshold": 1, "vocab_root": str(root / "vocab"), "dataset": "toy:train"} | settings
    return get_vocabulary(DataSettings(**settings), open_dataset("toy:train", str(root / "datasets.conf")))


def kept(root) -> set:
    return set((root / "vocab").glob("*.json"))


def rewrite(root, change) -> None:
    path = root / "annotations/captions_train.json"
    data = json.loads(path.read_text())
    for annotation in data["annotations"]:
        annotation["caption"] = change(annotation["caption"])
    path.write_text(json.dumps(data))


def test_it_is_kept_by_captions_and_settings(root, capsys):
    words = vocabulary(root).words
    (path,) = kept(root)
    assert f"vocabulary written to {path}" in capsys.readouterr().out
    assert vocabulary(root, dataset="another name of the section").words == words
    assert f"vocabulary from {path}, of the same captions" in capsys.readouterr().out
    vocabulary(root, vocab="REGEN")
    assert f"vocabulary written to {path}" in capsys.readouterr().out
    rewrite(root, lambda text: text.replace("grey", "black"))
    assert "black" in vocabulary(root) and "black" not in Vocabulary.load(path)
    assert "vocabulary written to" in capsys.readouterr().out and len(kept(root)) == 2
    vocabulary(root, vocab_threshold=2)
    vocabulary(root, no_tokenize=True)
    assert len(kept(root)) == 4


def test_useless_ones_are_refused_with_a_threshold_to_try(root):
    with pytest.raises(UserError, match="--vocab_threshold 99: no word of toy:train occurs that often: try --vocab_th"):
        vocabulary(root, vocab_threshold=99)
    with pytest.raises(UserError, match="of the words of toy:train would be <unk>: try --vocab_threshold 4"):
        vocabulary(root, vocab_threshold=9)
    assert not kept(root)


def test_a_vocabulary_of_other_captions_is_refused(root, script):
    build_vocabulary(["ein Hund läuft ."], 1).save(root / "german.json")
    done = script(
        "train.py", "--dataset", "toy:train", "--dataset_config_file", root / "datasets.conf", "--cpu",
        "--model_path", root / "models", "--model_name", "run", "--features", "pooled.npy", "--num_workers", 0, *FAST,
        "--vocab", root / "german.json", "--num_epochs", 1,
    )  # fmt: skip
    assert done.status == 2 and done.err.count("\n") == 1
    assert "german.json: it lacks" in done.err and "of the words of --dataset toy:train: --vocab AUTO" in done.err


def test_marks_and_half_characters_of_captions_do_not_become_words(root, capsys):
    rewrite(root, lambda text: f"<start> {text} \ud83d <end>")
    words = vocabulary(root, no_tokenize=True).words
    assert "<start>, <end> and <pad> are taken out of 12 captions" in capsys.readouterr().err
    assert not {"<", "start", "end", "\ufffd"} & set(words[4:])

"""From people's own photos and captions to a model, without a configuration file."""

import json
import os
import subprocess
import sys

import pytest
from own_data import data, picture, write_layouts, write_table
from running import ROOT
from toy import FAST, stats

from vocabulary import Vocabulary

SMALL = [flag for flag in FAST if flag not in ("--vocab_threshold", 1)] + ["--cpu", "--num_workers", 0]
CAPTIONS = data(20)


@pytest.fixture(scope="module")
def specs(tmp_path_factory):
    return write_layouts(tmp_path_factory.mktemp("own"), CAPTIONS)


@pytest.fixture
def here(tmp_path, monkeypatch, script):
    """Runs a script, which must end well, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        done = script(*arguments)
        assert done.status == 0, f"{arguments}\n{done.out}\n{done.err}"
        return done

    return run


def train(here, *flags):
    return here("train.py", *SMALL, "--features", "efficientnet_lite0", "--crop_size", 32, *flags)


def test_all_layouts_give_the_same_vocabulary_and_the_same_losses(here, specs, tmp_path):
    short = [
        "--num_batches",
        3,
        "--batch_size",
        4,
        "--num_epochs",
        1,
        "--validation_scoring",
        "none",
        "--val_fraction",
        0.2,
    ]
    losses = {}
    for name, spec in specs.items():
        done = train(here, "--dataset", spec, "--model_name", name, *short, "--val_fraction", 0.2)
        assert "vocabulary: every word is kept, because 32 captions are few" in done.err or losses
        assert "training:   16 images, 32 captions" in done.out and "validation: 4 images, 8 captions" in done.out
        losses[name] = [row["training_loss"] for row in stats(tmp_path / "models" / name).values()]
    assert len(set(map(tuple, losses.values()))) == 1, losses
    (vocabulary,) = (tmp_path / "vocab_cache").iterdir()
    assert {"roof", "red", ".", ","} <= set(Vocabulary.load(vocabulary).words)


def test_from_photos_and_a_table_to_a_gallery(here, tmp_path):
    """The commands of docs/own_data.md."""
    (tmp_path / "photos").mkdir()
    for name in CAPTIONS:
        picture(int(name[5:8])).save(tmp_path / "photos" / name)
    rows = [(name, text) for name, texts in CAPTIONS.items() for text in texts]
    write_table(tmp_path / "captions.csv", [("image", "caption"), *rows])
    own = ["--images", "photos", "--captions", "captions.csv"]
    here("check_data.py", *own, "--num_workers", 0)
    done = train(here, *own, "--val_fraction", 0.1, "--model_name", "own", "--num_epochs", 2)
    assert "validation: 2 images, 4 captions" in done.out
    best = tmp_path / "models/own/best.model"
    dataset = ["--dataset", "captions.csv", "--images", "photos", "--num_workers", 0, "--cpu"]
    done = here("infer.py", "--model", best, *dataset, "--html", "own.html", "--scoring", "bleu")
    assert "BLEU-4" in done.out and (tmp_path / "own.html").exists()
    results = json.loads((tmp_path / "results/captions_own-best.json").read_text())
    assert [entry["image_id"] for entry in results] == list(CAPTIONS)
    scored = here("score.py", "results/captions_own-best.json", "--ground_truth", "captions.csv", "--scoring", "bleu")
    assert scored.out.splitlines()[1:5] == done.out.splitlines()[:4]
    here("extract_features.py", *dataset, "--extractor", "efficientnet_lite0")
    features = "captions-efficientnet_lite0-plain.lmdb"
    more = ["--features", features, "--val_fraction", 0.1, "--model_name", "again", "--num_epochs", 1]
    here("train.py", *SMALL, *own, *more)
    here("build_vocab.py", "--dataset", "captions.csv", "--vocab_output_path", "v.json", "--keep_frequency")
    assert Vocabulary.load("v.json").threshold == 1


def test_thresholds_suit_the_size_and_a_typed_one_wins(here, tmp_path):
    rows = [(f"{number}.jpg", f"a ball {number // 2} of {number}") for number in range(2500)]
    write_table(tmp_path / "c.csv", rows)
    done = here("build_vocab.py", "--dataset", "c.csv", "--vocab_output_path", "v.json")
    assert "words that occur 2 times or more are kept, because 2,500 captions are few" in done.err
    assert "at least 2 times each" in done.out
    done = here("build_vocab.py", "--dataset", "c.csv", "--vocab_output_path", "w.json", "--vocab_threshold", 3)
    assert "are few" not in done.err and "at least 3 times each" in done.out


CHINESE = {
    "狗": ["一只狗在草地上跑。", "草地上的狗"],
    "猫": ["一只猫在睡觉。", "猫在睡觉"],
    "球": ["红色的球", "一个球。"],
}


@pytest.fixture
def chinese(tmp_path):
    (tmp_path / "图片").mkdir()
    rows = []
    for number in range(12):
        name = list(CHINESE)[number % 3]
        picture(number % 3).save(tmp_path / "图片" / f"{name}{number}.png")
        rows += [(f"{name}{number}.png", text) for text in CHINESE[name]]
    write_table(tmp_path / "数据.csv", [("image", "caption"), *rows])
    return tmp_path


def test_chinese(here, chinese):
    common = ["--dataset", "数据.csv", "--validate", "数据.csv", "--validation_scoring", "bleu,cider"]
    done = train(here, *common, "--model_name", "one", "--num_epochs", 1)
    assert "a caption has 1.0 tokens on average by --tokenizer treebank: for a language without" in done.err
    assert "the references are in a script that PTB's rules do not split" in done.err
    done = train(here, *common, "--model_name", "own", "--num_epochs", 8, "--tokenizer", "words")
    assert "tokens on average" not in done.err
    done = here("infer.py", "--model", "models/own/ep8.model", "--dataset", "数据.csv", "--scoring", "bleu,cider",
                "--html", "g.html", "--cpu", "--print_results", "--num_workers", 0)  # fmt: skip
    written = [line.partition(": ")[2] for line in done.out.splitlines()[:12]]
    assert any(written) and all(" " not in text and text.endswith("。") for text in filter(None, written)), written
    assert ' dir="auto">' in (chinese / "g.html").read_text(encoding="utf-8")
    here("train.py", *SMALL, *common, "--load_model", "models/own/ep8.model", "--model_name", "reward",
         "--num_epochs", 9, "--self_critical_from_epoch", 9)  # fmt: skip
    assert stats(chinese / "models/reward")["9"]["training_reward"] > 0


def test_any_locale(chinese):
    """Python is told to take all texts and names of files for ASCII."""
    env = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0"}
    command = [sys.executable, str(ROOT / "check_data.py"), "--dataset", "数据.csv", "--num_workers", "2"]
    done = subprocess.run(command, capture_output=True, cwd=chinese, env=env)
    assert done.returncode == 1, done.stderr.decode()
    assert "数据.csv: 12 images, 24 captions" in done.stdout.decode()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--captions", "c.csv", "--dataset", "c.csv"], "--dataset and --captions exclude each other"),
        (["--captions", "c.csv", "--val_fraction", 1], "--val_fraction 1.0: above 0 and below 1"),
        (["--captions", "c.csv", "--val_fraction", 0.1, "--validate", "x"], "--val_fraction and --validate exclude"),
        (["--captions", "c.csv", "--tokenizer", "char", "--no_tokenize"], "--no_tokenize and --tokenizer exclude"),
        (["--captions", "gone.csv"], "--captions: no such file or folder: gone.csv"),
        ([], "--dataset is required: sections of datasets.conf, such as coco:train2014, or a file"),
    ],
)  # fmt: skip
def test_mistakes(script, tmp_path, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    write_table(tmp_path / "c.csv", [("a.jpg", "a ball")])
    done = script("train.py", *flags, "--cpu")
    assert done.status == 2 and done.err.count("\n") == 1 and message in done.err

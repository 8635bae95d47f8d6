"""What docs/deepcaption.md says of the habits of DeepCaption's users, against what the scripts do."""

import json

import pytest
from running import run_here
from toy import FAST

from training.optimizers import learning_rate
from training.settings import TrainSettings


@pytest.fixture
def model(train, tmp_path):
    """models/run/ep1.model, trained for an epoch."""
    done = train("--features", "pooled.npy", "--num_epochs", 1)
    assert done.status == 0, done.err
    return train.folder / "run" / "ep1.model"


@pytest.fixture
def infer(model, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        where = ["--dataset", "toy:val", "--dataset_config_file", data / "datasets.conf", "--cpu"]
        done = run_here("infer.py", "--model", model, *where, *arguments)
        assert done.status == 0, done.err
        return done

    return call


def test_where_results_go_and_what_is_printed(infer, tmp_path):
    assert infer().out == ""
    entries = json.loads((tmp_path / "results" / "toy-val_run-ep1.json").read_text())
    assert [entry["image_id"] for entry in entries] == list(range(25, 37))
    printed = infer("--print_results").out.splitlines()
    names = [f"COCO_val_{number:012d}.jpg" for number in range(25, 37)]
    assert printed == [f"{name}: {entry['caption']}" for name, entry in zip(names, entries)]
    infer("--output_file", "x.txt")
    infer("--output_file", "x.txt", "--results_path", "there")
    lines = [f"{entry['image_id']} {entry['caption']}\n" for entry in entries]
    assert (tmp_path / "x.txt").read_text() == (tmp_path / "there/x.txt").read_text() == "".join(lines)
    infer("--output_format", "txt")
    assert (tmp_path / "results" / "toy-val_run-ep1.txt").read_text() == "".join(lines)
    infer("--no_capitalize", "--output_file", "plain.json")
    plain = [entry["caption"] for entry in json.loads((tmp_path / "plain.json").read_text())]
    assert all(entry["caption"].endswith(".") for entry in entries if entry["caption"])
    assert all(text == text.lower() for text in plain)


def test_where_models_go(model, data, tmp_path, script, monkeypatch):
    monkeypatch.chdir(tmp_path)
    common = ["--dataset", "toy:train", "--dataset_config_file", data / "datasets.conf", "--cpu", *FAST]
    common += ["--num_epochs", 2, "--load_model", model]
    assert script("train.py", *common).status == 0  # without --model_name: a folder made of the settings
    assert (tmp_path / "models" / "model-resnet152-lstm-32" / "ep2.model").exists()
    assert script("train.py", *common, "--model_name", "m", "--output_root", "output").status == 0
    assert (tmp_path / "output" / "models" / "m" / "ep2.model").exists()
    assert json.loads((model.parent / "train_stats.json").read_text()).keys() == {"1"}


def test_step_lr_does_not_ask_whether_an_epoch_is_validated():
    settings = TrainSettings(learning_rate=1.0, lr_scheduler="StepLR", lr_step_size=2)
    rates = [learning_rate(settings, step, 10, 100) for step in (0, 10, 20, 40)]
    assert rates == [1.0, 1.0, 0.5, 0.25]


@pytest.mark.parametrize(
    "script, typed, meant",
    [
        ("train.py", "--teaacher_forcing_beta", "--teacher_forcing_beta"),
        ("train.py", "--validate_o", "--validate_only"),
        ("build_vocab.py", "--threshold", "--vocab_threshold"),
        ("infer.py", "--vocab_path", "--vocab"),
        ("infer.py", "--print", "--print_results"),
    ],
)
def test_old_and_shortened_flags_are_told_the_full_one(script, typed, meant):
    done = run_here(script, typed, "x")
    assert (done.status, done.err.count("\n")) == (2, 1) and f"did you mean {meant}?" in done.err

"""Flags around a training run: logs, profile, compiling, schedules, validating trained models, several processes."""

import builtins
import csv
import json
import math
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from running import ROOT, run_here
from toy import FAST, stats

from captioning import checkpoint
from captioning.batches.inputs import plan_inputs
from captioning.datasets.factory import open_dataset
from captioning.errors import UserError
from data_loader import LoaderSettings, get_loader
from model import load_captioner
from training.flags import check_paths, parse_args
from training.losses import CrossEntropy
from training.optimizers import learning_rate, self_critical_settings
from training.report import EpochTimes, epoch_line
from training.run_folder import RunFolder
from training.self_critical import SelfCritical
from training.settings import DataSettings, TrainSettings
from training.trainer import Trainer
from training.validation import data as validation_data
from training.validation.validate_only import stats_file

# ---- schedules and clipping, against torch's own ----


def rates(settings: TrainSettings, steps: int, per_epoch: int) -> list[float]:
    return [learning_rate(settings, step, per_epoch, 100) for step in range(steps)]


def torchs(make, steps: int, every: int) -> list[float]:
    """The rates of a torch scheduler that is told of every `every`-th step."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler, found = make(optimizer), []
    for step in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if (step + 1) % every == 0:
            scheduler.step()
    return found


def test_step_lr_is_torchs():
    """Half the rate every five epochs, as in DeepCaption."""
    expected = torchs(lambda o: torch.optim.lr_scheduler.StepLR(o, 5, gamma=0.5), 48, every=3)
    assert rates(TrainSettings(learning_rate=0.1, lr_scheduler="StepLR"), 48, 3) == pytest.approx(expected)


def test_cyclical_lr_is_torchs():
    """An epoch up, an epoch down."""
    settings = TrainSettings(lr_scheduler="CyclicalLR", lr_cyclical_min=1e-4, lr_cyclical_max=1e-2)
    expected = torchs(lambda o: torch.optim.lr_scheduler.CyclicLR(o, 1e-4, 1e-2, step_size_up=7), 40, every=1)
    assert rates(settings, 40, 7) == pytest.approx(expected)


def test_cosine_is_torchs():
    expected = torchs(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 100), 100, every=1)
    settings = TrainSettings(learning_rate=0.1, lr_scheduler="cosine")
    assert [learning_rate(settings, n, 20, 5) for n in range(100)] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("typed", "optimizer", "rate"),
    [
        ({}, "adam", 5e-5),
        ({"optimizer": "sgd"}, "sgd", 5e-5),
        ({"learning_rate": 0.02}, "adam", 0.02),
        ({"self_critical_learning_rate": 1e-4}, "adam", 1e-4),
        ({"learning_rate": 0.02, "self_critical_learning_rate": 1e-4}, "adam", 1e-4),
    ],
)
def test_self_critical_training_is_by_adam_unless_typed(typed, optimizer, rate):
    settings = self_critical_settings(TrainSettings(**typed), typed)
    assert (settings.optimizer, settings.learning_rate, settings.weight_decay) == (optimizer, rate, 0)
    assert self_critical_settings(TrainSettings(weight_decay=0.1), {"weight_decay": 0.1}).weight_decay == 0.1


@pytest.fixture(scope="module")
def model(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    flags = ["--dataset", "toy:train", "--dataset_config_file", data / "datasets.conf", "--model_path", folder, "--cpu"]
    flags += ["--vocab_root", folder / "vocab", "--model_name", "run", "--features", "pooled.npy", "--num_epochs", 1]
    assert run_here("train.py", *flags, *FAST).status == 0
    return folder / "run" / "ep1.model"


def batch_of(data, captioner):
    dataset = open_dataset("toy:train", str(data / "datasets.conf"))
    inputs = plan_inputs(captioner.config, dataset)
    return next(iter(get_loader(dataset, captioner.vocabulary, inputs, LoaderSettings(batch_size=20))))


def test_plateau_waits_three_epochs(model):
    """patience 2 and a tenth, as DeepCaption's ReduceLROnPlateau; by CIDEr in self-critical training."""
    settings = TrainSettings(lr_scheduler="ReduceLROnPlateau")
    trainer = Trainer(load_captioner(model, photos=False), settings, CrossEntropy(settings), 10, 9)

    def factors(rows) -> list[float]:
        found = []
        for row in rows:
            trainer.epoch_ended({"training_loss": 1.0, **row})
            found.append(trainer.plateau.optimizer.param_groups[0]["lr"])
        return found

    losses = [{"validation_loss": x} for x in (3, 2, 2.5, 2.5, 2.5, 1)]
    assert factors(losses) == pytest.approx([1, 1, 1, 1, 0.1, 0.1])
    trainer.restart(SelfCritical(settings, reward=None), 4, 6)
    rising = [{"validation_loss": 5, "validation_cider": x} for x in (0.5, 0.6, 0.7, 0.8, 0.9)]
    assert factors(rising) == [1] * 5  # the loss is worse and worse, the captions better


def test_plateau_hears_of_validated_epochs_alone(model):
    """With --validation_step 2 the training loss of the epochs between must not count as an improvement."""
    settings = TrainSettings(lr_scheduler="ReduceLROnPlateau")
    trainer = Trainer(load_captioner(model, photos=False), settings, CrossEntropy(settings), 10, 9)
    torchs_own = torch.optim.lr_scheduler.ReduceLROnPlateau(
        torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0), factor=0.1, patience=2
    )
    for epoch in range(1, 17):
        row = {"training_loss": 3 - 0.1 * epoch}
        if epoch % 2 == 0:
            row["validation_loss"] = 3 + 0.1 * epoch
            torchs_own.step(row["validation_loss"])
        trainer.epoch_ended(row)
        assert trainer.plateau.optimizer.param_groups[0]["lr"] == torchs_own.optimizer.param_groups[0]["lr"]
    assert torchs_own.optimizer.param_groups[0]["lr"] < 0.1
    unvalidated = Trainer(trainer.captioner, settings, CrossEntropy(settings), 10, 9)
    for _ in range(4):
        unvalidated.epoch_ended({"training_loss": 1.0}, validated=False)
    assert unvalidated.plateau.optimizer.param_groups[0]["lr"] == pytest.approx(0.1)


def test_num_batches_cuts_validation_too(data, model, monkeypatch):
    monkeypatch.setattr(validation_data, "BATCH_SIZE", 5)
    settings = DataSettings(validate="toy:val", dataset_config_file=str(data / "datasets.conf"), num_batches=2)
    captioner = load_captioner(model, photos=False)
    cut = validation_data.validation_loader(captioner, settings)
    whole = validation_data.validation_loader(captioner, replace(settings, num_batches=0))
    assert [len(batch.items) for batch in cut] == [5, 5] and len(whole.items) == 12
    first, other = next(iter(cut)), next(iter(whole))
    assert torch.equal(first.inputs[0], other.inputs[0]) and torch.equal(first.captions, other.captions)


# ---- what is told ----


def test_times_of_epochs(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("training.report.time.monotonic", lambda: clock[0])
    times = EpochTimes(whole=False)
    told = []
    for took, left in ((10, 3), (90, 2), (60, 1), (4000, 0)):
        clock[0] += took
        told.append(times.end_epoch(left, 12.4))
    # how long whole epochs take is not known after the rest of one
    assert told[:2] == ["12 captions/s, 00:10", "12 captions/s, 01:30, 03:00 left"]
    assert told[2:] == ["12 captions/s, 01:00, 01:00 left", "12 captions/s, 1:06:40"]


# ---- which epoch is best ----


def test_a_score_that_is_noise_does_not_choose_the_best_epoch(tmp_path):
    folder = RunFolder(tmp_path, [])
    for epoch, (loss, cider) in enumerate([(4.0, 0.002), (3.0, 0.0), (3.5, 0.009)], 1):
        folder.add_epoch(epoch, {"training_loss": 5.0, "validation_loss": loss, "validation_cider": cider})
    assert folder.best_epoch() == 2 and folder.criterion() == "validation_loss"
    assert folder.criterion_text() == "validation_loss, as validation_cider is under 0.01"
    line = epoch_line(2, 3, folder.stats[2], "9 captions/s", folder.criterion_text())
    assert line.endswith("best by validation_loss, as validation_cider is under 0.01")
    folder.add_epoch(4, {"training_loss": 5.0, "validation_loss": 9.0, "validation_cider": 0.011})
    assert folder.best_epoch() == 4 and folder.criterion_text() == "validation_cider"
    assert epoch_line(4, 4, folder.stats[4], "9 captions/s", folder.criterion_text()).endswith("captions/s)  best")
    unscored = RunFolder(tmp_path, [])
    unscored.add_epoch(1, {"training_loss": 5.0})
    assert unscored.criterion_text() == "training_loss"


def test_grad_clip_clips_values(data, model):
    captioner = load_captioner(model, photos=False)
    settings = TrainSettings(optimizer="sgd", learning_rate=0.0, weight_decay=0, grad_clip=1e-3)
    trainer = Trainer(captioner, settings, CrossEntropy(settings))
    captioner.model.train()
    trainer.train_step(batch_of(data, captioner))
    largest = max(p.grad.abs().max().item() for p in trainer.parameters)
    assert largest == pytest.approx(1e-3)


def test_bare_lr_scheduler_and_force_epoch(train):
    done = train("--features", "pooled.npy", "--num_epochs", 4, "--lr_scheduler", "--force_epoch", 4)
    assert done.status == 0, done.err
    assert list(stats(train.folder / "run")) == ["4"]
    last = checkpoint.load(train.folder / "run" / "last.model")["training"]["trainer"]
    assert last["plateau"]["patience"] == 2


def test_optimizer_of_another_kind_is_told(train):
    assert train("--features", "pooled.npy", "--num_epochs", 1).status == 0
    last = train.folder / "run" / "last.model"
    done = train("--num_epochs", 2, "--load_model", last, "--optimizer", "sgd", name="other")
    assert done.status == 2 and "--optimizer_reset" in done.err and "adam" in done.err
    flags = ["--num_epochs", 2, "--load_model", last, "--optimizer", "sgd", "--optimizer_reset"]
    assert train(*flags, "--replace", name="other").status == 0


# ---- TensorBoard, profiler, compiling ----


def test_tensorboard_has_scalars_and_histograms(train):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    flags = ["--features", "pooled.npy", "--num_epochs", 2, "--validate", "toy:val", "--tensorboard", "--log_step", 1]
    done = train(*flags)
    assert done.status == 0, done.err
    events = EventAccumulator(str(train.folder / "run" / "tensorboard"))
    events.Reload()
    rows = stats(train.folder / "run")
    seen = [event.value for event in events.Scalars("epoch/validation_cider")]
    assert seen == pytest.approx([rows["1"]["validation_cider"], rows["2"]["validation_cider"]], rel=1e-5)
    assert len(events.Scalars("step/training_loss")) == 12
    assert {"weights/decoder.embed.weight", "gradients/decoder.linear.weight"} <= set(events.Tags()["histograms"])


def test_tensorboard_missing_is_one_line(train, monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **keywords):
        if name.startswith("torch.utils.tensorboard"):
            raise ImportError("No module named 'tensorboard'")
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    done = train("--features", "pooled.npy", "--num_epochs", 1, "--tensorboard")
    assert done.status == 2 and "pip install tensorboard" in done.err and done.err.count("\n") == 1
    assert not (train.folder / "run").exists()


def test_csv_log_of_a_run_that_goes_on(train):
    """The rows are those of train_stats.json; scheduled sampling adds the probability of the true word."""
    flags = ["--features", "pooled.npy", "--logger", "csv", "--log_step", 1, "--teacher_forcing", "sampled"]
    flags += ["--teacher_forcing_k", 10, "--teacher_forcing_beta", 5]
    assert train(*flags, "--num_epochs", 1).status == 0
    assert train(*flags, "--num_epochs", 2, "--resume").status == 0
    folder = train.folder / "run"
    with open(folder / "log_epoch.csv", newline="") as file:
        epochs = list(csv.DictReader(file))
    for row, (epoch, figures) in zip(epochs, stats(folder).items(), strict=True):
        assert row.pop("epoch") == epoch and {name: float(value) for name, value in row.items()} == figures
    with open(folder / "log_step.csv", newline="") as file:
        steps = list(csv.DictReader(file))
    assert [int(row["step"]) for row in steps] == list(range(1, 13))
    for row in steps:
        truth = 10 / (10 + math.exp(int(row["step"]) * 5 / 10))  # k / (k + exp(i * beta / k))
        assert float(row["teacher_forcing"]) == pytest.approx(truth)


@pytest.mark.parametrize("batches, recorded", [(0, True), (2, False)])
def test_profiler_writes_a_table_and_a_trace(train, batches, recorded):
    flags = ["--features", "pooled.npy", "--num_epochs", 1, "--num_batches", batches, "--profiler"]
    done = train(*flags)
    assert done.status == 0, done.err
    folder = train.folder / "run"
    assert (folder / "profile.txt").exists() == recorded
    if recorded:
        assert "aten::" in (folder / "profile.txt").read_text()
        assert json.loads((folder / "trace.json").read_text())["traceEvents"]
    else:
        assert "profile: none" in done.out


def test_compiling_is_left_out_on_a_cpu(train):
    done = train("--features", "pooled.npy", "--num_epochs", 1, "--compile", "--device", "cpu")
    assert done.status == 0 and "--compile is left out on a CPU" in done.err and done.err.count("\n") == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="compiling is for a GPU")
def test_a_compiled_encoder_trains(train):
    flags = ["--features", "efficientnet_lite0", "--num_epochs", 1, "--num_batches", 2, "--num_workers", 0]
    done = train(*flags, "--compile", "--device", "cuda")
    assert done.status == 0 and done.err == ""


# ---- validating trained models ----


def test_validate_only_passes_over_what_is_known(train):
    assert train("--features", "pooled.npy", "--num_epochs", 2).status == 0
    folder = train.folder / "run"
    one, two, best, last = (folder / f"{name}.model" for name in ("ep1", "ep2", "best", "last"))
    common = ["--validate", "toy:val", "--validate_only", "--load_model"]
    assert train(*common, one).status == 0
    done = train(*common, one, two, best, last, "--skip_existing_validations")
    assert done.status == 0, done.err
    assert done.out.count("passed over") == 2  # ep1, and best.model, which is ep1 or ep2
    rows = json.loads((folder / "train_stats-toy-val.json").read_text())
    assert list(rows) == ["1", "2"] and rows["1"]["validation_cider"] >= 0
    assert (folder / "train_stats-toy-val-last.json").exists()
    before = json.dumps(rows)
    rows["1"] = {"validation_loss": 1.0}  # measured without scores
    (folder / "train_stats-toy-val.json").write_text(json.dumps(rows))
    done = train(*common, one, "--skip_existing_validations")
    assert "passed over" not in done.out
    assert json.dumps(json.loads((folder / "train_stats-toy-val.json").read_text())) == before
    assert train("--features", "pooled.npy", "--num_epochs", 1, "--replace").status == 0
    assert not list(folder.glob("train_stats-*"))  # figures of models that are gone


def test_validate_only_goes_on_after_a_bad_model(train):
    assert train("--features", "pooled.npy", "--num_epochs", 1).status == 0
    bad, good = train.folder / "run" / "bad.model", train.folder / "run" / "ep1.model"
    bad.write_text("nothing")
    done = train("--validate", "toy:val", "--validate_only", "--load_model", bad, good)
    assert done.status == 1 and "bad.model" in done.out and "1 of 2 models" in done.out
    assert stats_file(good, "toy:val").exists()
    assert train("--validate", "toy:val", "--validate_only", "--load_model", bad).status == 2
    stats_file(good, "toy:val").write_text("[1]")
    done = train("--validate", "toy:val", "--validate_only", "--load_model", good)
    assert done.status == 2 and "train_stats-toy-val.json" in done.err


def test_skipping_needs_validate_only(train):
    done = train("--features", "pooled.npy", "--skip_existing_validations")
    assert done.status == 2 and "--validate_only" in done.err


# ---- several processes ----


def test_processes_decide_alike(data, tmp_path):
    """torchrun with two processes on the CPU: one run, one set of files.

    Only the first process validates; both stop early together and turn self-critical from one epoch, or one of them
    would wait for the other for ever.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29613"]
    command += [ROOT / "train.py", "--dataset", "toy:train", "--features", "pooled.npy", "--num_epochs", 40, "--cpu"]
    command += ["--dataset_config_file", data / "datasets.conf", "--model_path", tmp_path, "--model_name", "run"]
    command += ["--vocab_root", tmp_path / "vocab", "--validate", "toy:val", *FAST, "--early_stopping", 3]
    command += ["--self_critical_from_epoch", 8, "--lr_scheduler", "ReduceLROnPlateau", "--learning_rate", 0.05]
    command += ["--self_critical_learning_rate", 1e-9, "--self_critical_loss", "mixed_with_face"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=240, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("stopped early") == 1 and done.stdout.count("goes on from epoch") == 1
    rows = stats(tmp_path / "run")
    assert 9 <= len(rows) < 40 and list(rows) == [str(n + 1) for n in range(len(rows))]
    assert done.stdout.count("epoch 2/40") == 1
    state = checkpoint.load(tmp_path / "run" / "last.model")["training"]["trainer"]
    assert state["turned"] == 8 and state["word_counts"].sum() > 0


# ---- several models, one after the other ----


def weights_of(path) -> dict:
    return checkpoint.load(path)["state"]


@pytest.fixture
def two_models(train):
    """a/ep1.model and b/ep1.model."""
    for name, seed in (("a", 1), ("b", 2)):
        assert train("--features", "pooled.npy", "--num_epochs", 1, "--seed", seed, name=name).status == 0
    return [train.folder / name / "ep1.model" for name in "ab"]


def test_several_models_are_trained_one_after_the_other(train, two_models):
    """The same numbers as of two runs, each in a folder of its own; the line may be repeated with --resume."""
    flags = ["--num_epochs", 2, "--validate", "toy:val"]
    for path in two_models:
        assert train(*flags, "--load_model", path, name=f"alone-{path.parent.name}").status == 0
    done = train(*flags, "--load_model", *two_models, name="on")
    assert done.status == 0, done.err
    for name in "ab":
        own, alone = train.folder / f"on-{name}", train.folder / f"alone-{name}"
        assert stats(own) == stats(alone) and list(stats(own)) == ["2"]
        weights = weights_of(own / "ep2.model")
        assert all(torch.equal(value, weights[key]) for key, value in weights_of(alone / "ep2.model").items())
    assert not (train.folder / "on").exists()
    words = ["--dataset", "generic", "--load_model", *two_models, "--model_path", train.folder, "--model_name", "on"]
    with pytest.raises(UserError, match="on-a holds a run already"):  # before the first of them is trained
        check_paths(parse_args("", list(map(str, words))))
    done = train("--num_epochs", 3, *flags[2:], "--load_model", *two_models, "--resume", name="on")
    assert done.status == 0 and done.out.count("resumed at epoch 3") == 2
    assert [list(stats(train.folder / f"on-{name}")) for name in "ab"] == [["2", "3"]] * 2


def test_several_models_without_a_name(train, two_models, script, data, tmp_path):
    """The folder of a model has the name of the one that it comes from, as with DeepCaption; of two epochs, theirs."""
    common = ["--dataset", "toy:train", "--dataset_config_file", data / "datasets.conf", "--cpu", *FAST]
    common += ["--num_epochs", 2, "--model_path", tmp_path / "onwards"]
    assert script("train.py", *common, "--load_model", *two_models).status == 0
    assert {path.name for path in (tmp_path / "onwards").iterdir()} == {"a", "b"}
    again = two_models[0].with_name("best.model")
    assert script("train.py", *common, "--load_model", two_models[0], again).status == 0
    assert {"a-ep1", "a-best"} < {path.name for path in (tmp_path / "onwards").iterdir()}
    done = script("train.py", *common, "--load_model", again, again)
    assert (done.status, done.err.count("\n")) == (2, 1) and "would both be trained in a-best" in done.err


def test_a_model_that_cannot_be_trained_is_left_out(train, two_models, tmp_path):
    bad = tmp_path / "c" / "bad.model"
    bad.parent.mkdir()
    bad.write_bytes(b"nothing")
    done = train("--num_epochs", 2, "--load_model", two_models[0], bad, two_models[1], name="on")
    assert done.status == 1 and f"{bad}: left out: " in done.out and "1 of 3 models could not be trained on" in done.out
    assert all((train.folder / f"on-{name}" / "ep2.model").exists() for name in "ab")
    assert train("--num_epochs", 2, "--load_model", bad, bad.rename(tmp_path / "x.model"), name="all").status == 2

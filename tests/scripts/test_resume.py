"""Nothing of a training run is lost, by signals, crashes, damaged files, other settings or numbers that are none."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, TimeoutError

import pytest
import torch
from PIL import Image
from running import ROOT
from toy import FAST, differences, feature_vector, make_coco, stats, write_config, write_features

from captioning import checkpoint
from captioning.decoder.paragraph import RegionPooling
from captioning.decoder.sentence import ImageEmbedding
from captioning.errors import UserError
from captioning.locks import FileLock
from training.losses import CrossEntropy
from training.trainer import Trainer
from training.validation.measuring import Validation
from training.validation.validate_only import add_row

POOLED = ["--features", "pooled.npy", "--validation_scoring", "bleu"]
MANY = [*POOLED, "--validate", "toy:val", "--num_epochs", 3, "--lr_scheduler", "--ema", 0.9, "--early_stopping", 2]


def only_error(done, *told: str) -> str:
    """The one line that a run ended with, which holds all of `told`."""
    assert done.status == 2 and done.err.count("\n") == 1, (done.status, done.err)
    assert all(text in done.err for text in told), done.err
    return done.err


# ---- validation ----


def in_validation(monkeypatch, epoch: int, event) -> None:
    """Have `event()` happen when so many epochs have been trained, while they are validated."""
    real, count = Validation.measure, []

    def measure(*arguments):
        count.append(1)
        if len(count) == epoch:
            event()
        return real(*arguments)

    monkeypatch.setattr(Validation, "measure", measure)


def fails() -> None:
    raise UserError("the validation failed")


def crashes() -> None:
    raise RuntimeError("a fault of the program")


@pytest.mark.parametrize("event, epoch", [("signal", 1), ("signal", 3), ("error", 2), ("crash", 1)])
def test_an_epoch_is_not_lost_in_its_validation(train, monkeypatch, event, epoch):
    assert train(*MANY, name="whole").status == 0
    events = {"signal": lambda: signal.raise_signal(signal.SIGTERM), "error": fails, "crash": crashes}
    with monkeypatch.context() as patch:
        in_validation(patch, epoch, events[event])
        if event == "crash":
            with pytest.raises(RuntimeError, match="a fault"):
                train(*MANY, name="cut")
        else:
            assert train(*MANY, name="cut").status == {"signal": 128 + signal.SIGTERM, "error": 2}[event]
    position = checkpoint.load(train.folder / "cut" / "last.model")["training"]
    assert (position["epoch"], position["batch"]) == (epoch, 6)  # all of its batches are done
    steps, real = [], Trainer.train_step
    monkeypatch.setattr(Trainer, "train_step", lambda self, batch: steps.append(self.step) or real(self, batch))
    done = train(*MANY, "--resume", name="cut")
    assert done.status == 0, done.err
    assert steps == list(range(6 * epoch, 18))
    assert differences(train.folder / "cut", train.folder / "whole") == ""


def test_a_validation_loss_that_is_not_finite_ends_the_run(train, monkeypatch):
    monkeypatch.setattr(Validation, "measure", lambda *arguments: {"validation_loss": float("nan")})
    only_error(train(*MANY), "--validate", "not a finite number", "last.model holds the epoch")
    assert [path.name for path in (train.folder / "run").glob("*.model")] == ["last.model"]


# ---- numbers that are not finite ----


def poison(monkeypatch, step: int, what: str) -> None:
    """Make the loss, or a gradient alone, not finite at `step`."""
    real = CrossEntropy.__call__

    def call(self, captioner, batch, number):
        loss = real(self, captioner, batch, number)
        if number == step:
            weight = captioner.model.decoder.linear.bias
            bad = (weight - weight.detach()).abs().sqrt().sum()  # 0, and its slope is infinite
            loss.parts.append(loss.parts[0]._replace(value=bad * float("nan") if what == "loss" else bad))
        return loss

    monkeypatch.setattr(CrossEntropy, "__call__", call)


@pytest.mark.parametrize(
    "what, more",
    [
        ("loss", ["--log_step", 1000]),
        ("gradient", ["--save_every", 1, "--log_step", 1]),
        ("gradient", ["--grad_clip", 1]),
    ],
)
def test_steps_that_are_not_finite_are_not_taken(train, monkeypatch, what, more):
    """Step 9 of the second epoch is bad: what was saved before it stays, to the bit."""
    poison(monkeypatch, 8, what)
    only_error(train(*POOLED, "--num_epochs", 3, *more), "not a finite number at step 9", "--learning_rate")
    folder = train.folder / "run"
    assert sorted(path.name for path in folder.glob("*.model")) == ["best.model", "ep1.model", "last.model"]
    last = checkpoint.load(folder / "last.model")
    assert last["training"]["trainer"]["step"] == (8 if "--save_every" in more else 6)
    assert all(torch.isfinite(x).all() for x in last["state"].values())
    monkeypatch.undo()
    assert train(*POOLED, "--num_epochs", 3, *more, "--resume").status == 0
    assert train(*POOLED, "--num_epochs", 3, *more, name="whole").status == 0
    assert differences(folder, train.folder / "whole") == ""


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_where_a_device_would_be_waited_for_such_steps_are_told_later(train, monkeypatch, what):
    """As on a GPU: from step 9 on no weight changes, and the next save or line of the log ends the run."""
    monkeypatch.setattr(Trainer, "waits_for_nothing", False)
    poison(monkeypatch, 8, what)
    weights, real = [], Trainer.train_step

    def step(self, batch):
        found = real(self, batch)
        weights.append(self.captioner.model.decoder.linear.weight.detach().clone())
        return found

    monkeypatch.setattr(Trainer, "train_step", step)
    flags = [*POOLED, "--num_epochs", 3, "--optimizer", "sgd", "--weight_decay", 0, "--log_step", 1000]
    only_error(train(*flags), "not a finite number at step 9")
    assert len(weights) == 12 and not torch.equal(weights[6], weights[7])
    assert all(torch.equal(weights[7], after) for after in weights[8:])
    assert checkpoint.load(train.folder / "run" / "last.model")["training"]["epoch"] == 2


@pytest.mark.parametrize("name", ["image.bn.running_mean", "linear.bias"])
def test_a_model_that_is_not_finite_is_not_saved(train, monkeypatch, name):
    """A buffer or a weight may become so without any gradient."""
    real = Trainer.train_step

    def step(self, batch):
        found = real(self, batch)
        if self.step == 12:  # the last of the epoch
            part, _, last = name.rpartition(".")
            getattr(self.captioner.model.decoder.get_submodule(part), last).data[0] = float("inf")
        return found

    monkeypatch.setattr(Trainer, "train_step", step)
    only_error(train(*POOLED, "--num_epochs", 3, "--log_step", 1000), "not finite", name)
    folder = train.folder / "run"
    assert checkpoint.load(folder / "last.model")["training"]["trainer"]["step"] == 6
    assert not (folder / "ep2.model").exists()


# ---- files that are removed, damaged, or another process' ----


def test_keep_leaves_the_newest_epochs_and_the_best(train, monkeypatch):
    losses = iter([3.0, 1.0, 2.5, 2.4, 2.3, 2.2])
    monkeypatch.setattr(Validation, "measure", lambda *arguments: {"validation_loss": next(losses)})
    flags = [*POOLED, "--validate", "toy:val", "--keep", 2]
    assert train(*flags, "--num_epochs", 4).status == 0
    folder = train.folder / "run"
    names = {path.name for path in folder.glob("*.model")}
    assert names == {"ep2.model", "ep3.model", "ep4.model", "best.model", "last.model"}
    (folder / "ep20.model").write_text("of somebody else")
    assert train(*flags, "--num_epochs", 6, "--resume").status == 0
    names = {path.name for path in folder.glob("*.model")}
    assert names == {"ep2.model", "ep5.model", "ep6.model", "ep20.model", "best.model", "last.model"}
    assert checkpoint.load(folder / "best.model")["epoch"] == 2 and list(stats(folder)) == list("123456")


def test_a_damaged_last_model_names_the_newest_sound_epoch(train):
    flags = [*POOLED, "--validate", "toy:val", "--lr_scheduler", "cosine"]
    assert train(*flags, "--num_epochs", 4).status == 0
    folder = train.folder / "run"
    for name in ("last", "ep4"):
        data = bytearray((folder / f"{name}.model").read_bytes())
        data[len(data) // 2] ^= 4
        (folder / f"{name}.model").write_bytes(data)
    before = stats(folder)
    only_error(train(*flags, "--num_epochs", 4, "--resume"), "last.model", "damaged", "ep3.model", "--resume --resume")
    assert stats(folder) == before
    done = train(*flags, "--num_epochs", 4, "--resume", "--resume")
    assert done.status == 0, done.err
    assert "goes on after epoch 3" in done.out and done.out.count("loss") and "epoch 4/4" in done.out
    assert [stats(folder)[n] for n in "123"] == [before[n] for n in "123"]
    assert stats(folder)["4"]["learning_rate"] == before["4"]["learning_rate"]  # the schedule goes on too
    assert checkpoint.load(folder / "last.model")["training"]["trainer"]["step"] == 24
    assert train(*flags, "--num_epochs", 4, "--resume").status == 0


def test_a_lost_last_model_is_replaced_by_an_epoch_on_request(train):
    assert train(*POOLED, "--num_epochs", 2).status == 0
    (train.folder / "run" / "last.model").unlink()
    done = train(*POOLED, "--num_epochs", 3, "--resume", "--resume")
    assert done.status == 0 and "goes on after epoch 2" in done.out, done.err
    assert list(stats(train.folder / "run")) == ["1", "2", "3"]


def test_without_any_sound_epoch_there_is_an_error(train):
    assert train(*POOLED, "--num_epochs", 1).status == 0
    for name in ("last", "ep1"):
        (train.folder / "run" / f"{name}.model").write_text("nothing")
    only_error(train(*POOLED, "--num_epochs", 2, "--resume", "--resume"), "no epN.model", "--load_model")


def test_one_process_at_a_time_trains_in_a_folder(train):
    assert train(*POOLED, "--num_epochs", 1).status == 0
    folder = train.folder / "run"
    assert not (folder / ".lock").exists()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    code = "from captioning.locks import *; lock = FileLock(sys.argv[1], ''); print(flush=True); input()"
    command = [sys.executable, "-c", f"import sys; {code}", folder / ".lock"]
    other = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    other.stdout.readline()
    for more in ([], ["--resume"], ["--resume", "--resume"], ["--replace"]):
        only_error(train(*POOLED, "--num_epochs", 2, *more), "another process", "--model_name")
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"} == before
    done = train("--validate", "toy:val", "--validate_only", "--load_model", folder / "ep1.model")
    assert done.status == 0, done.err
    other.kill()
    other.wait()
    assert train(*POOLED, "--num_epochs", 2, "--resume").status == 0
    assert not (folder / ".lock").exists()


def test_figures_of_two_validations_at_a_time_are_both_kept(tmp_path):
    """The second one waits until the first has written."""
    file = tmp_path / "train_stats-toy-val.json"
    lock = FileLock(tmp_path / ".train_stats-toy-val.json.lock", "it")
    with ThreadPoolExecutor(1) as thread:
        other = thread.submit(add_row, file, 2, {"validation_loss": 2.0})
        with pytest.raises(TimeoutError):
            other.result(0.3)
        lock.release(remove=True)
        other.result()
    add_row(file, 1, {"validation_loss": float("nan")})
    assert json.loads(file.read_text()) == {"1": {"validation_loss": None}, "2": {"validation_loss": 2.0}}
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


# ---- other settings ----


@pytest.fixture
def stopped(train, monkeypatch):
    """A run that ended at step 8, in the second epoch; its flags."""
    flags = [*POOLED, "--validate", "toy:val", "--num_epochs", 3, "--save_every", 2, "--dropout", 0.2]
    real = Trainer.train_step

    def step(self, batch):
        if self.step == 8:
            raise KeyboardInterrupt
        return real(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", step)
        assert train(*flags).status == 130
    return flags


@pytest.mark.parametrize(
    "more, told",
    [
        (["--batch_size", 40, "--seed", 5], ["--batch_size was 20, now 40", "--seed was 42, now 5"]),
        (["--optimizer", "sgd"], ["--optimizer was adam, now sgd"]),
        (["--lr_scheduler", "cosine"], ["--lr_scheduler was None, now cosine"]),
        (["--weight_decay", 0.1, "--grad_clip", 1], ["--weight_decay", "--grad_clip was None, now 1.0"]),
        (["--dropout", 0.3], ["--dropout was 0.2, now 0.3"]),
        (["--num_batches", 4], ["--num_batches was 0, now 4"]),
        (["--ema", 0.9], ["--ema was 0.0, now 0.9"]),
        (["--validate", "toy:train"], ["--validate (a checksum"]),
        (["--self_critical_from_epoch", 2], ["--self_critical_from_epoch was -1, now 2"]),
    ],
    ids=lambda value: str(value[0]).strip("-") if str(value[0]).startswith("--") else "",
)
def test_other_settings_are_named_and_refused(train, stopped, more, told):
    before = (train.folder / "run" / "last.model").read_bytes()
    only_error(train(*stopped, *more, "--resume"), *told, "--resume_changed")
    assert (train.folder / "run" / "last.model").read_bytes() == before
    done = train(*stopped, *more, "--resume_changed")
    assert done.status == 0, done.err
    assert all(text in done.out for text in told) and list(stats(train.folder / "run")) == ["1", "2", "3"]
    assert train(*stopped, *more, "--resume").status == 0  # the new settings are the run's now


def test_what_a_model_is_made_of_cannot_change(train, stopped):
    for flag in ("--resume", "--resume_changed"):
        only_error(train(*stopped, "--num_layers", 2, flag), "--num_layers was 1, now 2", "--model_name")


def test_settings_that_no_number_depends_on_may_change(train, stopped, data, tmp_path):
    """Also where data lie, and that the run turns self-critical after what is done."""
    assert train(*stopped, name="whole").status == 0
    shutil.copytree(data, tmp_path / "moved")
    free = ["--num_workers", 1, "--save_every", 1, "--log_step", 1, "--keep", 9, "--verbose", "--early_stopping", 9]
    free += ["--dataset_config_file", tmp_path / "moved" / "datasets.conf", "--self_critical_samples", 2]
    free += ["--lr_step_size", 5, "--features", tmp_path / "moved" / "features" / "pooled.npy"]
    done = train(*stopped, *free, "--self_critical_from_epoch", 4, "--resume")
    assert done.status == 0, done.err
    parts = (
        "Python and its packages",
        "images and captions",
        "vocabulary and model",
        "feature files",
        "the first step",
    )
    assert all(re.search(rf"^start: +\d+\.\d s {part}$", done.out, re.MULTILINE) for part in parts)  # --verbose
    assert stats(train.folder / "run") == stats(train.folder / "whole")
    last = [checkpoint.load(train.folder / name / "ep3.model")["state"] for name in ("run", "whole")]
    assert all(torch.equal(last[0][name], last[1][name]) for name in last[1])
    done = train(*stopped, *free, "--self_critical_from_epoch", 4, "--num_epochs", 4, "--resume")
    assert done.status == 0 and "training_reward" in stats(train.folder / "run")["4"], done.err
    refused = train(
        *stopped, *free, "--self_critical_samples", 3, "--num_epochs", 5, "--resume", "--validation_step", 1
    )
    only_error(refused, "--self_critical_samples was 2, now 3", "--self_critical_from_epoch was 4, now -1")


def test_other_features_and_captions_under_the_same_name_are_noticed(train, stopped, data, tmp_path):
    shutil.copytree(data, tmp_path / "moved")
    write_features(tmp_path / "moved", "pooled.npy", lambda number: feature_vector(number + 1))
    config = ["--dataset_config_file", tmp_path / "moved" / "datasets.conf"]
    only_error(train(*stopped, *config, "--resume"), "--dataset (a checksum of images, captions and features) was")
    shutil.copy(data / "features" / "pooled.npy", tmp_path / "moved" / "features")
    file = tmp_path / "moved" / "annotations" / "captions_train.json"
    captions = json.loads(file.read_text())
    captions["annotations"].pop()
    file.write_text(json.dumps(captions))
    only_error(train(*stopped, *config, "--resume"), "--dataset (a checksum of images, captions and features) was")
    words = checkpoint.load(train.folder / "run" / "last.model")["vocabulary"]["words"][4:]
    (tmp_path / "other.txt").write_text("\n".join(["zebra", *words]))
    done = train(*stopped, "--vocab", tmp_path / "other.txt", "--resume_changed")
    only_error(done, "--vocab gives another vocabulary", "cannot change")


def test_the_position_within_an_epoch_follows_the_size_of_batches(train, stopped):
    done = train(*stopped, "--batch_size", 40, "--resume_changed")
    assert done.status == 0 and "resumed at epoch 2, batch 1" in done.out, (done.out, done.err)
    assert "captions come twice" in done.out  # 2 of 6 batches were done: now 1 of 3


def test_a_last_model_without_settings_goes_on_with_a_note(train, stopped):
    file = train.folder / "run" / "last.model"
    contents = checkpoint.load(file)
    del contents["training"]["settings"]
    checkpoint.save(contents, file)
    done = train(*stopped, "--resume")
    assert done.status == 0 and "note:" in done.out and "older version" in done.out


# ---- nothing to do ----


def test_after_early_stopping_there_is_nothing_to_do(train, monkeypatch):
    losses = iter([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    monkeypatch.setattr(Validation, "measure", lambda *arguments: {"validation_loss": next(losses)})
    flags = [*POOLED, "--validate", "toy:val", "--num_epochs", 9]
    assert "stopped early" in train(*flags, "--early_stopping", 2).out
    before = (train.folder / "run" / "last.model").read_bytes()
    done = train(*flags, "--early_stopping", 2, "--resume")
    assert done.status == 0 and re.search(r"^nothing to do: .*--early_stopping 2", done.out, re.MULTILINE)
    assert (train.folder / "run" / "last.model").read_bytes() == before
    done = train(*flags, "--early_stopping", 4, "--resume")  # more patience: two epochs more, as without the stop
    assert done.status == 0 and list(stats(train.folder / "run")) == list("12345")


def test_after_a_schedule_that_ends_at_0_there_is_nothing_to_do(train):
    flags = [*POOLED, "--lr_scheduler", "cosine"]
    assert train(*flags, "--num_epochs", 2).status == 0
    for epochs in (2, 4):
        done = train(*flags, "--num_epochs", epochs, "--resume")
        assert done.status == 0 and "nothing to do" in done.out and list(stats(train.folder / "run")) == ["1", "2"]
    assert "--resume_changed" in done.out
    done = train(*flags, "--num_epochs", 4, "--resume_changed")
    assert done.status == 0 and list(stats(train.folder / "run")) == list("1234"), done.err
    rates = [row["learning_rate"] for row in stats(train.folder / "run").values()]
    assert rates[2] > rates[3] > 0


def test_a_longer_schedule_is_another_one(train):
    flags = [*POOLED, "--lr_scheduler", "cosine", "--num_epochs"]
    done = train(*flags, 3, "--num_batches", 2)
    assert done.status == 0
    contents = checkpoint.load(train.folder / "run" / "last.model")
    contents["training"]["epoch"] = 3  # as if it had been stopped before its end
    checkpoint.save(contents, train.folder / "run" / "last.model")
    only_error(train(*flags, 5, "--num_batches", 2, "--resume"), "--num_epochs was 3, now 5", "--resume_changed")


# ---- several processes ----

RANKS = """
import os, signal, sys
sys.path.insert(0, sys.argv.pop(1))
import train
from captioning.errors import run
from training.trainer import Trainer

signals = {"stops": signal.SIGTERM, "is lost": signal.SIGKILL}
number, real = signals.get(sys.argv.pop(1)), Trainer.train_step

def step(self, batch):
    if number and self.step == 4 and os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os.kill(os.getpid(), number)
    return real(self, batch)

Trainer.train_step = step
sys.exit(run(train.main, train.parse_args()))
"""


@pytest.fixture
def ranks(data, tmp_path):
    """Runs RANKS under torchrun: ranks(processes, what happens in step 4, flags of train.py, options of torchrun)."""
    (tmp_path / "ranks.py").write_text(RANKS)

    def run(count: int, what: str, *arguments, options=()):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", count, *options]
        command += [tmp_path / "ranks.py", ROOT, what, "--dataset", "toy:train", *POOLED, *FAST, "--cpu"]
        command += ["--dataset_config_file", data / "datasets.conf", "--model_path", tmp_path, "--num_epochs", 3]
        command += ["--vocab_root", tmp_path / "v", *arguments]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=300, env=env)

    return run


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_after_the_same_step(ranks, tmp_path):
    done = ranks(2, "goes on", "--model_name", "whole")
    assert done.returncode == 0, done.stderr
    assert ranks(2, "stops", "--model_name", "cut").returncode != 0
    position = checkpoint.load(tmp_path / "cut" / "last.model")["training"]
    assert (position["epoch"], position["batch"]) == (2, 2)
    other = ranks(1, "goes on", "--resume", "--model_name", "cut")
    assert other.returncode != 0 and "number of processes was 2, now 1" in other.stderr
    done = ranks(2, "goes on", "--resume", "--model_name", "cut")
    assert done.returncode == 0, done.stderr
    assert differences(tmp_path / "cut", tmp_path / "whole") == ""


@pytest.mark.slow
def test_another_number_of_processes_goes_on_exactly_after_an_epoch(ranks, tmp_path):
    """One process with the batches of two: the run is that of one process from the start, but for rounding.

    By SGD: Adam makes as much of a gradient that is nothing but rounding as of any other.
    """
    sgd = ["--optimizer", "sgd", "--learning_rate", 0.2]
    assert ranks(2, "goes on", "--model_name", "cut", *sgd, "--num_epochs", 1).returncode == 0
    one = [*sgd, "--batch_size", 2 * int(FAST[FAST.index("--batch_size") + 1])]
    done = ranks(1, "goes on", "--model_name", "cut", *one, "--resume_changed")
    assert done.returncode == 0, done.stderr
    assert "number of processes was 2, now 1" in done.stdout + done.stderr
    assert ranks(1, "goes on", "--model_name", "whole", *one).returncode == 0
    found, wanted = (checkpoint.load(tmp_path / name / "ep3.model")["state"] for name in ("cut", "whole"))
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.slow
def test_torchrun_restarts_a_run_that_lost_a_process(ranks, tmp_path):
    """The processes of the second attempt find each other, and go on with what the first one saved."""
    assert ranks(2, "goes on", "--model_name", "whole").returncode == 0
    done = ranks(2, "is lost", "--resume", "--model_name", "cut", options=("--max_restarts", 1))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("another process has ended") == 1 and "resumed at epoch 2, batch 0" in done.stdout
    assert differences(tmp_path / "cut", tmp_path / "whole") == ""


# ---- images ----


def test_an_epoch_without_a_readable_image_ends_the_run(tmp_path, script):
    make_coco(tmp_path, {"train": 4}, size=32)
    config = write_config(tmp_path, ["train"], features=False)
    for photo in (tmp_path / "images" / "train").iterdir():
        photo.write_bytes(photo.read_bytes()[:200])
    common = ["--dataset", "toy:train", "--dataset_config_file", config, "--features", "efficientnet_lite0", "--cpu"]
    common += ["--model_path", tmp_path, "--vocab_root", tmp_path, "--vocab_threshold", 1, "--num_workers", 0]
    done = script("train.py", *common, "--model_name", "run", "--num_epochs", 2)
    assert done.status == 2 and "no image could be read in epoch 1" in done.err.splitlines()[-1]
    assert not list((tmp_path / "run").glob("*.model"))
    good = next((tmp_path / "images" / "train").iterdir())
    Image.new("RGB", (40, 40)).save(good)  # one is left of the batch
    done = script("train.py", *common, "--model_name", "run", "--num_epochs", 1)
    assert done.status == 1 and "epoch 1/1" in done.out, done.err


@pytest.mark.parametrize("layer", [ImageEmbedding(5, 4), RegionPooling(5, 4)])
def test_a_batch_of_one_image_is_normalised_by_the_running_statistics(layer):
    wrapped = (lambda x: layer([x])) if isinstance(layer, RegionPooling) else layer
    layer.train()
    wrapped(torch.randn(8, 5) + 3)
    before = {name: value.clone() for name, value in layer.bn.named_buffers()}
    one = torch.randn(1, 5)
    found = wrapped(one)
    assert all(torch.equal(value, before[name]) for name, value in layer.bn.named_buffers())
    assert torch.equal(found, wrapped(one)) and found.requires_grad
    layer.eval()
    assert torch.allclose(found, wrapped(one), atol=1e-6)

"""train.py through its command line, on toy data."""

import json
import signal
import subprocess
import sys
import time

import pytest
import torch
from running import ROOT
from toy import FAST, stats

from captioning import checkpoint
from captioning.encoder import encoder
from captioning.scoring import calibration
from model import load_captioner


def test_run_learns_and_leaves_its_files(train):
    done = train("--features", "pooled.npy", "--validate", "toy:val", "--num_epochs", 12)
    assert done.status == 0, done.err
    folder = train.folder / "run"
    files = {path.name for path in folder.iterdir()}
    assert {"ep1.model", "ep12.model", "best.model", "last.model", "train_stats.json"} <= files
    rows = stats(folder)
    assert list(rows) == [str(n) for n in range(1, 13)]
    assert rows["12"]["training_loss"] < 0.6 * rows["1"]["training_loss"]
    assert rows["12"]["validation_cider"] > 1.0
    wanted = {"training_loss", "validation_loss", "validation_cider", "validation_bleu_4", "validation_distinct"}
    assert wanted <= set(rows["1"])
    *_, head, photo, scored, plot = done.out.splitlines()
    config = f"--dataset_config_file {train.data / 'datasets.conf'}"
    infer = f"  python infer.py --model {folder / 'best.model'}"
    assert (head, photo) == ("next:", f"{infer} photo.jpg")
    assert scored == f"{infer} --dataset toy:val {config} --scoring bleu,cider"
    assert plot == f"  python plot_stats.py {folder / 'train_stats.json'}"
    for text in ("24 images, 120 captions", "validation: 12 images", "vocabulary:", "epoch 12/12", "best epoch"):
        assert text in done.out
    best = max(rows, key=lambda epoch: rows[epoch]["validation_cider"])
    assert checkpoint.load(folder / "best.model")["epoch"] == int(best)


def test_models_keep_their_calibration(train, script, monkeypatch):
    """Validation with CIDEr makes one; averaging several models drops it, and a caption data set makes it anew."""
    monkeypatch.setattr(calibration, "LEAST_IMAGES", 10)
    flags = ("--features", "pooled.npy", "--validate", "toy:val")
    assert train(*flags, "--num_epochs", 3, "--validation_step", 2).status == 0
    folder = train.folder / "run"
    found = {
        name: checkpoint.load(folder / f"{name}.model").get("calibration") for name in ("ep1", "ep2", "ep3", "best")
    }
    assert found["ep1"] is None and found["ep2"] is not None and found["best"] in (found["ep2"], found["ep3"])
    assert found["ep3"]["images"] == 12 and found["ep3"] == checkpoint.load(folder / "last.model")["calibration"]
    done = train(
        *flags, "--load_model", folder / "ep3.model", "--num_epochs", 4, "--validation_scoring", "bleu", name="on"
    )
    assert done.status == 0 and "calibration" not in checkpoint.load(train.folder / "on" / "ep4.model")

    both, out = (folder / "ep2.model", folder / "ep3.model"), train.folder / "mean.model"
    config = ("--dataset_config_file", train.data / "datasets.conf", "--cpu", "--output", out, "--force")
    assert script("average_models.py", *both, *config[2:]).status == 0
    assert "calibration" not in checkpoint.load(out)
    assert script("average_models.py", both[1], "--half", *config[2:]).status == 0
    assert checkpoint.load(out)["calibration"] == found["ep3"]
    done = script("average_models.py", *both, "--calibrate", "toy:val", "--length_penalty", 0.5, *config)
    assert done.status == 0 and "12 captions have a CIDEr of 0.5" in done.out, done.err
    made = load_captioner(out, photos=False).calibration
    assert (made.beam_size, made.length_penalty, made.images) == (3, 0.5, 12)
    monkeypatch.setattr(calibration, "LEAST_IMAGES", 13)
    done = script("average_models.py", *both, "--calibrate", "toy:val", *config)
    assert done.status == 2 and "12 images with captions are too few" in done.err


def test_persistent_features_alone(train):
    done = train("--features", "", "--persist_features", "pooled.npy", "--num_epochs", 1)
    assert done.status == 0, done.err
    config = load_captioner(train.folder / "run" / "ep1.model", photos=False).config
    assert config.features == [] and len(config.persist_features) == 1


def test_same_losses_from_npy_lmdb_and_bin(train):
    """The format of a feature file changes nothing: losses agree to 1e-5."""
    losses = []
    for name in ("pooled.npy", "pooled2.lmdb", "pooled3.bin"):
        done = train("--features", name, "--num_epochs", 2, name=name)
        assert done.status == 0, done.err
        losses.append([row["training_loss"] for row in stats(train.folder / name).values()])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert losses[0] == pytest.approx(losses[2], abs=1e-5)


@pytest.mark.parametrize(
    "flags",
    [
        ["--features", "map.lmdb", "--attention", "soft", "--regularize_attn", "--dropout", 0.2],
        ["--features", "map.lmdb", "--attention", "spatial", "--rnn_arch", "GRU", "--num_layers", 2],
        ["--features", "pooled.npy", "--persist_features", "map.lmdb", "--attention", "soft"],
        [
            "--features",
            "pooled.npy",
            "--persist_features",
            "pooled2.lmdb",
            "--encoder_non_lin",
            "--share_embedding_weights",
        ],
        ["--features", "pooled.npy,pooled2.lmdb", "--rnn_hidden_init", "from_features", "--num_layers", 2],
        ["--features", "pooled.npy", "--skip_start_token", "--captions_per_image", 1, "--optimizer", "rmsprop"],
        ["--features", "map.lmdb", "--rnn_arch", "GRU", "--encoder_dropout", 0.1, "--optimizer", "sgd"],
        [
            "--features",
            "pooled.npy",
            "--teacher_forcing",
            "sampled",
            "--teacher_forcing_k",
            10,
            "--teacher_forcing_beta",
            5,
        ],
        ["--features", "pooled.npy", "--teacher_forcing", "additive", "--teacher_forcing_k", 10],
        [
            "--features",
            "map.lmdb",
            "--attention",
            "soft",
            "--teacher_forcing",
            "additive_sampled",
            "--optimizer",
            "adamw",
        ],
        ["--features", "pooled.npy", "--lr_scheduler", "cosine", "--warmup_steps", 3, "--label_smoothing", 0.1],
        ["--features", "pooled.npy", "--lr_scheduler", "StepLR", "--grad_clip", 1, "--amp", "bf16"],
        ["--features", "pooled.npy", "--lr_scheduler", "CyclicalLR", "--num_batches", 2],
        ["--features", "pooled.npy", "--lr_scheduler", "ReduceLROnPlateau", "--ema", 0.9, "--deterministic"],
    ],
    ids=lambda flags: " ".join(map(str, flags[2:6])),
)
def test_every_kind_of_model_and_schedule_runs(train, flags):
    done = train("--num_epochs", 2, "--validate", "toy:val", *flags)
    assert done.status == 0, done.err
    rows = stats(train.folder / "run")
    assert rows["2"]["training_loss"] < rows["1"]["training_loss"] + 0.5
    captioner = load_captioner(train.folder / "run" / "ep2.model", photos=False)
    assert captioner.model.decoder.rnn_arch == captioner.config.rnn_arch


def test_from_pixels_with_fine_tuning(train, monkeypatch):
    """An encoder within the model; its fine-tuned blocks travel in the file, a frozen encoder does not."""
    twice = []
    real = encoder.recomputed
    monkeypatch.setattr(encoder, "recomputed", lambda *given: twice.append(given) or real(*given))
    for name, flags in (("frozen", []), ("tuned", ["--finetune_encoder", 1, "--activation_checkpointing"])):
        done = train("--features", "efficientnet_lite0", "--num_epochs", 1, "--num_workers", 0, *flags, name=name)
        assert done.status == 0, done.err
        state = checkpoint.load(train.folder / name / "ep1.model")["state"]
        assert any(key.startswith("extractors.") for key in state) == (name == "tuned") == bool(twice)
        load_captioner(train.folder / name / "ep1.model")


def test_the_encoder_can_learn_more_slowly_and_be_frozen_again(train):
    flags = ["--features", "efficientnet_lite0", "--num_workers", 0, "--num_batches", 2, "--optimizer", "sgd"]
    tuned = [*flags, "--num_epochs", 1, "--finetune_encoder", 1, "--encoder_learning_rate", 1e-5]
    assert train(*tuned, name="tuned").status == 0
    groups = checkpoint.load(train.folder / "tuned" / "last.model")["training"]["trainer"]["optimizer"]["param_groups"]
    assert [group["lr"] for group in groups] == [0.01, pytest.approx(1e-5)]
    start = train.folder / "tuned" / "ep1.model"
    done = train(*flags, "--num_epochs", 2, "--load_model", start, name="frozen")
    assert done.status == 0, done.err
    before, after = (checkpoint.load(file)["state"] for file in (start, train.folder / "frozen" / "ep2.model"))
    assert before.keys() == after.keys()
    changed = {name for name in before if not before[name].equal(after[name])}
    assert "decoder.embed.weight" in changed and not any(name.startswith("extractors.") for name in changed)


@pytest.mark.parametrize(
    "flags", [["--ema", 0.9, "--lr_scheduler", "cosine"], ["--teacher_forcing", "sampled", "--dropout", 0.3]]
)
def test_resumed_run_equals_an_uninterrupted_one(train, flags):
    """Stopped within an epoch and at its end, then resumed: the same losses and the same weights, to the bit."""
    flags = ["--features", "map.lmdb", "--attention", "soft", "--num_epochs", 3, *flags]
    assert train(*flags, name="whole").status == 0
    assert train(*flags, "--save_every", 4, name="parts").status == 0
    # what a run killed after step 4 leaves: the checkpoint of that step. Made by training with a poisoned step 6.
    from training import trainer as training

    original = training.Trainer.train_step

    def dies(self, batch):
        if self.step == 9:
            raise KeyboardInterrupt
        return original(self, batch)

    training.Trainer.train_step = dies
    try:
        assert train(*flags, "--save_every", 2, name="killed").status == 130
    finally:
        training.Trainer.train_step = original
    done = train(*flags, "--save_every", 2, "--resume", name="killed")
    assert done.status == 0, done.err
    assert "resumed at epoch" in done.out
    whole, killed = (train.folder / name for name in ("whole", "killed"))
    assert stats(whole) == stats(killed)
    first, second = (checkpoint.load(folder / "ep3.model")["state"] for folder in (whole, killed))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_sigterm_saves_and_resume_goes_on(data, tmp_path):
    """A cluster's queue sends SIGTERM: the step at hand is finished, last.model written, the status says so."""
    command = [
        sys.executable,
        ROOT / "train.py",
        "--dataset",
        "toy:train",
        "--features",
        "map.lmdb",
        "--attention",
        "soft",
    ]
    command += [
        "--dataset_config_file",
        data / "datasets.conf",
        "--model_path",
        tmp_path,
        "--model_name",
        "run",
        "--cpu",
    ]
    command += ["--vocab_root", tmp_path / "vocab", "--num_epochs", 400, *FAST]
    process = subprocess.Popen(
        [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "ep2.model").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, err
    assert "go on with --resume" in out
    assert checkpoint.load(tmp_path / "run" / "last.model")["training"]["epoch"] >= 2


def test_handlers_of_signals_come_back_and_leftovers_of_killed_runs_go(train):
    leftover = train.folder / "run" / ".ep1.model.abcdefgh.tmp"
    leftover.parent.mkdir(parents=True)
    leftover.touch()
    numbers = signal.SIGTERM, signal.SIGINT
    before = [signal.getsignal(number) for number in numbers]
    assert train("--features", "pooled.npy", "--num_epochs", 1).status == 0
    assert [signal.getsignal(number) for number in numbers] == before
    assert not leftover.exists()


def test_existing_run_is_not_overwritten(train):
    assert train("--features", "pooled.npy", "--num_epochs", 1).status == 0
    again = train("--features", "pooled.npy", "--num_epochs", 1)
    assert again.status == 2
    assert "--replace" in again.err and again.err.count("\n") == 1
    for flag in ("--replace", "--force"):
        assert train("--features", "pooled.npy", "--num_epochs", 1, flag).status == 0


def test_nothing_is_deleted_before_the_new_run_stands(train):
    assert train("--features", "pooled.npy", "--num_epochs", 2).status == 0
    folder = train.folder / "run"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for mistake in (["--features", "absent.npy"], ["--features", "pooled.npy", "--validate", "toy:absent"]):
        done = train(*mistake, "--num_epochs", 1, "--replace")
        assert done.status == 2 and done.err.count("\n") == 1
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    done = train("--num_epochs", 3, "--load_model", folder / "ep2.model", "--replace")  # of the folder that goes
    assert done.status == 0, done.err
    assert {path.name for path in folder.glob("*.model")} == {"ep3.model", "last.model", "best.model"}


def test_resuming_without_last_model_names_what_is_there(train):
    assert train("--features", "pooled.npy", "--num_epochs", 2).status == 0
    (train.folder / "run" / "last.model").unlink()
    done = train("--features", "pooled.npy", "--num_epochs", 3, "--resume")
    assert done.status == 2 and done.err.count("\n") == 1
    assert "no " in done.err and "last.model" in done.err and "--load_model" in done.err
    assert (train.folder / "run" / "ep2.model").exists() and (train.folder / "run" / "best.model").exists()


def test_weights_that_are_no_numbers_end_the_run_and_are_not_saved(train):
    flags = ["--features", "pooled.npy", "--optimizer", "sgd", "--learning_rate", 1e12, "--validate", "toy:val"]
    done = train(*flags, "--num_epochs", 2, "--log_step", 1000)
    assert done.status == 2 and done.err.count("\n") == 1 and "not finite" in done.err
    assert not list((train.folder / "run").glob("*.model"))


def test_load_model_goes_on_from_its_epoch(train):
    assert train("--features", "pooled.npy", "--num_epochs", 2).status == 0
    start = train.folder / "run" / "last.model"
    done = train("--features", "pooled.npy", "--num_epochs", 3, "--load_model", start, name="more")
    assert done.status == 0, done.err
    assert list(stats(train.folder / "more")) == ["3"]
    done = train("--num_epochs", 1, "--load_model", start, "--optimizer_reset", "--force_epoch", 1, name="again")
    assert list(stats(train.folder / "again")) == ["1"]


def test_validate_only_over_several_models(train):
    assert train("--features", "pooled.npy", "--num_epochs", 2, "--validate", "toy:val").status == 0
    models = [train.folder / "run" / f"ep{n}.model" for n in (1, 2)]
    done = train("--validate", "toy:val", "--validate_only", "--load_model", *models)
    assert done.status == 0, done.err
    rows = json.loads((train.folder / "run" / "train_stats-toy-val.json").read_text())
    for n in (1, 2):
        again, during = rows[str(n)]["validation_cider"], stats(train.folder / "run")[str(n)]["validation_cider"]
        assert again == pytest.approx(during, abs=1e-6)


def test_early_stopping(train):
    done = train(
        "--features",
        "pooled.npy",
        "--validate",
        "toy:val",
        "--num_epochs",
        60,
        "--early_stopping",
        2,
        "--learning_rate",
        0.03,
    )
    assert done.status == 0
    assert "stopped early" in done.out and len(stats(train.folder / "run")) < 60


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["--dataset", "toy:nothing"], ["toy:nothing", "toy:train", "toy:val"]),
        (["--features", "absent.lmdb"], ["absent.lmdb"]),
        (["--features", "pooled.npy", "--attention", "soft"], ["--attention", "-conv"]),
        (["--features", "resnet9000"], ["resnet9000"]),
        (["--features", "pooled.npy", "--mix", "1,2"], ["--mix 1,2: toy:train has 1 parts, give a number for each"]),
        (["--features", "pooled.npy", "--vocab", "nothing.json"], ["nothing.json"]),
        (["--features", "pooled.npy", "--validation_scoring", "cidre"], ["cidre", "cider"]),
        (["--features", "map.lmdb", "--attention", "soft", "--skip_start_token"], ["--skip_start_token"]),
        (["--features", "pooled.npy", "--learning_rate", "-1"], ["--learning_rate"]),
        (["--features", "pooled.npy", "--load_model", "nothing.model"], ["nothing.model"]),
    ],
)
def test_mistakes_are_one_line(train, arguments, told):
    done = train(*arguments)
    assert done.status == 2
    assert all(text in done.err for text in told), done.err
    assert "Traceback" not in done.err


def test_feature_file_lacking_a_key_is_told_before_training(data, tmp_path, train):
    from captioning.features.writer import FeatureWriter

    with FeatureWriter(tmp_path / "few.npy", (4,)) as writer:
        writer.write("COCO_train_000000000001.jpg", [1, 2, 3, 4])
    done = train("--features", tmp_path / "few.npy")
    assert done.status == 2
    assert "few.npy" in done.err and "COCO_train_000000000002.jpg" in done.err


def test_regularised_projection(train):
    """Press and Wolf 2017: what is minimised is the cross-entropy plus factor * ||P||, P before the shared matrix."""
    flags = ["--features", "pooled.npy", "--share_embedding_weights", "--num_epochs", 3]
    norms = {}
    for factor in (0.15, 3.0):
        done = train(*flags, "--regularize_projection", factor, name=f"run{factor}")
        assert done.status == 0, done.err
        decoder = load_captioner(train.folder / f"run{factor}" / "ep3.model", photos=False).model.decoder
        assert decoder.linear.weight is decoder.embed.weight
        norms[factor] = decoder.projection.weight.norm().item()
    assert norms[3.0] < 0.7 * norms[0.15]
    done = train(*flags, "--regularize_projection", 0, name="none")
    model = load_captioner(train.folder / "none" / "ep3.model", photos=False).model
    assert done.status == 0 and model.decoder.projection is None and not model.config.projection
    assert "0 or more" in train(*flags, "--regularize_projection", -1).err


def test_the_projection_is_in_what_is_minimised():
    from types import SimpleNamespace

    from captioning.config import FeatureSpec, ModelConfig
    from model import Captioner, build_model
    from training.losses import CrossEntropy
    from training.settings import TrainSettings
    from vocabulary import Vocabulary

    vocabulary = Vocabulary(["<pad>", "<start>", "<end>", "<unk>", "a", "dog"])
    specs = [FeatureSpec("x.npy", (3,), True)]
    config = ModelConfig(specs, embed_size=5, hidden_size=4, share_embedding_weights=True, projection=True)
    captioner = Captioner(build_model(config, vocabulary), vocabulary)
    batch = SimpleNamespace(
        pixels=None,
        inputs=[torch.randn(2, 3)],
        captions=torch.tensor([[1, 4, 5, 2], [1, 5, 2, 0]]),
        lengths=torch.tensor([4, 3]),
        row_image=torch.tensor([0, 1]),
    )
    loss = CrossEntropy(TrainSettings(regularize_projection=0.4))(captioner, batch, 0)
    weight = captioner.model.decoder.projection.weight
    assert (loss.total - loss.reported).item() == pytest.approx(0.4 * weight.square().sum().sqrt().item(), rel=1e-5)
    assert loss.tokens == 5

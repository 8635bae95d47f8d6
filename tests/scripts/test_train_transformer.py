"""train.py --decoder transformer, and every script that takes such a model."""

import json

import numpy as np
import pytest
import torch
from toy import differences, stats

from captioning import checkpoint
from captioning.decoder.search import Search
from model import load_captioner
from training.trainer import Trainer

SMALL = ["--hidden_size", 24, "--num_layers", 2, "--feed_forward_size", 48]


@pytest.fixture
def train(data, tmp_path, script):
    """train.py without the sizes of RNNs that other tests have."""

    def call(*arguments, name="run"):
        common = ["--dataset_config_file", data / "datasets.conf", "--model_path", tmp_path / "models", "--cpu"]
        common += ["--vocab_root", tmp_path / "vocab", "--model_name", name, "--vocab_threshold", 1]
        common += ["--batch_size", 20, "--dataset", "toy:train", "--num_workers", 0]
        return script("train.py", *common, *arguments)

    call.folder = tmp_path / "models"
    return call


@pytest.fixture
def transformer(train):
    """train.py with a small Transformer."""

    def call(*arguments, name="run"):
        common = ["--decoder", "transformer", *SMALL, "--learning_rate", 0.005]
        return train(*common, *arguments, name=name)

    call.folder = train.folder
    return call


@pytest.mark.parametrize(
    "flags",
    [
        ["--features", "map.lmdb", "--region_layers", 1, "--encoder_dropout", 0.1, "--regularize_attn"],
        ["--features", "map.lmdb", "--positions", "learned", "--max_positions", 4, "--teacher_forcing", "sampled"],
        [
            "--features",
            "pooled.npy",
            "--persist_features",
            "pooled2.lmdb",
            "--share_embedding_weights",
            "--amp",
            "bf16",
        ],
        ["--features", "pooled.npy,map.lmdb", "--teacher_forcing", "additive", "--teacher_forcing_k", 10],
    ],
    ids=lambda flags: " ".join(map(str, flags[2:6])),
)
def test_it_learns(transformer, flags):
    done = transformer("--num_epochs", 3, "--warmup_steps", 2, "--validate", "toy:val", *flags)
    assert done.status == 0, done.err
    assert "2-layer Transformer 24, 8 heads" in done.out
    assert "adamw at a learning rate of 0.005, which suits a Transformer" in done.out
    rows = stats(transformer.folder / "run")
    assert rows["3"]["training_loss"] < rows["1"]["training_loss"] - 0.3
    config = load_captioner(transformer.folder / "run" / "ep3.model", photos=False).config
    assert (config.decoder, config.dropout, config.heads, config.projection) == ("transformer", 0.1, 8, False)


def test_what_suits_it_gives_way_to_what_is_typed(transformer):
    flags = ["--features", "map.lmdb", "--num_epochs", 1, "--num_batches", 1]
    assert transformer(*flags, "--optimizer", "sgd", "--lr_scheduler", "constant", "--warmup_steps", 0).status == 0
    last = checkpoint.load(transformer.folder / "run" / "last.model")["training"]
    kept = {name: last["settings"][f"--{name}"] for name in ("optimizer", "lr_scheduler", "warmup_steps")}
    assert kept == {"optimizer": "sgd", "lr_scheduler": "constant", "warmup_steps": 0}
    assert transformer(*flags, name="plain").status == 0
    last = checkpoint.load(transformer.folder / "plain" / "last.model")["training"]
    kept = {name: last["settings"][f"--{name}"] for name in ("optimizer", "lr_scheduler", "warmup_steps")}
    assert kept == {"optimizer": "adamw", "lr_scheduler": "inverse_sqrt", "warmup_steps": 1000}
    assert last["trainer"]["optimizer"]["param_groups"][0]["lr"] == pytest.approx(0.005 / 1000)


def test_a_killed_run_goes_on_to_the_bit(transformer, monkeypatch):
    flags = ["--features", "map.lmdb", "--num_epochs", 2, "--ema", 0.9, "--teacher_forcing", "sampled"]
    flags += ["--teacher_forcing_k", 3, "--region_layers", 1, "--save_every", 2]
    assert transformer(*flags, name="whole").status == 0
    real = Trainer.train_step

    def dies(self, batch):
        if self.step == 9:
            raise KeyboardInterrupt
        return real(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", dies)
        assert transformer(*flags, name="killed").status == 130
    done = transformer(*flags, "--resume", name="killed")
    assert done.status == 0 and "resumed at epoch 2, batch 2" in done.out, done.err
    assert differences(transformer.folder / "killed", transformer.folder / "whole") == ""


def test_from_cross_entropy_to_rewards_a_student_an_average_and_captions(transformer, train, data, script, tmp_path):
    run = transformer.folder / "run"
    flags = ["--features", "map.lmdb", "--validate", "toy:val", "--validation_scoring", "cider", "--warmup_steps", 2]
    turning = ["--self_critical_from_epoch", 3, "--self_critical_samples", 2, "--num_batches", 3]
    done = transformer(*flags, *turning, "--num_epochs", 3)
    assert done.status == 0 and "by adam at a learning rate of 5e-05" in done.out, done.err
    assert "training_reward" in stats(run)["3"] and stats(run)["3"]["learning_rate"] == pytest.approx(5e-5)
    short = ["--num_batches", 1, "--num_epochs", 3]
    done = train(*flags[:4], "--load_model", run / "ep2.model", "--dropout", 0.3, *short, name="on")
    assert done.status == 0 and "architecture and vocabulary from" in done.out, done.err
    assert load_captioner(transformer.folder / "on" / "ep3.model", photos=False).model.decoder.dropout.p == 0.3
    loaded = ["--load_model", run / "ep2.model", "--self_critical_from_epoch", 0, *short]
    done = train(*flags[:4], *loaded, name="rewarded")
    assert done.status == 0 and "self-critical training by adam at a learning rate of 5e-05" in done.out, done.err
    vocabulary = next((tmp_path / "vocab").glob("*.json"))
    student = ["--attention", "soft", "--hidden_size", 16, "--distill", run / "ep2.model", "--vocab", vocabulary]
    done = train(*flags[:2], *student, "--num_batches", 1, "--num_epochs", 1, name="student")
    assert done.status == 0, done.err
    done = script("average_models.py", run / "ep2.model", run / "ep3.model", "--output", run / "mean.model", "--half")
    assert done.status == 0, done.err
    images = ["--dataset", "toy:val", "--dataset_config_file", data / "datasets.conf", "--cpu", "--beam_size", 3]
    outputs = ["--output_file", tmp_path / "c.json", "--probabilities", "--attention_output", tmp_path / "a.npz"]
    done = script("infer.py", "--model", run / "mean.model", *images, *outputs)
    assert done.status == 0, done.err
    assert len(json.loads((tmp_path / "c.json").read_text())) == 12
    saved = np.load(tmp_path / "a.npz")
    assert saved["attention"].shape[2:] == (3, 3)
    first = [maps[:n].sum((1, 2)) for maps, n in zip(saved["attention"], saved["lengths"])]
    assert np.allclose(np.concatenate(first), 1, atol=1e-5)
    done = script("model_info.py", run / "mean.model")
    assert "transformer" in done.out and "rnn arch" not in done.out and "max positions" not in done.out


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--decoder", "transformer", "--heads", 7], "--heads 7: it must divide --hidden_size 512"),
        (["--decoder", "transformer", "--heads", 0], "--heads 0: at least 1"),
        (["--decoder", "transformer", "--attention", "soft"], "--attention is of --decoder lstm"),
        (["--decoder", "transformer", "--rnn_arch", "GRU"], "--rnn_arch is of --decoder lstm"),
        (["--heads", 4], "--heads is of --decoder transformer"),
        (["--decoder", "transformer", "--hierarchical_model"], "--hierarchical_model is an RNN"),
        (["--decoder", "transformer", "--region_layers", -1], "--region_layers -1: 0 or more"),
    ],
)
def test_flags_that_do_not_go_together(script, flags, told):
    done = script("train.py", "--dataset", "toy:train", *flags)
    assert done.status == 2 and done.err.count("\n") == 1 and told in done.err, done.err


def test_flags_that_contradict_a_loaded_model(transformer, train):
    assert transformer("--features", "map.lmdb", "--num_epochs", 1, "--num_batches", 1).status == 0
    loaded = ["--load_model", transformer.folder / "run" / "ep1.model", "--num_epochs", 2]
    for flags, told in (
        (["--decoder", "lstm"], "--decoder lstm contradicts --load_model, whose file has transformer"),
        (["--heads", 2], "--heads 2 contradicts"),
        (["--num_layers", 3], "--num_layers 3 contradicts --load_model, whose file has 2"),
        (["--attention", "soft"], "--attention is of --decoder lstm, but the loaded model has a transformer"),
        (["--hierarchical_model"], "--hierarchical_model: its word RNN cannot begin with"),
    ):
        done = train(*loaded, *flags, name="other")
        assert done.status == 2 and done.err.count("\n") == 1 and told in done.err, done.err


def test_the_switch_changes_no_caption(transformer, plainly):
    assert transformer("--features", "map.lmdb", "--num_epochs", 2).status == 0
    captioner = load_captioner(transformer.folder / "run" / "ep2.model", photos=False)
    torch.manual_seed(0)
    regions = [torch.randn(5, 9, 16)]
    fast = captioner.caption(captioner.encode(None, regions), Search(beam_size=3, n_best=2))
    plain = plainly(lambda: captioner.caption(captioner.encode(None, regions), Search(beam_size=3, n_best=2)))
    assert [[c.tokens for c in several] for several in fast] == [[c.tokens for c in several] for several in plain]

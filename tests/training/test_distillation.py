"""Distillation: the loss against its formula, features by name, and that a student learns from teachers alone."""

import json
from types import SimpleNamespace

import pytest
import torch
from running import run_here
from toy import SMALL, feature_vector, file_inputs, make_coco, write_config, write_features

from captioning.datasets.factory import open_dataset
from data_loader import LoaderSettings, get_loader
from model import load_captioner
from training.distillation import Distillation, Teachers, soft_cross_entropy
from training.settings import TrainSettings


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    """Two teachers, of which the second reads another feature file."""
    root = tmp_path_factory.mktemp("distill")
    make_coco(root, {"train": 24})
    config = write_config(root, ["train"])
    write_features(root, "pooled.npy")
    write_features(root, "wide.npy", lambda number: feature_vector(number, 24))
    common = ["--dataset", "toy:train", "--dataset_config_file", config, "--model_path", root / "models", "--cpu"]
    common += ["--vocab_root", root / "vocab", *SMALL, "--batch_size", 40, "--optimizer", "adam"]
    common += ["--learning_rate", 0.01, "--vocab_threshold", 1]
    for name, features in (("first", "pooled.npy"), ("second", "wide.npy")):
        flags = ["--features", features, "--num_epochs", 20, "--model_name", name]
        assert run_here("train.py", *common, *flags).status == 0
    paths = [str(root / "models" / name / "ep20.model") for name in ("first", "second")]
    return SimpleNamespace(root=root, common=common, config=config, paths=paths)


def test_soft_cross_entropy_by_hand():
    logits, p, temperature = torch.randn(3, 5), torch.rand(3, 5).softmax(1), 2.5
    rows = (logits / temperature).exp()
    by_hand = -(p * (rows / rows.sum(1, keepdim=True)).log()).sum(1).mean()
    assert soft_cross_entropy(logits, p, temperature).item() == pytest.approx(by_hand.item(), rel=1e-5)


@pytest.mark.parametrize("temperature, weight", [(1.0, 0.5), (3.0, 0.9)])
def test_loss_is_the_formula(toys, temperature, weight):
    """Mean of the teachers' softened probabilities, T^2, and the share of the true words (Hinton et al. 2015)."""
    student = load_captioner(toys.paths[0], photos=False)
    dataset = open_dataset("toy:train", toys.config)
    own = file_inputs(dataset, "pooled.npy")
    teachers = Teachers(toys.paths, student, own, dataset)
    assert [one.spec.name for one in teachers.inputs] == ["pooled.npy", "wide.npy"]
    assert teachers.inputs[0].source is own[0].source  # the file that both read is read once
    loader = get_loader(dataset, student.vocabulary, own + teachers.inputs, LoaderSettings(batch_size=40))
    batch = next(iter(loader))
    settings = TrainSettings(distill_weight=weight, distill_temperature=temperature)
    loss = Distillation(settings, teachers)(student, batch, 0)
    inputs = [[batch.inputs[0]], [batch.inputs[2]]]
    mean = 0
    for path, features in zip(toys.paths, inputs):
        captioner = load_captioner(path, photos=False)
        arguments = (None, features, batch.captions, batch.lengths, batch.row_image)
        logits, targets, _, _ = captioner.model(*arguments)
        mean = mean + (logits / temperature).softmax(1) / 2
    own = student.model(None, inputs[0], batch.captions, batch.lengths, batch.row_image)[0]
    soft = -(mean * (own / temperature).log_softmax(1)).sum(1).mean()
    hard = -own.log_softmax(1)[range(len(targets)), targets].mean()
    expected = (1 - weight) * hard + weight * temperature**2 * soft
    assert loss.total.item() == pytest.approx(expected.item(), rel=1e-5)
    assert loss.reported.item() == pytest.approx(hard.item(), rel=1e-5) and loss.tokens == len(targets)
    loss.total.backward()
    assert all(p.grad is None for captioner in teachers.captioners for p in captioner.model.parameters())


def test_student_learns_from_its_teachers(toys):
    """With weight 1 the true words are never seen in the loss: the teachers' are learnt all the same."""
    flags = ["--features", "pooled.npy", "--distill", *toys.paths, "--distill_weight", 1, "--num_epochs", 20]
    done = run_here("train.py", *toys.common, *flags, "--model_name", "student")
    assert done.status == 0, done.err
    rows = json.loads((toys.root / "models" / "student" / "train_stats.json").read_text())
    assert rows["20"]["training_loss"] < 0.6 * rows["1"]["training_loss"]
    # the student file is whole: the teachers' features are not needed any more
    captioner = load_captioner(toys.root / "models" / "student" / "ep20.model", photos=False)
    assert [spec.name for spec in captioner.config.specs] == ["pooled.npy"]


def test_mistakes_are_one_line(toys, tmp_path):
    flags = ["--features", "pooled.npy", "--model_name", "bad", "--replace"]

    def told(*more):
        done = run_here("train.py", *toys.common, *flags, *more)
        assert done.status == 2 and "Traceback" not in done.err
        return done.err

    assert "nothing.model" in told("--distill", "nothing.model")
    assert "--distill_weight" in told("--distill", *toys.paths, "--distill_weight", 2)
    other = tmp_path / "vocab.txt"
    other.write_text("a\nred\nball\n")
    assert "vocabulary" in told("--distill", *toys.paths, "--vocab", other)
    (toys.root / "features" / "wide.npy").rename(toys.root / "features" / "gone.npy")
    try:
        assert "wide.npy" in told("--distill", *toys.paths)
    finally:
        (toys.root / "features" / "gone.npy").rename(toys.root / "features" / "wide.npy")


def test_features_of_another_shape_are_told(toys):
    kept = (toys.root / "features" / "wide.npy").read_bytes()
    write_features(toys.root, "wide.npy", lambda number: feature_vector(number, 20))
    flags = ["--features", "pooled.npy", "--model_name", "bad", "--replace", "--distill", toys.paths[1]]
    done = run_here("train.py", *toys.common, *flags)
    (toys.root / "features" / "wide.npy").write_bytes(kept)
    assert done.status == 2 and "wide.npy" in done.err and "(24,)" in done.err and "(20,)" in done.err


def test_pixels_need_a_student_that_reads_them(toys):
    """A teacher with an encoder of its own, for a student of feature files and for one of photos."""
    pixels = ["--features", "efficientnet_lite0", "--num_workers", 0, "--num_epochs", 1, "--num_batches", 1]
    done = run_here("train.py", *toys.common, *pixels, "--model_name", "pixels")
    assert done.status == 0, done.err
    teacher = toys.root / "models" / "pixels" / "ep1.model"
    more = ["--model_name", "student2", "--replace", "--distill", teacher]
    done = run_here("train.py", *toys.common, "--features", "pooled.npy", *more)
    assert done.status == 2 and "reads photos" in done.err
    done = run_here("train.py", *toys.common, *pixels, "--crop_size", 96, *more)
    assert done.status == 2 and "--crop_size 224" in done.err
    done = run_here("train.py", *toys.common, *pixels, *more, toys.paths[0])  # photos and a feature file
    assert done.status == 0, done.err

"""train.py --cache_features: same training as from pixels, never a stale cache, nothing lost when killed."""

import json
import os
import signal
import subprocess
import sys
import time

import lmdb
import numpy as np
import pytest
import torch
from running import ROOT
from toy import draw, make_coco, write_config
from toy_layouts import make_regions, make_vist

from captioning import checkpoint
from captioning.encoder.encoder import ImageEncoder
from captioning.encoder.factory import build_encoder
from captioning.errors import UserError
from captioning.features.handles import forget
from model import load_captioner
from training.feature_cache import CacheFile, image_keys, stamp

SMALL = ["--embed_size", 24, "--hidden_size", 32, "--attention_size", 16, "--value_size", 24, "--crop_size", 64]
FLAGS = [*SMALL, "--batch_size", 20, "--learning_rate", 0.01, "--optimizer", "adam", "--num_workers", 0, "--cpu"]
POOLED, MAP = ["--features", "efficientnet_lite0"], ["--features", "efficientnet_lite0-conv", "--attention", "soft"]


@pytest.fixture
def data(tmp_path):
    make_coco(tmp_path, {"train": 12, "val": 4})
    write_config(tmp_path, ["train", "val"])
    return tmp_path


@pytest.fixture
def train(data, script):
    def call(*arguments, name="run"):
        common = ["--dataset_config_file", data / "datasets.conf", "--model_path", data / "models", "--num_epochs", 2]
        common += ["--vocab_root", data / "vocab", "--vocab_threshold", 1, "--model_name", name, *FLAGS]
        return script("train.py", "--dataset", "toy:train", *common, *arguments)

    return call


@pytest.fixture
def encoded(monkeypatch):
    """How many images the encoders were given."""
    seen = []
    original = ImageEncoder.forward

    def forward(self, pixels):
        seen.append(len(pixels))
        return original(self, pixels)

    monkeypatch.setattr(ImageEncoder, "forward", forward)
    return seen


def losses(data, name="run") -> list[float]:
    rows = json.loads((data / "models" / name / "train_stats.json").read_text())
    return [row[key] for row in rows.values() for key in ("training_loss", "validation_loss") if key in row]


def images(data, split="train") -> list:
    return sorted((data / "images" / split).iterdir())


@pytest.mark.parametrize("features, tolerance", [(POOLED, 1e-5), (MAP, 2e-3)])
def test_losses_are_those_from_pixels_and_each_image_is_encoded_once(data, train, encoded, features, tolerance):
    """Vectors are kept in float32, maps in float16."""
    flags = [*features, "--validate", "toy:val"]
    assert train(*flags, "--no_augment", name="pixels").status == 0
    encoded.clear()
    done = train(*flags, "--cache_features", data / "cache", name="cached")
    assert done.status == 0, done.err
    assert "0 of 16 images" in done.out and "random crops and mirror images are off" in done.out
    assert sum(encoded) == 16  # 12 to train on, 4 to validate on, in two epochs
    assert losses(data, "cached") == pytest.approx(losses(data, "pixels"), abs=tolerance)
    encoded.clear()
    done = train(*flags, "--cache_features", data / "cache", "--no_augment", name="again")
    assert "16 of 16 images" in done.out and "random crops" not in done.out and not encoded
    assert losses(data, "again") == losses(data, "cached")


def test_the_model_captions_photos_and_its_file_says_nothing_of_the_cache(data, train, script):
    assert train(*MAP, "--cache_features", data / "cache").status == 0
    file = data / "models" / "run" / "best.model"
    assert not load_captioner(file).config.features[0].from_file
    assert "cache" not in str(checkpoint.load(file)["config"])
    done = script("infer.py", "--model", file, images(data)[0], "--cpu")
    assert done.status == 0 and done.out.count("\n") == 1


def test_other_weights_or_pixels_have_a_file_of_their_own(data, train, encoded):
    state = build_encoder("efficientnet_lite0").network.state_dict()
    values = [*state.values(), torch.zeros(1000, 1280), torch.zeros(1000)]  # the package's order, with a classifier
    values[0] = values[0] * 1.1
    torch.save({str(number): value for number, value in enumerate(values)}, data / "other.pth")
    cache = ["--cache_features", data / "cache", "--num_epochs", 1, "--replace"]
    for flags in ([], ["--weights", data / "other.pth"], ["--crop_size", 96]):
        encoded.clear()
        assert train(*POOLED, *cache, *flags).status == 0
        assert sum(encoded) == 12
    encoded.clear()
    assert train(*POOLED, *cache).status == 0
    assert not encoded and len(list((data / "cache").iterdir())) == 3


def test_a_changed_image_and_new_images_are_encoded_anew(data, train, encoded):
    cache = [*POOLED, "--cache_features", data / "cache", "--num_epochs", 1, "--replace"]
    assert train(*cache).status == 0
    draw(7, 80).save(images(data)[3])
    encoded.clear()
    assert train(*cache).status == 0
    assert sum(encoded) == 1
    encoded.clear()
    assert train(*cache, "--validate", "toy:val").status == 0
    assert sum(encoded) == 4


def test_records_are_what_the_encoder_gives(data):
    """Regions row by row, as numpy takes them apart."""
    from captioning.config import ModelConfig
    from captioning.datasets.factory import open_dataset
    from captioning.encoder.provenance import internal_spec
    from model import Captioner, build_model
    from training.feature_cache import cache_features
    from vocabulary import build_vocabulary

    dataset = open_dataset("toy:train", str(data / "datasets.conf"))
    extractor = build_encoder("efficientnet_lite0-conv", transform={"size": 96})
    config = ModelConfig([internal_spec("efficientnet_lite0-conv", extractor)], attention="soft")
    vocabulary = build_vocabulary(dataset.captions(), 1)
    model = build_model(config, vocabulary, extractors={extractor.name: extractor})
    captioner = Captioner(model, vocabulary)
    cached, bad = cache_features(data / "cache", captioner, [dataset], num_workers=0, tell=str)
    assert bad == []
    source = cached[extractor.name]
    from PIL import Image

    for item in dataset.items[:3]:
        maps = extractor(captioner.transform(Image.open(item.path)).unsqueeze(0))[0].numpy()  # (D, h, w)
        expected = np.stack([maps[:, y, x] for y in range(3) for x in range(3)])
        assert source.get([item])[0].numpy() == pytest.approx(expected, rel=2e-3, abs=1e-3)
    assert source.get(dataset.items).shape == (12, 9, 1280) and source.get(dataset.items).dtype == torch.float16


def test_killed_while_encoding_it_goes_on(data, encoded, train, monkeypatch):
    """kill -9 after some records were written: they are good, and only the others are encoded."""
    arguments = ["train.py", "--dataset", "toy:train", *POOLED, *FLAGS, "--cache_features", data / "cache"]
    arguments += [
        "--dataset_config_file",
        data / "datasets.conf",
        "--model_path",
        data / "dead",
        "--vocab_threshold",
        1,
    ]
    arguments += ["--vocab_root", data / "vocab", "--model_name", "dead"]
    slow = (
        "import sys, time, runpy; sys.path.insert(0, sys.argv[1]); sys.argv = sys.argv[2:]\n"
        "from training import feature_cache\n"
        "feature_cache.FLUSH_BYTES, feature_cache.BATCH_SIZE = 1, 2\n"
        "add = feature_cache.CacheFile.add\n"
        "feature_cache.CacheFile.add = lambda *a: (add(*a), time.sleep(1))\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    command = [sys.executable, "-c", slow, ROOT, *arguments]
    process = subprocess.Popen([str(part) for part in command], cwd=ROOT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while written(data) < 4 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = written(data)
    assert 4 <= before < 12
    done = train(*POOLED, "--cache_features", data / "cache", "--no_augment", name="after")
    assert done.status == 0, done.err
    assert sum(encoded) == 12 - before
    assert train(*POOLED, "--no_augment", name="pixels").status == 0
    assert losses(data, "after") == pytest.approx(losses(data, "pixels"), abs=1e-5)


def written(data) -> int:
    files = list((data / "cache").glob("*.lmdb/data.mdb"))
    if not files or not files[0].stat().st_size:
        return 0
    with lmdb.open(str(files[0].parent), readonly=True) as environment, environment.begin() as transaction:
        return sum(not key.startswith(b"@") for key in transaction.cursor().iternext(values=False))


def test_broken_and_missing_images_are_named_and_left_out(data, train, encoded):
    images(data)[2].write_bytes(b"no picture")
    images(data)[5].unlink()
    images(data, "val")[1].write_bytes(b"")
    for name in ("first", "second"):
        done = train(*POOLED, "--cache_features", data / "cache", "--validate", "toy:val", name=name)
        assert done.status == 1
        for number in (3, 6, 14):
            assert f"{number:012d}.jpg" in done.err
        assert "3 images could not be read" in done.err and "10 images, 50 captions" in done.out
        assert sum(encoded) == 13
    assert losses(data, "first") == losses(data, "second")


@pytest.mark.parametrize(
    "flags, told",
    [
        ([*POOLED, "--finetune_encoder", 1], "--finetune_encoder"),
        (["--features", "pooled.npy"], "feature"),
        ([*POOLED, "--validate_only", "--validate", "toy:val", "--load_model", "x.model"], "--validate_only"),
    ],
)
def test_mistakes_are_one_line(data, train, flags, told):
    from toy import write_features

    write_features(data, "pooled.npy")
    done = train(*flags, "--cache_features", data / "cache")
    assert done.status == 2 and "--cache_features" in done.err and told in done.err and "Traceback" not in done.err


def test_a_damaged_or_foreign_file_is_told(data, train):
    cache = [*POOLED, "--cache_features", data / "cache", "--num_epochs", 1, "--replace"]
    assert train(*cache).status == 0
    folder = next((data / "cache").iterdir())
    forget(folder / "data.mdb")
    with lmdb.open(str(folder)) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"@extractor", b'{"extractor": "another"}')
    done = train(*cache)
    assert done.status == 2 and str(folder) in done.err and "remove" in done.err
    (folder / "data.mdb").write_bytes(b"rubbish" * 5000)
    done = train(*cache)
    assert done.status == 2 and str(folder) in done.err and done.err.count("\n") == 1


def test_two_runs_fill_one_cache_at_the_same_time(data):
    """Writers take turns; a reader in one process sees good records while another adds."""
    command = [sys.executable, ROOT / "train.py", "--dataset", "toy:train", *POOLED, *FLAGS, "--vocab_threshold", 1]
    command += ["--dataset_config_file", data / "datasets.conf", "--cache_features", data / "cache"]
    command += ["--num_epochs", 1, "--model_path", data / "models"]
    runs = []
    for name in ("a", "b"):
        own = ["--model_name", name, "--vocab_root", data / name]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        runs.append(subprocess.Popen([str(part) for part in command + own], stdout=subprocess.DEVNULL, env=env))
    assert [run.wait(timeout=300) for run in runs] == [0, 0]
    assert written(data) == 12
    assert losses(data, "a") == losses(data, "b")


@pytest.mark.parametrize("make, name", [(make_regions, "visualgenome:regions"), (make_vist, "vist")])
def test_regions_and_stories(tmp_path, train, encoded, make, name):
    """A region has a record of its own; so has a story, the mean of its photos, of which one is missing here."""
    make(tmp_path, 3, 2)
    if name == "vist":
        (tmp_path / "images/train/70001.jpg").unlink()
    flags = [*POOLED, "--dataset_config_file", tmp_path / "datasets.conf", "--dataset", f"{name}:train", "--no_augment"]
    flags += ["--validate", f"{name}:val", "--validation_scoring", "none", "--vocab", "REGEN"]
    assert train(*flags, name="pixels").status == (name == "vist")
    for run in ("cached", "again"):
        encoded.clear()
        done = train(*flags, "--cache_features", tmp_path / "cache", name=run)
        assert done.status == (name == "vist"), done.err
        assert losses(tmp_path, run) == pytest.approx(losses(tmp_path, "pixels"), abs=1e-5)
    assert not encoded


def test_a_photo_reading_teacher_needs_pixels(data, train):
    assert train(*POOLED, "--num_epochs", 1, name="teacher").status == 0
    teacher = data / "models" / "teacher" / "best.model"
    done = train(*POOLED, "--cache_features", data / "cache", "--distill", teacher)
    assert done.status == 2 and "--distill" in done.err and done.err.count("\n") == 1


def test_keys_follow_the_image(tmp_path):
    from captioning.datasets.base import ImageItem

    path = tmp_path / "a.jpg"
    draw(1).save(path)
    item = ImageItem(1, "a.jpg", str(path))
    keys = image_keys([item])
    assert image_keys([ImageItem(7, "other name", str(path))]) == keys
    regions = [ImageItem(n, str(n), str(path), box=(n, 0, 9, 9)) for n in (8, 9)]
    regions = image_keys([item, *regions])
    assert len(set(regions.values())) == 3
    with pytest.raises(UserError, match=r"b\.jpg"):
        image_keys([ImageItem(2, "b.jpg", str(tmp_path / "b.jpg"))])
    os.utime(path, ns=(1, 1))
    assert image_keys([item]) != keys
    archive = tmp_path / "x.zip"
    archive.write_bytes(b"1")
    first = stamp(f"{archive}/folder/a.jpg")
    archive.write_bytes(b"12")
    assert stamp(f"{archive}/folder/a.jpg") != first != stamp(f"{archive}/folder/b.jpg")


def test_a_file_is_named_by_what_its_records_depend_on(tmp_path):
    from captioning.encoder.transforms import ImageTransform

    extractor = build_encoder("efficientnet_lite0")
    paths = {CacheFile(tmp_path, extractor, ImageTransform(size, "bicubic")).path for size in (224, 160)}
    paths.add(CacheFile(tmp_path, extractor, ImageTransform(224, "bilinear")).path)
    assert len(paths) == 3
    with torch.no_grad():
        next(extractor.network.parameters())[0] += 1
    assert CacheFile(tmp_path, extractor, ImageTransform(224, "bicubic")).path not in paths

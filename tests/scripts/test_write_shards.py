"""write_shards.py: what it writes reads as the dataset did; going on; and the scripts over shards."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from running import ROOT
from toy import differences, make_coco, write_config
from toy_layouts import append, make_regions, make_vist

from captioning.datasets.factory import open_dataset
from captioning.features.factory import open_features
from captioning.images.archives import read_member
from captioning.images.image_file import open_image
from captioning.locks import FileLock
from vocabulary import Vocabulary

pytest.importorskip("webdataset")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """toy:train of 14 images and toy:val of 6."""
    root = tmp_path_factory.mktemp("toy")
    make_coco(root, {"train": 14, "val": 6}, size=48)
    write_config(root, ["train", "val"])
    return root


@pytest.fixture
def write(data, tmp_path, script):
    def call(*arguments, dataset="toy:train", config=data / "datasets.conf", output="out"):
        where = ["--dataset", dataset, "--dataset_config_file", config, "--output", tmp_path / output]
        return script("write_shards.py", *where, *arguments)

    return call


def pasted(out: str, folder: Path) -> str:
    """A file of the section that write_shards.py printed."""
    lines = re.search(r"for datasets.conf:\n((?:  .*\n)+)", out)[1]
    (folder / "pasted.conf").write_text(lines.replace("\n  ", "\n").strip() + "\n")
    return str(folder / "pasted.conf")


def rows(dataset) -> list[tuple]:
    return [(item.image_id, item.key, list(item.captions)) for item in dataset.items]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix == ".tar"}


def test_the_shards_are_the_dataset(write, data, tmp_path):
    folder = "50% {new}, old"  # what a pattern or the configuration would take for its own
    done = write("--per_shard", 4, output=folder)
    assert done.status == 0, done.err
    assert "4 shards; 14 images written, 0 could not be read" in done.out
    assert sorted(contents(tmp_path / folder)) == [f"shards-{number:06d}.tar" for number in range(4)]
    dataset = open_dataset("toy-train-shards", pasted(done.out, tmp_path))
    source = open_dataset("toy:train", str(data / "datasets.conf"))
    assert rows(dataset) == rows(source) and dataset.features_path == source.features_path
    for item, one in zip(dataset.items, source.items):
        assert read_member(item.path) == Path(one.path).read_bytes()


def test_sizes(write, tmp_path):
    most = 8_000
    done = write("--max_size", "8K", "--prefix", "s")
    assert done.status == 0, done.err
    sizes = [len(content.rstrip(b"\0")) for content in contents(tmp_path / "out").values()]
    assert len(sizes) > 3 and max(sizes) <= most and min(sizes[:-1]) > most / 3
    assert "s-{000000.." in done.out


@pytest.mark.parametrize("lost", [1, 2])
def test_going_on(write, tmp_path, monkeypatch, script, lost):
    """A run that was interrupted in a shard leaves whole shards only; --resume makes what an undisturbed run makes."""
    import write_shards

    assert write("--per_shard", 5, output="whole").status == 0
    whole, real = contents(tmp_path / "whole"), write_shards.sample_of

    def stop(numbered, encoding):
        if numbered[0] == 5 * (3 - lost) + 2:
            raise KeyboardInterrupt
        return real(numbered, encoding)

    with monkeypatch.context() as patch:
        patch.setattr(write_shards, "sample_of", stop)
        assert write("--per_shard", 5).status == 130
    assert contents(tmp_path / "out") == dict(list(whole.items())[: 3 - lost])
    done = write("--per_shard", 5)
    assert done.status == 2 and "is there already: --resume goes on after it" in done.err
    done = write("--per_shard", 5, "--resume")
    assert done.status == 0 and f"{5 * lost - 1} images written, {15 - 5 * lost} there already" in done.out
    assert contents(tmp_path / "out") == whole
    assert "0 images written, 14 there already" in write("--resume").out
    other = write("--resume", dataset="toy:val")
    assert other.status == 2 and "shards-000000.tar holds other images or captions" in other.err


def test_going_on_with_other_flags(write, tmp_path):
    """Shards of one prefix have one size: a later run is refused, and nothing changes."""
    assert write("--image_size", 32).status == 0
    before = contents(tmp_path / "out")
    for flags, told in ((["--image_size", 24], "--image_size 32 (now 24)"), ([], "--image_size 32 (now none)")):
        done = write("--resume", *flags)
        assert done.status == 2 and told in done.err and "give another --output" in done.err, done.err
    done = write("--resume", "--image_size", 32, "--quality", 80)
    assert done.status == 2 and "--quality 95 (now 80)" in done.err, done.err
    assert write("--resume", "--image_size", 32, "--per_shard", 3).status == 0
    assert contents(tmp_path / "out") == before
    (tmp_path / "out/shards.json").write_text("[]")
    done = write("--resume", "--image_size", 32)
    assert done.status == 2 and "shards.json is no file of write_shards.py" in done.err, done.err
    (tmp_path / "out/shards.json").unlink()  # as shards of an earlier version
    assert write("--resume", "--image_size", 32).status == 0


def test_two_writers(write, tmp_path):
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out/.shards.lock", "it"):
        done = write()
    assert done.status == 2 and "another process is at work on shards-*.tar" in done.err, done.err
    assert contents(tmp_path / "out") == {}
    assert write().status == 0 and not (tmp_path / "out/.shards.lock").exists()


def test_shards_after_a_gap_are_not_replaced(write, tmp_path):
    assert write("--per_shard", 4).status == 0
    (tmp_path / "out/shards-000001.tar").unlink()
    left = contents(tmp_path / "out")
    for flags in ([], ["--resume"]):
        done = write("--per_shard", 3, *flags)
        assert done.status == 2 and "shards-000002.tar is there, but not" in done.err, done.err
    assert contents(tmp_path / "out") == left
    assert write("--prefix", "others").status == 0


def test_damaged_shards_as_the_source(write, tmp_path):
    done = write("--per_shard", 3)
    config = pasted(done.out, tmp_path)
    last = tmp_path / "out/shards-000004.tar"
    last.write_bytes(last.read_bytes()[:700])
    done = write(dataset="toy-train-shards", config=config, output="copy")
    assert done.status == 1 and "12 images written, 0 could not be read" in done.out, done.out


def test_broken_images(write, data, tmp_path):
    config = tmp_path / "datasets.conf"
    shutil.copytree(data / "images/val", tmp_path / "images")
    names = sorted(path.name for path in (tmp_path / "images").iterdir())
    (tmp_path / "images" / names[1]).write_bytes(b"nothing")
    (tmp_path / "images" / names[5]).unlink()
    append(
        tmp_path,
        f"[v]\ndataset_class = CocoDataset\nimage_dir = images\ncaption_path = {data}/annotations/captions_val.json\n",
    )
    done = write("--per_shard", 2, dataset="v", config=config)
    assert done.status == 1 and "3 shards" not in done.out and "4 images written, 2 could not be read" in done.out
    assert done.err.count("write_shards.py: cannot read image") == 2
    dataset = open_dataset("v-shards", pasted(done.out, tmp_path))
    assert [item.key for item in dataset.items] == [names[number] for number in (0, 2, 3, 4)]
    again = write("--per_shard", 2, "--resume", dataset="v", config=config)
    assert again.status == 1 and "0 images written, 4 there already, 2 could not be read" in again.out
    for path in (tmp_path / "images").iterdir():
        path.write_bytes(b"")
    none = write(dataset="v", config=config, output="none")
    assert none.status == 2 and "none of its 6 images can be read" in none.err


def test_smaller_images(write, data, tmp_path):
    done = write("--image_size", 20, "--num_workers", 2)
    dataset = open_dataset("toy-train-shards", pasted(done.out, tmp_path))
    assert {open_image(item.path).size for item in dataset.items} == {(20, 20)}
    done = write("--image_size", 48, output="same")
    dataset = open_dataset("toy-train-shards", pasted(done.out, tmp_path))
    source = open_dataset("toy:train", str(data / "datasets.conf"))
    assert read_member(dataset.items[3].path) == Path(source.items[3].path).read_bytes()


def test_regions_zip_files_and_stories(write, tmp_path):
    make_regions(tmp_path, 2, 1)
    config = tmp_path / "datasets.conf"
    done = write(dataset="visualgenome:regions:train", config=config)
    assert done.status == 0, done.err
    dataset = open_dataset("visualgenome-regions-train-shards", pasted(done.out, tmp_path))
    source = open_dataset("visualgenome:regions:train", str(config))
    assert rows(dataset) == rows(source)
    for item, region in zip(dataset.items, source.items):
        assert open_image(item.path).size == (round(region.box[2]), round(region.box[3]))
    make_vist(tmp_path, 2, 1)
    story = write(dataset="vist:train", config=config)
    assert story.status == 2 and "one image, not a story of several" in story.err


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--max_size", "much"], "--max_size much: give a number of bytes, such as 500M"),
        (["--max_size", "0"], "--max_size 0: give"),
        (["--per_shard", 0], "--per_shard 0: must be at least 1"),
        (["--quality", 101], "--quality 101: must be at most 100"),
        (["--prefix", "a/b"], "--prefix 'a/b': give a name"),
        (["--image_size", 0], "--image_size 0: must be at least 1"),
        (["--prefix", "a::b"], "give names without it"),
    ],
)
def test_mistakes(write, flags, message):
    done = write(*flags)
    assert done.status == 2 and message in done.err and done.err.count("\n") == 1


def test_parts_with_the_same_ids(write):
    done = write(dataset="toy:train+toy:train")
    assert done.status == 2 and "parts share ids" in done.err


# ---- the scripts over shards ----


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """Flags that name a small encoder with random weights."""
    from torchvision.models import squeezenet1_1

    torch.manual_seed(1)
    file = tmp_path_factory.mktemp("weights") / "squeezenet.pth"
    torch.save(squeezenet1_1().state_dict(), file)
    return ["--weights", file, "--cpu", "--num_workers", 0]


def in_shards(write, data, tmp_path) -> Path:
    """A datasets.conf of the toy data and of toy-train-shards and toy-val-shards."""
    shutil.copytree(data, tmp_path / "data")
    for name in ("train", "val"):
        done = write("--per_shard", 3, dataset=f"toy:{name}", output=name)
        append(tmp_path / "data", Path(pasted(done.out, tmp_path)).read_text())
    return tmp_path / "data/datasets.conf"


def test_scripts_over_shards(write, data, tmp_path, script, encoder):
    """The same vocabulary, features, captions and figures as from the folder; training from pixels goes down."""
    config = ["--dataset_config_file", in_shards(write, data, tmp_path)]
    found = []
    for name in ("toy:train", "toy-train-shards"):
        vocabulary = ["--vocab_output_path", tmp_path / f"{name}.pkl", "--vocab_threshold", 1]
        assert script("build_vocab.py", "--dataset", name, *config, *vocabulary).status == 0
        extract = ["--extractor", "squeezenet1_1", "--crop_size", 32, *encoder, "--output_dir", tmp_path]
        done = script("extract_features.py", "--dataset", name, *config, *extract, "--output_file", f"{name}.npy")
        assert done.status == 0, done.err
        features = open_features(tmp_path / f"{name}.npy")
        keys = [item.key for item in open_dataset(name, str(config[1])).items]
        found.append((Vocabulary.load(tmp_path / f"{name}.pkl").words, np.asarray(features.get_many(keys))))
    assert found[0][0] == found[1][0] and np.array_equal(found[0][1], found[1][1])

    where = ["--model_path", tmp_path / "m", "--vocab_root", tmp_path / "v", "--vocab_threshold", 1, "--embed_size", 16]
    flags = [*config, *where, *encoder, "--features", "squeezenet1_1", "--crop_size", 32, "--hidden_size", 16]
    flags += ["--batch_size", 20, "--num_epochs", 3, "--shuffle_buffer", 4, "--optimizer", "adam"]
    both = ["--dataset", "toy-train-shards", "--validate", "toy-val-shards", "--model_name", "run"]
    done = script("train.py", *both, *flags, "--learning_rate", 0.05)
    assert done.status == 0, done.err
    losses = json.loads((tmp_path / "m/run/train_stats.json").read_text())
    assert losses["3"]["training_loss"] < losses["1"]["training_loss"]
    captions = {}
    for name in ("toy:val", "toy-val-shards"):
        answer = ["--output_file", tmp_path / "o.json", "--scoring", "bleu"]
        done = script(
            "infer.py", "--model", tmp_path / "m/run/ep3.model", "--dataset", name, *config, *encoder, *answer
        )
        assert done.status == 0, done.err
        captions[name] = done.out, json.loads((tmp_path / "o.json").read_text())
    assert captions["toy:val"] == captions["toy-val-shards"]

    last = tmp_path / "val/shards-000001.tar"
    whole = last.read_bytes()
    last.write_bytes(whole[:4_000])
    done = script("infer.py", "--model", tmp_path / "m/run/ep3.model", "--dataset", name, *config, *encoder, *answer)
    assert done.status == 1 and "shards-000001.tar: it is cut off" in done.err, done.err
    assert 3 <= len(json.loads((tmp_path / "o.json").read_text())) < 6

    last.write_bytes(whole)
    shutil.rmtree(tmp_path / "train")  # the same images in other shards: the order would be another
    assert write("--per_shard", 4, output="train").status == 0
    config[1].write_text(config[1].read_text().replace("000004}", "000003}"))
    done = script("train.py", *both, *flags, "--learning_rate", 0.05, "--num_epochs", 4, "--resume")
    assert done.status == 2 and "--dataset (a checksum of images" in done.err, done.err


@pytest.mark.slow
def test_a_killed_run_over_shards_goes_on_exactly(write, data, tmp_path, encoder):
    """Two processes with two workers each, killed in the middle of an epoch: the model of an undisturbed run."""
    config = in_shards(write, data, tmp_path)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    flags = ["--dataset", "toy-train-shards", "--dataset_config_file", config, "--vocab_root", tmp_path / "v"]
    flags += ["--features", "squeezenet1_1", "--crop_size", 32, "--hidden_size", 16, "--embed_size", 16]
    flags += [*encoder[:3], "--num_workers", 2, "--batch_size", 2, "--captions_per_image", 1, "--num_epochs", 2]
    flags += ["--vocab_threshold", 1, "--shuffle_buffer", 5, "--save_every", 2]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}

    def run(name: str, *more) -> subprocess.Popen:
        command = [*launch, ROOT / "train.py", *flags, "--model_path", tmp_path / name, "--model_name", "m", *more]
        options = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True, "env": env}
        return subprocess.Popen([str(part) for part in command], start_new_session=True, **options)

    whole = run("whole")
    assert whole.wait(200) == 0, whole.stderr.read()
    child, last = run("killed"), tmp_path / "killed/m/last.model"
    limit = time.monotonic() + 120
    while not last.exists() and time.monotonic() < limit and child.poll() is None:
        time.sleep(0.005)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    assert last.exists() and not (tmp_path / "killed/m/ep2.model").exists()
    on = run("killed", "--resume")
    assert on.wait(200) == 0, on.stderr.read()
    assert differences(tmp_path / "killed/m", tmp_path / "whole/m") == ""

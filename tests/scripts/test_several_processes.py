"""infer.py under torchrun: every image once, captions and scores of one process, resuming; scripts that refuse it."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from running import ROOT, run_here
from toy import FAST, make_coco, write_config, write_features

from captioning.cores import first_speaks

LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
SHARING = ("train.py", "infer.py", "extract_features.py")


def torchrun(processes: int, script: str, *arguments, cwd=None, timeout=200) -> subprocess.CompletedProcess:
    command = [*LAUNCH, str(processes), str(ROOT / script), *map(str, arguments)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=timeout, env=env)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model of feature files, and 13 images to caption. In each caption file a caption is blank."""
    root = tmp_path_factory.mktemp("processes")
    make_coco(root, {"train": 24, "val": 13})
    for path in (root / "annotations").iterdir():
        content = json.loads(path.read_text())
        content["annotations"][0]["caption"] = " "
        path.write_text(json.dumps(content))
    write_config(root, ["train", "val"])
    write_features(root, "pooled.lmdb")
    common = ["--dataset_config_file", root / "datasets.conf", "--features", "pooled.lmdb", "--cpu", *FAST]
    where = ["--model_path", root / "models", "--model_name", "m", "--vocab_root", root / "vocab"]
    done = run_here("train.py", "--dataset", "toy:train", *common, *where, "--num_epochs", 2)
    assert done.status == 0, done.err
    return root


@pytest.fixture
def flags(world):
    model = ["--model", world / "models/m/ep2.model", "--cpu", "--num_workers", 0]
    return [*model, "--dataset", "toy:val", "--dataset_config_file", world / "datasets.conf", "--batch_size", 2]


def captions(path) -> list[tuple]:
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    return [(entry["image_id"], entry["caption"], pytest.approx(entry["log_prob"], abs=2e-4)) for entry in entries]


@pytest.mark.parametrize("processes", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_each_image_once_and_as_by_one_process(world, flags, tmp_path, processes):
    more = ["--scoring", "bleu,cider", "--print_results"]
    one = run_here("infer.py", *flags, *more, "--output_file", tmp_path / "one.jsonl")
    assert one.status == 0, one.err
    beside = ["--sidecar", "txt", "--existing", "overwrite"]
    several = torchrun(processes, "infer.py", *flags, *more, *beside, "--output_file", tmp_path / "many.jsonl")
    assert several.returncode == 0, several.stderr
    assert several.stderr.count("beside the images (.txt): 13\n") == 1
    for image_id, caption, _ in captions(tmp_path / "one.jsonl"):
        assert (world / f"images/val/COCO_val_{image_id:012d}.txt").read_text() == f"{caption}\n"
    assert several.stdout == one.out
    assert several.stderr.count("captions of 13 images") == several.stderr.count("1 blank captions left out") == 1
    assert captions(tmp_path / "many.jsonl") == captions(tmp_path / "one.jsonl")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["many.jsonl", "one.jsonl"]


@pytest.mark.slow
@pytest.mark.parametrize("form", ["json", "txt", "csv", "html"])
def test_other_outputs_and_samples(flags, tmp_path, form):
    """Also more processes than batches, samples, and the words with their probabilities."""
    small = [*flags, "--batch_size", 6, *([] if form == "json" else ["--sample", "--n_best", 2])]
    small += ["--html"] if form == "html" else ["--probabilities", "--output_file"]
    one = run_here("infer.py", *small, tmp_path / f"one.{form}")
    several = torchrun(4, "infer.py", *small, tmp_path / f"many.{form}")
    assert (one.status, several.returncode) == (0, 0), several.stderr
    assert (tmp_path / f"many.{form}").read_text() == (tmp_path / f"one.{form}").read_text()
    assert several.stdout == one.out


@pytest.mark.slow
def test_photos_and_attention(world, tmp_path):
    """A broken photo is named once; attention of all images comes into one file, in their order."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for path in sorted((world / "images/val").glob("*.jpg"))[:5]:
        (photos / path.name).write_bytes(path.read_bytes())
    (photos / "COCO_val_000000000026.jpg").write_bytes(b"\xff\xd8\xff\xe0 nothing")
    flags = ["--image_dir", photos, "--cpu", "--batch_size", 1]
    outputs = {name: ["--attention_output", tmp_path / f"{name}.npz"] for name in ("one", "many")}
    one = run_here("infer.py", *flags, *outputs["one"])
    several = torchrun(2, "infer.py", *flags, *outputs["many"])
    assert (one.status, several.returncode) == (1, 1)
    assert several.stdout == one.out and one.out.count("\n") == 4
    assert several.stderr.count("warning: ") == 1 and several.stderr.count("1 of 5 images could not be read") == 1
    logs = [np.load(tmp_path / f"{name}.npz") for name in outputs]
    assert logs[0]["image_ids"].tolist() == logs[1]["image_ids"].tolist()
    assert np.allclose(logs[0]["attention"], logs[1]["attention"], atol=1e-4)


def interrupted(path, lines: list[str], shares: dict[int, list[int]]) -> None:
    """Part files as a killed run leaves them. shares: which of `lines` each process had written."""
    for process, numbers in shares.items():
        part = path.with_name(f"{path.name}.part" + (f".{process}" if process else ""))
        part.write_text("".join(lines[number] for number in numbers) + '{"image_id": 99, "cap')


@pytest.mark.parametrize("processes", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_killed_run_goes_on_with_another_number_of_processes(flags, tmp_path, processes):
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    assert run_here("infer.py", *flags, "--output_file", whole).status == 0
    lines = whole.read_text().splitlines(keepends=True)
    interrupted(out, lines, {0: [0, 1, 4, 5], 1: [2, 3], 2: [3, 6]})
    more = [*flags, "--output_file", out, "--resume"]
    if processes == 1:
        done = run_here("infer.py", *more)
        status, text = done.status, done.err
    else:
        done = torchrun(processes, "infer.py", *more)
        status, text = done.returncode, done.stderr
    assert status == 0 and text.count("7 of 13 images are captioned already") == 1, text
    assert captions(out) == captions(whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "whole.jsonl"]


@pytest.mark.slow
def test_a_run_that_is_killed_at_work(flags, world, tmp_path):
    out, whole = tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    slow = [*flags, "--batch_size", 1, "--beam_size", 5]
    assert run_here("infer.py", *slow, "--output_file", whole).status == 0
    command = [*LAUNCH, "2", ROOT / "infer.py", *slow, "--output_file", out]
    child = subprocess.Popen([str(part) for part in command], start_new_session=True, stderr=subprocess.DEVNULL)
    limit = time.monotonic() + 120
    while not (tmp_path / "out.jsonl.part.1").exists() and time.monotonic() < limit and child.poll() is None:
        time.sleep(0.01)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    done = torchrun(2, "infer.py", *slow, "--output_file", out, "--resume")
    assert done.returncode == 0, done.stderr
    assert captions(out) == captions(whole)
    again = torchrun(2, "infer.py", *slow, "--output_file", out, "--resume")  # all is there: no model is read
    assert again.returncode == 0 and "13 of 13 images are captioned already" in again.stderr
    assert captions(out) == captions(whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "whole.jsonl"]


@pytest.mark.slow
def test_a_mistake_is_told_once(flags, tmp_path):
    """What only the model file tells: found in all processes, said by the first."""
    (tmp_path / "bad.model").write_bytes(b"nothing")
    done = torchrun(2, "infer.py", *flags, "--model", tmp_path / "bad.model", "--output_file", tmp_path / "o.jsonl")
    assert done.returncode != 0 and done.stderr.count("infer.py: error: ") == 1
    assert "Traceback (most recent call last)" not in done.stderr.split("ChildFailedError")[0].split("torch/")[0]
    assert [path.name for path in tmp_path.iterdir()] == ["bad.model"]


@pytest.mark.slow
def test_training_says_all_once(world, tmp_path):
    common = ["--dataset_config_file", world / "datasets.conf", "--features", "pooled.lmdb", "--cpu", "--show_tokens"]
    where = ["--model_path", tmp_path, "--model_name", "two", "--vocab_root", world / "vocab", "--num_epochs", 1]
    done = torchrun(2, "train.py", "--dataset", "toy:train", "--validate", "toy:val", *common, *FAST, *where)
    assert done.returncode == 0, done.stderr
    models = [world / f"models/m/ep{number}.model" for number in (1, 2)]
    more = ["--load_model", *models, *where[:2], "--model_name", "on", *where[4:6], "--num_epochs", 1]
    several = torchrun(2, "train.py", "--dataset", "toy:train", *common[:2], "--cpu", *more)
    assert (several.stdout.count("on-m-ep1\n"), several.stdout.count("on-m-ep2\n")) == (1, 1), several.stderr
    assert done.stderr.count("captions_train.json: 1 blank") == done.stderr.count("captions_val.json: 1 blank") == 1
    told = [line for line in done.stdout.splitlines() if not line.startswith("tokens:")]
    assert len(told) == len(set(told)) and done.stdout.count("vocabulary from ") == 1


def test_who_speaks(monkeypatch, capsys):
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        with first_speaks():
            print("out of", rank)
            print("err of", rank, file=sys.stderr)
        print("after", rank)
    assert capsys.readouterr() == ("out of 0\nafter 0\nafter 1\n", "err of 0\n")


# ---- scripts that work in one process ----


@pytest.mark.parametrize("script", sorted(path.name for path in ROOT.glob("*.py") if "Parser(" in path.read_text()))
def test_scripts_that_cannot_share_say_so(script, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    for rank, lines in (("0", 1), ("1", 0)):
        monkeypatch.setenv("RANK", rank)
        done = run_here(script, "--nosuch")
        assert done.status == 2
        if script in SHARING:
            assert "unknown flag" in done.err
        else:
            assert (
                done.err.count("\n") == lines and ("runs as one process, but torchrun started 2" in done.err) == lines
            )


# ---- validation ----


@pytest.mark.parametrize("processes", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_processes_share_the_validation(world, tmp_path, monkeypatch, processes):
    """The figures of one process, printed and written once; batches of 64 images, so that two are needed."""
    make_coco(tmp_path, {"large": 70}, size=32)
    write_config(tmp_path, ["large"])
    write_features(tmp_path, "pooled.lmdb")
    models = [tmp_path / f"ep{number}.model" for number in (1, 2)]
    for path in models:
        path.write_bytes((world / "models/m" / path.name).read_bytes())
    flags = ["--validate", "toy:large", "--dataset_config_file", tmp_path / "datasets.conf", "--validate_only", "--cpu"]
    flags += ["--num_workers", 0, "--load_model", *models]
    one = run_here("train.py", *flags)
    assert one.status == 0, one.err
    stats = tmp_path / "train_stats-toy-large.json"
    figures = json.loads(stats.read_text())
    stats.unlink()
    several = torchrun(processes, "train.py", *flags)
    assert several.returncode == 0, several.stderr
    again = json.loads(stats.read_text())
    assert list(again) == ["1", "2"]
    assert all(again[epoch] == pytest.approx(figures[epoch], rel=1e-5) for epoch in again)
    assert several.stdout.splitlines() == one.out.splitlines()

"""A training run that is killed while it writes files: resumed, it equals one that was not, and leaves no debris."""

import json
import subprocess
import sys

import pytest
from running import ROOT
from toy import make_coco, write_config, write_features


@pytest.fixture
def kills(tmp_path):
    """Kills and resumes a training, as tests/killed_runs.py describes it; gives what was wrong, by kill."""
    data, runs = tmp_path / "data", tmp_path / "runs"
    make_coco(data, {"train": 12, "val": 6}, size=16)
    write_config(data, ["train", "val"])
    write_features(data, "pooled.npy")
    runs.mkdir()

    def call(timeout: int, **wanted) -> dict[str, str]:
        command = [sys.executable, ROOT / "tests/killed_runs.py", runs, data, json.dumps(wanted)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
        assert done.returncode == 0, done.stderr
        return {name: wrong for name, wrong in json.loads(done.stdout) if wrong}

    return call


def test_kills_at_some_calls_that_change_files(kills):
    assert kills(280, writes=800, others=13) == {}


@pytest.mark.slow
def test_kills_at_every_call_that_changes_files(kills):
    assert kills(3000, writes=1, others=1) == {}


@pytest.mark.slow
def test_kills_at_any_time(kills):
    assert kills(1500, seconds=[0.02 * n for n in range(1, 51)]) == {}

"""benchmarks/bench_shards.py in small: two processes with two workers, killed in the middle; every picture once."""

import pytest
from running import run_alone

pytest.importorskip("webdataset")


def test_every_picture_once_over_a_kill(tmp_path):
    sizes = ["--images", 300, "--shards", 7, "--size", 32, "--rounds", 0]
    done = run_alone("benchmarks/bench_shards.py", *sizes, "--folder", tmp_path)
    assert done.status == 0, done.err
    assert "300 images, 0 lost, 0 twice" in done.out
    killed = [line.split()[2] for line in done.out.splitlines() if line.startswith("killed after")]
    assert len(killed) == 1 and 4 <= int(killed[0]) <= 10

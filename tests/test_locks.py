"""captioning.locks: who is at work, across processes."""

import subprocess
import sys

import pytest

from captioning.errors import UserError
from captioning.locks import FileLock
from tests.running import ROOT

HOLD = """
import sys
from captioning.locks import FileLock
lock = FileLock(sys.argv[1], "it")
print("held", flush=True)
input()
"""


def test_a_second_process_is_refused_and_a_dead_one_holds_nothing(tmp_path):
    path = tmp_path / "lock"
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, path], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "held\n"
    with pytest.raises(UserError, match="another process is at work on the run: wait until it has ended"):
        FileLock(path, "the run")
    other.kill()
    other.wait()
    FileLock(path, "the run").release()


def test_the_same_process_is_refused_too_until_release(tmp_path):
    lock = FileLock(tmp_path / "lock", "the file")
    with pytest.raises(UserError, match="the file"):
        FileLock(tmp_path / "lock", "the file")
    lock.release(remove=True)
    assert not (tmp_path / "lock").exists()
    with FileLock(tmp_path / "lock", "the file"):
        pass


def test_a_folder_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(UserError, match="cannot write"):
        FileLock(tmp_path / "no" / "lock", "the file")

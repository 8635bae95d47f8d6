"""captioning.locks: who is at work, across processes."""

import os
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


def test_waiting_for_a_short_time(tmp_path):
    command = [sys.executable, "-c", HOLD, tmp_path / "lock"]
    other = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "held\n"
    with pytest.raises(UserError, match="the file"):
        FileLock(tmp_path / "lock", "the file", wait=0.1)
    other.stdin.write("\n")
    other.stdin.flush()
    FileLock(tmp_path / "lock", "the file", wait=60).release(remove=True)
    other.wait()


def test_a_file_that_its_holder_removes_is_no_lock_any_more(tmp_path, monkeypatch):
    """The holder removes it after the next one has opened it: who comes then must not get in beside that one."""
    first, real = FileLock(tmp_path / "lock", "the file"), os.open

    def opens_late(*arguments):
        handle = real(*arguments)
        if first.key is not None:
            first.release(remove=True)
        return handle

    monkeypatch.setattr(FileLock, "_key", lambda self, real=FileLock._key: None if first.key else real(self))
    monkeypatch.setattr(os, "open", opens_late)
    second = FileLock(tmp_path / "lock", "the file")
    assert os.stat(tmp_path / "lock").st_ino == second.key[1]
    with pytest.raises(UserError, match="the file"):
        FileLock(tmp_path / "lock", "the file")
    second.release()


def test_a_folder_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(UserError, match="cannot write"):
        FileLock(tmp_path / "no" / "lock", "the file")

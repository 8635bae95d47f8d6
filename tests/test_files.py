"""captioning/files.py: what is written is whole or not there, and every error is one line that names the file."""

import os
import resource
import signal
import subprocess
import sys
import threading

import pytest
import torch
from running import ROOT

from captioning.errors import UserError
from captioning.files import atomic_write, read_json, read_lines, remove_leftovers


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "deep" / "x.txt"
    with atomic_write(path) as file:
        file.write("old")
    with pytest.raises(ValueError, match="half"), atomic_write(path) as file:
        file.write("new")
        raise ValueError("half way")
    assert path.read_text() == "old" and os.listdir(path.parent) == ["x.txt"]


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "real.txt").write_text("old")
    link = tmp_path / "link.txt"
    link.symlink_to("data/real.txt")
    with atomic_write(link) as file:
        file.write("new")
    assert link.is_symlink() and (tmp_path / "data" / "real.txt").read_text() == "new"


def test_devices_and_pipes_are_written_to_directly(tmp_path):
    with atomic_write("/dev/null") as file:
        file.write("gone")
    assert not os.path.isfile("/dev/null")
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    with atomic_write(pipe) as file:
        file.write("through")
    reader.join()
    assert read == ["through"] and os.listdir(tmp_path) == ["pipe"]


def test_a_full_disk_is_one_line_and_leaves_the_old_file(tmp_path):
    """A limit of 10 kB a file stands for it; torch hides the error behind one of its own."""
    path, told = tmp_path / "x.model", "cannot write .*x.model: File too large"
    path.write_text("old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        for mode, content in (("wb", b"x" * 100_000), ("w", "x" * 100_000)):
            with pytest.raises(UserError, match=told), atomic_write(path, mode) as file:
                file.write(content)
        with pytest.raises(UserError, match=told), atomic_write(path, "wb") as file:
            torch.save({"a": torch.zeros(100_000)}, file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["x.model"]


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write .*file/x.txt: "), atomic_write(tmp_path / "file" / "x.txt"):
        pass
    with pytest.raises(UserError, match="cannot write .*: "), atomic_write(tmp_path) as file:
        file.write("onto a folder")


KILLED = """
import os, signal, sys
from captioning.files import atomic_write
with atomic_write(sys.argv[1]) as file:
    file.write("half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_leftovers_of_killed_writers_go_and_those_of_living_ones_stay(tmp_path):
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "dead.txt")], cwd=ROOT)
    (tmp_path / ".hidden").write_text("a person's")
    assert any(name.startswith(".dead.txt.") for name in os.listdir(tmp_path))
    with atomic_write(tmp_path / "living.txt") as file:
        remove_leftovers(tmp_path)
        file.write("whole")
    assert sorted(os.listdir(tmp_path)) == [".hidden", "living.txt"]
    assert (tmp_path / "living.txt").read_text() == "whole"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'{"a": }', "not valid JSON: Expecting value at line 1 column 7"),
        (b"[" * 100_000, "not valid JSON: lists within lists without end"),
        (b"1" * 10_000, "not valid JSON: Exceeds the limit"),
        (b'"\xff"', r"not UTF-8 text \(byte 1\)"),
        (b"", "not valid JSON: Expecting value at line 1 column 1"),
    ],
    ids=["malformed", "deep", "huge number", "bytes", "empty"],
)
def test_bad_json_is_one_line(tmp_path, content, told):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"captions: .*x.json (is )?{told}"):
        read_json(path, "captions")


def test_a_byte_order_mark_is_passed_over(tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(path, "captions") == {"a": 1}
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\n")
    assert read_lines(path, "list") == ["one", "two"]


@pytest.mark.parametrize("read", [read_json, read_lines])
def test_what_is_no_plain_file_is_refused_at_once(tmp_path, read):
    os.mkfifo(tmp_path / "pipe")
    for path, told in (
        (tmp_path / "pipe", "not a plain file"),
        ("/dev/zero", "not a plain file"),
        (tmp_path, "a folder"),
    ):
        with pytest.raises(UserError, match=f"captions: {path} is {told}"):
            read(path, "captions")
    with pytest.raises(UserError, match="captions: no such file: "):
        read(tmp_path / "absent", "captions")


def test_a_killed_writers_leftover_goes_when_the_same_file_is_written_again(tmp_path):
    for name in ("one.txt", "two.txt"):
        subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / name)], cwd=ROOT)
    with atomic_write(tmp_path / "one.txt") as file:
        file.write("whole")
    hidden = [name for name in os.listdir(tmp_path) if name.startswith(".")]
    assert len(hidden) == 1 and hidden[0].startswith(".two.txt.")


WRITES = """
import sys
from captioning.files import atomic_write, check_writable
check_writable("--output", sys.argv[1])
print("first")
with atomic_write(sys.argv[1]) as file:
    file.write("through\\n")
print("last")
"""


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_a_stream_is_written_through_whatever_it_leads_to(tmp_path, name):
    command = [sys.executable, "-c", WRITES, name]
    with open(tmp_path / "out.txt", "w") as file:
        subprocess.run(command, cwd=ROOT, stdout=file, check=True)
    assert (tmp_path / "out.txt").read_text() == "first\nthrough\nlast\n" and len(os.listdir(tmp_path)) == 1
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout == "first\nthrough\nlast\n"

"""captioning/errors.py: exit statuses, and output that arrives whatever stands at the other end."""

import errno
import io
import os
import subprocess
import sys
import threading

import pytest
from running import ROOT, run_alone

from captioning.errors import SafeStream, UserError, message_line, one_line, run, shown, user_message

PRINTS = """
import sys
import threading
from captioning.errors import run, user_message, UserError, run

def main(args):
    for n in range(20_000):
        print(args[0], flush=True)
    if args[1:]:
        raise UserError(args[1])

sys.exit(run(main, {args!r}))
"""


def start(command: str, *args: str, **env) -> subprocess.CompletedProcess:
    """Run PRINTS with `args` by a shell, as {} in `command`."""
    program = f"'{sys.executable}' -c \"$PROGRAM\""
    env |= {"PROGRAM": PRINTS.format(args=args), "PATH": "/usr/bin:/bin"}
    shell = ["bash", "-c", command.format(program)]
    return subprocess.run(shell, capture_output=True, cwd=ROOT, env=env, timeout=60)


def test_a_reader_that_goes_away_never_makes_unfinished_work_look_finished():
    done = start("{} | head -1; exit ${{PIPESTATUS[0]}}", "a line")
    assert (done.returncode, done.stdout, done.stderr) == (141, b"a line\n", b"")


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_streams_are_no_error(closed):
    assert start(f"{{}} {closed}", "a line").returncode == 0
    assert start(f"{{}} {closed}", "a line", "an error").returncode == 2


def test_a_terminal_that_lacks_a_character_stops_nothing():
    done = start("{} | tail -1; exit ${{PIPESTATUS[0]}}", "a 床 é", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stdout) == (0, b"a \\u5e8a \\xe9\n")


def test_control_characters_are_shown_not_sent():
    done = start("{} | tail -1", "\x1b[31mred\x07\ttab", "a\x9bb")
    assert done.stdout == b"\\x1b[31mred\\x07\ttab\n"
    assert done.stderr == b"-c: error: a\\x9bb\n"
    done = start("{} | tail -1", "name\u202egpj.exe\u2028\u200f", "a\u2066b")  # turned around, as a.exe.jpg
    assert done.stdout.decode() == "name\\u202egpj.exe\\u2028\u200f\n"
    assert done.stderr == b"-c: error: a\\u2066b\n"
    assert SafeStream(sys.stderr).encoding == sys.stderr.encoding


def test_a_name_cannot_write_over_its_line_but_a_progress_bar_can():
    stream = io.StringIO()
    safe = SafeStream(stream)
    for text in ("\r 50%", "\r      \r", "a.jpg: failed\ra.jpg: fine", "\r\n", "x\r\n"):
        safe.write(text)
    assert stream.getvalue() == "\r 50%\r      \ra.jpg: failed\\ra.jpg: fine\r\nx\r\n"


def test_shown_text_is_one_line():
    assert shown("a\nb\rc\td\x00\u2029é") == "a\\nb\\rc\td\\x00\\u2029é"
    line = message_line(UserError("x" * 9000 + "\x1b: no such file"))
    assert len(line) < 700 and line.endswith("\\x1b: no such file")


FAULT = """
import sys
import threading
sys.argv = ["score.py"]
sys.modules["__main__"].__file__ = "score.py"
from captioning import errors
raise RuntimeError("\\x1b]0;owned\\x07")
"""


def test_a_traceback_is_shown_not_sent():
    done = subprocess.run([sys.executable, "-c", FAULT], capture_output=True, cwd=ROOT, timeout=60)
    assert done.returncode == 1 and b"RuntimeError: \\x1b]0;owned\\x07" in done.stderr and b"\x1b" not in done.stderr


def test_a_name_that_is_too_long_is_one_line(script):
    for arguments in (("model_info.py", "x" * 5000), ("resize.py", "--image_dir", "y" * 300, "--output_dir", "z")):
        done = script(*arguments)
        assert done.status == 2 and done.err.endswith(": File name too long\n") and done.err.count("\n") == 1


@pytest.mark.parametrize(
    "message",
    ["[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes", "CUDA out of memory."],
)
def test_want_of_memory_is_one_line(message):
    assert "--batch_size" in user_message(RuntimeError(message)) and "--batch_size" in user_message(MemoryError())
    assert user_message(RuntimeError("size mismatch")) is None


def test_a_librarys_error_is_one_line_of_bounded_length():
    assert one_line(ValueError("two\nlines")) == "two lines"
    assert one_line(KeyError("x")) == "KeyError: 'x'"
    assert one_line(RuntimeError()) == "RuntimeError"
    assert len(one_line(RuntimeError("x" * 500))) == 160


def test_an_output_that_is_full_is_one_line():
    done = start("{} > /dev/full", "a line")
    assert (done.returncode, done.stderr) == (2, b"-c: error: No space left on device\n")
    assert start("{} 2> /dev/full", "a line", "an error").returncode == 2


def test_what_is_no_fault_of_the_program_is_told_in_words():
    assert user_message(OSError(errno.ENOSPC, "No space left on device", "x.bin")) == "x.bin: No space left on device"
    assert user_message(OSError(errno.ECHILD, "No child processes")) is None
    for text in ("DataLoader worker (pid 7) is killed by signal: Killed. ", "DataLoader worker (pid(s) 7) exited"):
        message = user_message(RuntimeError(text))
        assert "--num_workers 0" in message and "--shm-size" in message
    assert user_message(RuntimeError("Caught RuntimeError in DataLoader worker process 0.")) is None


@pytest.mark.parametrize(
    "error, told",
    [
        (ModuleNotFoundError("No module named 'torch'", name="torch"), "the package torch is missing: activate"),
        (ModuleNotFoundError("No module named 'timm.data'", name="timm.data"), "the package timm is missing: activate"),
        (ImportError("libcudart.so.12: no such file", name="torch"), "the package torch cannot be imported (libcudart"),
        (RuntimeError("operator torchvision::nms does not exist"), "torch and torchvision do not fit each other"),
        (ModuleNotFoundError("No module named 'captioning.x'", name="captioning.x"), None),
        (ImportError("cannot import name 'x' from 'model'", name="model"), None),
        (ImportError("no name"), None),
        (RuntimeError("operator aten::x does not exist"), None),
    ],
)
def test_a_missing_package_is_one_line(error, told):
    message = user_message(error)
    assert message is None if told is None else told in message
    assert message is None or message.endswith(("pip install -r requirements.txt", "install both from one place"))


@pytest.mark.parametrize("script, package", [("train.py", "torch"), ("resize.py", "PIL"), ("infer.py", "torch")])
def test_scripts_say_which_package_is_missing(script, package, tmp_path):
    """Those that import it first, and one that does so when it has begun."""
    lines = f"raise ModuleNotFoundError(\"No module named '{package}'\", name='{package}')"
    (tmp_path / f"{package}.py").write_text(lines)
    (tmp_path / "c.csv").write_text("image,caption\na.jpg,A dog.\n")
    flags = {"train.py": ["--captions", "c.csv"], "resize.py": ["--image_dir", ".", "--output_dir", "o"]}
    flags = flags.get(script, ["a.jpg"])
    (tmp_path / "a.jpg").write_bytes(b"")
    done = run_alone(script, *flags, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert (done.status, done.out) == (2, ""), done.err
    advice = "activate the environment (source .venv/bin/activate), or pip install -r requirements.txt"
    assert done.err == f"{script}: error: the package {package} is missing: {advice}\n"


def test_a_thread_leaves_the_telling_to_whoever_wants_its_work(capsys):
    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def main(args) -> None:
        thread = threading.Thread(target=full)
        thread.start()
        thread.join()
        full()

    hook = threading.excepthook
    assert run(main, None) == 2 and threading.excepthook is hook
    assert capsys.readouterr().err.endswith(": error: No space left on device\n")

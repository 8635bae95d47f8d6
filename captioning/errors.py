"""What every script does the same way: errors of one line and exit statuses.

A script ends with `sys.exit(run(main, ARGS))` and raises `UserError` for whatever a person can mend: a wrong path, an
unknown name, a damaged file. Work that met bad items and went on returns status 1 from `main`.
"""

import contextlib
import errno
import os
import re
import sys
import threading
import traceback
from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from captioning import signals

ROOT = Path(__file__).resolve().parents[1]
# Threads of torch that wait for work spin for microseconds only, then sleep: on a machine that others use too, the
# milliseconds of the default make it many times slower. It counts only if set before torch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")


WORKER_DIED = (
    "a process that loads data died, perhaps for want of memory, or of shared memory (/dev/shm; in Docker: --shm-size)"
    ": use --num_workers 0, or fewer than before"
)


class UserError(ValueError):
    """A person's mistake. The message is one line that names the option or file, its value and the remedy."""


# What a terminal obeys, or what turns the text around it, as Python writes it in strings: \x1b for Escape. Tabs, ends
# of lines and the marks without which Arabic and Hebrew cannot be written (U+200E, U+200F) stay.
OBEYED = (*range(32), *range(127, 160), *range(0x2028, 0x202F), *range(0x2066, 0x206A))
CONTROLS = {n: f"\\x{n:02x}" if n < 256 else f"\\u{n:04x}" for n in OBEYED if chr(n) not in "\t\n\r"}
LINE_ENDS = {ord("\n"): "\\n", ord("\r"): "\\r"}
LONGEST = 600  # characters of an error that are shown
OVERWRITES = re.compile(r"(?<=[^\r])\r(?=[^\r\n])")  # what is before it on the line; progress bars begin with \r


def shown(text: object) -> str:
    """`text` on one line, as a terminal may have it: what it would obey is written as Python does in strings."""
    return str(text).translate(CONTROLS | LINE_ENDS)


def message_line(error) -> str:
    """What is said of an error, on one line. The middle of a very long one is left out."""
    line = shown(" ".join(str(error).split()))
    return line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}"


class SafeStream:
    """A text stream that shows control characters of file names and captions instead of sending them to a terminal.

    Nobody misses what is said to a terminal that is gone. for_person: nor is it an error where a message is lost for
    another reason.
    """

    def __init__(self, stream, for_person: bool = False):
        self.stream, self.for_person = stream, for_person

    def write(self, text: str) -> int:
        text = text.translate(CONTROLS)
        if "\r" in text:
            text = OVERWRITES.sub(r"\\r", text)
        return self._try(self.stream.write, text) or len(text)

    def flush(self) -> None:
        self._try(self.stream.flush)

    def _try(self, work, *arguments):
        try:
            return work(*arguments)
        except (OSError, ValueError) as error:  # ValueError: it was closed
            if not self.for_person and getattr(error, "errno", None) != errno.EIO:
                raise

    def __getattr__(self, name: str):
        return getattr(self.stream, name)


@contextlib.contextmanager
def safe_streams():
    """Within it, what is printed reaches any stdout and stderr: closed ones, and those that lack a character."""
    before = sys.stdout, sys.stderr
    with contextlib.ExitStack() as stack:
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if stream is None:  # closed by the caller: `>&-`
                stream = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
            setattr(sys, name, SafeStream(stream, for_person=name == "stderr"))
        try:
            yield
        finally:
            for stream in (sys.stdout.stream, sys.stderr.stream):
                let_go(stream)
            sys.stdout, sys.stderr = before


@contextlib.contextmanager
def telling_once():
    """A block in which threads print no error that a person can mend: whoever waits for their work gets the same."""
    hook = threading.excepthook
    threading.excepthook = lambda lost: None if lost.exc_value and user_message(lost.exc_value) else hook(lost)
    try:
        yield
    finally:
        threading.excepthook = hook


def let_go(stream) -> None:
    """Throw away what is left in a stream that cannot be written: Python would fail at its end, with another status."""
    try:
        stream.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):  # closed, or no file but a test's
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def run(main, args) -> int:
    """The exit status of `main(args)`: 0 well, 1 some items failed, 2 an error, 128 + the number of a signal."""
    with safe_streams():
        try:
            with signals.interrupting(), telling_once():
                status = main(args) or 0
                sys.stdout.flush()
                return status
        except KeyboardInterrupt as error:
            number = getattr(error, "number", signals.SIGNALS[0])
            print(f"\n{script_name()}: interrupted", file=sys.stderr)
            return 128 + number
        except BrokenPipeError:  # the reader of our output (head, less) went away before the work was finished
            return 128 + 13  # SIGPIPE
        except Exception as error:
            if (message := user_message(error)) is None:
                raise
            print(f"{script_name()}: error: {message_line(message)}", file=sys.stderr)
            return 2


# What a full, read-only or forbidden disk answers, wherever no function named the file by a UserError.
UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}
OF_THE_DISK = UNWRITABLE | {errno.EACCES, errno.EPERM}
# How torch says it, of the CPU, of a GPU, and of sizes beyond what can be counted.
OUT_OF_MEMORY = re.compile("can't allocate memory|out of memory|Storage size calculation overflowed|not enough memory")
UNFIT_TORCHVISION = "operator torchvision::"  # "operator torchvision::nms does not exist"
INSTALL = "activate the environment (source .venv/bin/activate), or pip install -r requirements.txt"
OF_THE_NAME = {errno.ENAMETOOLONG, errno.ELOOP}


def user_message(error: Exception) -> str | None:
    """What a person is told of an error that he can mend; None where it is a fault of the program."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.errno in OF_THE_DISK | OF_THE_NAME:
        return str(error.strerror if error.filename is None else f"{error.filename}: {error.strerror}")
    broken = str(error).startswith("DataLoader worker (pid") or type(error).__name__ == "BrokenProcessPool"
    if isinstance(error, RuntimeError) and broken:
        return WORKER_DIED
    if (message := missing_package(error)) is not None:
        return message
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and OUT_OF_MEMORY.search(str(error))):
        return f"there is not enough memory ({one_line(error)}): smaller numbers need less, --batch_size before all"
    return None


def missing_package(error: BaseException) -> str | None:
    """What a person is told where a package that the toolkit needs is missing or broken; None for other errors."""
    if isinstance(error, RuntimeError) and UNFIT_TORCHVISION in str(error):
        return (
            f"the packages torch and torchvision do not fit each other ({one_line(error)}): install both from one place"
        )
    name = (getattr(error, "name", None) or "").partition(".")[0]
    ours = (ROOT / name).is_dir() or (ROOT / f"{name}.py").exists()
    if not isinstance(error, ImportError) or not name or ours:
        return None
    if isinstance(error, ModuleNotFoundError):
        return f"the package {name} is missing: {INSTALL}"
    return f"the package {name} cannot be imported ({one_line(error)}): {INSTALL}"


def in_script() -> bool:
    """Whether this process runs a script of the toolkit, rather than a program that imports it."""
    file = getattr(sys.modules.get("__main__"), "__file__", None)
    return file is not None and Path(file).resolve().parent in (ROOT, ROOT / "datasets")


def show_fault(kind, error, trace) -> None:
    """Print the traceback of a fault of the program, whose text may hold names and captions.

    A script imports packages before anybody can catch their errors: a missing one is one line, and status 2.
    """
    with safe_streams():
        if (message := missing_package(error)) is not None:
            print(f"{script_name()}: error: {message_line(message)}", file=sys.stderr)
            sys.exit(2)
        traceback.print_exception(kind, error, trace)


def use_utf8() -> None:
    """Start Python anew in its UTF-8 mode where names of files and texts would be taken for another encoding.

    That is where a locale such as C says so and Python was told to obey it. Captions and names of files are UTF-8.
    """
    if sys.getfilesystemencoding() != "utf-8" and not sys.flags.utf8_mode and hasattr(os, "execv"):
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


if in_script():
    use_utf8()
    signals.leave_at_once()
    sys.excepthook = show_fault


def is_installed(module: str) -> bool:
    """Whether a module can be found, without importing it."""
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):  # an import hook hides it, or sys.modules has None in its place
        return False


def warn(message: str) -> None:
    print(f"warning: {shown(message)}", file=sys.stderr)


@cache
def warn_once(message: str) -> None:
    """Print the warning, unless this process has printed it before."""
    warn(message)


def note(message: str) -> None:
    """Print what a person should know; standard output may be a file."""
    print(message, file=sys.stderr)


@cache
def note_once(message: str) -> None:
    """Print what a person should know, but need not mend, unless this process has printed it before."""
    print(shown(message), file=sys.stderr)


def first_few(names: Iterable, most: int = 3) -> str:
    """The first few of `names`, to be put into a message."""
    names = list(names)
    return ", ".join(map(str, names[:most])) + (", ..." if len(names) > most else "")


def one_line(error) -> str:
    """A library's error as a line of at most 160 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, (AssertionError, KeyError, TypeError, IndexError)):
        text = f"{type(error).__name__}: {text}"
    return text if len(text) <= 160 else text[:157] + "..."


def script_name() -> str:
    return Path(sys.argv[0]).name

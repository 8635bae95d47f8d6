"""Files: atomic writing, checks before the work, reading JSON and text with errors that name file and line."""

import contextlib
import errno
import hashlib
import json
import os
import re
import stat
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from captioning.errors import UserError

try:
    import fcntl
except ImportError:  # Windows: leftovers stay, since nothing tells whether their writer is alive
    fcntl = None

CANNOT_WRITE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EISDIR}
TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}\.tmp")  # names that atomic_write gives


@contextlib.contextmanager
def atomic_write(path, mode: str = "w", flush: bool = True):
    """Open a temporary file beside `path`; on success flush it to disk and rename it to `path`, else remove it.

    A reader therefore sees the old file or the complete new one, never half of it. Without `flush` that holds unless
    the machine itself fails soon after. A link stays a link: the file that it leads to is replaced. What is no plain
    file (`/dev/null`, a pipe) is written to directly. Raises UserError where the file cannot be written, at whatever
    byte; an older file is then as it was.
    """
    path = Path(path)
    encoding = None if "b" in mode else "utf-8"
    try:
        target = path
        if not stat.S_ISREG(file_mode(path)):
            if path.exists() and not path.is_file() and not path.is_dir():
                with open(path, mode, encoding=encoding) as file:
                    yield file
                return
            target = Path(os.path.realpath(path))
        handle, temporary = new_file_beside(target)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    try:
        with open(handle, mode, encoding=encoding) as file:
            if fcntl is not None and flush:
                with contextlib.suppress(OSError):  # a file system without locks
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # remove_leftovers() lets it be
            yield file
            if flush:
                file.flush()
                os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp makes the file private; give it the usual mode
        os.replace(temporary, target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if (cause := _write_error(error)) is not None:
            raise UserError(f"cannot write {path}: {cause.strerror or cause}") from error
        raise


def file_mode(path: Path) -> int:
    """The mode of what stands at `path`, a link not followed; that of a plain file where nothing does."""
    try:
        return os.lstat(path).st_mode
    except OSError:
        return stat.S_IFREG


def new_file_beside(path: Path) -> tuple[int, str]:
    """A new file for `atomic_write` in the folder of `path`, which is made where it is missing: handle and name."""
    names = {"prefix": f".{path.name}.", "suffix": ".tmp", "dir": path.parent}
    try:
        return tempfile.mkstemp(**names)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        return tempfile.mkstemp(**names)


def known_ending(path, what: str, known: Sequence[str]) -> str:
    """The ending of `path`, in lower case. Raises UserError where it is none of `known`; `what` names its role."""
    ending = Path(path).suffix.lower()
    if ending not in known:
        raise UserError(f"{what}: unknown ending of {str(path)!r}: use one of {', '.join(known)}")
    return ending


def require_model_file(path) -> None:
    """Raises UserError where there is no file `path`; whether it is a model file is for checkpoint.load to say."""
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder, not a model file; perhaps {path / 'best.model'}")
    if not path.exists():
        raise UserError(f"no such model file: {path}")
    require_plain_file(path, "model file")


def check_writable(option: str, path) -> None:
    """Raises UserError where `path` cannot be written: better before the work than after it. `option` names its flag.

    The folder of `path` is made where it is not there.
    """
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise UserError(f"{option}: {path} is a folder; name a file")
    folder = target.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{option}: cannot make the folder {Path(path).parent}: {error.strerror or error}") from error
    device = target.exists() and not target.is_file()  # such as /dev/null, whose folder need not be writable
    if not os.access(target if device else folder, os.W_OK):
        raise UserError(f"{option}: the folder {Path(path).parent} cannot be written")


def _write_error(error: BaseException | None) -> OSError | None:
    """The error of a full or read-only disk that led to `error`; libraries hide it behind errors of their own."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in CANNOT_WRITE:
            return error
        error = error.__cause__ or error.__context__
    return None


def remove_leftovers(folder) -> None:
    """Remove the temporary files that killed processes left in `folder`; those being written now stay."""
    if fcntl is None:
        return
    with contextlib.suppress(OSError):
        for path in [Path(entry) for entry in os.scandir(folder) if TEMPORARY.fullmatch(entry.name)]:
            with contextlib.suppress(OSError), open(path, "rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails where the writer is alive
                path.unlink()


def require_plain_file(path, what: str) -> None:
    """Raises UserError for a folder, a pipe, a device, and where nothing is at `path`; `what` names its role.

    A pipe may never give anything, and /dev/zero never ends.
    """
    with _reading(path, what):
        pass


@contextlib.contextmanager
def _reading(path, what: str) -> Iterator[None]:
    """Errors of reading `path` become one line; `what` names its role. Raises UserError for what is no plain file."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise UserError(f"{what}: {path} is {'a folder' if os.path.isdir(path) else 'not a plain file'}")
        yield
    except FileNotFoundError:
        raise UserError(f"{what}: no such file: {path}") from None
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        if isinstance(error, UserError):
            raise
        raise UserError(f"{what}: cannot read {path}: {getattr(error, 'strerror', None) or error}") from error


def read_bytes(path, what: str) -> bytes:
    """The content of the file `path`; `what` names its role in errors. Raises UserError where it cannot be read."""
    with _reading(path, what), open(path, "rb") as file:
        return file.read()


def sha256_of(path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_json(path, what: str):
    """Parse the JSON file `path`; `what` names its role in errors ("captions", "results").

    A byte order mark is passed over. Raises UserError naming the file and, for malformed JSON, the line and column.
    """
    data = read_bytes(path, what)
    try:
        return json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{what}: {path} is not UTF-8 text (byte {error.start})") from error
    except json.JSONDecodeError as error:
        reason = f"{error.msg} at line {error.lineno} column {error.colno}"
    except RecursionError:
        reason = "lists within lists without end"
    except ValueError as error:  # a number of more digits than Python converts
        reason = str(error)
    raise UserError(f"{what}: {path} is not valid JSON: {reason}")


def read_lines(path, what: str) -> list[str]:
    """The lines of the UTF-8 text file `path`, without their ends; `what` names its role in errors.

    A byte order mark is passed over. Raises UserError naming the file and, for bytes that are no text, the line.
    """
    data = read_bytes(path, what)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{what}: {path}, line {line} is not UTF-8 text") from error
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")] if text else []

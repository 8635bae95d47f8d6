"""Files: atomic writing, and reading JSON and text with errors that name the file and the line."""

import contextlib
import json
import os
import tempfile
from pathlib import Path

from captioning.errors import UserError


@contextlib.contextmanager
def atomic_write(path, mode: str = "w", flush: bool = True):
    """Open a temporary file beside `path`; on success flush it to disk and rename it to `path`, else remove it.

    A reader therefore sees the old file or the complete new one, never half of it. Without `flush` that holds unless
    the machine itself fails soon after. Raises UserError where the folder cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    try:
        with open(handle, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            if flush:
                file.flush()
                os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp makes the file private; give it the usual mode
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def read_json(path, what: str):
    """Parse the JSON file `path`; `what` names its role in errors ("captions", "results").

    Raises UserError naming the file and, for malformed JSON, the line and column.
    """
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError:
        raise UserError(f"{what}: no such file: {path}") from None
    except OSError as error:
        raise UserError(f"{what}: cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{what}: {path} is not UTF-8 text (byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise UserError(
            f"{what}: {path} is not valid JSON: {error.msg} at line {error.lineno} column {error.colno}"
        ) from error


def read_lines(path, what: str) -> list[str]:
    """The lines of the UTF-8 text file `path`, without their ends; `what` names its role in errors.

    Raises UserError naming the file and, for bytes that are no text, the line.
    """
    try:
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        raise UserError(f"{what}: no such file: {path}") from None
    except OSError as error:
        raise UserError(f"{what}: cannot read {path}: {error.strerror or error}") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{what}: {path}, line {line} is not UTF-8 text") from error
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")] if text else []

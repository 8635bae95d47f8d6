"""The flag --group: files that belong together, as those of several seeds of one setting.

add("--group", **GROUP, help="...")
read_groups(["a.json"], ["a"], ["lstm=lstm*.json"])          # [("a", ["a.json"]), ("lstm", ["lstm1.json", ...])]
"""

import glob
import os
from collections.abc import Sequence

from captioning.errors import UserError

GROUP = {"action": "append", "nargs": "?", "const": "", "metavar": "NAME=FILES"}  # for argparse


def group_mistake(typed: Sequence[str], files: Sequence[str], what: str) -> str | None:
    """What is wrong with the values of --group, or None. files: those named without a group; `what` they are called."""
    for text in typed:
        name, equals, pattern = text.partition("=")
        if text and not (name and equals and pattern):
            return f"--group {text}: write NAME=FILE,FILE; --group without a value stands behind {what}"
    if "" in typed and not files:
        return f"--group without a value joins {what}, but there are none"
    return None


def read_groups(files: Sequence[str], names: Sequence[str], typed: Sequence[str]) -> list[tuple[str, list[str]]]:
    """(name, files) of each group. Each of `files`, called `names`, is one alone, unless --group without a value joins
    them.

    Raises UserError where no file has a name that a pattern describes.
    """
    if "" in typed:
        groups = [(os.path.commonprefix(list(names)).rstrip("-_. ") or "all", list(files))]
    else:
        groups = [(name, [file]) for name, file in zip(names, files)]
    for name, _, patterns in (text.partition("=") for text in typed if text):
        groups.append((name, [file for pattern in patterns.split(",") for file in files_of(pattern, name)]))
    return groups


def files_of(pattern: str, name: str) -> list[str]:
    """The files that a pattern such as results/lstm*.json describes, or the one file that it names."""
    if os.path.exists(pattern) or not glob.has_magic(pattern):
        return [pattern]
    found = sorted(glob.glob(pattern))
    if not found:
        raise UserError(f"--group {name}: there is no file {pattern}")
    return found

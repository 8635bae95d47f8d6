"""What `--dataset` is made of: sections of datasets.conf, tar shards, paths of captions with :SPLIT, joined by +.

split_names("coco:train2014+photos/a+b.csv:train", known)      # ["coco:train2014", "photos/a+b.csv:train"]
as_path("photos/a+b.csv:train")                                # ("photos/a+b.csv", "train")

Paths may contain + and :, as the drives of Windows do. What is there decides.
"""

import os
import re
from collections.abc import Collection

_SPLIT = re.compile(r"\w[\w-]*")
_LIKE_A_PATH = re.compile(r"[/\\]|\.(?:csv|tsv|jsonl?|txt|token|tar)(?::|$)", re.IGNORECASE)


def split_names(spec: str, known: Collection[str] = ()) -> list[str]:
    """The names that `spec` joins by +. A name that has a + of its own is the path of a file or folder.

    known: sections of datasets.conf, which no path takes the place of.
    """
    pieces, names = spec.split("+"), []
    while pieces:
        count = 1
        if pieces[0].strip() not in known:
            lengths = range(len(pieces), 1, -1)
            count = next((n for n in lengths if as_path("+".join(pieces[:n]).strip()) is not None), 1)
        names.append("+".join(pieces[:count]).strip())
        del pieces[:count]
    return names


def as_path(name: str) -> tuple[str, str | None] | None:
    """(path, split) of PATH or PATH:SPLIT where the file or folder is there, with None for no split; else None."""
    head, colon, tail = name.rpartition(":")
    for path, split in ((name, None), (head, tail)) if colon and _SPLIT.fullmatch(tail) else ((name, None),):
        for place in (path, os.path.expanduser(path)):
            if place and os.path.exists(place):
                return place, split
    return None


def is_shards(name: str) -> bool:
    """Whether a name means tar shards: `shards-{0000..0099}.tar`, one of them, or several patterns joined by `::`."""
    return name.lower().endswith(".tar")


def looks_like_path(name: str) -> bool:
    """Whether a name that is not there was meant as a path."""
    return _LIKE_A_PATH.search(name) is not None


def short_names(spec: str) -> str:
    """`spec` with the name of the file, or folder, in place of each path: part of the names of other files."""
    names = []
    for name in split_names(spec):
        if is_shards(name):
            name = re.sub(r"[{}]", "", os.path.basename(name.partition("::")[0].strip())[: -len(".tar")])
        elif (place := as_path(name)) is not None and looks_like_path(name):
            path, split = place
            base = os.path.basename(os.path.abspath(path))
            name = (base if os.path.isdir(path) else os.path.splitext(base)[0]) + (f":{split}" if split else "")
        names.append(name)
    return "+".join(names)

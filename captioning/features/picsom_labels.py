"""PicSOM's text files: labels of objects, classes of objects, captions, maps from labels to labels."""

import os
from collections.abc import Iterator

from captioning.errors import UserError
from captioning.files import read_lines

METACLASS = "# METACLASSFILE"
DEEPEST = 100  # classes that list classes


def read_labels(path) -> dict[str, int]:
    """Label -> index, of a file with a line `#INDEX <LABEL> key=[value] ...` for every object.

    Raises UserError naming the line that is malformed, or that has an index or label that was there before.
    """
    index: dict[str, int] = {}
    taken: set[int] = set()
    for number, line in enumerate(read_lines(path, "labels"), 1):
        if not line.strip():
            continue
        row, _, label = line.partition("<")
        row, (label, closed, _) = row.strip(), label.partition(">")
        if not (row.startswith("#") and row[1:].isdecimal() and len(row) < 19 and closed and label):
            raise UserError(f"{path}, line {number}: {line[:60]!r} is not of the form '#INDEX <LABEL>'")
        if label in index or int(row[1:]) in taken:
            again = f"label <{label}>" if label in index else f"index {row}"
            raise UserError(f"{path}, line {number}: {again} is there already")
        index[label] = int(row[1:])
        taken.add(index[label])
    return index


def read_class(folder, name: str) -> list[str]:
    """The labels of the objects in class `name`, a file of `folder`: a label a line, # begins a comment.

    A file that begins with `# METACLASSFILE` lists other classes instead, and stands for all of their objects.
    Raises UserError for a class that is not there (naming the file and line that ask for it), a line of several words,
    and a metaclass that lists itself.
    """
    return list(_class_labels(folder, name, (), {}))


def _class_labels(folder, name: str, within: tuple[str, ...], done: dict[str, dict]) -> dict[str, None]:
    """The labels as keys. within: the classes that ask for this one; done: the labels of classes read before."""
    path = os.path.join(folder, name)
    lines = read_lines(path, "class file")
    meta = bool(lines) and lines[0].startswith(METACLASS)
    labels: dict[str, None] = {}
    for number, line in enumerate(lines, 1):
        entry = line.strip()
        if not entry or entry.startswith("#"):
            continue
        if len(entry.split()) > 1 or "\0" in entry:
            wanted = "a class" if meta else "a label"
            raise UserError(f"{path}, line {number}: {entry[:60]!r} is several words: {wanted} a line is expected")
        if not meta:
            labels[entry] = None
        elif entry in (*within, name):
            raise UserError(f"{path}, line {number}: class {entry} lists itself")
        elif not os.path.isfile(os.path.join(folder, entry)):
            raise UserError(f"{path}, line {number}: no such class: {os.path.join(folder, entry)[:200]}")
        elif len(within) >= DEEPEST:
            raise UserError(f"{path}, line {number}: classes list classes more than {DEEPEST} deep")
        else:
            if entry not in done:
                done[entry] = _class_labels(folder, entry, (*within, name), done)
            labels.update(done[entry])
    return labels


def read_captions(path) -> Iterator[tuple[int, str, list[str]]]:
    """(line number, label, texts) of each line `LABEL text # text # text`. Raises UserError naming a malformed line."""
    for number, line in enumerate(read_lines(path, "captions"), 1):
        if not line.strip():
            continue
        label, _, texts = line.partition(" ")
        if not label or "\0" in line:
            raise UserError(f"{path}, line {number}: {line[:60]!r} is not of the form 'LABEL text # text'")
        yield number, label, texts.split(" # ") if texts.strip() else []


def read_label_map(path) -> dict[str, list[str]]:
    """Label -> other labels, of lines `LABEL OTHER OTHER ...`. Raises UserError naming a line with a single word."""
    mapped: dict[str, list[str]] = {}
    for number, line in enumerate(read_lines(path, "label_map"), 1):
        words = line.split()
        if len(words) == 1:
            raise UserError(f"{path}, line {number}: {line[:60]!r} maps to nothing: 'LABEL OTHER ...' is expected")
        if words:
            mapped.setdefault(words[0], []).extend(words[1:])
    return mapped

"""Recognising a file or a folder of captions by what is in it, and reading it."""

import codecs
import os

from captioning.datasets.layouts.folders import has_images, read_folder
from captioning.datasets.layouts.json_files import read_json_layout
from captioning.datasets.layouts.layout import Layout
from captioning.datasets.layouts.tables import apply_split_lists, read_json_lines, read_table, read_token_file
from captioning.errors import UserError
from captioning.files import parse_json, read_bytes

KNOWN = (
    "CSV or TSV with a column of images and one of captions; JSON Lines; COCO's, Karpathy's or another JSON of images "
    "and captions; lines NAME#NUMBER, tab, caption; a folder with Hugging Face's metadata.jsonl or .csv; a folder of "
    "x.jpg beside x.txt; tar shards, shards-{0000..0099}.tar"
)
WIDE = {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}  # how spreadsheets save "Unicode text"


def read_layout(path: str, option: str) -> Layout:
    """What the file or folder `path` holds; option: the flag that errors name.

    Raises UserError for a path that is not there, a damaged file, one without images, and one of no known layout; the
    last lists those that are known.
    """
    layout = read_folder(path, read_file) if os.path.isdir(path) else read_file(path, option)
    if layout is None:
        what = f"{option}: {path}"
        if os.path.isdir(path) and has_images(path):
            raise UserError(f"{what} has images, but no captions: write x.txt beside x.jpg, or name a file of captions")
        raise UserError(f"{what} is no captions that are known. These are: {KNOWN}")
    if not layout.photos:
        why = f": {layout.unused[0]}" if layout.unused else ""
        raise UserError(f"{option}: {path} ({layout.kind}) has no images{why}")
    return layout


def read_file(path: str, option: str = "captions") -> Layout | None:
    """What a file holds; None where it is of no known layout. Raises UserError for a damaged one."""
    text = decoded(read_bytes(path, option), path, option)
    if text is None or not text.strip():
        return None
    layout = read_token_file(path, text)
    if layout is None and text.lstrip()[0] in "{[":
        layout = read_json_lines(path, text)
        return layout if layout is not None else _json(path, text, option)
    if layout is None:
        layout = read_table(path, text)
    if layout is not None:
        apply_split_lists(layout)
    return layout


def decoded(data: bytes, path: str, option: str) -> str | None:
    """The text of a file, in UTF-8 or with the mark of UTF-16; None for one that is no text.

    Raises UserError, naming the line, for a text in another encoding.
    """
    for mark, encoding in WIDE.items():
        if data.startswith(mark):
            return data.decode(encoding, "replace")
    if b"\0" in data[:4096]:
        return None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{option}: {path}, line {line} is not UTF-8 text: save the file as UTF-8") from None


def _json(path: str, text: str, option: str) -> Layout | None:
    try:
        content = parse_json(text)
    except ValueError as error:
        raise UserError(f"{option}: {path} is not valid JSON: {error}") from None
    return read_json_layout(path, content)

"""Captions in tables: CSV, TSV and their like, JSON Lines, and the token files of Flickr8k and Flickr30k."""

import csv
import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from captioning.datasets.layouts.layout import Layout, base_name, split_name
from captioning.errors import UserError
from captioning.files import parse_json, read_lines
from captioning.images.kinds import EXTENSIONS
from captioning.tables import plain_cell

# Names of columns, and of members of JSON objects; of several the first of the list counts.
IMAGE_NAMES = ("file_name", "filename", "image_file", "image_path", "imagepath", "img_path", "file_path", "filepath")
IMAGE_NAMES += ("path", "image_name", "image", "images", "img", "file", "photo", "picture", "image_id", "id", "name")
CAPTION_NAMES = ("caption", "captions", "text", "texts", "description", "descriptions", "comment", "comments")
CAPTION_NAMES += ("sentence", "sentences", "prompt", "title", "raw", "tags", "label")
SPLIT_COLUMNS = ("split", "set", "subset", "partition")
DELIMITERS = {",": "CSV", "\t": "TSV", ";": "CSV with semicolons", "|": "table with |"}
SEVERAL = re.compile(rf"(?:{'|'.join(CAPTION_NAMES)})_?\d+")  # caption_1, caption_2, ...
TOKEN_LINE = re.compile(r"(.+\.\w+)#(\d+)[\t ]\s*(.*)")
LOOKED_AT = 50  # rows by which a table is recognised
LIST_OF_SPLIT = re.compile(r"(train|dev|val|valid|validation|test)(?:[_-]?(?:images|list|split|set))?\.txt$", re.I)
LONGEST_CELL = 2**24  # characters


def read_token_file(path: str, text: str) -> Layout | None:
    """Lines `name.jpg#0<tab>caption`, as Flickr8k and Flickr30k have them; None for another text."""
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    if not any(lines) or not all(TOKEN_LINE.fullmatch(line) for line in [line for line in lines if line][:LOOKED_AT]):
        return None
    layout = Layout(path, "token file of Flickr8k's kind (name#number, tab, caption)")
    for number, line in enumerate(lines, 1):
        if match := TOKEN_LINE.fullmatch(line):
            layout.add(match[1], match[3], f"line {number}")
        elif line.strip():
            layout.unused.append(f"line {number}: it is not NAME#NUMBER, a tab and a caption")
    return layout


def read_json_lines(path: str, text: str) -> Layout | None:
    """A JSON object a line, with an image and a caption, or a list of them; None for another text."""
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    try:
        first = parse_json(lines[0][1])
    except (ValueError, IndexError):
        return None
    if not isinstance(first, dict) or columns_of(first) is None:
        return None
    layout = Layout(path, "")
    for number, line in lines:
        try:
            add_object(layout, parse_json(line), f"line {number}")
        except ValueError as error:
            layout.unused.append(f"line {number}: it is not JSON: {error}")
    image, caption = columns_of(first)[:2]
    layout.kind = f"JSON Lines ({image}, {caption})"
    return layout


def columns_of(row: Mapping[str, object]) -> tuple[str, str, str | None] | None:
    """Which names of `row` are the image, the caption and the split; None where the first two are not all there.

    row: name -> a value. Of several names for an image the first counts whose value is the name of an image file.
    """
    known: dict[str, str] = {}
    for name in row:
        known.setdefault(plain(name), name)
    images, captions, splits = (
        [known[wanted] for wanted in several if wanted in known]
        for several in (IMAGE_NAMES, CAPTION_NAMES, SPLIT_COLUMNS)
    )
    captions += [name for key, name in known.items() if SEVERAL.fullmatch(key)]
    if not images or not captions:
        return None
    image = next((name for name in images if isinstance(row[name], str) and is_image(unquoted(row[name]))), images[0])
    return image, captions[0], splits[0] if splits else None


def plain(name: str) -> str:
    """The name of a column as IMAGE_NAMES writes names: "File Name" is file_name."""
    return re.sub(r"[\s-]+", "_", str(name).strip().lower())


def add_object(layout: Layout, row: object, place: str) -> None:
    """Add a JSON object with an image and captions to `layout`, or what is wrong with it."""
    columns = columns_of(row) if isinstance(row, dict) else None
    if columns is None:
        layout.unused.append(f"{place}: no object with an image and a caption but {str(row)[:40]!r}")
        return
    image, caption, split = columns
    layout.add(row[image], row[caption], place, row[split] if split else "")


# ---- tables ----


@dataclass(frozen=True)
class Columns:
    """Where things are in a table. header: whether the first row that holds something names the columns."""

    header: bool
    image: int
    captions: list[int]
    split: int | None = None

    @property
    def last(self) -> int:
        return max(self.image, *self.captions, self.split or 0)


def read_table(path: str, text: str) -> Layout | None:
    """A table with a column of images and one of captions, with a header or without; None for another text.

    Raises UserError for a table that breaks off within quotation marks.
    """
    for delimiter, kind in DELIMITERS.items():
        rows = first_rows(text, delimiter)
        if rows and (columns := columns_of_table(rows)) is not None:
            return _table(Layout(path, kind), text, delimiter, columns)
    return None


def first_rows(text: str, delimiter: str) -> list[list[str]]:
    """The first rows that hold something, by which a table is recognised."""
    rows = (row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=csv.QUOTE_NONE))
    return list(islice((row for row in rows if any(row)), LOOKED_AT))


def columns_of_table(rows: list[list[str]]) -> Columns | None:
    """The columns of a table by its first rows; None where there is none of images, or no other."""
    header = [unquoted(cell) for cell in rows[0]]
    sample = dict(zip(header, [*rows[min(1, len(rows) - 1)], *[""] * len(header)]))
    if len(header) > 1 and (known := columns_of(sample)) is not None:
        image, caption, split = (None if name is None else header.index(name) for name in known)
        numbered = [i for i, name in enumerate(header) if SEVERAL.fullmatch(plain(name)) and i != image]
        return Columns(True, image, numbered if caption in numbered else [caption], split)
    width, body = max(map(len, rows)), rows[1:] or rows
    for column in range(width if width > 1 else 0):
        values = [unquoted(row[column]) for row in body if len(row) > column]
        if sum(map(is_image, values)) > 0.8 * len(body):  # the others may be rows with mistakes
            named = len(rows) > 1 and not is_file(header[column] if column < len(header) else "")
            return Columns(named, column, [longest_column(body, width, column)])
    return None


def is_file(cell: str) -> bool:
    """Whether a text ends as the names of files do."""
    return re.search(r"\.\w{2,5}$", cell) is not None


def unquoted(cell: str) -> str:
    """A cell without blanks and quotation marks around it."""
    cell = cell.strip()
    return cell[1:-1] if len(cell) > 1 and cell[0] == cell[-1] == '"' else cell


def is_image(cell: str) -> bool:
    """Whether a text is the name of an image file."""
    return cell.strip().lower().endswith(EXTENSIONS)


def longest_column(rows: list[list[str]], width: int, images: int) -> int:
    """The column, not that of the images, with the most letters: of several it is that of the captions."""
    sizes = {column: sum(len(row[column]) for row in rows if len(row) > column) for column in range(width)}
    return max((column for column in sizes if column != images), key=sizes.__getitem__)


def _table(layout: Layout, text: str, delimiter: str, columns: Columns) -> Layout:
    """Fill `layout` from the rows of a table."""
    try:
        rows = list(cells(text, delimiter))
    except UserError as error:
        if delimiter == ",":
            raise UserError(f"{layout.path}: {error}") from None
        rows = list(cells(text, delimiter, quoting=False))  # they are part of the text, as in many TSV files
        layout.notes.append("quotation marks are part of the captions")
    filled = [(number, row) for number, row in rows if any(cell.strip() for cell in row)]
    names = [name.strip() for name in filled[0][1]] if columns.header else []
    shown = [names[i] if i < len(names) else f"column {i + 1}" for i in (columns.image, columns.captions[0])]
    layout.kind += f" {'with' if names else 'without'} a header ({', '.join(shown)})"
    for number, row in filled[bool(names) :]:
        if columns.captions == [columns.last] and len(names) in (0, columns.last + 1):
            # a caption with commas may lack quotation marks around it
            row = [*row[: columns.last], delimiter.join(row[columns.last :])]
        _add_row(layout, row, f"row {number}", columns)
    return layout


def cells(text: str, delimiter: str, quoting: bool = True) -> Iterator[tuple[int, list[str]]]:
    """(number of the row, its cells). Raises UserError for quotation marks that do not fit."""
    csv.field_size_limit(LONGEST_CELL)
    spaced = re.search(rf'(?m)^[^"\n]*{re.escape(delimiter)} +"', text) is not None  # x.jpg, "a ball, red"
    options = {"strict": True, "skipinitialspace": spaced} if quoting else {"quoting": csv.QUOTE_NONE}
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, **options)
    number = 0
    try:
        for number, row in enumerate(reader, 1):
            yield number, row
    except csv.Error as error:
        advice = "a caption with quotation marks has marks around it, and those within it are written twice"
        raise UserError(f"row {number + 1} (line {reader.line_num}): {error}: {advice}") from None


def _add_row(layout: Layout, row: list[str], place: str, columns: Columns) -> None:
    cell = [plain_cell(value.strip()) for value in row] + [""] * (columns.last + 1 - len(row))
    texts = [cell[column] for column in columns.captions]
    if len(texts) > 1:
        texts = [text for text in texts if text] or [""]  # not every image has as many captions
    layout.add(cell[columns.image], texts, place, cell[columns.split] if columns.split is not None else "")


# ---- lists of splits beside a file ----


def apply_split_lists(layout: Layout) -> None:
    """Give the images their splits from lists that lie beside the file, such as Flickr_8k.trainImages.txt.

    A list counts where all of its lines name images of the file, with or without extension. Nothing is done where the
    file has splits of its own.
    """
    if layout.splits():
        return
    by_name: dict[str, list] = {}
    for photo in layout.photos.values():
        name = base_name(photo.name)
        for key in {name, name.rpartition(".")[0] or name}:
            by_name.setdefault(key, []).append(photo)
    found: dict[str, str] = {}
    for file in sorted(Path(layout.path).parent.glob("*.txt")):
        match = LIST_OF_SPLIT.search(file.name)
        if match is None or not file.is_file():
            continue
        try:
            names = [base_name(line.strip()) for line in read_lines(file, "split list") if line.strip()]
        except UserError:
            continue
        if names and all(name in by_name for name in names):
            found[file.name] = split_name(match[1])
            for name in names:
                for photo in by_name[name]:
                    photo.split = found[file.name]
    if found:
        layout.photos = {(key[0], photo.split): photo for key, photo in layout.photos.items()}
        layout.notes.append(f"splits by {', '.join(found)}")

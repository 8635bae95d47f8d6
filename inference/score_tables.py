"""Tables of scores as text, Markdown, LaTeX or CSV.

rows = [Row("attentive", 3, {"cider": Figure(0.596, deviation=0.004)})]
print(render(rows, "markdown"))
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from captioning.errors import shown
from captioning.scoring.metrics import LABELS
from captioning.tables import csv_lines

FORMATS = ("text", "markdown", "latex", "csv")
# Column -> its heading and how its figures are written. Scores have four decimals.
STATISTICS = {
    "images": ("images", ".0f"), "distinct": ("distinct", ".1%"), "mean_length": ("mean length", ".1f"),
    "unk_share": ("<unk>", ".1%"), "vocabulary_used": ("vocabulary", ".0f"), "novel": ("novel", ".1%"),
    "object_named": ("main object", ".1%"), "object_images": ("of images", ".0f"),
    "captions_per_image": ("captions/image", ".1f"), "div_1": ("div-1", ".4f"), "div_2": ("div-2", ".4f"),
    "mbleu_4": ("mBLEU-4", ".4f"),
}  # fmt: skip
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "±": r"$\pm$", "−": r"$-$",
}  # fmt: skip


@dataclass(frozen=True)
class Figure:
    """A number of a table, with what is known of how sure it is.

    deviation: standard deviation over seeds; bounds: interval; p: p-value of a difference, which shows its sign.
    """

    value: float
    deviation: float | None = None
    bounds: tuple[float, float] | None = None
    p: float | None = None

    def text(self, form: str) -> str:
        """As people read it; form: of the value, as ".4f"."""
        sign = "" if self.p is None else "+"
        text = f"{self.value:{sign}{form}}"
        if self.deviation is not None:
            text += f" ± {self.deviation:{form}}"
        if self.bounds is not None:
            text += f" [{self.bounds[0]:{sign}{form}}, {self.bounds[1]:{sign}{form}}]"
        return text if self.p is None else f"{text} p={self.p:.3f}"

    def columns(self, name: str) -> dict[str, float]:
        """The numbers, under the names of their columns in a CSV file."""
        low, high = self.bounds or (None, None)
        more = {"deviation": self.deviation, "low": low, "high": high, "p": self.p}
        return {name: self.value} | {f"{name}_{key}": value for key, value in more.items() if value is not None}


@dataclass(frozen=True)
class Row:
    """A row: its name, of how many results files it tells (None: it is not shown), its figures by column."""

    name: str
    files: int | None
    figures: Mapping[str, Figure]


def render(rows: Sequence[Row], form: str, headings: Mapping[str, tuple[str, str]] = STATISTICS) -> str:
    """The table in one of FORMATS, each line ended. headings: of columns that are no scores, as in STATISTICS.

    Text has a line for each figure and a column for each row of `rows`, because ten scores side by side fit no
    terminal. CSV has the numbers alone, each in its column.
    """
    if form == "csv":
        return to_csv([_numbers(row) for row in rows])
    columns = list(dict.fromkeys(column for row in rows for column in row.figures))
    cells = [
        [shown(row.name)] + ([str(row.files)] if row.files else []) + _texts(row, columns, headings) for row in rows
    ]
    names = [headings[column][0] if column in headings else LABELS[column] for column in columns]
    head = ["", *(["files"] if rows[0].files else []), *names]
    if form == "text":
        return _aligned([head, *cells])
    return _markdown(head, cells) if form == "markdown" else _latex(head, cells)


def to_csv(rows: Sequence[Mapping]) -> str:
    """All columns that any row has, in order of appearance; what a row lacks stays empty."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return csv_lines([columns, *([row.get(name, "") for name in columns] for row in rows)])


def _numbers(row: Row) -> dict:
    numbers = {"name": row.name} | ({"files": row.files} if row.files else {})
    for name, figure in row.figures.items():
        numbers |= figure.columns(name)
    return numbers


def _texts(row: Row, columns: Sequence[str], headings: Mapping[str, tuple[str, str]]) -> list[str]:
    forms = [headings.get(column, ("", ".4f"))[1] for column in columns]
    return [row.figures[name].text(form) if name in row.figures else "" for name, form in zip(columns, forms)]


def _aligned(table: Sequence[Sequence[str]]) -> str:
    """Each row of `table` as a column: the headings to the left, figures to the right of theirs."""
    widths = [max(map(len, column)) for column in table]
    lines = []
    for cells in zip(*table):
        first, *others = (f"{cell:<{width}}" if not n else f"{cell:>{width}}"
                          for n, (cell, width) in enumerate(zip(cells, widths)))  # fmt: skip
        lines.append("  ".join([first, *others]).rstrip() + "\n")
    return "".join(lines)


def _markdown(head: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    rows = [[re.sub(r"([|<>*_\\])", r"\\\1", cell) for cell in row] for row in (head, *cells)]
    for row in rows[1:]:  # names of files come from strangers: no link and no code of theirs
        row[0] = re.sub(r"([`\[\]])", r"\\\1", row[0])
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "".join(f"| {' | '.join(row)} |\n" for row in (rows[0], rule, *rows[1:]))


def _latex(head: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """A tabular that needs no package."""
    lines = [" & ".join("".join(_LATEX.get(sign, sign) for sign in cell) for cell in row) for row in (head, *cells)]
    body = "\n".join(f"{line} \\\\" for line in lines[1:])
    columns = "l" + "r" * (len(head) - 1)
    return f"\\begin{{tabular}}{{{columns}}}\n{lines[0]} \\\\\n\\hline\n{body}\n\\end{{tabular}}\n"

"""CSV tables that a spreadsheet shows as they are and that read back as they were.

A spreadsheet takes a text that begins with = + - @ (also the wide ones of East Asia), a tab or the end of a line for a
formula, and captions and names of files come from strangers. Such a text gets an apostrophe in front, by which
spreadsheets themselves mark text; `plain_cell` takes it off again.
"""

import csv
import io
import re
from collections.abc import Iterable, Sequence

# with apostrophes in front, so that none of theirs is lost; -7.31 is a number, and harmless
FORMULA = re.compile("'*(?!-?[0-9]+([.][0-9]+)?\\Z)[-=+@\t\r\n\uff1d\uff0b\uff0d\uff20]")


def csv_lines(rows: Iterable[Sequence]) -> str:
    """Rows of a CSV table, each ended by a line feed. Numbers stay numbers; texts are made safe."""
    out = io.StringIO()
    # with this line terminator every cell with a line end of any kind is quoted
    writer = csv.writer(out, lineterminator="\r\n")
    lines = []
    for row in rows:
        writer.writerow([safe_cell(value) if isinstance(value, str) else value for value in row])
        lines.append(out.getvalue().removesuffix("\r\n") + "\n")
        out.seek(0)
        out.truncate()
    return "".join(lines)


def safe_cell(text: str) -> str:
    """`text` as a cell that no spreadsheet takes for a formula."""
    return f"'{text}" if FORMULA.match(text) else text


def plain_cell(cell: str) -> str:
    """The text that `safe_cell` made a cell of."""
    return cell[1:] if cell.startswith("'") and FORMULA.match(cell) else cell

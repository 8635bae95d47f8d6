"""captioning/tables.py: what a spreadsheet would take for a formula is text, and every text comes back."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioning.tables import csv_lines, plain_cell, safe_cell

TEXTS = st.text(st.sampled_from("a'\"=+-@,;\t\r\n 1.＝") | st.characters(exclude_categories=["Cs"]))


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("=HYPERLINK(A1)", "'=HYPERLINK(A1)"),
        ("+1 dog", "'+1 dog"),
        ("-a", "'-a"),
        ("@x", "'@x"),
        ("\tx", "'\tx"),
        ("\rx", "'\rx"),
        ("＝1", "'＝1"),
        ("'=1", "''=1"),
        ("a=1", "a=1"),
        ("'tis a dog", "'tis a dog"),
        ("-7.3100", "-7.3100"),
        ("-5\n", "'-5\n"),
        ("", ""),
    ],
)
def test_a_formula_gets_an_apostrophe(text, cell):
    assert safe_cell(text) == cell and plain_cell(cell) == text


@given(st.lists(st.lists(TEXTS, min_size=1, max_size=4), max_size=4))
def test_every_text_comes_back(rows):
    read = list(csv.reader(io.StringIO(csv_lines(rows), newline=""), strict=True))
    assert [[plain_cell(cell) for cell in row] for row in read] == rows
    assert all(not cell or cell[0] not in "=+@\t\r\n＝" for row in read for cell in row)

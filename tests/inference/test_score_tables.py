"""Tables of scores in each of their formats."""

import csv
import io

from inference.score_tables import Figure, Row, render

ROWS = [
    Row("att_1 & b", 3, {"cider": Figure(0.59641, 0.004), "images": Figure(1000), "distinct": Figure(0.855, 0.01)}),
    Row("plain", 1, {"cider": Figure(0.5), "novel": Figure(0.25)}),
]
PAIR = [
    Row("a", None, {"bleu_4": Figure(0.25, bounds=(0.2, 0.3))}),
    Row("b - a", None, {"bleu_4": Figure(-0.01, bounds=(-0.02, 0.01), p=0.123)}),
]


def test_text():
    assert render(ROWS, "text").splitlines() == [
        "                att_1 & b   plain",
        "files                   3       1",
        "CIDEr     0.5964 ± 0.0040  0.5000",
        "images               1000",
        "distinct     85.5% ± 1.0%",
        "novel                       25.0%",
    ]
    assert "-0.0100 [-0.0200, +0.0100] p=0.123" in render(PAIR, "text")


def test_markdown():
    assert render(ROWS, "markdown").splitlines() == [
        "|  | files | CIDEr | images | distinct | novel |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        r"| att\_1 & b | 3 | 0.5964 ± 0.0040 | 1000 | 85.5% ± 1.0% |  |",
        "| plain | 1 | 0.5000 |  |  | 25.0% |",
    ]
    assert render([Row("x", None, {"unk_share": Figure(0)})], "markdown").startswith(r"|  | \<unk\> |")


def test_latex():
    lines = render(ROWS, "latex").splitlines()
    assert lines[0] == r"\begin{tabular}{lrrrrr}" and lines[-1] == r"\end{tabular}" and lines[2] == r"\hline"
    assert lines[3] == r"att\_1 \& b & 3 & 0.5964 $\pm$ 0.0040 & 1000 & 85.5\% $\pm$ 1.0\% &  \\"


def test_csv():
    rows = list(csv.DictReader(io.StringIO(render(ROWS, "csv"))))
    assert rows[0] == {
        "name": "att_1 & b", "files": "3", "cider": "0.59641", "cider_deviation": "0.004", "images": "1000",
        "distinct": "0.855", "distinct_deviation": "0.01", "novel": "",
    }  # fmt: skip
    rows = list(csv.DictReader(io.StringIO(render(PAIR, "csv"))))
    assert rows[1] == {
        "name": "b - a", "bleu_4": "-0.01", "bleu_4_low": "-0.02", "bleu_4_high": "0.01", "bleu_4_p": "0.123"
    }  # fmt: skip


def test_names_of_files_are_no_more_than_text():
    hostile = [Row("[a](javascript:1) `b`\nc|d\x1b", None, {"cider": Figure(0.5)})]
    assert render(hostile, "markdown").splitlines()[2] == r"| \[a\](javascript:1) \`b\`\\nc\|d\\x1b | 0.5000 |"
    assert render(hostile, "latex").count("\n") == 5 and r"\textbackslash{}nc" in render(hostile, "latex")
    assert render([Row("=1+1", None, {"cider": Figure(0.5)})], "csv").splitlines()[1] == "'=1+1,0.5"

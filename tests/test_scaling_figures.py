"""docs/scaling.md: every `sum = result` of the page is computed again."""

import ast
import operator
import re

import pytest
from running import ROOT

PAGE = (ROOT / "docs/scaling.md").read_text(encoding="utf-8")
SUMS = [text for text in re.findall(r"`([^`\n]+)`", PAGE) if " = " in text and re.match(r"[\d($]", text)]
THOUSANDS = {"K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
UNITS = {f"{prefix}{unit}": factor for prefix, factor in THOUSANDS.items() for unit in ("B", "B/s", "FLOP", "FLOP/s")}
UNITS |= {"ms": 1e-3, "us": 1e-6, "s": 1, "min": 60, "h": 3600, "Gbit/s": 1e9 / 8, "%": 0.01, "B": 1}
WORDS = "images captions images/s captions/s cores epochs launches steps GPUs times weights pairs"
UNITS |= dict.fromkeys(WORDS.split(), 1)  # they only say what is counted
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def value(text: str) -> float:
    """What "113,000 x 200 KB / 2 GB/s" comes to, in bytes, seconds and operations; $ count 1."""
    text = re.sub(r"(?<=\d),(?=\d{3})", "", text).replace("$", "")
    words = re.findall(r"[A-Za-z%]+(?:/s)?|[\d.]+|[-+*/()]", text)
    assert "".join(words) == text.replace(" ", ""), f"{text}: only numbers, units and signs"
    parts = []
    for word in words:
        if word == "x":
            parts.append("*")
        elif word[0].isalpha() or word == "%":
            parts[-1] = f"({parts[-1]} * {UNITS[word]!r})"
        else:
            parts.append(word)
    return computed(ast.parse(" ".join(parts), mode="eval").body)


def computed(node: ast.expr) -> float:
    if isinstance(node, ast.BinOp):
        return OPERATORS[type(node.op)](computed(node.left), computed(node.right))
    assert isinstance(node, ast.Constant), ast.dump(node)
    return node.value


@pytest.mark.parametrize("text", SUMS)
def test_sum(text):
    left, right = text.split(" = ")
    assert value(left) == pytest.approx(value(right), rel=0.02)


def test_the_page_has_sums():
    assert len(SUMS) > 20


def test_wrong_sums_are_found():
    assert value("2 x 3 GB / (1 GB/s + 1 GB/s)") == value("3 s") and value("1,500 ms") == 1.5
    with pytest.raises(KeyError):
        value("2 apples")
    assert value("$3 x 2 h / 1 h") == 6


def test_every_figure_of_a_bench_row_is_that_of_the_benchmark():
    """The page repeats rates of benchmarks/README.md, which change when they are measured again."""
    rows = (ROOT / "benchmarks/README.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^\| `(\w+)` \| ([\d,.]+) ", PAGE, re.MULTILINE)
    assert len(quoted) > 4
    for name, rate in quoted:
        assert re.search(rf"^\| `{name}` \| {re.escape(rate)} ", rows, re.MULTILINE), f"{name} {rate}"

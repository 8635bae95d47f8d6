"""Results files of every format: what is written is read back, whatever names and captions hold."""

import csv
import json
import math
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioning.errors import UserError
from captioning.text.cleaning import can_be_a_name, clean_text
from inference.caption_files import read_results as read_captions
from inference.results.files import ResultsFile
from inference.results.reading import read_results
from inference.results.result import Result

TEXT = st.text(
    st.sampled_from("a'\"=+-@,;\t\r\n .\u2028\x1b\x00<>") | st.characters(exclude_categories=["Cs"]), max_size=12
)
LOG_PROB = st.floats(-1000, 0).map(lambda value: round(value, 4) + 0.0)
CONFIDENCE = st.floats(0, 1).map(lambda value: round(value, 4))
STEP = st.lists(st.tuples(TEXT, st.floats(0, 1).map(lambda p: float(f"{p:.6g}"))), min_size=1, max_size=3)


@st.composite
def results(draw, words: bool = False):
    """A list of results with different ids, one to three captions each."""
    names = TEXT.filter(lambda text: text and can_be_a_name(text))
    ids = draw(st.lists(st.integers(-10, 10**12) | names, min_size=1, max_size=4, unique_by=str))
    made = []
    for image_id in ids:
        captions = draw(st.lists(st.tuples(TEXT, LOG_PROB), min_size=1, max_size=3))
        steps = [draw(st.lists(STEP, min_size=1, max_size=3)) for _ in captions] if words else []
        made.append(Result(image_id, captions, words=steps))
        made[-1].mean_log_probs = [draw(LOG_PROB) for _ in captions] if draw(st.booleans()) else []
        made[-1].confidences = [draw(CONFIDENCE) for _ in captions] if draw(st.booleans()) else []
    return made


def written(found: list[Result], form: str, words: bool = False) -> tuple[str, list[Result]]:
    """The text of the file that `found` makes, and what is read of it (of jsonl and csv)."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"r.{form}"
        with ResultsFile(path, form, words=words) as file:
            for result in found:
                file.add(result)
        return path.read_bytes().decode(), read_results(path, form, words=words) if form in ("jsonl", "csv") else []


@given(results())
def test_jsonl_comes_back(found):
    _, read = written(found, "jsonl")
    assert [(r.image_id, r.captions) for r in read] == [(r.image_id, r.captions) for r in found]


@given(results(words=True))
def test_jsonl_with_words_comes_back(found):
    _, read = written(found, "jsonl", words=True)
    assert [(r.image_id, r.captions, r.words) for r in read] == [(r.image_id, r.captions, r.words) for r in found]


@given(results())
def test_csv_comes_back_and_holds_no_formula(found):
    text, read = written(found, "csv")
    assert [(r.image_id, r.captions) for r in read] == [(str(r.image_id), r.captions) for r in found]
    cells = [cell for row in csv.reader(text.splitlines(keepends=True)) for cell in row]
    assert not [cell for cell in cells if cell[:1] in tuple("=+@\t\r\n") and cell]


@given(results())
def test_json_is_what_score_reads(found):
    text, _ = written(found, "json")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "r.json"
        path.write_text(text, encoding="utf-8")
        captions = read_captions(str(path))
    assert list(captions.values()) == [[clean_text(text) for text, _ in result.captions] for result in found]


@given(results())
def test_txt_has_a_line_for_each_caption(found):
    text, _ = written(found, "txt")
    assert text.count("\n") == sum(len(result.captions) for result in found) and "\r" not in text


@given(results(), st.sampled_from(["jsonl", "csv"]), st.integers(0, 400))
def test_a_file_that_was_cut_off_gives_its_first_results(found, form, kept):
    text, whole = written(found, form)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "r"
        path.write_bytes(text.encode()[:kept])
        read = read_results(path, form, unfinished=True)
    assert [(r.image_id, r.captions) for r in read] == [(r.image_id, r.captions) for r in whole][: len(read)]


LINE = {"image_id": 1, "caption": "A.", "log_prob": -1.5}


@pytest.mark.parametrize(
    ("form", "text", "told"),
    [
        ("jsonl", json.dumps({**LINE, "caption": 3}), "line 1: caption is a number, not a text"),
        ("jsonl", json.dumps(LINE) + "\n" + json.dumps({**LINE, "log_prob": math.nan}), "line 2: log_prob is nan"),
        ("jsonl", json.dumps({**LINE, "n_best": [LINE, {"caption": "B"}]}), r"line 1: n_best\[1\] has no 'log_prob'"),
        ("jsonl", json.dumps({**LINE, "n_best": []}), "line 1 has no caption"),
        ("jsonl", "[" * 100_000, "lists within lists"),
        ("jsonl", '{"image_id": 1, "image_id": 2}', "has the key 'image_id' twice"),
        ("csv", "1,1,A dog.,-1.5", "its columns are"),
        ("csv", "HEAD\n1,1,A dog.", "line 2 has 3 cells, not 4"),
        ("csv", "HEAD\n1,2,A dog.,-1.5", "line 2: the caption of rank '2' does not follow"),
        ("csv", "HEAD\n1,1,A,-1.5\n2,2,B,-1.5", "line 3: the caption of rank '2' does not follow"),
        ("csv", "HEAD\n1,1,A dog.,1e400", "line 2: log_prob is '1e400'"),
        ("csv", "HEAD\n1,1,A dog.,x", "line 2: log_prob is 'x'"),
        ("csv", 'HEAD\n1,1,"A dog.,x', "unexpected end of data"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_line(tmp_path, form, text, told):
    path = tmp_path / f"r.{form}"
    path.write_text(text.replace("HEAD", "image_id,rank,caption,log_prob"))
    with pytest.raises(UserError, match=f"--resume: {path} is no {form} results file of infer.py .*{told}"):
        read_results(path, form)


# ---- confidences ----


def test_figures_of_captions_come_back():
    result = Result(
        "7", [("A dog.", -3.25), ("A cat.", -4.5)], mean_log_probs=[-1.0833, -1.5], confidences=[0.75, 0.25]
    )
    for form in ("jsonl", "csv"):
        text, (read,) = written([result], form)
        assert (read.mean_log_probs, read.confidences) == ([-1.0833, -1.5], [0.75, 0.25])
    assert text.splitlines()[0] == "image_id,rank,caption,log_prob,mean_log_prob,confidence"
    assert json.loads(written([result], "json")[0]) == [
        {"image_id": "7", "caption": "A dog.", "n_best": [{"caption": "A dog."}, {"caption": "A cat."}]}
    ]
    assert written([result], "txt")[0] == "7 A dog.\n7 A cat.\n"


def test_files_of_older_versions_come_back(tmp_path):
    (tmp_path / "old.csv").write_text("image_id,rank,caption,log_prob\n7,1,A dog.,-3.2500\n")
    (tmp_path / "old.jsonl").write_text('{"image_id": "7", "caption": "A dog.", "log_prob": -3.25}\n')
    for form in ("csv", "jsonl"):
        with ResultsFile(tmp_path / f"old.{form}", form, resume=True) as file:
            assert [(r.image_id, r.captions, r.confidences) for r in file.earlier] == [("7", [("A dog.", -3.25)], [])]
            file.add(Result("8", [("A cat.", -1.0)], mean_log_probs=[-0.5], confidences=[0.5]))
        both = read_results(tmp_path / f"old.{form}", form)
        assert [r.confidences for r in both] == [[], [0.5]] and [r.mean_log_probs for r in both] == [[], [-0.5]]


@pytest.mark.parametrize(
    "form, line",
    [
        ("jsonl", '{"image_id": 7, "caption": "A", "log_prob": -1, "confidence": 1.5}'),
        ("jsonl", '{"image_id": 7, "caption": "A", "log_prob": -1, "confidence": "high"}'),
        ("jsonl", '{"image_id": 7, "caption": "A", "log_prob": -1, "mean_log_prob": null}'),
        ("csv", "7,1,A,-1,-0.5,-0.1"),
        ("csv", "7,1,A,-1,nan,0.5"),
        ("csv", "7,1,A,-1,-0.5,0.5\n7,2,B,-1,-0.5,"),
    ],
)
def test_figures_that_none_can_have_are_one_line(tmp_path, form, line):
    head = "image_id,rank,caption,log_prob,mean_log_prob,confidence\n" if form == "csv" else ""
    (tmp_path / "r").write_text(f"{head}{line}\n")
    with pytest.raises(UserError, match=f"is no {form} results file") as caught:
        read_results(tmp_path / "r", form)
    assert "\n" not in str(caught.value)


def test_captions_of_little_confidence_are_withheld():
    words = [[[("a", 0.5)]], [[("b", 0.5)]]]
    one = Result(7, [("A.", -3.0), ("B.", -4.0)], words=words, mean_log_probs=[-1.5, -1.0], confidences=[0.3, 0.6])
    one.withhold(0.3)
    assert len(one.captions) == 2 and not one.unsure
    one.withhold(0.5)
    assert (one.captions, one.words, one.confidences, one.unsure) == ([("B.", -4.0)], words[1:], [0.6], False)
    one.withhold(0.7)
    assert (one.captions, one.words, one.confidences, one.unsure) == ([("", -4.0)], [[]], [0.6], True)
    for form in ("jsonl", "csv"):
        (read,) = written([one], form, words=True)[1]
        assert read.unsure and read.captions == [("", -4.0)]
    assert written([one], "txt")[0] == "7 \n" and json.loads(written([one], "json")[0])[0]["caption"] == ""


def test_captions_that_were_withheld_are_not_scored(tmp_path, capsys):
    sure, unsure = (Result(n, [("A dog.", -1.0)], mean_log_probs=[-0.5], confidences=[0.5]) for n in (1, 2))
    unsure.withhold(0.6)
    for found, captions in (([sure, unsure], {"1": ["A dog."]}), ([unsure], None)):
        with ResultsFile(tmp_path / "r.json", "json") as file:
            for result in found:
                file.add(result)
        if captions:
            assert read_captions(str(tmp_path / "r.json")) == captions
            assert "1 images without a caption that the model was sure of" in capsys.readouterr().err
            continue
        with pytest.raises(UserError, match="no captions to score: the model was not sure enough of any"):
            read_captions(str(tmp_path / "r.json"))

"""score.py through its command line: what it prints and writes, life without Java, mistakes."""

import csv
import json
import pickle
import re

import pytest
from toy import CANDIDATES, REFERENCES, document_frequencies

from captioning.scoring.metrics import score_captions


@pytest.fixture
def files(tmp_path):
    """Writes (results, ground truth) as JSON and returns the beginning of the command line."""

    def write(results=None, annotations=None):
        if results is None:
            results = [{"image_id": str(key), "caption": caption} for key, caption in CANDIDATES.items() if key != 4]
        if annotations is None:
            annotations = [{"image_id": int(k), "caption": c} for k, group in REFERENCES.items() for c in group]
        (tmp_path / "results.json").write_text(json.dumps(results))
        (tmp_path / "truth.json").write_text(json.dumps({"annotations": annotations}))
        return [tmp_path / "results.json", "--ground_truth", tmp_path / "truth.json"]

    return write


def test_score_prints_and_writes(script, files, tmp_path):
    table = tmp_path / "words.p"
    table.write_bytes(pickle.dumps(document_frequencies(REFERENCES.values())))
    done = script(
        "score.py", *files(), "--scoring", "BLEU,CIDEr,ciderd", "--tokenizer", "python",
        "--cached_words", table, "--output", tmp_path / "scores.json",
    )  # fmt: skip
    assert done.status == 0 and done.err == ""
    assert "3 captions, 2.7 references each, tokenizer python" in done.out
    assert "1 of 4 images of the ground truth have no result" in done.out
    assert "distinct captions 100.0%" in done.out
    report = json.loads((tmp_path / "scores.json").read_text())
    three = {key: caption for key, caption in CANDIDATES.items() if key != 4}
    assert report["scores"]["cider"] == score_captions(three, REFERENCES, tokenizer="python").values["cider"]
    assert report["tokenizer"] == "python" and report["left_out"] == {} and report["images"] == 3
    assert f"CIDEr    {report['scores']['cider']:7.4f}" in done.out


def test_score_without_java(script, files, no_java):
    done = script("score.py", *files())
    assert done.status == 0
    note = "Java is not installed: METEOR left out; tokens by the Python tokenizer instead of Stanford's\n"
    assert done.err == note
    assert "METEOR   left out" in done.out and "CIDEr" in done.out and "0.0000" not in done.out
    assert script("score.py", *files(), "--scoring", "bleu,meteor").status == 1  # asked for by name


def test_score_names_what_is_wrong(script, files):
    good, truth = {"image_id": 1, "caption": "a dog"}, [{"image_id": 1, "caption": "a dog"}]
    for results, annotations, message in (
        ([], None, "is empty"),
        ({"a": 1}, None, "must be a list"),
        (
            [good, {"image_id": 77, "caption": "x"}, {"image_id": 78, "caption": "x"}],
            None,
            "2 of 3 image ids.*first is 77",
        ),
        ([good, {"image_id": "1", "caption": "x"}], None, r"image 1 has two captions, \[0\] and \[1\]"),
        ([good, {"image_id": 2}], None, r"\[1\] has no 'caption'"),
        ([good, 5], None, r"\[1\] is not an object"),
        ([{"image_id": 1, "caption": None}], None, r"\[0\]: caption None is not a text"),
        ([{"image_id": [1], "caption": "x"}], None, r"image_id \[1\] is neither number nor text"),
        ([good], [], "truth.json has no captions"),
        ([good], truth + [{"caption": "x"}], r"truth.json: annotations\[1\] has no 'image_id'"),
    ):
        done = script("score.py", *files(results, annotations), "--tokenizer", "python")
        assert done.status == 2 and len(done.err.splitlines()) == 1, done
        assert re.search(message, done.err), done.err


def test_score_refuses(script, files, tmp_path):
    assert "unknown metric 'blue'" in script("score.py", *files(), "--scoring", "blue").err
    assert "--cached_words is for ciderd" in script("score.py", *files(), "--cached_words", "x").err
    done = script("score.py", tmp_path / "none.json", *files()[1:])
    assert done.status == 2 and "no such file" in done.err
    (tmp_path / "results.json").write_text("[{")
    done = script("score.py", tmp_path / "results.json", "--ground_truth", tmp_path / "truth.json")
    assert done.status == 2 and "not valid JSON" in done.err
    (tmp_path / "truth.json").write_text("[]")
    done = script("score.py", tmp_path / "results.json", "--ground_truth", tmp_path / "truth.json")
    assert done.status == 2 and "no COCO caption file" in done.err


def test_score_alone(script_alone, files):
    done = script_alone("score.py", *files(), "--scoring", "bleu", "--tokenizer", "python")
    assert done.status == 0 and "BLEU-4" in done.out and done.err == ""


def test_score_several_files_to_csv(script, files, tmp_path):
    """A row for each file, with the scores that it has alone; a row for each caption, with those of the scorers."""
    first, *truth = files()
    second = tmp_path / "worse.json"
    second.write_text(json.dumps([{"image_id": 1, "caption": "a boat"}, {"image_id": 2, "caption": "two cats sleep"}]))
    table, images = tmp_path / "scores.csv", tmp_path / "images.csv"
    same = ["--scoring", "bleu,rouge,cider", "--tokenizer", "python"]
    done = script("score.py", first, second, *truth, *same, "--output", table, "--per_image", images)
    assert done.status == 0 and str(second) in done.out, done.err
    with open(table, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["results", "worse"]
    for path, row in zip((first, second), rows):
        assert script("score.py", path, *truth, *same, "--output", tmp_path / "one.json").status == 0
        scores = json.loads((tmp_path / "one.json").read_text())["scores"]
        assert {name: float(row[name]) for name in scores} == scores
    with open(images, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["results"], row["image_id"]) for row in rows[3:]] == [(str(second), "1"), (str(second), "2")]
    assert rows[0]["caption"] == CANDIDATES[1]
    mine = [row for row in rows if row["results"] == str(first)]
    three = {key: caption for key, caption in CANDIDATES.items() if key != 4}
    scores = score_captions(three, REFERENCES, ("rouge", "cider"), tokenizer="python")
    for name in ("rouge_l", "cider"):  # these average to the score of all
        each = [float(row[name]) for row in mine]
        assert each == scores.per_image[name] and sum(each) / 3 == pytest.approx(scores.values[name])
    alone = score_captions({1: CANDIDATES[1]}, REFERENCES, ("bleu",), tokenizer="python")
    assert float(mine[0]["bleu_4"]) == pytest.approx(alone.values["bleu_4"], abs=1e-6)


def test_score_several_files_to_json(script, files, tmp_path):
    first, *truth = files()
    same = ["--scoring", "bleu", "--tokenizer", "python"]
    done = script("score.py", first, first, *truth, *same, "--output", tmp_path / "scores.json")
    assert done.status == 0
    reports = json.loads((tmp_path / "scores.json").read_text())
    assert [report["results"] for report in reports] == [str(first)] * 2
    done = script("score.py", first, *truth, *same, "--per_image", tmp_path / "images.json")
    assert done.status == 2 and "name a .csv file" in done.err

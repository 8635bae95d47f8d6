"""score.py through its command line: what it prints and writes, intervals, groups, life without Java, mistakes."""

import csv
import json
import pickle
import re
import statistics

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
    assert done.status == 0 and re.fullmatch("warning: scores of 3 images mean little: .*\n", done.err)
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
    assert done.err.startswith(note)
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
    (tmp_path / "results.txt").write_text("1 A dog runs.\n")
    done = script("score.py", tmp_path / "results.txt", "--ground_truth", tmp_path / "truth.json")
    assert done.status == 2 and "captions in text are not read back: write json, jsonl or csv" in done.err
    (tmp_path / "truth.json").write_text("[]")
    done = script("score.py", tmp_path / "results.json", "--ground_truth", tmp_path / "truth.json")
    assert done.status == 2 and "no COCO caption file" in done.err


def test_score_alone(script_alone, files):
    done = script_alone("score.py", *files(), "--scoring", "bleu", "--tokenizer", "python")
    assert done.status == 0 and "BLEU-4" in done.out and "mean little" in done.err


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


def results_of(tmp_path, name: str, texts: dict) -> str:
    path = tmp_path / f"{name}.json"
    path.write_text(json.dumps([{"image_id": key, "caption": text} for key, text in texts.items()]))
    return str(path)


@pytest.fixture
def several(files, tmp_path):
    """Three results files, and the flags that score them quickly."""
    _, *truth = files()
    worse = dict.fromkeys(CANDIDATES, "a boat") | {1: CANDIDATES[1], 2: CANDIDATES[2]}
    paths = [results_of(tmp_path, f"run-seed{n}", texts) for n, texts in enumerate((CANDIDATES, worse, CANDIDATES), 1)]
    return paths, [*truth, "--scoring", "bleu,rouge,cider", "--tokenizer", "python"]


def test_confidence(script, several, tmp_path):
    (first, second, _), flags = several
    done = script("score.py", first, *flags, "--confidence", 95, "--output", tmp_path / "one.json")
    assert done.status == 0 and "scores of 4 images mean little" in done.err
    report = json.loads((tmp_path / "one.json").read_text())
    low, high = report["intervals"]["cider"]
    assert report["confidence"] == 95 and low <= report["scores"]["cider"] <= high
    assert f"CIDEr    {report['scores']['cider']:7.4f}  [{low:.4f}, {high:.4f}]" in done.out

    done = script("score.py", second, first, *flags, "--confidence", 90, "--output", tmp_path / "two.json")
    earlier, later = json.loads((tmp_path / "two.json").read_text())
    found = later["differences_from_first"]["cider"]
    assert "differences_from_first" not in earlier
    assert found["value"] == pytest.approx(later["scores"]["cider"] - earlier["scores"]["cider"])
    assert found["low"] <= found["value"] <= found["high"] and 0 < found["p"] <= 1
    assert f"{first} minus {second}, 90% intervals" in done.out and f"p {found['p']:.3f}" in done.out
    again = script("score.py", second, first, *flags, "--confidence", 90)
    assert again.out == done.out.replace(f"written to {tmp_path / 'two.json'}\n", "")  # the same figures every time


def test_results_of_other_images_are_compared_by_those_of_both(script, several, tmp_path):
    (first, *_), flags = several
    fewer = results_of(tmp_path, "fewer", {3: CANDIDATES["3"], 1: "a boat", 2: CANDIDATES[2]})
    done = script("score.py", first, fewer, *flags, "--confidence", 95, "--output", tmp_path / "s.json")
    assert done.status == 0 and f"{first} and {fewer} are compared by the 3 images of both" in done.err
    difference = json.loads((tmp_path / "s.json").read_text())[1]["differences_from_first"]["rouge_l"]
    same = results_of(tmp_path, "same", {1: CANDIDATES[1], 2: CANDIDATES[2], 3: CANDIDATES["3"]})
    script("score.py", same, fewer, *flags, "--confidence", 95, "--output", tmp_path / "t.json")
    assert json.loads((tmp_path / "t.json").read_text())[1]["differences_from_first"]["rouge_l"] == pytest.approx(
        difference
    )
    other = results_of(tmp_path, "other", {4: "a cat"})
    done = script("score.py", fewer, other, *flags[:2], "--scoring", "bleu", "--confidence", 95)
    assert done.status == 0 and "share 0 images: they are not compared" in done.err


def test_seeds_in_one_table(script, several, tmp_path):
    paths, flags = several
    done = script("score.py", *paths, *flags, "--group", "--output", tmp_path / "seeds.csv")
    assert done.status == 0, done.err
    assert "CIDEr" in done.out and " ± " in done.out and "run-seed" in done.out.splitlines()[0]
    with open(tmp_path / "seeds.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    script("score.py", *paths, *flags, "--output", tmp_path / "each.csv")
    with open(tmp_path / "each.csv", newline="") as file:
        values = [float(one["cider"]) for one in csv.DictReader(file)]
    assert row["name"] == "run-seed" and row["files"] == "3" and row["images"] == "4"
    assert float(row["cider"]) == pytest.approx(statistics.fmean(values))
    assert float(row["cider_deviation"]) == pytest.approx(statistics.stdev(values))
    assert float(row["distinct_deviation"]) > 0


def test_groups_by_name(script, several, tmp_path):
    (first, second, third), flags = several
    groups = ["--group", f"good={first},{third}", "--group", f"all={tmp_path}/run-seed*.json"]
    done = script("score.py", second, *flags, *groups, "--format", "markdown")
    assert done.status == 0, done.err
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.out.splitlines()]
    assert [row[:2] for row in rows[2:]] == [["run-seed2", "1"], ["good", "2"], ["all", "3"]]
    column = rows[0].index("CIDEr")
    assert "±" not in rows[2][column] and rows[3][column].endswith("± 0.0000") and "±" in rows[4][column]
    done = script("score.py", *flags, *groups[:2], "--format", "json")
    content = json.loads(done.out)
    assert content["groups"][0]["results"] == [first, third] and content["groups"][0]["deviation"]["cider"] == 0
    assert len(content["results"]) == 2


@pytest.mark.parametrize(
    ("name", "begins"),
    [("t.md", "|  | BLEU-1 |"), ("t.tex", r"\begin{tabular}{l"), ("t.txt", "          "), ("t.csv", "name,bleu_1,")],
)
def test_tables_by_the_ending(script, several, tmp_path, name, begins):
    paths, flags = several
    done = script("score.py", *paths, *flags, "--confidence", 95, "--output", tmp_path / name)
    assert done.status == 0 and f"written to {tmp_path / name}" in done.out
    text = (tmp_path / name).read_text()
    assert text.startswith(begins) and "run-seed2 - run-seed1" in text


def test_statistics_beside_the_scores(script, several, files, tmp_path):
    (first, *_), flags = several
    entries = [
        {"image_id": 1, "caption": CANDIDATES[1], "n_best": [{"caption": CANDIDATES[1]}, {"caption": "a boat sails"}]},
        {"image_id": 2, "caption": "two cats sleep"},
    ]
    (tmp_path / "n.json").write_text(json.dumps(entries))
    training = {"annotations": [{"image_id": 9, "caption": "Two cats sleep."}, {"image_id": 9, "caption": "a boat"}]}
    (tmp_path / "train.json").write_text(json.dumps(training))
    more = ["--training", tmp_path / "train.json", "--output", tmp_path / "s.json"]
    done = script("score.py", tmp_path / "n.json", *flags, *more)
    assert done.status == 0, done.err
    found = json.loads((tmp_path / "s.json").read_text())["statistics"]
    words = CANDIDATES[1].rstrip(".").lower().split()
    both = [*words, "a", "boat", "sails"]
    assert found["vocabulary_used"] == len({*words, "two", "cats", "sleep"})
    assert found["novel"] == 0.5 and found["captions_per_image"] == 2
    assert found["div_1"] == pytest.approx(len(set(both)) / len(both))
    assert "novel captions 50.0%" in done.out and "2.0 captions of an image: div-1" in done.out
    alone = script("score.py", first, *flags)
    assert "novel" not in alone.out and "div-1" not in alone.out and "vocabulary used" in alone.out


def test_training_captions_of_a_dataset(script, several, tmp_path):
    (first, *_), flags = several
    captions = {"images": [{"id": 1, "file_name": "1.jpg"}]}
    captions["annotations"] = [{"id": 1, "image_id": 1, "caption": CANDIDATES[1]}]
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    section = "[c:train]\ndataset_class = CocoDataset\nimage_dir = .\ncaption_path = captions.json\n"
    (tmp_path / "d.conf").write_text(f"[c]\nroot_dir = {tmp_path}\n{section}")
    more = ["--training", "c:train", "--dataset_config_file", tmp_path / "d.conf"]
    done = script("score.py", first, *flags, *more)
    assert done.status == 0 and "novel captions 75.0%" in done.out, done
    done = script("score.py", first, *flags, "--training", tmp_path / "none.json")
    assert done.status == 2 and "--training" in done.err and len(done.err.splitlines()) == 1


def test_score_refuses_flags_that_do_not_fit(script, several, tmp_path):
    (first, second, _), flags = several
    for arguments, message in (
        ([], "name one or more results files"),
        (["--group"], "name one or more results files"),
        (["--group", "a=b.json", "--group"], "--group without a value joins RESULTS.json, but there are none"),
        ([first, "--group", second], r"--group .*run-seed2.json: write NAME=FILE,FILE"),
        ([first, "--group", f"a={tmp_path}/none*.json"], r"--group a: there is no file .*none\*.json"),
        ([first, "--group", "a=none.json"], "no such file.*none.json"),
        ([first, "--confidence", "0.95"], r"--confidence 0.95: give a percentage from 50 to below 100"),
        ([first, "--confidence", "nan"], "--confidence: 'nan' is not a finite number"),
        ([first, second, "--group", "--confidence", "95"], "leave one of them out"),
        ([first, "--resamples", "500"], "--resamples is for --confidence"),
        ([first, "--confidence", "95", "--resamples", "5"], "--resamples 5: must be at least 100"),
        ([first, "--dataset_config_file", "x"], "--dataset_config_file is for --training"),
        ([first, "--training", "no_such_dataset"], "--training: unknown dataset 'no_such_dataset'"),
    ):
        done = script("score.py", *arguments, *flags)
        assert done.status == 2 and len(done.err.splitlines()) == 1, (arguments, done)
        assert re.search(message, done.err), done.err
    (tmp_path / "bad.json").write_text(json.dumps([{"image_id": 1, "caption": "a", "n_best": [{"caption": "a"}, {}]}]))
    done = script("score.py", tmp_path / "bad.json", *flags)
    assert done.status == 2 and re.search(r"bad.json: \[0\]: n_best\[1\] has no 'caption'", done.err)

"""datasets_compare.py through its command line, on counts that can be done by hand."""

import json

import pytest
from toy_layouts import make_vist

from vocabulary import build_vocabulary

ONE = [(1, "a.jpg", ["A dog runs.", "the dog"]), (2, "b.jpg", ["A cat"]), (3, "c.jpg", [])]
TWO = [(2, "x.jpg", ["a cat", "A red cat sleeps"]), (3, "c.jpg", ["a dog runs ."]), (9, "d.jpg", ["THE dog"])]


@pytest.fixture
def compare(tmp_path, script):
    for name, rows in (("one", ONE), ("two", TWO)):
        images = [{"id": number, "file_name": file} for number, file, _ in rows]
        annotations = [{"image_id": number, "caption": text} for number, _, texts in rows for text in texts]
        (tmp_path / f"{name}.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    conf = tmp_path / "datasets.conf"
    conf.write_text(
        "[c]\ndataset_class = CocoDataset\n[c:one]\ncaption_path = one.json\n[c:two]\ncaption_path = two.json\n"
    )

    def call(*arguments):
        return script("datasets_compare.py", "--dataset_config_file", conf, *arguments)

    return call


def test_what_two_datasets_share(compare, tmp_path):
    done = compare("--dataset_1", "c:one", "--dataset_2", "c:two", "--output", tmp_path / "out.json")
    assert done.status == 0, done.err
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["images"] == {"counts": [3, 3], "shared": 2, "shared_ids": ["2", "3"]}
    assert report["files"] == {"counts": [3, 3], "shared": 1, "shared_files": ["c.jpg"]}
    captions = report["captions"]
    assert (captions["counts"], captions["shared"], captions["all"]) == ([3, 4], 3, [3, 4])
    words = report["words"]
    assert words["counts"] == [6, 8] and words["shared"] == 6  # a dog runs . the cat; red sleeps
    assert words["tokens"] == [8, 12]
    assert words["only"] == [[], ["red", "sleeps"]]
    assert words["missed"] == [0, pytest.approx(2 / 12)]
    assert report["lengths"][0] == {"mean": pytest.approx(8 / 3), "median": 2, "95%": 4, "longest": 4}
    for text in (
        "There are 2 images shared between c:one and c:two",
        "their ids: 2, 3",
        "only in c:two: red, sleeps",
        "16.67%",
    ):
        assert text in done.out


def test_a_threshold_and_few_names(compare):
    done = compare("--dataset_1", "c:one", "--dataset_2", "c:two", "--vocab_threshold", 3, "--show", 1)
    (line,) = [line for line in done.out.splitlines() if line.startswith("vocabulary")]
    assert line.split() == ["vocabulary", "0", "1", "0"]  # "a" thrice in the second
    assert "their ids: 2 and 1 more" in done.out
    assert "only in c:two: a" in done.out.splitlines()


def test_vocabularies(compare, tmp_path):
    build_vocabulary(["a dog", "a cat", "a zebra"], 1).save(tmp_path / "v.json")
    build_vocabulary(["a dog", "the cow"], 1).save(tmp_path / "w.pkl")
    done = compare("--vocab_1", tmp_path / "v.json", "--vocab_2", tmp_path / "w.pkl")
    assert done.status == 0, done.err
    assert [line.split() for line in done.out.splitlines() if line.startswith("vocabulary")] == [
        ["vocabulary", "4", "4", "2"]
    ]
    assert "images" not in done.out and "words, mean" not in done.out
    assert "w.pkl: the, cow" in done.out
    done = compare("--vocab_1", tmp_path / "v.json", "--dataset_2", "c:two")
    assert "41.67%" in done.out  # 5 of 12 words: red sleeps runs . the


def test_other_formats_compare_too(compare, tmp_path):
    make_vist(tmp_path, 3, 2)
    done = compare("--dataset_1", "vist:train", "--dataset_2", "vist:val")
    assert done.status == 0, done.err
    rows = {line[:22].strip(): line[22:].split() for line in done.out.splitlines()}
    assert rows["images by id"] == ["3", "2", "0"]
    assert rows["images by file"][:2] == ["15", "10"]


def test_mistakes(compare, tmp_path):
    assert compare("--dataset_1", "c:one").status == 2
    for arguments, words in (
        (["--dataset_1", "c:one", "--dataset_2", "c:none"], "unknown dataset 'c:none'"),
        (["--dataset_1", "c:one", "--vocab_2", tmp_path / "no.pkl"], "no.pkl"),
        (["--dataset_1", "c:one", "--dataset_2", "c:two", "--tokenizer", "odd"], "unknown tokenizer 'odd'"),
        (["--dataset_1", "c:one", "--dataset_2", "c:two", "--vocab_threshold", "0"], "--vocab_threshold 0"),
        (["--dataset_1", "c:one", "--dataset_2", "c:two", "--output", "/dev/null/x.json"], "/dev/null/x.json"),
    ):
        done = compare(*arguments)
        assert done.status == 2
        assert words in done.err

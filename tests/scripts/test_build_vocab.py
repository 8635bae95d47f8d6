"""build_vocab.py through its command line: the vocabulary, the files beside it, and mistakes."""

import json
import re
from collections import Counter

import pytest
from nltk.tokenize.treebank import TreebankWordTokenizer

from captioning.text.tokens import SPECIALS
from vocabulary import Vocabulary

TRAIN = ["A dog runs.", "A dog sits, and a cat sits.", "Two dogs run.", "A child's ball."]
DEV = ["A zebra runs.", "A zebra sits."]


def write_captions(path, captions):
    images = [{"id": i, "file_name": f"{i}.jpg"} for i in range(len(captions))]
    annotations = [{"id": i, "image_id": i, "caption": caption} for i, caption in enumerate(captions)]
    path.write_text(json.dumps({"images": images, "annotations": annotations}))


@pytest.fixture
def build(tmp_path, script, monkeypatch):
    """Runs build_vocab.py in a folder with the datasets pets:train and pets:dev."""
    monkeypatch.chdir(tmp_path)
    write_captions(tmp_path / "train.json", TRAIN)
    write_captions(tmp_path / "dev.json", DEV)
    (tmp_path / "d.conf").write_text(
        "[pets]\ndataset_class = CocoDataset\nroot_dir = %(here)s\n"
        "[pets:train]\ncaption_path = train.json\n[pets:dev]\ncaption_path = dev.json\n"
    )
    return lambda *arguments: script("build_vocab.py", "--dataset_config_file", "d.conf", *arguments)


def expected_counts(captions):
    return Counter(w for caption in captions for w in TreebankWordTokenizer().tokenize(caption.lower()))


def read_counts(path):
    return {word: int(count) for word, count in (line.rsplit(" ", 1) for line in path.read_text().splitlines())}


def test_vocabulary_and_the_files_beside_it(build, tmp_path):
    result = build(
        "--dataset", "pets:train", "--vocab_output_path", "out/v.json", "--vocab_threshold", 2, "--keep_frequency",
        "--create_leftovers_file", "--create_vocab_stats_file",
    )  # fmt: skip
    assert (result.status, result.err) == (0, "")
    words = "--dataset pets:train --dataset_config_file d.conf --vocab out/v.json --model_name NAME"
    assert result.out.endswith(f"next:\n  python train.py {words}\n")
    counts = expected_counts(TRAIN)
    kept = [word for word in counts if counts[word] >= 2]
    vocabulary = Vocabulary.load(tmp_path / "out/v.json")
    assert vocabulary.words == [*SPECIALS, *kept]
    assert vocabulary.counts[4:] == [counts[word] for word in kept]
    assert (vocabulary.dataset, vocabulary.threshold) == ("pets:train", 2)
    assert read_counts(tmp_path / "out/v-vocab_stats.txt") == counts
    assert read_counts(tmp_path / "out/v-leftovers.txt") == {w: n for w, n in counts.items() if n < 2}
    tokens, covered = sum(counts.values()), sum(counts[word] for word in kept)
    assert f"4 captions of 4 images, {tokens} tokens" in result.out
    assert f"{len(kept)} of {len(counts)} distinct words" in result.out
    assert f"{100 * covered / tokens:.2f}% of the tokens" in result.out


@pytest.mark.parametrize("ending", ["pkl", "txt"])
def test_other_formats_and_no_frequencies(build, ending):
    arguments = ("--dataset", "pets:train+pets:dev", "--vocab_threshold", 2)
    assert build(*arguments, "--vocab_output_path", f"v.{ending}").status == 0
    vocabulary = Vocabulary.load(f"v.{ending}")
    assert vocabulary.counts is None
    assert vocabulary.words[4:] == ["a", "dog", "runs", ".", "sits", "zebra"]


def test_existing_files_are_kept_without_force(build, tmp_path):
    arguments = ("--dataset", "pets:train", "--vocab_threshold", 2, "--vocab_output_path", "v.json")
    (tmp_path / "v.json").write_text("mine")
    result = build(*arguments)
    assert result.status == 2 and "v.json exists: --force replaces it" in result.err
    assert (tmp_path / "v.json").read_text() == "mine"
    assert build(*arguments, "--force").status == 0
    (tmp_path / "w-leftovers.txt").write_text("mine")
    result = build(*arguments[:-1], "w.json", "--create_leftovers_file")
    assert result.status == 2 and "w-leftovers.txt exists" in result.err
    assert not (tmp_path / "w.json").exists()


def test_no_tokenize_keeps_the_case(build):
    result = build("--dataset", "pets:train", "--vocab_output_path", "v.json", "--no_tokenize", "--vocab_threshold", 1)
    assert result.status == 0
    vocabulary = Vocabulary.load("v.json")
    assert vocabulary.words[4:7] == ["A", "dog", "runs."]
    assert vocabulary.encode("A dog") == [4, 5]


def test_dont_create_vocab_show_tokens_and_verbose(build, tmp_path):
    result = build("--dataset", "pets:train", "--dont_create_vocab", "--show_tokens", "--verbose",
                   "--create_vocab_stats_file")  # fmt: skip
    assert result.status == 0
    assert "DIFF A child's ball. => a child 's ball ." in result.out
    assert "<unk> a ." in result.out
    assert read_counts(tmp_path / "pets:train-vocab_stats.txt") == expected_counts(TRAIN)


def test_leftovers_from_a_vocabulary(build, tmp_path):
    build("--dataset", "pets:train", "--vocab_output_path", "v.json", "--vocab_threshold", 2)
    before = (tmp_path / "v.json").read_bytes()
    assert build("--leftovers_from_vocabulary", "v.json").status == 0  # of the dataset that it was made from
    assert read_counts(tmp_path / "v-leftovers.txt") == {w: n for w, n in expected_counts(TRAIN).items() if n < 2}
    arguments = ("--leftovers_from_vocabulary", "v.json", "--dataset", "pets:dev", "--vocab_output_path", "dev")
    assert build(*arguments).status == 0
    assert (tmp_path / "dev-leftovers.txt").read_text() == "zebra 2\nruns 1\n"
    assert (tmp_path / "v.json").read_bytes() == before


def test_leftovers_from_a_dataset(build, tmp_path):
    assert build("--leftovers_from_dataset", "pets:dev", "--vocab_threshold", 2).status == 0
    assert read_counts(tmp_path / "pets:dev-leftovers.txt") == {"runs": 1, "sits": 1}
    result = build("--leftovers_from_dataset", "pets:train", "--dataset", "pets:dev", "--vocab_threshold", 1)
    assert result.status == 0
    assert read_counts(tmp_path / "pets:train-leftovers.txt") == {"zebra": 2}


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((), "--dataset: name a section"),
        (("--dataset", "pets:train"), "--vocab_output_path: name the vocabulary"),
        (("--dataset", "pets:test", "--vocab_output_path", "v.json"), "unknown dataset 'pets:test'.*pets:train"),
        (("--dataset", "pets:train", "--vocab_output_path", "v.h5"), "unknown ending of 'v.h5'"),
        (
            ("--dataset", "pets:train", "--vocab_output_path", "v.json", "--vocab_threshold", "0"),
            "--vocab_threshold 0",
        ),
        (
            ("--dataset", "pets:train", "--vocab_output_path", "v.json", "--vocab_threshold", "99"),
            "no word .* that often: try --vocab_threshold 1",
        ),
        (("--dataset", "pets:train", "--vocab_output_path", "v.json", "--num_workers", "-1"), "--num_workers -1"),
        (("--dataset", "pets:train", "--vocab_output_path", "v.txt", "--tokenizer", "char"), ".txt file cannot keep"),
        (("--dataset", "pets:train", "--no_tokenize", "--tokenizer", "char"), "exclude each other"),
        (("--leftovers_from_vocabulary", "v.json", "--leftovers_from_dataset", "x"), "exclude each other"),
        (("--leftovers_from_vocabulary", "v.json"), "no such file: v.json"),
        (
            ("--dataset", "pets:train", "--vocab_output_path", "train.json/v.json", "--vocab_threshold", "2"),
            "cannot write train.json/v.json",
        ),
        (
            ("--dataset", "pets:train", "--vocab_output_path", "v.json", "--vocab_threshold", "4"),
            "--vocab_threshold 4: 64% of the words of pets:train would be <unk>: try --vocab_threshold 1",
        ),
    ],
)
def test_mistakes(build, tmp_path, arguments, message):
    result = build(*arguments)
    assert result.status == 2
    assert re.search(message, result.err) and result.err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d.conf", "dev.json", "train.json"]


def test_dataset_without_captions(build, tmp_path):
    write_captions(tmp_path / "train.json", [])
    result = build("--dataset", "pets:train", "--vocab_output_path", "v.json")
    assert result.status == 2 and "train.json" in result.err


def test_in_a_process_of_its_own(build, tmp_path, script_alone):
    arguments = ("--dataset", "pets:train", "--dataset_config_file", "d.conf", "--vocab_output_path", "v.json")
    arguments += ("--vocab_threshold", "2")
    result = script_alone("build_vocab.py", *arguments, cwd=tmp_path)
    assert (result.status, result.err) == (0, "")
    assert "vocabulary written to v.json" in result.out

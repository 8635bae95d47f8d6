"""Document frequencies: counting against a plain loop, the files, and that a stale file is never taken."""

import json
import pickle
from collections import Counter, defaultdict

import numpy as np
import pytest
from toy import document_frequencies, make_coco, write_config

from captioning.errors import UserError
from captioning.scoring.document_frequencies import (
    CachedWords,
    count_documents,
    kept_words,
    pack,
    pack_size,
    packed_ngrams,
    tokenized,
    unpack,
)
from captioning.scoring.metrics import CiderD, tokenize
from captioning.text.ptb import ptb_tokens
from captioning.text.tokens import END
from training.cider_reward import CiderReward
from vocabulary import build_vocabulary

REFERENCES = {
    1: ["A dog runs on the grass.", "The dog runs, runs and runs!"],
    2: ["Two dogs don't run on the sand.", "A boy runs."],
    3: ["The boy and a dog", "a"],
}


def plain_count(references, end=True) -> Counter:
    counts = Counter()
    for texts in references.values():
        found = set()
        for text in texts:
            tokens = ptb_tokens(text) + (["<end>"] if end else [])
            found |= {tuple(tokens[i : i + n]) for n in (1, 2, 3, 4) for i in range(len(tokens) - n + 1)}
        counts.update(found)
    return counts


def test_counts_are_those_of_a_plain_loop():
    for end in (True, False):
        words = count_documents(tokenized(REFERENCES, end).values())
        assert words.to_dict() == {"document_frequency": dict(plain_count(REFERENCES, end)), "ref_len": 3}


def test_without_end_they_are_the_scorers():
    words = count_documents(tokenized(REFERENCES, end_token=False).values())
    assert words.to_dict() == document_frequencies(REFERENCES.values())


def test_unknown_words_are_counted_together():
    table = count_documents(tokenized(REFERENCES).values(), {"a", "dog", "runs"}).to_dict()["document_frequency"]
    assert table["a", "dog", "runs"] == 1 and table[("<unk>",)] == 3 and table[("<end>",)] == 3


@pytest.mark.parametrize("tokens", [5, 40_000, 3_000_000])  # the last two need more than 63 bits
def test_packing_there_and_back(tokens):
    size = pack_size(tokens)
    rng = np.random.default_rng(0)
    for length in (1, 3, 4, 9):
        ids = rng.integers(1, tokens + 1, length).tolist()
        for n, runs in enumerate(packed_ngrams(ids, size), 1):
            grams = [ids[i : i + n] for i in range(length - n + 1)]
            packed = np.array(runs, np.int64 if size**4 < 2**63 else object)
            assert [[i + 1 for i in row if i >= 0] for row in unpack(packed, size).tolist()] == grams
            padded = np.array([row + [0] * (4 - n) for row in grams], np.int64).reshape(-1, 4)
            assert pack(padded, size).tolist() == runs


@pytest.mark.parametrize("name", ["words.npz", "words.json", "words.pkl"])
def test_files_there_and_back(tmp_path, name):
    words = count_documents(tokenized(REFERENCES).values())
    words.save(tmp_path / name)
    assert CachedWords.load(tmp_path / name).to_dict() == words.to_dict()


def test_a_pickle_of_deepcaption_with_the_logarithm(tmp_path):
    """Tables in use hold the number of images or its logarithm, in a defaultdict."""
    table = defaultdict(float, {("a", "dog"): 3.0, ("a",): 50.0})
    for ref_len in (100, np.log(100.0)):
        (tmp_path / "words.p").write_bytes(pickle.dumps({"document_frequency": table, "ref_len": ref_len}))
        words = CachedWords.load(tmp_path / "words.p")
        assert words.images == pytest.approx(100) and words.to_dict()["document_frequency"] == dict(table)


@pytest.mark.parametrize("protocol", [0, 2, pickle.HIGHEST_PROTOCOL])
def test_pickles_of_every_protocol(tmp_path, protocol):
    table = count_documents(tokenized(REFERENCES).values()).to_dict()
    (tmp_path / "words.p").write_bytes(pickle.dumps(table, protocol=protocol))
    assert CachedWords.load(tmp_path / "words.p").to_dict() == table


class Evil:
    def __reduce__(self):
        return print, ("code was run",)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("words.npz", b"PK not really", "damaged"),
        ("words.json", b'{"document_frequency": {"a": 2}}', "has no 'ref_len'"),
        ("words.json", b'{"document_frequency": [1]}', "document_frequency is a list, not an object"),
        ("words.json", b'{"document_frequency": {"a": 1e400}, "ref_len": 5}', "has a finite number"),
        ("words.json", b'{"document_frequency": {"a": "2"}, "ref_len": 5}', "has a finite number"),
        ("words.json", b'{"document_frequency": {"a b c d e": 2}, "ref_len": 5}', "one to four words"),
        ("words.pkl", pickle.dumps({"words": 1}), "'document_frequency' and 'ref_len'"),
        ("words.pkl", pickle.dumps({"document_frequency": {("a",): "9"}, "ref_len": "x"}), "'ref_len'"),
        ("words.pkl", pickle.dumps({"document_frequency": {("a",): 9.0}, "ref_len": 0.5}), "too small"),
        ("words.pkl", pickle.dumps({"document_frequency": {("a",): 50}, "ref_len": float("nan")}), "too small"),
        ("words.pkl", pickle.dumps({"document_frequency": Evil(), "ref_len": 5}), "it asks for .*print"),
        ("words.pkl", pickle.dumps({"document_frequency": {}, "ref_len": 5}), "no n-gram"),
        ("words.pkl", b"nothing", "not a pickle"),
    ],
)
def test_bad_files_are_one_line(tmp_path, capsys, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name}.*{message}"):
        CachedWords.load(tmp_path / name)
    assert "code was run" not in capsys.readouterr().out


def test_missing_file_says_who_makes_one(tmp_path):
    with pytest.raises(UserError, match=r"no such file.*build_cached_words\.py"):
        CachedWords.load(tmp_path / "no.npz")


def test_kept_words_follow_the_captions(tmp_path, capsys):
    first = kept_words(REFERENCES, tmp_path, "toy")
    (file,) = tmp_path.iterdir()
    assert "written" in capsys.readouterr().out
    assert kept_words(REFERENCES, tmp_path, "toy").to_dict() == first.to_dict()
    assert "written" not in capsys.readouterr().out
    changed = {**REFERENCES, 3: ["The boy and a cat", "a"]}
    assert kept_words(changed, tmp_path, "toy").to_dict()["document_frequency"] == dict(plain_count(changed))
    assert len(list(tmp_path.iterdir())) == 2
    file.write_bytes(b"damaged")
    assert kept_words(REFERENCES, tmp_path, "toy").to_dict() == first.to_dict()
    (tmp_path / "file").write_text("")
    assert len(kept_words(REFERENCES, tmp_path / "file", "toy")) == len(first)  # a folder that cannot be made


def test_reward_with_frequencies_of_another_corpus_is_the_scorers(tmp_path):
    """CIDEr-D by pycocoevalcap with the same cached words, to 1e-6; words that the file lacks are the rarest."""
    corpus = {n: [f"a {w} dog runs on the {w} grass", f"the {w}"] for n, w in enumerate("abcdefgh")}
    vocabulary = build_vocabulary(["zebra", *(c for texts in REFERENCES.values() for c in texts)], 1)
    words = count_documents(tokenized(corpus, end_token=False).values())
    words.save(tmp_path / "words.pkl")
    reward = CiderReward(REFERENCES, vocabulary, end_token=False, words=CachedWords.load(tmp_path / "words.pkl"))
    scorer = CiderD(words.to_dict())
    said = ["a dog runs on the grass", "a boy runs runs runs", "the dog and the sand ."]
    for key, text in zip(REFERENCES, said):
        scorer += (tokenize([text], "python")[0][0], tokenize(REFERENCES[key], "python")[0])
    ours = [reward.score_ids(key, vocabulary.encode(text)) for key, text in zip(REFERENCES, said)]
    assert ours == pytest.approx(list(scorer.compute_score()[1]), abs=1e-6)
    unseen, seen = (reward.score_ids(1, vocabulary.encode(f"a {animal} runs")) for animal in ("zebra", "dog"))
    assert unseen < seen


def test_frequencies_without_end_still_know_the_end():
    """Files of other programs have no <end>: its n-grams are weighed by the training captions."""
    vocabulary = build_vocabulary([c for texts in REFERENCES.values() for c in texts], 1)
    own = CiderReward(REFERENCES, vocabulary)
    given = CiderReward(REFERENCES, vocabulary, words=count_documents(tokenized(REFERENCES, False).values()))
    ids = [*vocabulary.encode("a dog runs on the grass ."), END]
    assert given.score_ids(1, ids) == pytest.approx(own.score_ids(1, ids), abs=1e-9)


def test_script(tmp_path, script):
    make_coco(tmp_path, {"train": 6})
    flags = ["--dataset", "toy:train", "--dataset_config_file", write_config(tmp_path, ["train"])]
    done = script("build_cached_words.py", *flags, "--output", tmp_path / "words.json")
    assert done.status == 0 and "6 images" in done.out, done.err
    table = json.loads((tmp_path / "words.json").read_text())
    assert table["ref_len"] == 6 and table["document_frequency"]["a picture of one"] == 6
    again = script("build_cached_words.py", *flags, "--output", tmp_path / "words.json")
    assert again.status == 2 and "--force" in again.err
    bad = script("build_cached_words.py", *flags, "--output", tmp_path / "words.txt")
    assert bad.status == 2 and ".npz" in bad.err
    # DeepCaption's layout: known words only, no end
    vocabulary = build_vocabulary(["a picture of one ball"], 1)
    vocabulary.save(tmp_path / "vocab.json")
    more = ["--output", tmp_path / "words.pkl", "--vocab", tmp_path / "vocab.json", "--no_end"]
    assert script("build_cached_words.py", *flags, *more).status == 0
    table = pickle.loads((tmp_path / "words.pkl").read_bytes())
    assert table["ref_len"] == 6 and table["document_frequency"][("<unk>",)] == 6
    assert ("<end>",) not in table["document_frequency"]
    results, truth = tmp_path / "results.json", tmp_path / "annotations" / "captions_train.json"
    results.write_text(json.dumps([{"image_id": 1, "caption": "a picture of one ball"}]))
    words = ["--cached_words", tmp_path / "words.json"]
    done = script("score.py", results, "--ground_truth", truth, "--scoring", "ciderd", *words)
    assert done.status == 0 and "CIDEr-D" in done.out, done.err

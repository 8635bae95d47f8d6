"""vocabulary.py: counts against a plain count, files there and back, and files that are wrong."""

import json
import pickle
import sys
import types
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

import vocabulary
from captioning.errors import UserError
from captioning.text.cleaning import clean_text
from captioning.text.tokenizers import TOKENIZERS
from captioning.text.tokens import END, PAD, SPECIALS, START, UNK
from vocabulary import (
    Vocabulary,
    auto_name,
    build_vocabulary,
    count_words,
    highest_threshold,
    require_known_words,
    vocabulary_from_counts,
)

CAPTIONS = ["A dog runs.", "A dog's ball, red and round.", "Two dogs run.", "a dog  SLEEPS ."]


@pytest.fixture
def small():
    return build_vocabulary(CAPTIONS, threshold=2, dataset="pets:train")


def test_words_in_order_of_first_appearance(small):
    assert small.words == [*SPECIALS, "a", "dog", "."]
    assert small.counts == [0, 0, 0, 11, 3, 3, 4]
    assert (small.threshold, small.dataset, len(small)) == (2, "pets:train", 7)


def test_encode_and_decode(small):
    ids = small.encode("A dog flies.")
    assert ids == [4, 5, UNK, 6]
    assert small.decode([1, *ids, 2, 4, 4]) == "a dog <unk> ."
    assert small.sentence([1, *ids, 2, 0]) == "A dog <unk>."
    assert small.sentence([4, 5]) == "A dog."
    assert small.sentence([4, 5], capitalize=False) == "a dog"
    assert small.sentence([2, 4]) == ""
    with pytest.raises(IndexError):
        small.decode([7])
    with pytest.raises(IndexError):
        small.decode([-1])


def test_sentence_sets_signs_at_their_word():
    words = build_vocabulary(["a dog , and a cat !"], threshold=1)
    assert words.sentence(words.encode("a dog, and a cat!")) == "A dog, and a cat!"
    assert words.sentence(words.encode("a dog, and a cat!"), capitalize=False) == "a dog, and a cat!"


def test_characters():
    chars = build_vocabulary(["ab a"], threshold=1, tokenizer="char")
    assert chars.words[4:] == ["a", "b", " "]
    assert chars.sentence(chars.encode("ba  ab")) == "Ba ab."


def test_special_tokens_in_a_caption_do_not_repeat_them():
    assert build_vocabulary(["<unk> dog <unk>"], threshold=1, tokenizer="whitespace").words == [*SPECIALS, "dog"]


def test_workers_do_not_change_the_count(monkeypatch):
    monkeypatch.setattr(vocabulary, "PARALLEL_FROM", 50)
    monkeypatch.setattr(vocabulary, "CHUNK", 7)
    captions = [f"word{i % 37} and word{i % 11}." for i in range(120)]
    alone = count_words(captions, num_workers=1)
    together = count_words(iter(captions), num_workers=2)
    assert list(alone.items()) == list(together.items())
    assert alone["and"] == alone["."] == 120


@pytest.mark.parametrize("num_workers", [1, 2])
def test_many_captions_are_encoded_as_one_after_the_other(small, monkeypatch, num_workers):
    monkeypatch.setattr(vocabulary, "PARALLEL_FROM", 50)
    monkeypatch.setattr(vocabulary, "CHUNK", 7)
    captions = ["A dog runs.", "", "a child's ball", *(f"word{n} and a dog" for n in range(117))]
    chunks = list(small.encode_all(iter(captions), num_workers))
    ids, lengths = ([number for chunk in part for number in chunk] for part in zip(*chunks))
    assert ids == [number for text in captions for number in small.encode(text)]
    assert lengths == [len(small.encode(text)) for text in captions]
    assert list(small.encode_all([])) == []


@pytest.mark.parametrize("name", ["v.json", "v.pkl", "V.PKL", "v.txt"])
def test_files_there_and_back(small, tmp_path, name):
    small.save(tmp_path / name)
    again = Vocabulary.load(tmp_path / name)
    assert again.words == small.words
    if not name.endswith("txt"):
        assert again.to_dict() == small.to_dict()
    pickle.loads(pickle.dumps(again)).encode("a dog")  # it travels to workers


def test_format_of_the_files(small, tmp_path):
    for name in ("v.json", "v.pkl", "v.txt"):
        small.save(tmp_path / name)
    state = json.loads((tmp_path / "v.json").read_text(encoding="utf-8"))
    assert state == pickle.loads((tmp_path / "v.pkl").read_bytes())
    assert list(state) == ["format", "tokenizer", "lowercase", "words", "counts", "threshold", "dataset"]
    assert (tmp_path / "v.txt").read_text() == "<pad>\n<start>\n<end>\n<unk>\na\ndog\n.\n"


def test_text_without_special_tokens_gets_them(tmp_path):
    (tmp_path / "v.txt").write_text("dog\ncat\n\n")
    assert Vocabulary.load(tmp_path / "v.txt").words == [*SPECIALS, "dog", "cat"]


def test_text_cannot_keep_another_tokenizer(tmp_path):
    with pytest.raises(UserError, match=r"cannot keep the tokenizer \(char\).*\.json"):
        build_vocabulary(["a"], 1, tokenizer="char").save(tmp_path / "v.txt")


class Evil:
    def __reduce__(self):
        return (print, ("this must not run",))


GOOD = {"format": 1, "words": [*SPECIALS, "dog"], "counts": None}


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("v.h5", b"", "unknown ending"),
        ("v", b"", "unknown ending"),
        ("v.json", b"{", "not valid JSON"),
        ("v.json", b"[]", "not a table"),
        ("v.json", b'{"words": ["dog"]}', "the first words must be"),
        ("v.json", json.dumps(GOOD | {"format": 9}).encode(), "format 9 is unknown"),
        ("v.json", json.dumps(GOOD | {"counts": [1]}).encode(), "counts are not 5"),
        ("v.json", json.dumps(GOOD | {"counts": ["x"] * 5}).encode(), "counts are not 5"),
        ("v.json", json.dumps(GOOD | {"counts": "x"}).encode(), "not a list"),
        ("v.json", json.dumps(GOOD | {"words": [*SPECIALS, 3]}).encode(), "3 is not a word"),
        ("v.json", json.dumps(GOOD | {"words": [*SPECIALS, [3]]}).encode(), "is not a word"),
        ("v.json", json.dumps(GOOD | {"tokenizer": "x"}).encode(), "unknown tokenizer 'x'"),
        ("v.json", json.dumps(GOOD | {"tokenizer": []}).encode(), "unknown tokenizer"),
        ("v.txt", b"", "holds no words"),
        ("v.txt", b"dog\ncat\ndog\n", "'dog' stands there twice"),
        ("v.txt", b"dog\n<unk>\n", "the first words must be"),
        ("v.txt", b"\xff\xfe", "not UTF-8"),
        ("v.pkl", b"", "not a readable pickle"),
        ("v.pkl", b"not a pickle", "not a readable pickle"),
        ("v.pkl", pickle.dumps(GOOD)[:-9], "not a readable pickle"),
        ("v.pkl", pickle.dumps([1]), "not a table"),
        ("v.pkl", pickle.dumps(Evil()), "asks for builtins.print"),
    ],
)
def test_wrong_files_are_named(tmp_path, capsys, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        Vocabulary.load(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert "must not run" not in capsys.readouterr().out


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match="no such file.*build_vocab.py"):
        Vocabulary.load(tmp_path / "v.pkl")
    with pytest.raises(UserError, match="is a folder"):
        (tmp_path / "d.txt").mkdir()
        Vocabulary.load(tmp_path / "d.txt")


def deepcaption_pickle(monkeypatch, **attributes) -> bytes:
    """What DeepCaption pickles: an instance of a class named vocabulary.Vocabulary, here one without any code."""
    stand_in = types.ModuleType("vocabulary")
    stand_in.Vocabulary = type("Vocabulary", (), {"__module__": "vocabulary"})
    thing = stand_in.Vocabulary()
    thing.__dict__.update(attributes)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "vocabulary", stand_in)
        return pickle.dumps(thing, protocol=4)


def test_pickles_of_deepcaption(monkeypatch, tmp_path):
    words = [*SPECIALS, "dog", "cat"]
    table = {
        "word2idx": {word: i for i, word in enumerate(words)},
        "idx2word": dict(enumerate(words)),
        "idx": len(words),
    }
    path = tmp_path / "vocab.pkl"
    path.write_bytes(deepcaption_pickle(monkeypatch, **table))
    assert Vocabulary.load(path).words == words
    assert Vocabulary.load(path).counts is None

    metadata = {"dataset": "coco:train2014", "vocab_threshold": 4, "no_tokenize": True}
    path.write_bytes(deepcaption_pickle(monkeypatch, **table, metadata=metadata, freq={4: 9, "cat": 7}))
    old = Vocabulary.load(path)
    assert (old.dataset, old.threshold, old.tokenizer, old.lowercase) == ("coco:train2014", 4, "whitespace", False)
    assert old.counts == [0, 0, 0, 0, 9, 7]

    table["word2idx"] = {"<pad>": 0, "dog": 7}
    path.write_bytes(deepcaption_pickle(monkeypatch, **table))
    with pytest.raises(UserError, match="are not 0, 1, 2"):
        Vocabulary.load(path)
    path.write_bytes(deepcaption_pickle(monkeypatch, word2idx=[3]))
    with pytest.raises(UserError, match="no readable word table"):
        Vocabulary.load(path)


# ---------------------------------------------------------------- properties

LEAF = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.sampled_from(SPECIALS)
KEYS = st.sampled_from(["words", "counts", "tokenizer", "lowercase", "threshold", "dataset", "format"])
JSON = st.dictionaries(KEYS, LEAF | st.lists(LEAF, max_size=6) | st.just([*SPECIALS, "dog"]))
TOKEN = st.text(st.characters(exclude_categories=("Cs", "Cc", "Z")), min_size=1, max_size=6)
TOKEN = TOKEN.filter(lambda word: word.split() == [word] and word not in SPECIALS and "\ufeff" not in word)
ODD = TOKEN | st.sampled_from(["\ud83d", "a b", "\u2028", "x\0", '"', "\\udc00"])
CAPTION = st.lists(TOKEN | st.sampled_from(["<start>", "<end>", "<unk>", "dog", "\ud83d"]), max_size=6).map(" ".join)


@given(
    st.lists(ODD, unique=True, max_size=6),
    st.sampled_from(TOKENIZERS),
    st.booleans(),
    st.integers(0, 9),
    st.text(max_size=5) | st.just("\ud83d"),
    st.sampled_from([".json", ".pkl"]),
)
def test_files_are_read_as_they_were_written(tmp_path_factory, words, tokenizer, lowercase, threshold, dataset, ending):
    path = tmp_path_factory.getbasetemp() / f"written{ending}"
    counts = list(range(len(SPECIALS) + len(words)))
    saved = Vocabulary([*SPECIALS, *words], counts, tokenizer, lowercase, threshold, dataset)
    saved.save(path)
    assert Vocabulary.load(path).to_dict() == saved.to_dict()


@given(st.lists(ODD, unique=True, max_size=6))
def test_text_files_are_read_as_they_were_written_or_refused(tmp_path_factory, words):
    path = tmp_path_factory.getbasetemp() / "written.txt"
    saved = Vocabulary([*SPECIALS, *words])
    try:
        saved.save(path)
    except UserError as error:
        assert "a .txt file cannot keep the word" in str(error)
        assert any(word.split() != [word] or clean_text(word) != word for word in words)
    else:
        assert Vocabulary.load(path).words == saved.words


@given(st.binary(max_size=60) | st.builds(json.dumps, JSON).map(str.encode), st.sampled_from([".json", ".txt"]))
def test_any_file_is_a_vocabulary_or_an_error_of_one_line(tmp_path_factory, content, ending):
    path = tmp_path_factory.getbasetemp() / f"any{ending}"
    path.write_bytes(content)
    try:
        Vocabulary.load(path)
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error)


@given(st.lists(CAPTION, max_size=5), st.integers(1, 3), st.sampled_from(TOKENIZERS))
def test_words_of_captions_are_never_special_tokens(captions, threshold, tokenizer):
    words = build_vocabulary(captions, threshold, tokenizer)
    assert words.words[:4] == list(SPECIALS) and not set(words.words[4:]) & set(SPECIALS)
    for caption in captions:
        assert not set(words.encode(caption)) & {PAD, START, END}


# ---------------------------------------------------------------- thresholds, names


def test_vocabularies_that_leave_most_words_out_are_refused():
    counter = Counter({"a": 8, "dog": 3, "cat": 3, "bus": 2, "sea": 2, "fox": 1, "owl": 1})
    assert [highest_threshold(counter, share) for share in (0, 0.05, 0.1, 0.3, 0.6)] == [1, 1, 2, 3, 8]
    for threshold in (1, 2, 3):
        require_known_words(counter, vocabulary_from_counts(counter, threshold), "pets")
    for threshold, words in (
        (4, "--vocab_threshold 4: 60% of the words of pets would be <unk>: try --vocab_threshold 2"),
        (9, "--vocab_threshold 9: no word of pets occurs that often: try --vocab_threshold 2"),
    ):
        with pytest.raises(UserError, match=words):
            require_known_words(counter, vocabulary_from_counts(counter, threshold), "pets")
    with pytest.raises(UserError, match="--dataset pets: its captions have no words"):
        require_known_words(Counter(), vocabulary_from_counts(Counter(), 1), "pets")


def test_the_name_of_a_kept_vocabulary_changes_with_captions_and_settings():
    name = auto_name(CAPTIONS, 4)
    assert auto_name(list(CAPTIONS), 4) == name and name.startswith("treebank-4-")
    others = {auto_name(CAPTIONS[::-1], 4), auto_name(CAPTIONS[:-1], 4), auto_name(CAPTIONS, 5)}
    others |= {auto_name(CAPTIONS, 4, "regex"), auto_name(CAPTIONS, 4, lowercase=False)}
    assert len(others | {name}) == 6

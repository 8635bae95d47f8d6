"""The file of word ids: it gives what encoding gives, is never another's, and where it is damaged it is made anew."""

import multiprocessing
import random
from dataclasses import replace

import numpy as np
import pytest

from captioning.batches import ids_file
from captioning.batches.captions import CaptionIds
from captioning.batches.ids_file import caption_ids, ids_hash
from captioning.batches.sampler import LoaderSettings
from captioning.datasets.base import ImageItem
from captioning.datasets.items import Items
from captioning.text.tokens import END, START
from vocabulary import Vocabulary, build_vocabulary

TEXTS = ["A dog runs.", "Two dogs. One cat, asleep. A mat.", "unknown words", "A child's ball"]


def make_items(count: int = 6) -> Items:
    captions = [[f"{TEXTS[(n + c) % 4]} number {n}" for c in range(n % 3)] for n in range(count)]
    return Items(ImageItem(n, str(n), None, several) for n, several in enumerate(captions))


@pytest.fixture
def items():
    return make_items()


@pytest.fixture
def words():
    return build_vocabulary([text for text in TEXTS if "unknown" not in text], 1)


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Settings with a folder, in which the ids of however few captions are kept."""
    monkeypatch.setattr(ids_file, "KEEP_FROM", 1)
    return LoaderSettings(ids_folder=str(tmp_path / "kept"))


def same(one: CaptionIds, other: CaptionIds) -> bool:
    names = ("flat", "bounds", "first", "sentences", "first_row")
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in names)


def groups(items: Items) -> list:
    return [(number, list(range(count))) for number, count in enumerate(items.caption_counts())]


def test_rows_are_those_of_encoding_one_caption_after_the_other(items, words):
    rows = CaptionIds.of(items, words).rows(groups(items))
    plain = [[START, *words.encode(text), END] for text in items.captions()]
    found = [row[:length].tolist() for row, length in zip(rows["captions"], rows["lengths"])]
    assert found == plain
    assert rows["row_image"].tolist() == [n for n, count in enumerate(items.caption_counts()) for _ in range(count)]


@pytest.mark.parametrize("most", [None, 2])
def test_the_second_time_nothing_is_encoded(items, words, kept, monkeypatch, capsys, most):
    kept = replace(kept, max_sentences=most)
    first = caption_ids(items, words, kept, 1)
    assert "word ids of the captions written to" in capsys.readouterr().out
    monkeypatch.setattr(Vocabulary, "encode_all", None)
    again = caption_ids(items, words, kept, 1)
    assert same(first, again) and again.unknown_share == first.unknown_share > 0
    for name, rows in first.rows(groups(items)).items():
        assert rows.equal(again.rows(groups(items))[name])
    assert capsys.readouterr().out == ""


def test_whatever_matters_gives_another_name(items, words, monkeypatch):
    hashes = [ids_hash(items, words, None), ids_hash(items, words, 3), ids_hash(items, words, 4)]
    hashes.append(ids_hash(make_items(7), words, None))
    hashes.append(ids_hash(items[1:], words, None))
    hashes.append(ids_hash(items[::-1], words, None))
    state = words.to_dict()
    for other in ({"tokenizer": "words"}, {"lowercase": False}, {"words": [*words.words, "more"], "counts": None}):
        hashes.append(ids_hash(items, Vocabulary.from_dict(state | other), None))
    assert ids_hash(items, Vocabulary.from_dict(state), None) == hashes[0]
    monkeypatch.setattr(ids_file, "_code", lambda: ("another tokenizer",))
    hashes.append(ids_hash(items, words, None))
    assert len(set(hashes)) == len(hashes)


def test_a_damaged_file_is_made_anew(items, words, kept, tmp_path, capsys):
    wanted = caption_ids(items, words, kept, 1)
    (path,) = (tmp_path / "kept").iterdir()
    whole, chance = path.read_bytes(), random.Random(5)
    broken = [b"", whole[:-30], whole[: len(whole) // 2], b"PK" + bytes(200)]
    places = [whole.index(b"PK\1\2") + place for place in (6, 8, 10)]  # the archive's version, flags, method
    for place in [*places, *(chance.randrange(len(whole)) for _ in range(20))]:
        broken.append(whole[:place] + bytes([whole[place] ^ (1 << chance.randrange(8))]) + whole[place + 1 :])
    for content in broken:
        path.write_bytes(content)
        assert same(caption_ids(items, words, kept, 1), wanted)
    assert "is damaged and is made anew" in capsys.readouterr().out


@pytest.mark.parametrize("most", [None, 2])
def test_a_file_whose_arrays_do_not_fit_is_made_anew(items, words, kept, tmp_path, capsys, most):
    kept = replace(kept, max_sentences=most)
    wanted = caption_ids(items, words, kept, 1)
    (path,) = (tmp_path / "kept").iterdir()
    with np.load(path) as file:
        sound = dict(file)
    changed = [
        {"flat": sound["flat"][:-1]},
        {"flat": sound["flat"] + len(words)},
        {"flat": sound["flat"].astype(float)},
        {"flat": np.array("text")},
        {"bounds": sound["bounds"][:-1]},
        {"bounds": sound["bounds"][::-1]},
        {"bounds": sound["bounds"] + 1},
        {"sentences": np.ones(3, np.int64)},
        {"sentences": np.array("text")},
    ]
    for change in changed:
        np.savez(path, **sound | change)
        assert same(caption_ids(items, words, kept, 1), wanted), change
        assert "is damaged and is made anew" in capsys.readouterr().out, change
    with open(path, "wb") as file:
        np.save(file, sound["flat"])  # no archive
    assert same(caption_ids(items, words, kept, 1), wanted)


def test_a_file_of_another_origin_is_not_taken(items, words, kept, tmp_path):
    caption_ids(items, words, kept, 1)
    (path,) = (tmp_path / "kept").iterdir()
    other = make_items(9)
    path.rename(path.with_name(f"{ids_hash(other, words, None)[:16]}.ids.npz"))
    assert same(caption_ids(other, words, kept, 1), CaptionIds.of(other, words))


def test_nothing_is_kept_of_few_captions_without_a_folder_and_by_other_processes(items, words, kept, tmp_path):
    caption_ids(items, words, replace(kept, rank=1), 1)
    caption_ids(items, words, replace(kept, ids_folder=None), 1)
    ids_file.KEEP_FROM = 1_000  # the fixture puts it back
    caption_ids(items, words, kept, 1)
    assert not (tmp_path / "kept").exists()


def test_a_folder_that_cannot_be_written(items, words, kept, tmp_path, capsys):
    (tmp_path / "kept").write_text("a file")
    assert same(caption_ids(items, words, kept, 1), CaptionIds.of(items, words))
    assert "word ids of the captions are not kept: cannot write" in capsys.readouterr().out


def test_processes_that_write_at_the_same_time(items, words, kept, tmp_path):
    with multiprocessing.get_context("fork").Pool(3) as pool:
        results = pool.starmap(caption_ids, [(items, words, kept, 1)] * 9, chunksize=1)
    assert all(same(one, CaptionIds.of(items, words)) for one in results)
    assert len(list((tmp_path / "kept").iterdir())) == 1

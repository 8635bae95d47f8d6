"""A feature file in several: the records of one file, whichever of the files has them."""

import numpy as np
import pytest

from captioning.errors import UserError
from captioning.features.factory import open_features
from captioning.features.sharded import shards
from captioning.features.writer import FeatureWriter

KEYS = [f"{n:03}.jpg" for n in range(20)]
ROWS = np.random.default_rng(0).standard_normal((20, 6)).astype("f4")


def write(path, numbers, provenance=None, size: int = 6) -> None:
    with FeatureWriter(path, (size,), "float32", provenance) as writer:
        for n in numbers:
            writer.write(KEYS[n], ROWS[n, :size])


@pytest.mark.parametrize("ending", ["lmdb", "npy"])
def test_several_files_are_one(tmp_path, ending):
    made = {"extractor": "resnet18", "transform": {"size": 64, "interpolation": "bilinear"}}
    for part in range(3):
        write(tmp_path / f"x-{part + 8:02}.{ending}", range(part, 20, 3), made)
    reader = open_features(tmp_path / f"x-{{08..10}}.{ending}", ["keys", "of", "a dataset"])
    assert (len(reader), reader.shape, reader.provenance) == (20, (6,), made) and sorted(reader.keys()) == KEYS
    order = [7, 3, 3, 19, 0]
    assert np.array_equal(reader.get_many([KEYS[n] for n in order]), ROWS[order])
    assert reader.missing(["no", KEYS[2]]) == ["no"] and reader.get_many([]).shape == (0, 6)
    assert reader.pick([("no", KEYS[4])]) == [KEYS[4]]
    with pytest.raises(UserError, match=r"x-\{08..10\}.* has no record for 'no'"):
        reader.get_many([KEYS[0], "no"])


def test_several_files_of_regions_are_padded_together(tmp_path):
    for n in range(6):
        with FeatureWriter(tmp_path / f"x-{n}.lmdb", (0, 6)) as writer:
            writer.write(KEYS[n], ROWS[: n + 1])
    reader = open_features(tmp_path / "x-{0..5}.lmdb")
    found = reader.get_many([KEYS[n] for n in (4, 0, 2)])
    assert reader.shape == (0, 6) and found.shape == (3, 5, 6)
    for row, count in zip(found, (5, 1, 3)):
        assert np.array_equal(row[:count], ROWS[:count]) and not row[count:].any()
    assert reader.get_many([]).shape == (0, 0, 6) and reader[KEYS[1]].shape == (2, 6)
    with pytest.raises(UserError, match="has no record for 'no'"):
        reader.get_many([KEYS[0], "no"])


def test_names_of_the_files():
    assert [path.name for path in shards("a/x-{8..11}.lmdb")] == ["x-8.lmdb", "x-9.lmdb", "x-10.lmdb", "x-11.lmdb"]
    assert [path.name for path in shards("x{007..008}y.npy")] == ["x007y.npy", "x008y.npy"]
    assert shards("x.lmdb")[0].name == "x.lmdb"


@pytest.mark.parametrize("name", ["x-{3..1}.lmdb", "x-{0..99999}.lmdb", f"x-{{0..{'9' * 5000}}}.lmdb"])
def test_ranges_without_sense(name):
    with pytest.raises(UserError, match="from a number to a larger one"):
        open_features(name)


def test_files_that_do_not_belong_together(tmp_path):
    write(tmp_path / "x-0.lmdb", range(5))
    with pytest.raises(UserError, match=r"2 of its 3 files are missing: x-1.lmdb, x-2.lmdb"):
        open_features(tmp_path / "x-{0..2}.lmdb")
    write(tmp_path / "x-1.lmdb", range(5, 9), size=4)
    with pytest.raises(UserError, match="other shapes"):
        open_features(tmp_path / "x-{0..1}.lmdb")
    np.save(tmp_path / "y-0.npy", ROWS)
    np.save(tmp_path / "y-1.npy", ROWS)
    with pytest.raises(UserError, match="no y-0.keys.txt"):
        open_features(tmp_path / "y-{0..1}.npy")


def test_a_range_is_not_written(tmp_path):
    with pytest.raises(UserError, match="one file is written: give a name without {FIRST..LAST}"):
        write(tmp_path / "x-{0..1}.lmdb", range(5))
    assert not list(tmp_path.iterdir())

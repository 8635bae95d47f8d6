"""Feature files: every format read back, against files packed by hand; damaged ones; forks."""

import builtins
import json
import os
import pickle
import struct
import zlib

import lmdb
import numpy as np
import pytest

from captioning.errors import UserError
from captioning.features import lmdb_file
from captioning.features.factory import open_features
from captioning.features.writer import FeatureWriter

KEYS = [f"COCO_{n:03}.jpg" for n in range(7)]
PROVENANCE = {"extractor": "resnet152", "weights_sha256": "ab", "transform": {"size": 224}, "feature_type": "plain"}
VECTORS = np.random.default_rng(0).standard_normal((7, 6)).astype("f4")
MAPS = np.random.default_rng(1).standard_normal((7, 5, 2, 3)).astype("f2")


def write(path, rows=VECTORS, keys=KEYS, provenance=None, **kwargs):
    with FeatureWriter(path, rows.shape[1:], rows.dtype.name, provenance, **kwargs) as writer:
        for key, row in zip(keys, rows):
            writer.write(key, row)
    return path


def pack_bin(path, rows, header=64, stride=None, number=1, magic=b"PSBD"):
    stride = stride or rows.itemsize * rows.shape[1]
    data = struct.pack("if7Q", struct.unpack("i", magic)[0], 1.0, header, stride, rows.shape[1], number, 0, 0, 0)
    data += bytes(header - 64) + b"".join(row.tobytes().ljust(stride, b"\0") for row in rows)
    path.write_bytes(data)
    return path


def pack_lmdb(path, records, subdir=True):
    with lmdb.open(str(path), map_size=2**24, subdir=subdir, lock=False) as env, env.begin(write=True) as transaction:
        for key, value in records.items():
            transaction.put(key.encode(), value)
    return path


def message(path, keys=None, ask=None):
    with pytest.raises(UserError) as error:
        reader = open_features(path, keys)
        reader.get_many([ask] if ask is not None else list(reader.keys()))
    assert str(path).rsplit(".", 1)[0] in str(error.value)
    assert "\n" not in str(error.value)
    return str(error.value)


# ---------------------------------------------------------------- all formats


@pytest.mark.parametrize("provenance", [None, PROVENANCE])
@pytest.mark.parametrize("name", ["x.npy", "x.lmdb", "x.bin", "x.h5"])
def test_vectors_come_back(tmp_path, name, provenance):
    reader = open_features(write(tmp_path / name, provenance=provenance))
    assert (reader.shape, reader.dtype, len(reader), reader.provenance) == ((6,), np.float32, 7, provenance)
    assert sorted(reader.keys()) == KEYS
    order = [KEYS[i] for i in (3, 0, 6, 3)]
    got = reader.get_many(order)
    assert got.dtype == np.float32
    assert got.flags.writeable
    assert np.array_equal(got, VECTORS[[3, 0, 6, 3]])
    assert np.array_equal(reader[KEYS[2]], VECTORS[2])
    assert reader.get_many([]).shape == (0, 6)
    assert reader.missing([KEYS[1]]) == []
    assert reader.missing([KEYS[0], "a", KEYS[1], "", "b"]) == ["a", "", "b"]
    with pytest.raises(UserError, match=f"{name} has no record for 'none'"):
        reader.get_many([KEYS[0], "none"])
    assert not list(tmp_path.glob("*.partial"))
    again = pickle.loads(pickle.dumps(reader))  # what a spawned worker gets
    assert np.array_equal(again[KEYS[4]], VECTORS[4])


@pytest.mark.parametrize("name", ["x.npy", "x.lmdb", "x.h5"])
def test_half_precision_maps_come_back(tmp_path, name):
    reader = open_features(write(tmp_path / name, MAPS))
    assert (reader.shape, reader.dtype) == ((5, 2, 3), np.float16)
    assert np.array_equal(reader.get_many(KEYS[::-1]), MAPS[::-1])
    assert reader.get_many(KEYS).dtype == np.float16


@pytest.mark.parametrize("name", ["x.npy", "x.lmdb", "x.bin", "x.h5"])
def test_a_mean_file_stands_for_every_key(tmp_path, name):
    mean = name.replace(".", "-mean.")
    write(tmp_path / mean, VECTORS[:1], ["mean"], PROVENANCE)
    reader = open_features(tmp_path / name)
    assert (reader.shape, reader.provenance) == ((6,), PROVENANCE)
    assert np.array_equal(reader.get_many(["a", "b"]), VECTORS[[0, 0]])
    assert reader.missing(["anything"]) == []
    write(tmp_path / mean, VECTORS[:2], ["a", "b"])
    assert "should hold one record" in message(tmp_path / name)


def test_overwriting_leaves_nothing_of_the_old_file(tmp_path):
    for name in ("x.npy", "x.lmdb"):
        write(tmp_path / name, provenance=PROVENANCE)
        assert open_features(tmp_path / name).provenance == PROVENANCE
        write(tmp_path / name, VECTORS[:3] + 1, ["p", "q", "r"])
        reader = open_features(tmp_path / name)
        assert reader.provenance is None
        assert np.array_equal(reader.get_many(["p", "q", "r"]), VECTORS[:3] + 1)
        assert reader.missing([KEYS[0], "p"]) == [KEYS[0]]


# ---------------------------------------------------------------- .npy and .h5


def test_npy_rows_follow_the_dataset_when_nobody_names_them(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, VECTORS.astype("f8"))
    assert open_features(path).shape == (6,)  # asked for its shape alone
    reader = open_features(path, KEYS)
    assert reader.dtype == np.float64
    assert np.array_equal(reader[KEYS[5]], VECTORS[5])
    assert "7 rows, the dataset 6 images" in message(path, KEYS[:6])
    assert "its 7 rows have no names" in message(path, None, "a.jpg")
    np.save(tmp_path / "x-mean.npy", VECTORS[0])
    path.unlink()
    assert np.array_equal(open_features(path)["any"], VECTORS[0])


@pytest.mark.parametrize("name", ["x.npy", "x.bin", "x.h5"])
def test_a_file_that_is_cut_while_it_is_open(tmp_path, name):
    """Pages of a map that are no longer in the file end the process."""
    reader = open_features(write(tmp_path / name))
    os.truncate(tmp_path / name, 100)
    for ask in (reader.get_many, reader.missing):
        with pytest.raises(UserError, match=f"{name} was cut off while it was read: 100 of"):
            ask([KEYS[-1]])


@pytest.mark.parametrize("dtype", ["f2", "f4"])
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["x.npy", "x.lmdb", "x.h5"])
def test_values_that_are_no_finite_numbers_name_file_and_key(tmp_path, monkeypatch, name, value, dtype):
    rows = VECTORS.astype(dtype)
    rows[5, 2] = value
    monkeypatch.setattr("captioning.features.writer.np.isfinite", lambda record: np.array(True))
    path = write(tmp_path / name, rows)
    monkeypatch.undo()
    assert f"{name}: the record of {KEYS[5]!r} has values that are no finite numbers" in message(path)
    assert np.array_equal(open_features(path).get_many(KEYS[:5]), rows[:5])


def test_large_values_are_finite(tmp_path):
    """Their sum is not."""
    rows = np.full((7, 6), np.finfo("f4").max, "f4")
    assert np.array_equal(open_features(write(tmp_path / "x.npy", rows)).get_many(KEYS), rows)


def test_npy_of_whole_numbers_comes_as_floats(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(12).reshape(3, 4))
    assert open_features(tmp_path / "x.npy", KEYS[:3])[KEYS[1]].tolist() == [4.0, 5.0, 6.0, 7.0]


def test_npy_mistakes(tmp_path):
    path = tmp_path / "x.npy"
    write(path)
    names = tmp_path / "x.keys.txt"
    names.write_text("\n".join(KEYS[:6]))
    assert "names 6 rows, but" in message(path)
    names.write_text("\n".join([*KEYS[:6], KEYS[1]]) + "\n")
    assert "line 2" in message(path)
    names.unlink()
    (tmp_path / "x.json").write_text("{")
    assert "not valid JSON" in message(path)
    (tmp_path / "x.json").write_text("[1]")  # some other file
    assert open_features(path).provenance is None
    path.write_bytes(path.read_bytes()[:-10])
    message(path)
    path.write_bytes(path.read_bytes()[:20])
    message(path)
    path.write_bytes(b"")
    message(path)
    np.save(path, np.array([{}], object))
    message(path)
    np.save(path, np.arange(3.0))
    assert "not rows of numbers" in message(path)
    path.unlink()
    assert "no such feature file" in message(path)
    assert "no such feature file or folder" in message(tmp_path / "x.mat")
    (tmp_path / "x.mat").write_bytes(b"MATLAB")
    assert "known: .npy" in message(tmp_path / "x.mat")


def test_h5_written_by_others_and_a_missing_package(tmp_path, monkeypatch):
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file["data"] = VECTORS
        file["data"].attrs["extractor"] = json.dumps(PROVENANCE)
    reader = open_features(path, KEYS)
    assert np.array_equal(reader.get_many([KEYS[6], KEYS[1], KEYS[6]]), VECTORS[[6, 1, 6]])
    assert reader.provenance == PROVENANCE
    with h5py.File(tmp_path / "y.h5", "w") as file:
        file["other"] = VECTORS
    message(tmp_path / "y.h5")
    (tmp_path / "z.h5").write_bytes(b"no")
    message(tmp_path / "z.h5")

    def without(name, *rest, real=builtins.__import__):
        if name == "h5py":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match="pip install h5py"):
        FeatureWriter(tmp_path / "w.h5", (2,))


H5_LAYOUTS = {  # what create_dataset is told -> whether the file can be mapped
    "plain": ({}, True),
    "big_endian": ({"dtype": ">f4"}, True),
    "double": ({"dtype": "f8"}, True),
    "whole_numbers": ({"dtype": "i4"}, True),
    "chunks": ({"chunks": (2, 6)}, False),
    "packed": ({"compression": "gzip", "shuffle": True, "fletcher32": True}, False),
}


@pytest.mark.parametrize("block", [0, 512], ids=["", "userblock"])
@pytest.mark.parametrize("layout", H5_LAYOUTS)
def test_every_layout_of_h5_reads_the_same(tmp_path, monkeypatch, layout, block):
    h5py = pytest.importorskip("h5py")
    monkeypatch.chdir(tmp_path)
    options, mapped = H5_LAYOUTS[layout]
    rows = VECTORS * 100
    rows[0, 0] = np.nan if layout != "whole_numbers" else 0
    with h5py.File("x.h5", "w", userblock_size=block) as file:
        file.create_dataset("data", data=rows.astype(options.get("dtype", "f4")), **options)
    reader = open_features(tmp_path / "x.h5", KEYS)
    got = reader.get_many([KEYS[i] for i in (5, 1, 5, 6)])
    assert got.dtype == options.get("dtype", "f4").replace("i4", "f4") and got.flags.writeable
    assert np.array_equal(got, rows[[5, 1, 5, 6]].astype(options.get("dtype", "f4")))
    assert (reader.mapped is not None) == mapped


def damage_h5(file, kind: str) -> None:
    """Make an open HDF5 file one that is not to be read."""
    h5py = pytest.importorskip("h5py")
    if kind == "link":
        file["data"] = h5py.ExternalLink("there.h5", "data")
    elif kind == "soft link":
        file["there"] = h5py.ExternalLink("there.h5", "/")
        file["data"] = h5py.SoftLink("/there/data")
    elif kind == "storage":
        file.create_dataset("data", data=VECTORS, external="rows.raw")
    elif kind == "virtual":
        layout = h5py.VirtualLayout(VECTORS.shape, VECTORS.dtype)
        layout[:] = h5py.VirtualSource("there.h5", "data", VECTORS.shape)
        file.create_virtual_dataset("data", layout)
    elif kind == "chunk":
        file.create_dataset("data", (7, 2**26), "f4", chunks=(1, 2**26), compression="gzip")
    elif kind == "record":
        file.create_dataset("data", (7, 2**26), "f4", chunks=(1, 2**20), compression="gzip")[3, 0] = 1
    elif kind in ("bomb", "bomb of two parts"):
        chunks = {"bomb": (7, 6), "bomb of two parts": (2, 3)}[kind]
        data = file.create_dataset("data", data=VECTORS, chunks=chunks, compression="gzip", shuffle=True)
        data.id.write_direct_chunk((6 if chunks[0] == 2 else 0, 0), zlib.compress(bytes(2**28)))
    elif kind == "large chunk":
        data = file.create_dataset("data", data=VECTORS, chunks=(1, 6), compression="lzf")
        data.id.write_direct_chunk((6, 0), bytes(10**6))
    elif kind == "nothing":
        file.create_dataset("data", (7, 6), "f4")
    elif kind == "group":
        file.create_group("data")
    elif kind == "text":
        file.create_dataset("data", data=np.array([b"no"] * 7, object), dtype=h5py.string_dtype())
    elif kind == "note":
        file["data"] = VECTORS
        file.attrs["extractor"] = np.ones(9)


KINDS = ["link", "soft link", "storage", "virtual", "chunk", "record", "nothing", "group", "text", "note"]
KINDS += ["bomb", "bomb of two parts", "large chunk"]


@pytest.mark.parametrize("kind", KINDS)
def test_h5_whose_data_are_elsewhere_or_without_bounds(tmp_path, monkeypatch, kind):
    h5py = pytest.importorskip("h5py")
    monkeypatch.chdir(tmp_path)
    with h5py.File("there.h5", "w") as file:
        file["data"] = VECTORS
    with h5py.File("x.h5", "w") as file:
        damage_h5(file, kind)
    assert "x.h5" in message(tmp_path / "x.h5", KEYS)


# ---------------------------------------------------------------- PicSOM


def test_bin_by_labels_with_a_gap_and_a_missing_record(tmp_path):
    rows = VECTORS.copy()
    rows[4, 0] = np.nan
    path = pack_bin(tmp_path / "x.bin", rows, header=96, stride=40)
    (tmp_path / "labels.txt").write_text("#0 <a> date=[x]\n#2 <b c>\n#4 <gone>\n#9 <beyond>\n\n#6 <d>\n")
    reader = open_features(path)
    assert (reader.shape, len(reader)) == ((6,), 7)
    assert list(reader.keys()) == ["a", "b c", "d"]
    assert np.array_equal(reader.get_many(["d", "b c"]), rows[[6, 2]])
    assert np.array_equal(reader[6], rows[6])  # by index
    assert reader.missing(["a", "gone", "beyond", "6"]) == ["gone", "beyond", "6"]
    (tmp_path / "labels.txt").write_text("#0 <a>\n2 b\n")
    with pytest.raises(UserError, match="labels.txt, line 2"):
        open_features(path)


def test_bin_by_number_by_names_and_by_the_dataset(tmp_path):
    path = pack_bin(tmp_path / "x.bin", VECTORS)
    assert np.array_equal(open_features(path)["0003"], VECTORS[3])
    assert np.array_equal(open_features(path, ["5", "3"])["3"], VECTORS[3])
    assert open_features(path).missing(["7", "-1", "99999999999999999999"]) == ["7", "-1", "99999999999999999999"]
    assert np.array_equal(open_features(path, KEYS)[KEYS[3]], VECTORS[3])
    (tmp_path / "x.keys.txt").write_text("\n".join(reversed(KEYS)))
    assert np.array_equal(open_features(path)[KEYS[0]], VECTORS[6])
    sizes = np.arange(6, dtype=np.uintp).reshape(3, 2)
    pack_bin(tmp_path / "n.bin", sizes, number=9)
    assert np.array_equal(open_features(tmp_path / "n.bin")[1], [2.0, 3.0])


def test_written_bin_has_the_header_of_the_format(tmp_path):
    data = write(tmp_path / "x.bin").read_bytes()
    assert data == pack_bin(tmp_path / "y.bin", VECTORS).read_bytes()


def test_bin_mistakes(tmp_path):
    path = tmp_path / "x.bin"
    path.write_bytes(b"PSBD")
    assert "too few" in message(path)
    assert "does not begin with PSBD" in message(pack_bin(path, VECTORS, magic=b"ABCD"))
    assert "format 5" in message(pack_bin(path, VECTORS, number=5))
    assert "damaged header" in message(pack_bin(path, VECTORS, stride=8))
    pack_bin(path, VECTORS)
    path.write_bytes(path.read_bytes()[:-3])  # the last record is not whole
    assert len(open_features(path)) == 6
    assert "cut off" in message(path, None, "6")
    with pytest.raises(UserError, match="float32 only"):
        FeatureWriter(path, (3,), "float16")
    with pytest.raises(UserError, match="vectors only"):
        FeatureWriter(path, (3, 2, 2))


def test_list_of_bins_is_joined(tmp_path):
    (tmp_path / "sub").mkdir()
    write(tmp_path / "a.bin")
    write(tmp_path / "sub/b.bin", 2 * VECTORS[:5, :2], KEYS[:5])
    write(tmp_path / "c-mean.bin", VECTORS[:1], ["m"])
    path = tmp_path / "all.txt"
    path.write_text("# two and a mean\na.bin\n\nsub/b.bin  # half\nc.bin\n")
    reader = open_features(path)
    assert reader.shape == (14,)
    wanted = np.concatenate([VECTORS[[4, 1]], 2 * VECTORS[[4, 1], :2], VECTORS[[0, 0]]], axis=1)
    assert np.array_equal(reader.get_many([KEYS[4], KEYS[1]]), wanted)
    assert reader.missing(KEYS) == KEYS[5:]
    assert list(reader.keys()) == KEYS[:5]
    with pytest.raises(UserError, match="b.bin has no record for"):
        reader[KEYS[6]]
    path.write_text("a.npy\n")
    assert "no PicSOM file" in message(path)
    path.write_text("\n")
    assert "names no files" in message(path)
    path.write_text("none.bin\n")
    with pytest.raises(UserError, match="no such feature file"):
        open_features(path)


# ---------------------------------------------------------------- lmdb


@pytest.mark.parametrize("subdir", [True, False])
def test_lmdb_of_others(tmp_path, subdir):
    records = {key: row.tobytes() for key, row in zip(KEYS, MAPS)}
    records |= {"@vdim": np.array([5, 2, 3], "<i4").tobytes(), "@dtype": b"float16"}
    path = pack_lmdb(tmp_path / "x.lmdb", records | {"@extractor": json.dumps(PROVENANCE).encode()}, subdir)
    reader = open_features(path)
    assert (reader.shape, reader.dtype, len(reader), reader.provenance) == ((5, 2, 3), np.float16, 7, PROVENANCE)
    assert list(reader.keys()) == KEYS
    assert np.array_equal(reader.get_many(KEYS), MAPS)
    plain = open_features(pack_lmdb(tmp_path / "y.lmdb", {"k": VECTORS[0].tobytes()}, subdir))
    assert (plain.shape, plain.dtype) == ((6,), np.float32)
    assert np.array_equal(plain["k"], VECTORS[0])


def test_what_is_written_opens_with_plain_lmdb(tmp_path):
    path = write(tmp_path / "x.lmdb", MAPS, provenance=PROVENANCE)
    with lmdb.open(str(path), readonly=True, lock=False) as env, env.begin() as transaction:
        assert transaction.stat()["entries"] == 10
        assert transaction.get(KEYS[2].encode()) == MAPS[2].tobytes()
        assert np.frombuffer(transaction.get(b"@vdim"), "<i4").tolist() == [5, 2, 3]
        assert transaction.get(b"@dtype") == b"float16"
        assert json.loads(transaction.get(b"@extractor")) == PROVENANCE


def test_lmdb_is_shared_in_a_process_and_survives_forks(tmp_path):
    path = write(tmp_path / "x.lmdb")
    readers = [open_features(path), open_features(str(path)), open_features(tmp_path / "." / "x.lmdb")]
    for _ in range(2):
        for reader in readers:
            assert np.array_equal(reader.get_many(KEYS), VECTORS)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                good = all(np.array_equal(reader.get_many(KEYS), VECTORS) for reader in readers)
                status = 0 if good and np.array_equal(open_features(path)[KEYS[0]], VECTORS[0]) else 2
            finally:
                os._exit(status)
        assert np.array_equal(readers[0].get_many(KEYS), VECTORS)  # at the same time as the child
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_lmdb_follows_what_its_path_leads_to(tmp_path):
    first, second = write(tmp_path / "a.lmdb"), write(tmp_path / "b.lmdb", VECTORS + 1)
    link = tmp_path / "x.lmdb"
    link.symlink_to(first)
    reader, same, other = (open_features(path) for path in (link, first, second))
    old = reader.get_many(KEYS)
    link.unlink()
    link.symlink_to(second)
    assert np.array_equal(reader.get_many(KEYS), VECTORS + 1)
    assert np.array_equal(same.get_many(KEYS), VECTORS) and np.array_equal(other.get_many(KEYS), VECTORS + 1)
    assert np.array_equal(old, VECTORS)  # a copy, good when the file is closed
    old += 1


def test_lmdb_mistakes(tmp_path):
    good = write(tmp_path / "good.lmdb", np.repeat(VECTORS, 300, 0), [f"{n}" for n in range(2100)])
    data = (good / "data.mdb").read_bytes()
    path = tmp_path / "x.lmdb"
    for size in (0, 50, 4096, 8192, 20000, len(data) - 4096):
        path.write_bytes(data[:size])
        message(path)
    path.write_bytes(data + b"more")
    assert len(open_features(path)) == 2100
    path.unlink()
    path.mkdir()
    message(path)
    assert "no records" in message(pack_lmdb(tmp_path / "e.lmdb", {"@vdim": b"\1\0\0\0"}))
    assert "record 'b' has 3 bytes" in message(pack_lmdb(tmp_path / "l.lmdb", {"a": bytes(8), "b": b"123"}), None, "b")
    message(pack_lmdb(tmp_path / "v.lmdb", {"a": bytes(8), "@vdim": b"\1"}))
    message(pack_lmdb(tmp_path / "d.lmdb", {"a": bytes(8), "@dtype": b"int8"}))
    message(pack_lmdb(tmp_path / "t.lmdb", {"a": bytes(8), "@dtype": b"apple"}))
    assert "no record" in message(good, None, "k" * 600)


# ---------------------------------------------------------------- writing


@pytest.mark.parametrize("name", ["x.npy", "x.lmdb", "x.bin", "x.h5"])
def test_an_interrupted_file_is_not_there_and_can_be_resumed(tmp_path, name):
    path = tmp_path / name
    settings = {"path": path, "shape": (6,), "provenance": PROVENANCE, "keys": KEYS}
    with pytest.raises(KeyboardInterrupt), FeatureWriter(**settings) as writer:
        for key, row in zip(KEYS[:4], VECTORS):
            writer.write(key, row)
        raise KeyboardInterrupt
    assert not path.exists()
    with pytest.raises(UserError, match="begun with other settings"):
        FeatureWriter(**settings | {"provenance": None}, resume=True)
    if name != "x.lmdb":  # as a crash leaves it: the fourth record half written, the names ahead
        with open(tmp_path / f"{name}.partial/data", "r+b") as file:
            file.truncate(file.seek(0, os.SEEK_END) - 5)
    with FeatureWriter(**settings, resume=True) as writer:
        assert writer.todo == (KEYS[4:] if name == "x.lmdb" else KEYS[3:])
        assert KEYS[0] not in writer.todo
        for key in writer.todo:
            writer.write(key, VECTORS[KEYS.index(key)])
    reader = open_features(path)
    assert reader.provenance == PROVENANCE
    assert np.array_equal(reader.get_many(KEYS), VECTORS)
    if name == "x.npy":
        assert np.array_equal(np.load(path), VECTORS)
    with FeatureWriter(**settings, resume=True) as writer:
        assert writer.todo == []  # the file is complete


def test_lmdb_grows_beyond_a_batch_and_its_map(tmp_path, monkeypatch):
    monkeypatch.setattr(lmdb_file.LmdbStore, "batch_bytes", 2**18)
    monkeypatch.setattr(lmdb_file, "SPARE_BYTES", 2**16)
    rows = np.random.default_rng(2).standard_normal((300, 2000)).astype("f4")
    with FeatureWriter(tmp_path / "x.lmdb", (2000,)) as writer:
        for n, row in enumerate(rows):
            writer.write(str(n), row)
    assert np.array_equal(open_features(tmp_path / "x.lmdb").get_many([str(n) for n in range(300)]), rows)


def test_writing_mistakes(tmp_path):
    for name in ("x.npy", "x.lmdb", "x.bin", "x.h5"):
        writer = FeatureWriter(tmp_path / name, (2,))
        writer.write("a", [1, 2])
        for key, record, words in [
            ("a", [1, 2], "written twice"),
            ("b", [1, 2, 3], r"shape \(3,\)"),
            ("c", [np.nan, 1], "cannot hold"),
            ("", [1, 2], "cannot be a key"),
        ]:
            with pytest.raises(UserError, match=words):
                writer.write(key, record)
    with pytest.raises(UserError, match="float16 cannot hold"):
        FeatureWriter(tmp_path / "h.npy", (1,), "float16").write("a", [1e6])
    with pytest.raises(UserError, match="cannot be a key"):
        FeatureWriter(tmp_path / "y.lmdb", (2,)).write("@vdim", [1, 2])
    with pytest.raises(UserError, match="none of float32"):
        FeatureWriter(tmp_path / "x.npy", (2,), "int8")
    with pytest.raises(UserError, match="cannot write"):
        FeatureWriter(tmp_path / "x.mat", (2,))
    with pytest.raises(UserError, match="no records"):
        FeatureWriter(tmp_path / "e.npy", (2,)).close()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        FeatureWriter(tmp_path / "file/x.npy", (2,))


def test_files_of_one_name_do_not_overwrite_what_is_said_of_each_other(tmp_path):
    with FeatureWriter(tmp_path / "x.npy", (2,), provenance={"extractor": "one"}) as writer:
        writer.write("a", [1, 2])
    with FeatureWriter(tmp_path / "x.bin", (2,), provenance={"extractor": "one"}) as writer:
        writer.write("a", [1, 2])
    with pytest.raises(UserError, match="use another name"):
        FeatureWriter(tmp_path / "x.bin", (2,), provenance={"extractor": "other"})
    assert open_features(tmp_path / "x.npy").provenance == {"extractor": "one"}

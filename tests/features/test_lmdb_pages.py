"""Damaged lmdb files: lmdb itself would follow a wrong page number out of its memory."""

import os
import random
import struct

import lmdb
import numpy as np
import pytest

from captioning.errors import UserError
from captioning.features.factory import open_features
from captioning.features.lmdb_pages import check_header, check_records
from captioning.features.writer import FeatureWriter

PAGE = 4096
META = 16  # where a header's fields begin in its page


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The bytes of a file with records in leaf pages and in pages of their own."""
    path = tmp_path_factory.mktemp("lmdb") / "x.lmdb"
    with FeatureWriter(path, (16,), "float32", None) as writer:
        for i in range(300):
            writer.write(f"{i}.jpg", np.full(16, i))
    with lmdb.open(str(path), map_size=2**24) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"large", np.ones(5000, "<f4").tobytes())
    return (path / "data.mdb").read_bytes()


def newest(data) -> int:
    """Where the header that counts begins."""
    return max((0, PAGE), key=lambda place: struct.unpack_from("<Q", data, place + META + 128)[0])


def read(path) -> str:
    """What opening the file and reading all records ends in: "" or the message."""
    try:
        reader = open_features(path)
        for key in list(reader.keys()):
            if key != "large":
                reader.get_many([key])
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        return str(error)
    return ""


def test_a_whole_file(data, tmp_path):
    (tmp_path / "x.lmdb").write_bytes(data)
    meta = max(check_header(tmp_path / "x.lmdb"), key=lambda meta: meta.transaction)
    assert meta.entries == 301 and meta.page_size == PAGE
    check_records(tmp_path / "x.lmdb", meta.transaction)
    assert read(tmp_path / "x.lmdb") == ""


LIES = {  # field of the header -> (place in it, what is written there, the message)
    "magic": (0, struct.pack("<I", 7), "header is damaged"),
    "version": (4, struct.pack("<I", 7), "header is damaged"),
    "map size": (16, struct.pack("<Q", 2**60), "header is damaged"),
    "page size": (24, struct.pack("<I", 0), "pages of 0 bytes"),
    "odd page size": (24, struct.pack("<I", 4097), "pages of 4097 bytes"),
    "flags": (72 + 4, struct.pack("<H", 4), "sorted in a way"),
    "entries": (72 + 32, struct.pack("<Q", 2**40), "has 301 records"),
    "root": (72 + 40, struct.pack("<Q", 2**33), "do not have page"),
    "root in the header": (72 + 40, struct.pack("<Q", 0), "do not have page"),
    "last page": (120, struct.pack("<Q", 2**50), "header is damaged, or it was cut off"),
    "last page too small": (120, struct.pack("<Q", 3), "do not have page|do not have all"),
}


@pytest.mark.parametrize("field", LIES)
def test_headers_that_lie(data, tmp_path, field):
    place, value, message = LIES[field]
    damaged = bytearray(data)
    start = newest(data) + META + place
    damaged[start : start + len(value)] = value
    (tmp_path / "x.lmdb").write_bytes(damaged)
    found = read(tmp_path / "x.lmdb")
    assert any(one in found for one in message.split("|")), found


def test_a_file_that_was_cut_off(data, tmp_path):
    for size in (1, 100, PAGE, 2 * PAGE, 3 * PAGE, len(data) // 2):
        (tmp_path / "x.lmdb").write_bytes(data[:size])
        assert "x.lmdb" in read(tmp_path / "x.lmdb"), size


def test_a_page_that_leads_back_up(data, tmp_path):
    """A branch that names its own page would be followed for ever."""
    damaged = bytearray(data)
    root = struct.unpack_from("<Q", data, newest(data) + META + 72 + 40)[0]
    first = struct.unpack_from("<H", data, root * PAGE + 16)[0]
    struct.pack_into("<HHH", damaged, root * PAGE + first, root, 0, 0)
    (tmp_path / "x.lmdb").write_bytes(damaged)
    assert f"page {root} is damaged" in read(tmp_path / "x.lmdb")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork: a signal would end the tests")
@pytest.mark.parametrize("share", [0, 1])
def test_no_flipped_bits_end_the_process(data, tmp_path, share):
    """Flips anywhere, and flips in the first bytes of pages, where the places of entries are."""
    path, chance, pids = tmp_path / "x.lmdb", random.Random(share), []
    statuses = {0: 0, 2: 0}
    for _ in range(25):
        damaged = bytearray(data)
        for _ in range(4):
            place = chance.randrange(len(data))
            place = place // PAGE * PAGE + place % 64 if share else place
            damaged[place] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        pids.append(os.fork())
        if not pids[-1]:
            status = 1
            try:
                status = 2 if read(path) else 0
            finally:
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(pids[-1], 0)[1])
        assert status in statuses, status
        statuses[status] += 1
    assert statuses[2]

"""Pickles: plain values come out as Python's own reader gives them, and nothing else is ever built."""

import contextlib
import pickle
import struct
from collections import Counter, OrderedDict, defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioning.pickles import NUMBERS, PickleError, check_pickle, read_pickle

WORDS = [f"word{i}" for i in range(300)]
PLAIN = {
    "scalars": [
        None,
        True,
        False,
        0,
        1,
        -1,
        255,
        256,
        65536,
        -(2**31),
        2**40,
        2**64 - 1,
        0.5,
        float("inf"),
        "",
        "größe",
    ],
    "vocabulary": {"words": WORDS, "counts": list(range(300)), "lowercase": True},
    "document frequencies": {"document_frequency": {(a, b): 1.0 for a in WORDS[:20] for b in WORDS[:20]}, "ref_len": 9},
    "tuples": [(), (1,), (1, 2), (1, 2, 3), tuple(range(9)), ((1, "a"), (2, "b"))],
    "the same thing twice": [WORDS, WORDS, {"a": WORDS}],
    "bytes": [b"", b"abc", b"x" * 300],
}


@pytest.mark.parametrize("protocol", range(5))
@pytest.mark.parametrize("name", PLAIN)
def test_plain_values_come_back(name, protocol):
    data = pickle.dumps(PLAIN[name], protocol)
    assert check_pickle(data) == len(data)
    known = NUMBERS | {"builtins.bytes": bytes, "__builtin__.bytes": bytes}
    assert read_pickle(data, known) == pickle.loads(data)


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(-9, 9), inner) | st.tuples(inner, inner),
    max_leaves=30,
)


@given(values, st.integers(0, 4))
def test_any_plain_value_comes_back(value, protocol):
    assert read_pickle(pickle.dumps(value, protocol), {}) == value


@pytest.mark.parametrize("protocol", range(5))
def test_numbers_of_numpy_come_as_plain_ones(protocol):
    numbers = [np.float32(1.5), np.float64(-2.25), np.int64(-7), np.uint8(200), np.float16(0.5), np.bool_(True)]
    numbers.append(np.array([3.5], ">f8")[0])
    got = read_pickle(pickle.dumps(numbers, protocol), NUMBERS, "latin1")
    assert got == [1.5, -2.25, -7, 200, 0.5, True, 3.5] and {type(x) for x in got} == {float, int, bool}


@pytest.mark.parametrize("table", [Counter("aab"), OrderedDict(a=1), defaultdict(float, a=1.0)], ids=type)
def test_only_what_is_named_is_built(table):
    data = pickle.dumps(table)
    with pytest.raises(PickleError, match="asks for (collections|builtins)"):
        read_pickle(data, {})


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def laughs(levels: int) -> bytes:
    """A tuple of two of a tuple of two of ...: to hash it takes 2**levels steps."""
    steps = b"".join(b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(levels))
    return b"\x80\x02}K\x01q\x00" + steps + b"K\x01s."


HOSTILE = {
    "memo": b"\x80\x04]r" + struct.pack("<I", 2**27) + b".",
    "memo by text": b"]p99999999\n.",
    "deep tuples": b"\x80\x02}N" + b"\x85" * 100_000 + b"K\x01s.",
    "deep lists": b"\x80\x02" + b"]" * 5000 + b"a" * 4999 + b".",
    "marks": b"(" * 100_000 + b".",
    "laughs": laughs(40),
    "laughs with lists": b"\x80\x02]q\x00" + b"".join(b"(" + b"h%c" % i * 200 + b"tq%c" % (i + 1) for i in range(4)),
    "within itself": b"\x80\x02]q\x00h\x00a.",
    "changed later": b"\x80\x02]q\x00\x85h\x00K\x01a\x86.",
    "long text": b"\x80\x04\x8d" + struct.pack("<Q", 2**60) + b"abc.",
    "long bytes": b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"abc.",
    "frame": b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"N.",
    "number": b"\x80\x02\x8b" + struct.pack("<I", 2000) + b"\x7f" * 2000 + b".",
    "number in words": b"I" + b"9" * 5000 + b"\n.",
    "many lists": b"\x80\x02]" + b"(" + b"]" * 300_000 + b"e.",
    "instance": b"(icollections\nOrderedDict\n.",
    "object": b"(cbuiltins\ndict\no.",
    "extension": b"\x80\x02\x82\x01.",
    "elsewhere": b"\x80\x02K\x01Q.",
    "elsewhere by text": b"P1\n.",
    "buffer": b"\x80\x05\x97.",
    "bytearray": b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"abc.",
    "twice": b"\x80\x02]2\x86.",
    "thrown away": b"\x80\x02]K\x010.",
    "code": b"cos\nsystem\n(" + text("true") + b"tR.",
    "code by other names": b"\x80\x04" + text("os") + text("system") + b"\x93(" + text("true") + b"tR.",
    "type": b"cnumpy\ndtype\n" + text("O8") + b"\x85R.",
    "copies": b"c_codecs\nencode\n(" + text("a" * 9) + text("hex") + b"tR.",
    "no value": b".",
    "nothing": b"",
    "no end": b"\x80\x04K\x01",
    "a step without values": b"\x80\x02\x86.",
    "two values": b"NN.",
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles(name):
    with pytest.raises(PickleError) as error:
        read_pickle(HOSTILE[name], {})
    assert "\n" not in str(error.value)


def test_a_pickle_behind_another():
    one, two = pickle.dumps([1], 2), pickle.dumps({"a": 2}, 2)
    assert check_pickle(one + two) == len(one) and check_pickle(one + two, len(one)) == len(one + two)


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_or_plain(data):
    for head in (b"", b"\x80\x02", b"\x80\x04]q\x00("):
        with contextlib.suppress(PickleError):
            read_pickle(head + data, NUMBERS, "latin1")

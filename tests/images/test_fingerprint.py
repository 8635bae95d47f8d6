"""The perceptual hash: against a plain computation, and what it says of copies and of other pictures."""

import numpy as np
import pytest
from own_data import picture
from PIL import Image

from captioning.images import fingerprint as module
from captioning.images.fingerprint import MOST_BITS, MOST_LEVELS, Fingerprint, fingerprint, near_pairs


def plain_pairs(prints) -> set:
    """All pairs, one by one."""
    found = set()
    for one, first in enumerate(prints):
        for two in range(one + 1, len(prints)):
            bits = int.from_bytes(first.bits, "big") ^ int.from_bytes(prints[two].bits, "big")
            levels = [abs(a - b) for a, b in zip(first.colours, prints[two].colours)]
            if bin(bits).count("1") <= MOST_BITS and sum(levels) / len(levels) <= MOST_LEVELS:
                found.add((one, two, bin(bits).count("1")))
    return found


def test_bits_are_those_of_the_definition(tmp_path):
    image = Image.effect_noise((9, 8), 80)
    image.save(tmp_path / "a.png")
    grey = np.asarray(image).astype(int)
    expected = [int(grey[row, column + 1] > grey[row, column]) for row in range(8) for column in range(8)]
    assert np.unpackbits(np.frombuffer(fingerprint(str(tmp_path / "a.png")).bits, np.uint8)).tolist() == expected


@pytest.mark.parametrize("entries", [module.ENTRIES, 7])
def test_near_pairs_are_all_of_them(monkeypatch, entries):
    monkeypatch.setattr(module, "ENTRIES", entries)
    chance = np.random.default_rng(3)
    prints = []
    for _ in range(40):
        bits, colours = chance.integers(0, 256, 8, np.uint8), chance.integers(0, 250, 192, np.uint8)
        for _ in range(chance.integers(1, 4)):
            flipped = bits.copy()
            flipped[: chance.integers(0, 8)] ^= 1
            lighter = (colours + chance.integers(0, 6)).astype(np.uint8)
            prints.append(Fingerprint("", b"", flipped.tobytes(), lighter.tobytes()))
    order = chance.permutation(len(prints))
    prints = [prints[place] for place in order]
    assert set(near_pairs(prints)) == plain_pairs(prints) and len(plain_pairs(prints)) > 10
    assert not list(near_pairs(prints[:1])) and not list(near_pairs([]))


def test_copies_and_others(tmp_path):
    for number in range(12):
        picture(number, 256).save(tmp_path / f"{number}.png")
    picture(3, 256).resize((100, 100)).save(tmp_path / "small.jpg", quality=60)
    names = [*(f"{number}.png" for number in range(12)), "small.jpg"]
    prints = [fingerprint(str(tmp_path / name)) for name in names]
    assert [pair[:2] for pair in near_pairs(prints)] == [(3, 12)]
    assert len({one.digest for one in prints}) == 13


def test_what_cannot_be_read(tmp_path):
    (tmp_path / "x.jpg").write_bytes(b"no image")
    picture(1).save(tmp_path / "y.jpg")
    (tmp_path / "y.jpg").write_bytes((tmp_path / "y.jpg").read_bytes()[:-200])
    assert "not a JPEG" in fingerprint(str(tmp_path / "x.jpg")).error
    assert "truncated" in fingerprint(str(tmp_path / "y.jpg")).error
    assert fingerprint(str(tmp_path / "gone.jpg")).error

"""What tells whether two image files show the same: a hash of the bytes, and a perceptual hash that survives resizing.

    fingerprint("a.jpg").error          # why it cannot be read, "" for a good image
    near_pairs([one, two, ...])         # [(0, 1, 2)]: the first two differ in 2 bits

The perceptual hash is dHash (Krawetz 2013, "Kind of like that"): the image as 9 x 8 grey pixels, and for each pixel
whether the next one is brighter. Images of the same hash are compared by colours too, as 8 x 8 pixels.

Shapes: N images.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from captioning.images.archives import archive_of, read_member
from captioning.images.image_file import ImageError, open_image

BITS = 64
MOST_BITS = 6  # that differ between near duplicates
MOST_LEVELS = 8  # of 256, that their 8 x 8 pixels differ in on average
HINT = 256  # pixels of the shorter side that an image is decoded to: much faster for photos
ENTRIES = 2**23  # of the table of distances that is held at a time


@dataclass(frozen=True)
class Fingerprint:
    """What tells whether two images show the same.

    error: why the image cannot be read, "" where it can. digest: of the bytes; bits: BITS bits, packed; colours:
    8 x 8 x 3 bytes.
    """

    error: str = ""
    digest: bytes = b""
    bits: bytes = b""
    colours: bytes = b""


def fingerprint(path: str) -> Fingerprint:
    """The Fingerprint of an image file, or of an image in a zip or tar file. It raises nothing for damaged images."""
    try:
        image = open_image(path, size_hint=HINT)
        grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), np.int16)
        colours = image.convert("RGB").resize((8, 8), Image.Resampling.BOX)
        return Fingerprint("", digest(path), np.packbits(grey[:, 1:] > grey[:, :-1]).tobytes(), colours.tobytes())
    except ImageError as error:
        return Fingerprint(error.reason)
    except OSError as error:
        return Fingerprint(error.strerror or str(error))


def digest(path: str) -> bytes:
    """A hash of the bytes of a file. Raises OSError."""
    if archive_of(path):
        return hashlib.blake2b(read_member(path), digest_size=16).digest()
    found = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while block := file.read(2**20):
            found.update(block)
    return found.digest()


def near_pairs(prints: Sequence[Fingerprint]) -> Iterator[tuple[int, int, int]]:
    """(first, second, bits that differ) of all pairs of images that look nearly the same, the first before the second.

    Images are compared with those of about the same brightness. Memory is bounded whatever N is.
    """
    if len(prints) < 2:
        return
    colours = np.frombuffer(b"".join(one.colours for one in prints), np.uint8).reshape(len(prints), -1)
    brightness = colours.mean(1)
    order = np.argsort(brightness, kind="stable")
    colours, brightness = colours[order], brightness[order]
    packed = np.frombuffer(b"".join(one.bits for one in prints), np.uint8).reshape(len(prints), -1)[order]
    signs = np.unpackbits(packed, axis=1).astype(np.float32) * 2 - 1  # (N, BITS): a product counts what is equal
    begin = 0
    while begin < len(prints):
        # two images whose pixels differ by MOST_LEVELS on average differ by no more in their mean
        end = int(np.searchsorted(brightness, brightness[begin] + MOST_LEVELS, "right"))
        count = max(1, min(end - begin, ENTRIES // max(1, end - begin)))
        end = int(np.searchsorted(brightness, brightness[begin + count - 1] + MOST_LEVELS, "right"))
        differ = (BITS - signs[begin : begin + count] @ signs[begin:end].T) / 2
        for row, column in np.argwhere(differ <= MOST_BITS):
            one, two = begin + row, begin + column
            if one < two and np.abs(colours[one].astype(int) - colours[two]).mean() <= MOST_LEVELS:
                first, second = sorted((int(order[one]), int(order[two])))
                yield first, second, int(differ[row, column])
        begin += count

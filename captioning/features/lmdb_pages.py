"""Whether an lmdb file is whole: its pages are followed from the root before lmdb does it.

    check_header(path)                  # before lmdb opens the file
    check_records(path, transaction_id) # before it reads a record

lmdb trusts its file: a damaged page number makes it read beyond its memory, and the process dies without a word. The
pages are those of lmdb 0.9: two headers ("meta pages"), then a tree of branch pages and leaf pages. A leaf page has
keys and values, or where a value is too large the number of the first of its own pages.
"""

import os
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np

HEADER = struct.Struct("<QHHHH")  # of a page: its number, unused, kind, end of the list of entries, begin of entries
META = struct.Struct("<IIQQ48s48sQQ")  # magic, version, address, size of the map, two trees, last page, transaction
TREE = struct.Struct("<IHHQQQQQ")  # page size or unused, flags, depth, branch, leaf and large pages, entries, root
MAGIC, VERSIONS = 0xBEEFC0DE, (1, 999)
BRANCH, LEAF, META_PAGE = 1, 2, 8  # kinds of pages
LARGE = 1  # the flag of an entry whose value has pages of its own
NO_ROOT = 2**64 - 1
LONGEST_KEY, DEEPEST, ENTRY = 511, 32, 8  # bytes; levels that lmdb can go down; bytes in front of a key


class Meta(NamedTuple):
    """One of the two headers of a file: of the tree of records, its flags, entries and root; last page of the file."""

    page_size: int
    flags: int
    entries: int
    root: int
    last_page: int
    transaction: int


def check_header(path: Path) -> list[Meta]:
    """The two headers of the file. Raises ValueError where they are damaged or promise more than the file can hold."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        first = _meta(file, 0, size)
        return [first, _meta(file, first.page_size, size)]


def _meta(file, place: int, size: int) -> Meta:
    file.seek(place)
    data = file.read(HEADER.size + META.size)
    if len(data) < HEADER.size + META.size:
        raise ValueError("it was cut off within its header")
    number, _, kind, *_ = HEADER.unpack(data[: HEADER.size])
    magic, version, _, map_size, free, main, last, transaction = META.unpack(data[HEADER.size :])
    if magic != MAGIC or version not in VERSIONS or not kind & META_PAGE:
        raise ValueError("no lmdb file, or its header is damaged")
    page_size, (_, flags, _, _, _, _, entries, root) = TREE.unpack(free)[0], TREE.unpack(main)
    if page_size not in [2**n for n in range(9, 17)] or (place and place != page_size):
        raise ValueError(f"its header is damaged: pages of {page_size} bytes")
    # freed pages at the end may never have been written
    if (last + 1) * page_size > 4 * size + 2**30 or last < 1 or map_size >= 2**47:
        raise ValueError(f"its header is damaged, or it was cut off: {last + 1:,} pages in {size:,} bytes")
    return Meta(page_size, flags, entries, root, last, transaction)


def check_records(path: Path, transaction: int) -> None:
    """Raises ValueError unless the records that `transaction` sees are whole, as far as their places go.

    What is in the keys and values is not looked at.
    """
    meta = next((meta for meta in check_header(path) if meta.transaction == transaction), None)
    if meta is None:
        raise ValueError("its header is damaged or changes all the time")
    if meta.flags:
        raise ValueError("its records are sorted in a way of other programs")
    with open(path, "rb") as file:
        Walk(file, meta).run()


class Walk:
    """Follows the tree of records in an open file."""

    def __init__(self, file, meta: Meta):
        self.file, self.meta = file, meta
        size = os.fstat(file.fileno()).st_size
        self.size, self.pages = size, min(meta.last_page + 1, size // meta.page_size)
        self.seen: set[int] = set()
        self.entries = 0

    def run(self) -> None:
        """Raises ValueError where a page is damaged or not there, or there are other entries than the header says."""
        level, depth = [] if self.meta.root == NO_ROOT else [self.meta.root], 0
        while level:
            depth += 1
            if depth > DEEPEST:
                raise ValueError("its pages are damaged: they lie too deep")
            level = [below for number in level for below in self.page(number)]
        if self.entries != self.meta.entries:
            raise ValueError(f"it has {self.entries:,} records, its header says {self.meta.entries:,}")

    def page(self, number: int) -> list[int]:
        """The pages that page `number` names."""
        if not 1 < number < self.pages:
            raise ValueError(f"it was cut off: {self.size:,} bytes do not have page {number}")
        if number in self.seen:
            raise ValueError(f"its page {number} is damaged")
        self.seen.add(number)
        self.file.seek(number * self.meta.page_size)
        data = self.file.read(self.meta.page_size)
        own, _, kind, lower, upper = HEADER.unpack(data[: HEADER.size])
        count = (lower - HEADER.size) // 2
        sizes_fit = HEADER.size < lower <= upper <= len(data) and lower % 2 == 0
        if own != number or kind not in (BRANCH, LEAF) or not sizes_fit or (kind == BRANCH and count < 2):
            raise ValueError(f"its page {number} is damaged")
        found = self.entries_of(np.frombuffer(data, np.uint8), count, upper, kind)
        if found is None:
            raise ValueError(f"its page {number} is damaged")
        return found

    def entries_of(self, data: np.ndarray, count: int, upper: int, kind: int) -> list[int] | None:
        """The pages that the entries of a page name, None where an entry is damaged. data: (page size,) bytes."""
        words = data.view("<u2").astype(np.int64)
        places = words[HEADER.size // 2 :][:count]
        if places.min() < upper or places.max() > len(data) - ENTRY or (places % 2).any():
            return None
        low, high, flags, key = (words[places // 2 + n] for n in range(4))
        after = places + ENTRY + key  # where the value begins
        if kind == BRANCH:
            return None if after.max() > len(data) else (low + (high << 16) + (flags << 32)).tolist()
        size, large = low + (high << 16), flags == LARGE
        inside = np.where(large, 8, size)
        if (after + inside).max() > len(data) or key.min() < 1 or key.max() > LONGEST_KEY or flags.max() > LARGE:
            return None
        self.entries += count
        if not large.any():
            return []
        first = data[after[large, None] + np.arange(8)].copy().view("<u8")[:, 0]
        last = first + ((HEADER.size - 1 + size[large]) // self.meta.page_size).astype(np.uint64)
        # compared as they are: unsigned numbers that run over are small again
        if first.min() < 2 or (last < first).any() or last.max() >= self.pages:
            raise ValueError(f"it was cut off: {self.size:,} bytes do not have all its records, or it is damaged")
        return []

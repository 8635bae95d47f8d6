"""`Items`: the images of a dataset with their captions in flat arrays, which processes share without copying them.

A Python object is written to whenever it is looked at (its count of references). A process that was forked therefore
gets a copy of each object that it uses, page by page. The arrays here are a few objects, however many images there are.
"""

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

ENCODING = "utf-8", "surrogatepass"  # names of files may hold half characters


@dataclass(slots=True)
class ImageItem:
    """An image: its id in results, its key in feature files, its file (None: not known) and its captions.

    box: the part of the file that the item is, (x, y, width, height) in pixels, None for the whole; photos: the photos
    of a story, whose features are averaged (`path` is then that of the first); other_keys: keys to be tried in turn
    where `key` has no features.
    """

    image_id: int | str
    key: str
    path: str | None
    captions: list[str] = field(default_factory=list)
    part: int = 0  # the dataset in `CaptionDataset.parts` that it comes from
    box: tuple[float, float, float, float] | None = None
    photos: Sequence["ImageItem"] = ()
    other_keys: Sequence[str] = ()


class Texts:
    """Texts one after the other in one array of bytes."""

    def __init__(self):
        self.data, self.bounds = bytearray(), array("q", [0])

    def append(self, text: str) -> None:
        self.data += text.encode(*ENCODING)
        self.bounds.append(len(self.data))

    def __getitem__(self, number: int) -> str:
        return self.data[self.bounds[number] : self.bounds[number + 1]].decode(*ENCODING)


class TextLists:
    """Lists of texts, one after the other."""

    def __init__(self):
        self.texts, self.bounds = Texts(), array("q", [0])

    def append(self, texts: Iterable[str]) -> None:
        for text in texts:
            self.texts.append(text)
        self.bounds.append(len(self.texts.bounds) - 1)

    def __getitem__(self, number: int) -> list[str]:
        return [self.texts[n] for n in range(self.bounds[number], self.bounds[number + 1])]

    def count(self, number: int) -> int:
        """How many texts the list of that number has."""
        return self.bounds[number + 1] - self.bounds[number]

    def add_to(self, digest, number: int) -> None:
        """Add the list of that number to a hash: how many texts, how long each, and the texts."""
        first, last = self.bounds[number], self.bounds[number + 1]
        ends = self.texts.bounds[first : last + 1]
        lengths = [last - first, *(end - begin for begin, end in zip(ends, ends[1:]))]
        digest.update(array("q", lengths).tobytes())
        digest.update(self.texts.data[ends[0] : ends[-1]])


class Boxes:
    """The boxes of items, or None; whole numbers stay whole numbers."""

    def __init__(self):
        self.places, self.numbers, self.whole = array("q"), array("d"), bytearray()

    def append(self, box: Sequence[float] | None) -> None:
        self.places.append(-1 if box is None else len(self.numbers))
        self.numbers.extend(box or ())
        self.whole.extend(isinstance(number, int) for number in box or ())

    def __getitem__(self, number: int) -> tuple | None:
        place = self.places[number]
        if place < 0:
            return None
        pairs = zip(self.numbers[place : place + 4], self.whole[place : place + 4])
        return tuple(int(value) if whole else value for value, whole in pairs)


class Table:
    """The columns of items. They grow at their end only."""

    def __init__(self):
        self.ids, self.keys, self.paths = Texts(), Texts(), Texts()
        self.is_number, self.has_path = bytearray(), bytearray()  # whether an id is a number, whether a path is known
        self.parts = array("i")
        self.captions, self.other_keys, self.boxes = TextLists(), TextLists(), Boxes()
        self.photos: Items | None = None  # those of all stories, one after the other
        self.photo_bounds = array("q", [0])

    def __len__(self) -> int:
        return len(self.parts)

    def append(self, item: ImageItem) -> None:
        self.ids.append(str(item.image_id))
        self.is_number.append(isinstance(item.image_id, int))
        self.keys.append(item.key)
        self.paths.append(item.path or "")
        self.has_path.append(item.path is not None)
        self.parts.append(item.part)
        self.captions.append(item.captions)
        self.other_keys.append(item.other_keys)
        self.boxes.append(item.box)
        if item.photos:
            self.photos = Items() if self.photos is None else self.photos
            self.photos.extend(item.photos)
        self.photo_bounds.append(0 if self.photos is None else len(self.photos))

    def image_id(self, row: int) -> int | str:
        return int(self.ids[row]) if self.is_number[row] else self.ids[row]

    def path(self, row: int) -> str | None:
        return self.paths[row] if self.has_path[row] else None

    def item(self, row: int) -> ImageItem:
        first, last = self.photo_bounds[row], self.photo_bounds[row + 1]
        return ImageItem(
            self.image_id(row),
            self.keys[row],
            self.path(row),
            self.captions[row],
            self.parts[row],
            self.boxes[row],
            [self.photos[n] for n in range(first, last)] if last > first else (),
            tuple(self.other_keys[row]),
        )


class Items(Sequence[ImageItem]):
    """A sequence of ImageItems, each made anew whenever it is asked for: to change one changes nothing here.

    A dataset class fills it by `append` and `extend`, or from any iterable. What `chosen`, `where`, `captioned` and
    slices give refers to the same arrays.
    """

    def __init__(self, items: Iterable[ImageItem] = ()):
        self._table = Table()
        self._rows: array | None = None  # which rows of the table; None: all
        self.extend(items)

    def append(self, item: ImageItem) -> None:
        assert self._rows is None, "a choice of items cannot grow"
        self._table.append(item)

    def extend(self, items: Iterable[ImageItem]) -> None:
        for item in items:
            self.append(item)

    def __iadd__(self, items: Iterable[ImageItem]) -> "Items":
        self.extend(items)
        return self

    def __len__(self) -> int:
        return len(self._table if self._rows is None else self._rows)

    @property
    def rows(self) -> Sequence[int]:
        return range(len(self._table)) if self._rows is None else self._rows

    def __iter__(self) -> Iterator[ImageItem]:
        return map(self._table.item, self.rows)

    def __getitem__(self, number: int | slice):
        if isinstance(number, slice):
            return self.chosen(range(len(self))[number])
        return self._table.item(self.rows[number])

    def __eq__(self, other) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(one == two for one, two in zip(self, other))

    __hash__ = None

    def __repr__(self) -> str:
        return f"Items({len(self)} images, {self.num_captions} captions)"

    # ---- choices ----

    def chosen(self, numbers: Iterable[int]) -> "Items":
        """The items of these numbers, in their order."""
        part, rows = Items(), self.rows
        part._table, part._rows = self._table, array("q", (rows[number] for number in numbers))
        return part

    def where(self, test: Callable[[ImageItem], bool]) -> "Items":
        """The items that pass a test."""
        return self.chosen([number for number, item in enumerate(self) if test(item)])

    def captioned(self) -> "Items":
        """The items that have captions."""
        counts = self.caption_counts()
        return self if all(counts) else self.chosen([number for number, count in enumerate(counts) if count])

    def of_part(self, part: int) -> "Items":
        """The items that come from that part of a joined dataset."""
        parts = self.parts()
        return self.chosen([number for number, one in enumerate(parts) if one == part]) if any(parts) or part else self

    # ---- columns, without making items ----

    def feature_keys(self) -> list[str]:
        return list(map(self._table.keys.__getitem__, self.rows))

    def image_ids(self) -> list[int | str]:
        return list(map(self._table.image_id, self.rows))

    def paths(self) -> list[str | None]:
        return list(map(self._table.path, self.rows))

    def parts(self) -> list[int]:
        return list(map(self._table.parts.__getitem__, self.rows))

    def caption_counts(self) -> list[int]:
        return list(map(self._table.captions.count, self.rows))

    @property
    def num_captions(self) -> int:
        return sum(map(self._table.captions.count, self.rows))

    def captions(self) -> Iterator[str]:
        """All captions, in order."""
        return (caption for captions in map(self._table.captions.__getitem__, self.rows) for caption in captions)

    @property
    def lack_paths(self) -> bool:
        """Whether the file of an item is not known."""
        return not all(map(self._table.has_path.__getitem__, self.rows))

    @property
    def have_photos(self) -> bool:
        """Whether an item is a story of photos."""
        bounds = self._table.photo_bounds
        return self._table.photos is not None and any(bounds[row + 1] > bounds[row] for row in self.rows)

    @property
    def have_other_keys(self) -> bool:
        """Whether an item has other keys to be tried."""
        return any(map(self._table.other_keys.count, self.rows))

    def caption_hash(self) -> str:
        """SHA-256, in hexadecimal digits, of all captions and of which items they belong to."""
        digest = hashlib.sha256()
        for row in self.rows:
            self._table.captions.add_to(digest, row)
        return digest.hexdigest()


def packed(items: Iterable[ImageItem]) -> Items:
    """`items` as Items: themselves, if they are that already."""
    return items if isinstance(items, Items) else Items(items)


def joined(several: Iterable[Items]) -> Items:
    """All items of `several`, those of the first as part 0, of the second as part 1 and so on."""
    every = Items()
    for number, items in enumerate(several):
        for item in items:
            photos = [replace(photo, part=number) for photo in item.photos]
            every.append(replace(item, part=number, photos=photos or ()))
    return every

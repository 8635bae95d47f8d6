"""What a file or a folder of captions holds, in whatever way it is written."""

import re
import unicodedata
from dataclasses import dataclass, field
from pathlib import PureWindowsPath

from captioning.text.cleaning import can_be_a_name, id_text

# Names that people give to the parts of their data, and what `--dataset PATH:NAME` calls them.
SPLITS = {"training": "train", "validation": "val", "valid": "val", "dev": "val", "testing": "test"}


@dataclass(slots=True)
class Photo:
    """An image of a layout.

    name: of its file, as it is written; captions: (text, where it stands), the text as it is written; place: where the
    image stands; split: the part of the data that it belongs to, "" where the layout has no parts; image_id: what
    results call it.
    """

    name: str
    place: str
    captions: list[tuple[str, str]] = field(default_factory=list)
    split: str = ""
    image_id: int | str = ""


@dataclass
class Layout:
    """All images of a file or folder, in its order.

    path: the file or folder; kind: what it is, in words; photos: the images, one that stands in two splits twice;
    unused: what could not be used, "row 5: no image is named"; folder: where names of images begin, None where it has
    to be looked for; notes: what else a person should know of it.
    """

    path: str
    kind: str
    photos: dict[tuple, Photo] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)
    folder: str | None = None
    notes: list[str] = field(default_factory=list)

    def photo(self, name: object, place: str, split: object = "", image_id: int | str | None = None) -> Photo | None:
        """The image of this name, which is added where it is new; None, and a line in `unused`, where it has none."""
        name = tidy_name(name)
        if not name or not can_be_a_name(name):
            self.unused.append(f"{place}: no image is named" if not name else f"{place}: {name[:60]!r} names no file")
            return None
        image_id = name if image_id is None else image_id
        split = split_name(split)
        return self.photos.setdefault((id_text(image_id), split), Photo(name, place, [], split, image_id))

    def add(self, name: object, texts: object, place: str, split: object = "") -> None:
        """Add an image with a caption, or with a list of them, that stand at `place`."""
        photo = self.photo(name, place, split)
        for text in texts if isinstance(texts, list) and photo else [texts] if photo else []:
            if isinstance(text, str) or text is None:
                photo.captions.append((text or "", place))
            else:
                self.unused.append(f"{place}: the caption is no text but {str(text)[:40]!r}")

    def splits(self) -> dict[str, int]:
        """The parts of the data with how many images each has; images of no part are left out."""
        counts: dict[str, int] = {}
        for photo in self.photos.values():
            if photo.split:
                counts[photo.split] = counts.get(photo.split, 0) + 1
        return counts


def tidy_name(name: object) -> str:
    """The name of an image as text, without blanks around it and without "./" in front; numbers are names too."""
    text = str(name).strip() if isinstance(name, (str, int)) and not isinstance(name, bool) else ""
    return re.sub(r"^(?:\./+)+", "", text)


def split_name(name: object) -> str:
    """What a part of the data is called here: "val" for "validation", "valid" and "dev", others as they are written."""
    text = str(name or "").strip().lower()
    return SPLITS.get(text, text)


def base_name(name: str) -> str:
    """The name of an image's file without its folders, in the one of Unicode's forms that is the same on every machine.

    The folders may be written as Windows writes them.
    """
    return unicodedata.normalize("NFC", PureWindowsPath(name).name)

"""Captions in a folder: a text file beside each image, or metadata.jsonl and metadata.csv as Hugging Face has them."""

import contextlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from captioning.datasets.layouts.layout import SPLITS, Layout, Photo, split_name
from captioning.errors import UserError, first_few
from captioning.files import read_lines
from captioning.images.kinds import is_image_name
from captioning.images.listing import list_images

METADATA = ("metadata.jsonl", "metadata.csv")
SIDECARS = (".txt", ".caption")  # x.txt, or x.caption as taggers write it too
OTHER_TEXTS = ("readme", "license", "licence", "classes", "labels", "notes")  # text files that hold no caption
SPLIT_FOLDERS = {*SPLITS, *SPLITS.values()}
TEXTS = (".csv", ".tsv", ".jsonl", ".json", ".txt", ".token")
MOST_FILES = 100  # that are looked into
MOST_TAG_WORDS = 3  # of a tag, on average


def read_folder(path: str, read_file: Callable[[str], Layout | None]) -> Layout | None:
    """The layout of the folder `path`; None where it is none of those that are known.

    read_file: gives the layout of a file, None where it is none. Raises UserError for a folder with several files of
    captions.
    """
    found = _metadata(path, read_file) or _sidecars(path)
    return found or _only_file(path, read_file)


def _metadata(path: str, read_file: Callable[[str], Layout | None]) -> Layout | None:
    """metadata.jsonl or metadata.csv in the folder, or in its folders train, validation and test."""
    folders = [path, *(str(place) for place in _subfolders(path) if place.name.lower() in SPLIT_FOLDERS)]
    files = [os.path.join(place, name) for place in folders for name in METADATA]
    layout = Layout(path, "", folder=path)
    for file in filter(os.path.isfile, files):
        part = read_file(file)
        if part is None:
            raise UserError(f"{file}: it has no file_name and no text, as Hugging Face's metadata has them")
        below = os.path.relpath(os.path.dirname(file), path)
        _join(layout, part, "" if below == os.curdir else below)
        layout.kind = f"folder with Hugging Face's metadata, {part.kind}"
    _split_by_folder(layout)
    return layout if layout.kind else None


def _join(layout: Layout, part: Layout, below: str) -> None:
    """Add what `part` has to `layout`, in whose folder `below` its names begin."""
    for photo in part.photos.values():
        name = Path(below, photo.name).as_posix()
        added = layout.photo(name, photo.place, photo.split)
        where = f"{below}/" if below else ""
        added.captions += [(text, f"{where}{os.path.basename(part.path)} {place}") for text, place in photo.captions]
    layout.unused += [f"{os.path.relpath(part.path, layout.path)} {line}" for line in part.unused]


def _split_by_folder(layout: Layout) -> None:
    """Where all images lie in folders such as train and validation, these are the splits."""
    tops = {photo.name: photo.name.partition("/")[0].lower() for photo in layout.photos.values() if "/" in photo.name}
    if layout.splits() or len(tops) < len(layout.photos) or not set(tops.values()) <= SPLIT_FOLDERS:
        return
    for photo in layout.photos.values():
        photo.split = split_name(tops[photo.name])
    layout.photos = {(key[0], photo.split): photo for key, photo in layout.photos.items()}


def _sidecars(path: str) -> Layout | None:
    """x.jpg beside x.txt, in the folder and the folders in it; a line of the text file is a caption."""
    images, layout = list_images(path, recursive=True), Layout(path, "", folder=path)
    texts = _text_files({image.parent for image in images})
    for image in images:
        name = image.relative_to(path).as_posix()
        photo = layout.photo(name, name)
        for text in [*texts.get(image.with_suffix(""), []), *texts.get(image, [])] if photo else []:  # or a.jpg.txt
            _add_lines(layout, photo, text)
    if not any(photo.captions for photo in layout.photos.values()):
        return None
    for stem in sorted(texts.keys() - {image.with_suffix("") for image in images} - set(images)):
        if stem.name.lower() not in OTHER_TEXTS:
            layout.unused.append(f"{texts[stem][0].relative_to(path)}: there is no image beside it")
    bare = sum(not photo.captions for photo in layout.photos.values())
    layout.notes += [f"{bare} images have no text file"] if bare else []
    layout.kind = "folder of images, each beside a text file" + (" of tags, kept as text" if _tags(layout) else "")
    _split_by_folder(layout)
    return layout


def _text_files(folders: Iterable[Path]) -> dict[Path, list[Path]]:
    """Path without extension -> the text files of this name."""
    found: dict[Path, list[Path]] = {}
    for folder in folders:
        for file in sorted(map(Path, os.scandir(folder))):
            if file.suffix.lower() in SIDECARS and not file.name.startswith("."):
                found.setdefault(file.with_suffix(""), []).append(file)
    return found


def _add_lines(layout: Layout, photo: Photo, file: Path) -> None:
    name = os.path.relpath(file, layout.path)
    try:
        lines = read_lines(file, "captions")
    except UserError as error:
        layout.unused.append(f"{name}: {error}")
        return
    texts = [(line, f"{name}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    photo.captions += texts or [("", name)]


def _tags(layout: Layout) -> bool:
    """Whether most captions are tags: short pieces between commas."""
    texts = [text for photo in layout.photos.values() for text, _ in photo.captions]
    tags = [text.split(",") for text in texts if text.count(",") >= 2]
    short = [parts for parts in tags if sum(len(part.split()) for part in parts) <= MOST_TAG_WORDS * len(parts)]
    return len(short) > len(texts) / 2


def _only_file(path: str, read_file: Callable[[str], Layout | None]) -> Layout | None:
    """The one file of captions in the folder."""
    names = [name for name in sorted(os.listdir(path)) if name.lower().endswith(TEXTS) and not name.startswith(".")]
    found = []
    for file in [os.path.join(path, name) for name in names] if len(names) <= MOST_FILES else []:
        with contextlib.suppress(UserError):
            layout = read_file(file)
            found += [layout] if layout is not None else []
    if len(found) > 1:
        names = first_few(os.path.basename(layout.path) for layout in found)
        raise UserError(f"{path} has {len(found)} files of captions ({names}): name one of them")
    return found[0] if found else None


def _subfolders(path: str) -> list[Path]:
    return sorted(Path(entry) for entry in os.scandir(path) if entry.is_dir())


def has_images(path: str) -> bool:
    """Whether an image lies in the folder itself."""
    return any(is_image_name(name) for name in os.listdir(path))

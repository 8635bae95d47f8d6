"""What is wrong with images and captions: looked for in all of them, and named by where it stands.

photos = checked_photos(spec, config_file, images)
findings = Findings()
check_captions(photos, findings, "treebank", rare=1)
check_images(photos, prints, findings)              # prints: path -> its Fingerprint
findings.found["missing images"]                    # [{"place": "row 4", "image": "x.jpg", "text": "..."}]
"""

import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from captioning.datasets.caption_file import CaptionFile, PhotoFinder, photos_of_split
from captioning.datasets.coco import CocoDataset
from captioning.datasets.config import DatasetParams, get_datasets
from captioning.datasets.factory import class_of
from captioning.datasets.layouts.layout import Photo
from captioning.datasets.layouts.reading import read_layout
from captioning.errors import note_once
from captioning.images.fingerprint import Fingerprint, near_pairs
from captioning.text.cleaning import clean_caption
from captioning.text.tokenizers import tokenize_function

# What is looked for, in the order of the report, and whether it is a problem or just worth a look.
PROBLEMS = ("unusable entries", "missing images", "broken images", "empty captions", "repeated captions")
PROBLEMS += ("duplicate images", "near duplicates", "images in both splits")
NOTES = ("images without captions", "short captions", "long captions", "rare words")
SHORT, LONG = 1 / 4, 3  # times the median number of tokens


@dataclass(slots=True)
class CheckedPhoto:
    """An image to be checked. path: its file, None where it is not known; split: which part of the data it is in."""

    photo: Photo
    path: str | None
    split: str


@dataclass
class Findings:
    """What was found in images and captions.

    found: what is wrong, by its name in PROBLEMS and NOTES, each an object of plain texts; figures: numbers by name.
    """

    found: dict[str, list[dict[str, str]]] = field(default_factory=lambda: {name: [] for name in (*PROBLEMS, *NOTES)})
    figures: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, place: str, image: str = "", text: str = "") -> None:
        self.found[name].append({"place": place, "image": image, "text": text})

    @property
    def problems(self) -> int:
        """How many problems there are."""
        return sum(len(self.found[name]) for name in PROBLEMS)


def checked_photos(
    spec: str, config_file: str | None, images: str | None, findings: Findings, option: str = "--dataset"
) -> list[CheckedPhoto]:
    """All images of the datasets that `spec` names. What cannot be used goes to `findings`.

    Raises UserError for what no image can be read from. The split of an image is that which its file says, else `spec`.
    """
    photos = []
    for params in get_datasets(spec, config_file, option, images):
        kind = class_of(params)
        by_row = kind in (CaptionFile, CocoDataset)
        photos += _by_row(params, findings) if by_row else _by_item(kind(params))
    return photos


def _by_row(params: DatasetParams, findings: Findings) -> Iterator[CheckedPhoto]:
    """The images of a file or folder whose layout says where everything stands."""
    path = params.caption_path or params.path(params.extra.get("captions_path") or "")
    layout = read_layout(path, f"--dataset {params.name}")
    for line in layout.unused:
        place, _, text = line.partition(": ")
        findings.add("unusable entries", place, "", text)
    note_once(f"{params.name}: {'; '.join([layout.kind, *layout.notes])}")
    whole = not params.subset and layout.splits()
    photos = (
        list(layout.photos.values())
        if whole
        else photos_of_split(layout, params.subset, f"{params.option} {params.name}")[0]
    )
    finder = PhotoFinder([photo.name for photo in photos], layout, params.image_dir)
    for photo in photos:
        yield CheckedPhoto(photo, finder.path(photo.name), photo.split if whole else params.name)


def _by_item(dataset) -> Iterator[CheckedPhoto]:
    for item in dataset.items:
        place = f"image {item.image_id}"
        captions = [(text, place) for text in item.captions]
        yield CheckedPhoto(Photo(item.key, place, captions, "", item.image_id), item.path, dataset.name)


# ---- captions ----


def check_captions(photos: Iterable[CheckedPhoto], findings: Findings, tokenizer: str, rare: int) -> None:
    """Empty and repeated captions, odd lengths, and words that at most `rare` captions have."""
    split = tokenize_function(tokenizer)
    captions = [(photo, text, place) for photo in photos for text, place in _good_captions(photo, findings)]
    lengths, words, places = [], Counter(), {}
    for photo, text, place in captions:
        tokens = split(text.lower())
        lengths.append(len(tokens))
        for word in dict.fromkeys(tokens):
            words[word] += 1
            places.setdefault(word, (place, photo.photo.name))
    median = statistics.median(lengths) if lengths else 0
    for (photo, text, place), length in zip(captions, lengths):
        if length < SHORT * median or length > LONG * median:
            name = "short captions" if length < median else "long captions"
            findings.add(name, place, photo.photo.name, f"{length} tokens: {text[:60]}")
    for word, count in words.items():
        if count <= rare:
            findings.add("rare words", places[word][0], places[word][1], word)
    findings.figures |= {"captions": len(captions), "tokens": sum(lengths), "words": len(words), "median": median}


def _good_captions(photo: CheckedPhoto, findings: Findings) -> Iterator[tuple[str, str]]:
    """The captions of an image that are not empty, with their places."""
    seen: dict[str, str] = {}
    name = photo.photo.name
    if not photo.photo.captions:
        findings.add("images without captions", photo.photo.place, name)
    for text, place in photo.photo.captions:
        clean = " ".join(clean_caption(text).split())
        if not clean:
            findings.add("empty captions", place, name)
            continue
        if clean in seen:
            findings.add("repeated captions", place, name, f"as {seen[clean]}: {clean[:60]}")
        seen.setdefault(clean, place)
        yield clean, place


# ---- images ----


def check_images(photos: Iterable[CheckedPhoto], prints: Mapping[str, Fingerprint], findings: Findings) -> None:
    """Missing and broken images, duplicates, and images that are in two splits. prints: of the files that are there."""
    firsts: dict[str, CheckedPhoto] = {}
    for photo in photos:
        first = firsts.setdefault(photo.path, photo) if photo.path else photo
        if photo.path not in prints:
            findings.add("missing images", photo.photo.place, photo.photo.name, photo.path or "its file is not known")
        elif prints[photo.path].error:
            if first is photo:
                findings.add("broken images", photo.photo.place, photo.photo.name, prints[photo.path].error)
        elif first is not photo and first.split != photo.split:
            _in_both(first, photo, "the same image", findings)
    good = [photo for path, photo in firsts.items() if path in prints and not prints[path].error]
    _duplicates(good, prints, findings)


def _duplicates(good: list[CheckedPhoto], prints: Mapping[str, Fingerprint], findings: Findings) -> None:
    same: dict[bytes, CheckedPhoto] = {}
    different = []
    for photo in good:
        first = same.setdefault(prints[photo.path].digest, photo)
        if first is photo:
            different.append(photo)
            continue
        findings.add("duplicate images", photo.photo.place, photo.photo.name, f"the same file as {_named(first)}")
        _in_both(first, photo, "the same file", findings)
    told = set()
    for one, two, bits in sorted(near_pairs([prints[photo.path] for photo in different])):
        first, second = different[one], different[two]
        _in_both(first, second, "nearly the same image", findings)
        if two not in told:  # of a series of images each is named once
            told.add(two)
            text = f"nearly {_named(first)} ({bits} of 64 bits differ)"
            findings.add("near duplicates", second.photo.place, second.photo.name, text)


def _in_both(first: CheckedPhoto, second: CheckedPhoto, what: str, findings: Findings) -> None:
    if first.split != second.split:
        text = f"in {second.split}; {what} as {_named(first)} in {first.split}"
        findings.add("images in both splits", second.photo.place, second.photo.name, text)


def _named(photo: CheckedPhoto) -> str:
    return f"{photo.photo.name} ({photo.photo.place})" if photo.photo.place != photo.photo.name else photo.photo.name

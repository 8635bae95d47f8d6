"""Data for the benchmark, made from random numbers: nothing is downloaded, nothing real is needed.

Captions have the lengths of Flickr8k's 30,000 training captions (tokens, the final period included: mean 11.8) and
words of Zipf frequencies. Pictures are smooth noise with some grain, so that they take about the bytes, and the
decoding time, of photos.
"""

import json
import os
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

VOCABULARY = 2933  # Flickr8k's, with the four special words
# How many of 1,000 captions of Flickr8k have 3, 4, ... tokens.
LENGTHS = (1, 6, 13, 32, 67, 86, 96, 107, 106, 102, 90, 77, 61, 44, 32, 23, 18, 12, 8, 5, 5, 3, 2, 1, 1, 1)
FIRST_LENGTH = 3
SYLLABLES = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]


def words(count: int) -> list[str]:
    """`count` different made-up words."""
    made = []
    for number in range(count):
        letters, rest = "", number + len(SYLLABLES)
        while rest:
            rest, syllable = divmod(rest, len(SYLLABLES))
            letters = SYLLABLES[syllable] + letters
        made.append(letters)
    return made


def captions(count: int, vocabulary: list[str], seed: int = 0, odd: float = 0.02) -> list[str]:
    """`count` different captions: a capital, words, a period; a share `odd` has an apostrophe, as people write."""
    random = np.random.default_rng(seed)
    weights = 1 / (np.arange(len(vocabulary)) + 2.7)
    bounds = np.cumsum(weights / weights.sum())
    chances = np.array(LENGTHS) / sum(LENGTHS)
    made: dict[str, None] = {}
    while len(made) < count:
        more = min(100_000, count - len(made))
        lengths = random.choice(len(LENGTHS), more, p=chances) + FIRST_LENGTH - 1  # without the period
        ids = np.minimum(np.searchsorted(bounds, random.random(lengths.sum())), len(vocabulary) - 1)
        ends = np.cumsum(lengths)
        marked = random.random(more) < odd
        for begin, end, mark in zip((ends - lengths).tolist(), ends.tolist(), marked.tolist()):
            chosen = [vocabulary[i] for i in ids[begin:end].tolist()]
            if mark:
                chosen[0] += "'s"
            made.setdefault(" ".join(chosen).capitalize() + ".")
    return list(made)


def write_captions(path: Path, texts: list[str], images: int) -> list[str]:
    """A caption file of COCO's format, the texts dealt out to the images in turn. Returns the file names."""
    names = [f"{number:06d}.jpg" for number in range(images)]
    content = {
        "images": [{"id": number, "file_name": name} for number, name in enumerate(names)],
        "annotations": [{"id": n, "image_id": n % images, "caption": text} for n, text in enumerate(texts)],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return names


def write_config(folder: Path, sections: list[str]) -> Path:
    """datasets.conf with bench:NAME for each: images/NAME, captions/NAME.json, features/NAME/."""
    lines = ["[bench]", "dataset_class = CocoDataset", "root_dir = %(here)s"]
    for name in sections:
        lines += [f"[bench:{name}]", f"image_dir = images/{name}", f"caption_path = captions/{name}.json"]
        lines += [f"features_path = features/{name}"]
    path = folder / "datasets.conf"
    path.write_text("\n".join(lines) + "\n")
    return path


def features(count: int, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """(count, *shape) float32, not negative as those of a ReLU."""
    numbers = np.random.default_rng(seed).standard_normal((count, *shape), np.float32)
    return np.maximum(numbers, 0, out=numbers)


def write_features(
    path: Path, names: list[str], shape: tuple[int, ...], dtype: str = "float32", provenance=None
) -> None:
    """A feature file by the toolkit's own writer; the records repeat after 500, which no reader can tell."""
    from captioning.features.writer import FeatureWriter

    path.parent.mkdir(parents=True, exist_ok=True)
    records = features(min(len(names), 500), shape)
    with FeatureWriter(path, shape, dtype, provenance) as writer:
        for number, name in enumerate(names):
            writer.write(name, records[number % len(records)])


def write_regions(folder: Path, names: list[str], regions: int, size: int) -> None:
    """A folder of .npz files as ImageCaptioning.pytorch has them, packed; the records repeat after 100."""
    folder.mkdir(parents=True, exist_ok=True)
    records = features(min(len(names), 100), (regions, size))
    for number, name in enumerate(names):
        np.savez_compressed(folder / f"{Path(name).stem}.npz", feat=records[number % len(records)])


def picture(width: int, height: int, seed: int) -> Image.Image:
    """Smooth colours at four scales, and grain."""
    random = np.random.default_rng(seed)
    total = np.zeros((height, width, 3), np.float32)
    for cells, strength in ((3, 60), (9, 35), (40, 18), (160, 8)):
        noise = random.standard_normal((cells, cells, 3)) * 40 + 128
        small = Image.fromarray(noise.clip(0, 255).astype(np.uint8))
        large = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), np.float32)
        total += (large - 128) * (strength / 40)
    total += random.standard_normal((height, width, 1), np.float32) * 4 + 128
    return Image.fromarray(total.clip(0, 255).astype(np.uint8))


def write_pictures(folder: Path, names: list[str], width: int, height: int, different: int = 12) -> None:
    """JPEGs of quality 90; `different` pictures under all the names, since only their decoding is measured.

    The names of a picture are links to one file where the file system has such.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        if number < different:
            picture(width, height, number).save(folder / name, quality=90)
        else:
            first = folder / names[number % different]
            try:
                os.link(first, folder / name)
            except OSError:
                shutil.copyfile(first, folder / name)

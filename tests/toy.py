"""Toy data for the tests: pictures of one coloured shape, captions that say which, and feature files that know it."""

import json

import numpy as np
from PIL import Image, ImageDraw

from captioning.text.ptb import ptb_tokens

COLOURS = {"red": (220, 40, 40), "green": (40, 170, 60), "blue": (50, 70, 220), "yellow": (235, 210, 50)}
SHAPES = ("ball", "box", "roof")
SENTENCES = (
    "A {colour} {shape} on a grey floor.",
    "There is a {colour} {shape} .",
    "the {shape} is {colour}",
    "A picture of one {colour} {shape}.",
    "One {shape}, painted {colour}.",
)


def scene(index: int) -> tuple[str, str]:
    return list(COLOURS)[index % 4], SHAPES[index % 3]


def draw(index: int, size: int = 96) -> Image.Image:
    colour, shape = scene(index)
    image = Image.new("RGB", (size, size), (128 + index % 20, 128, 128))
    box = [size // 4, size // 4, 3 * size // 4, 3 * size // 4]
    pen = ImageDraw.Draw(image)
    if shape == "ball":
        pen.ellipse(box, fill=COLOURS[colour])
    elif shape == "box":
        pen.rectangle(box, fill=COLOURS[colour])
    else:
        pen.polygon([(size // 2, box[1]), (box[0], box[3]), (box[2], box[3])], fill=COLOURS[colour])
    return image


def make_coco(root, splits: dict[str, int], size: int = 96, captions: int = 5, first_id: int = 1) -> None:
    """Folders images/SPLIT and files annotations/captions_SPLIT.json under `root`, in COCO's own layout and naming."""
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    number, annotation = first_id, 1
    for split, count in splits.items():
        folder = root / "images" / split
        folder.mkdir(parents=True, exist_ok=True)
        images, annotations = [], []
        for _ in range(count):
            name = f"COCO_{split}_{number:012d}.jpg"
            draw(number, size).save(folder / name)
            images.append({"id": number, "file_name": name, "width": size, "height": size})
            colour, shape = scene(number)
            for sentence in SENTENCES[:captions]:
                text = sentence.format(colour=colour, shape=shape)
                annotations.append({"id": annotation, "image_id": number, "caption": text})
                annotation += 1
            number += 1
        data = {"info": {}, "licenses": [], "images": images, "annotations": annotations}
        (root / "annotations" / f"captions_{split}.json").write_text(json.dumps(data))


def write_config(root, splits, features: bool = True) -> str:
    """A datasets.conf for `make_coco`'s data: toy:SPLIT. Returns its path."""
    lines = ["[toy]", "dataset_class = CocoDataset", "root_dir = %(here)s"]
    lines += ["features_path = features"] if features else []
    for split in splits:
        lines += [f"[toy:{split}]", f"image_dir = images/{split}", f"caption_path = annotations/captions_{split}.json"]
    (root / "datasets.conf").write_text("\n".join(lines) + "\n")
    return str(root / "datasets.conf")


def feature_vector(number: int, dim: int = 16) -> np.ndarray:
    """Features from which the colour and the shape can be read, with a little noise."""
    noise = np.random.default_rng(number).normal(0, 0.05, dim)
    noise[number % 4] += 1
    noise[4 + number % 3] += 1
    return noise.astype(np.float32)


def feature_map(number: int, dim: int = 16, side: int = 3) -> np.ndarray:
    """A map (dim, side, side) whose middle region is `feature_vector`."""
    noise = np.random.default_rng(number).normal(0, 0.05, (dim, side, side)).astype(np.float32)
    noise[:, side // 2, side // 2] += feature_vector(number, dim)
    return noise


def write_features(
    root, name: str, make=feature_vector, dtype: str = "float32", provenance: dict | None = None
) -> None:
    """A feature file under root/features for all images that the caption files of `root` name."""
    from captioning.features.writer import FeatureWriter

    records = {}
    for file in sorted((root / "annotations").glob("*.json")):
        for image in json.loads(file.read_text())["images"]:
            records[image["file_name"]] = make(image["id"])
    shape = next(iter(records.values())).shape
    with FeatureWriter(root / "features" / name, shape, dtype, provenance) as writer:
        for key, record in records.items():
            writer.write(key, record)


def file_inputs(dataset, *names: str) -> list:
    """Inputs of a model that reads the feature files `names` of `dataset`."""
    from captioning.batches.inputs import file_spec, plan_inputs
    from captioning.config import ModelConfig

    return plan_inputs(ModelConfig([file_spec(dataset, name) for name in names]), dataset)


# ---- train.py ----

SMALL = ["--embed_size", 24, "--hidden_size", 32, "--attention_size", 16, "--value_size", 24]
FAST = [*SMALL, "--batch_size", 20, "--learning_rate", 0.01, "--optimizer", "adam", "--vocab_threshold", 1]


def stats(folder) -> dict:
    return json.loads((folder / "train_stats.json").read_text())


def differences(folder, other) -> str:
    """What tells two folders of runs apart: files, statistics, and every number of every model; "" for nothing."""
    import torch

    from captioning import checkpoint
    from training.settings import MAY_CHANGE

    names, others = (sorted(path.name for path in one.iterdir()) for one in (folder, other))
    if names != others:
        return f"files {names}, not {others}"
    if stats(folder) != stats(other):
        return f"train_stats.json: {stats(folder)}, not {stats(other)}"

    def differs(one, two, place: str) -> str:
        if isinstance(one, dict) and isinstance(two, dict) and one.keys() == two.keys():
            return next(filter(None, (differs(one[key], two[key], f"{place}[{key!r}]") for key in one)), "")
        if isinstance(one, list) and isinstance(two, list) and len(one) == len(two):
            return next(filter(None, (differs(*pair, f"{place}[{i}]") for i, pair in enumerate(zip(one, two)))), "")
        same = torch.equal(one, two) if isinstance(one, torch.Tensor) else one == two
        return "" if same else f"{place} is {str(one)[:200]}, not {str(two)[:200]}"

    for name in names:
        if name.endswith(".model"):
            both = [checkpoint.load(path / name) for path in (folder, other)]
            for contents in both:
                del contents["command"]
                settings = contents["settings"]
                contents["settings"] = {k: v for k, v in settings.items() if k[2:] not in MAY_CHANGE.split()}
            if found := differs(*both, name):
                return found
    return ""


# ---- captions to score ----

REFERENCES = {
    1: ["A brown dog runs across the wet grass.", "The dog is running on a lawn.", "A dog's morning run"],
    2: ["Two children play football in the park.", "Kids are playing with a ball.", "Children don't stop playing"],
    "3": ["A red bus waits at the stop.", "A bus parked by a street sign."],
    4: ["A man rides a horse on the beach.", "Someone on horseback near the sea."],
}
CANDIDATES = {
    1: "a brown dog is running on the grass",
    2: "two kids play with a ball",
    "3": "a red bus parked at the stop",
    4: "a man",
}


def document_frequencies(groups) -> dict:
    """In how many images each n-gram of PTB tokens occurs, counted plainly, as DeepCaption's "cached words" have it."""
    counts: dict = {}
    for captions in groups:
        texts = [ptb_tokens(caption) for caption in captions]
        ngrams = {tuple(x[i : i + n]) for x in texts for n in (1, 2, 3, 4) for i in range(len(x) - n + 1)}
        for ngram in ngrams:
            counts[ngram] = counts.get(ngram, 0) + 1.0
    return {"document_frequency": counts, "ref_len": len(groups)}

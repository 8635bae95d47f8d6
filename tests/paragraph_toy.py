"""Made-up paragraphs whose sentences a picture decides, in Visual Genome's layout, with feature vectors and maps."""

import json

import numpy as np

THINGS = ("dog", "horse", "boat", "bicycle", "child")
COLOURS = ("red", "brown", "white", "black")
PLACES = ("in a field", "on a beach", "by a river", "in a narrow street")
SKIES = ("clear and blue", "full of clouds", "grey")
PARTS = (THINGS, COLOURS, PLACES, SKIES)
DIM = 32


def scene(number: int) -> list[int]:
    """Which of each of PARTS picture `number` shows, and how many sentences say so in a varied set (2 to 4)."""
    random = np.random.default_rng([7, number])
    return [*(int(random.integers(len(part))) for part in PARTS), int(random.integers(3))]


def sentences(number: int, varied: bool = False) -> list[str]:
    """Three sentences that follow from the scene; in a varied set two, three or four."""
    shown = scene(number)
    thing, colour, place, sky = (part[i] for part, i in zip(PARTS, shown))
    written = [
        f"There is a {colour} {thing}",
        f"It is standing {place}",
        f"The sky is {sky}",
        "Nobody else can be seen",
    ]
    return written[: 2 + shown[-1]] if varied else written[:3]


def feature_vector(number: int, dim: int = DIM) -> np.ndarray:
    """What the scene shows, a place of the vector for each possibility, with a little noise."""
    vector = np.random.default_rng([9, number]).normal(0, 0.05, dim).astype(np.float32)
    offsets = np.cumsum([0, *map(len, PARTS)])
    vector[offsets + scene(number)] += 1
    return vector


def feature_map(number: int, side: int = 2) -> np.ndarray:
    """A map (D, side, side) one of whose regions is `feature_vector`."""
    grid = np.random.default_rng([11, number]).normal(0, 0.05, (DIM, side, side)).astype(np.float32)
    grid[:, number % side, 0] += feature_vector(number)
    return grid


def make_paragraphs(root, splits: dict[str, int], varied: bool = False, name: str = "im2p") -> str:
    """paragraphs.json, a list of ids for each split, datasets.conf with NAME:SPLIT. Returns the path of the last."""
    root.mkdir(parents=True, exist_ok=True)
    paragraphs, number = [], 1
    lines = [f"[{name}]", "dataset_class = VisualGenomeIM2PDataset", "root_dir = %(here)s", "image_dir = images"]
    lines += ["caption_path = paragraphs.json", "features_path = features"]
    for split, count in splits.items():
        ids = list(range(number, number + count))
        number += count
        for i in ids:
            paragraphs.append({"image_id": i, "paragraph": ". ".join(sentences(i, varied)) + "."})
        (root / f"{split}.json").write_text(json.dumps(ids))
        lines += [f"[{name}:{split}]", f"subset = {split}.json"]
    (root / "paragraphs.json").write_text(json.dumps(paragraphs))
    (root / "datasets.conf").write_text("\n".join(lines) + "\n")
    return str(root / "datasets.conf")


def write_features(root, name: str, make=feature_vector, dtype: str = "float32") -> None:
    """A feature file under root/features for all images of paragraphs.json."""
    from captioning.features.writer import FeatureWriter

    ids = [entry["image_id"] for entry in json.loads((root / "paragraphs.json").read_text())]
    with FeatureWriter(root / "features" / name, make(1).shape, dtype) as writer:
        for i in ids:
            writer.write(f"{i}.jpg", make(i))

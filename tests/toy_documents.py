"""The documents of the toolkit, taken apart into code blocks and commands, and a folder in which the commands run."""

import base64
import glob
import json
import re
import shlex
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from deepcaption_toy import OldModel, save
from own_data import picture
from paragraph_toy import feature_map as paragraph_map
from paragraph_toy import make_paragraphs
from paragraph_toy import write_features as write_paragraph_features
from running import ROOT, run_here
from toy import draw, feature_map, make_coco, write_features
from toy_layouts import make_msrvtt, make_picsom, make_regions, make_trecvid, make_vist

PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("README.md", "docs/*.md", "models/*.md", "benchmarks/*.md", "recipes/*/README.md")
    for path in ROOT.glob(pattern)
)


@dataclass
class Block:
    """A fenced block of a page: its language, its text, and the number of its first line."""

    language: str
    text: str
    line: int


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    return [Block(match[1], match[2], text[: match.start(2)].count("\n") + 1) for match in found]


def commands(block: Block) -> list[list[str]]:
    """The words of each command of a ```bash block: without comments, continued lines joined, loops unrolled."""

    def unrolled(loop: re.Match) -> str:
        name, values, body = loop.groups()
        return "".join(body.replace(f"${name}", value) for value in values.split())

    text = re.sub(r"^for (\w+) in (.*); do\n(.*?)^done$", unrolled, block.text, flags=re.DOTALL | re.MULTILINE)
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def commands_in_text(page: str) -> list[list[str]]:
    """The words of each command that stands within a sentence or a table."""
    text = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return [shlex.split(found) for found in re.findall(r"`((?:\./|benchmarks/)\w+\.py\s[^`]+)`", text)]


def script_and_flags(words: list[str]) -> tuple[str, list[str]] | None:
    """The script that a command runs, relative to the root, and its flags; None where it runs something else."""
    words = [word for word in words if not re.fullmatch(r"[A-Z_]+=\S*", word)]
    if words[0] == "torchrun":
        words = words[words.index("--nproc_per_node") + 2 :]
    if words[0] == "python" and words[1].endswith(".py"):
        words = words[1:]
    script = words[0].removeprefix("./")
    return (script, words[1:]) if script.endswith(".py") else None


# ---- a folder in which the commands run ----

PUT_IN = {
    "resnet152": "efficientnet_lite0",
    "resnet152-conv": "efficientnet_lite0-conv",
    "efficientnet_lite2-conv": "efficientnet_lite0-conv",
    "efficientnet_lite2-classes": "efficientnet_lite0-classes",
    "efficientnet_lite2-conv,efficientnet_lite2-classes": "efficientnet_lite0-conv,efficientnet_lite0-classes",
    "picsom:COCO:train2014": "picsom:toy:train",
    "/fast/disk/cache": "cache",
}
SMALL_TRANSFORMER = ["--hidden_size", "24", "--vocab_threshold", "1"]
SMALL = ["--embed_size", "16", *SMALL_TRANSFORMER]


def make_world(root: Path) -> None:
    """Fill `root` with data, feature files and models under the names that the documents use.

    root/home/.config holds a datasets.conf with all their datasets. Encoders are EfficientNet-Lite0 in place of
    ResNet-152, whose weights would be a download. The current folder must be `root`, and HOME root/home.
    """
    folder = root / "home/.config/image_captioning"
    folder.mkdir(parents=True)
    (folder / "datasets.conf").write_text("\n".join([_coco(root), _other_datasets(root)]))
    _photos(root)
    for name in ("vocab.json", "vocab.pkl"):
        _run("build_vocab.py", "--dataset", "coco:train2014", "--vocab_output_path", name, "--vocab_threshold", "1")
    _models(root)


def as_run(script: str, flags: list[str]) -> list[str]:
    """The flags with the names of the toy data put in, and with flags added that make the work small."""
    flags = [PUT_IN.get(flag, flag).replace("/new/place", f"{Path.cwd()}/features") for flag in flags]
    flags = [name for flag in flags for name in (("*" in flag and sorted(glob.glob(flag))) or [flag])]
    if script in ("extract_features.py", "build_vocab.py", "build_cached_words.py", "average_models.py"):
        flags += ["--force"]
    if script in ("train.py", "infer.py", "extract_features.py"):
        flags += ["--cpu", "--num_workers", "0"]
    if script == "score.py" and "--scoring" not in flags:
        flags += ["--scoring", "bleu"]
    return flags + _small_training(flags) if script == "train.py" else flags


def _small_training(flags: list[str]) -> list[str]:
    """Flags for a training of seconds, of the epoch after that of the model it starts from."""
    if "--validate_only" in flags:
        return []
    more = ["--batch_size", "20"] if "--resume" in flags else ["--batch_size", "20", "--replace"]
    epoch = (
        "5" if "old/ep4.model" in flags else "2" if {"--load_model", "--self_critical_from_epoch"} & {*flags} else "1"
    )
    if "11" in flags:
        more += ["--self_critical_from_epoch", "2"]
    if not {"--load_model", "--config"} & {*flags}:
        more += SMALL_TRANSFORMER if "transformer" in flags else SMALL
        more += [] if "--features" in flags else ["--features", "efficientnet_lite0"]
    if "--hierarchical_model" in flags:
        more += ["--pooling_size", "16", "--fc_size", "16"]
    return [*more, "--num_epochs", epoch]


def _run(*command) -> None:
    done = run_here(*command)
    assert done.status == 0, f"{' '.join(map(str, command))}\n{done.out}\n{done.err}"


def _coco(root: Path) -> str:
    splits = ("train2014", "val2014", "test2014")
    make_coco(root, dict.fromkeys(splits, 6))
    write_features(root, "resnet.lmdb")
    write_features(root, "scene.lmdb")
    write_features(root, "conv.lmdb", feature_map)
    (root / "cocobu_att").mkdir()
    lines = []
    for number in range(1, 19):
        regions = feature_map(number).reshape(16, -1).T[number % 5 :].astype("<f4")
        np.savez(root / f"cocobu_att/{number}.npz", feat=regions)
        numbers = [base64.b64encode(x.tobytes()).decode() for x in (np.zeros((len(regions), 4), "<f4"), regions)]
        lines.append("\t".join([str(number), "640", "480", str(len(regions)), *numbers]))
    (root / "trainval_36.tsv").write_text("\n".join(lines))
    for split in splits:
        shutil.copy(root / f"annotations/captions_{split}.json", root)
    captions = json.loads((root / "captions_val2014.json").read_text())["annotations"]
    results = [{"image_id": entry["image_id"], "caption": entry["caption"]} for entry in captions[::5]]
    (root / "results").mkdir()
    for name in ("a", "b"):
        (root / f"results/{name}.json").write_text(json.dumps(results))
    lines = []
    for parent, children in (("coco", zip(splits, splits)), ("flickr8k", (("train", splits[0]), ("val", splits[1])))):
        lines += [f"[{parent}]", "dataset_class = CocoDataset", f"root_dir = {root}", "features_path = features"]
        for child, split in children:
            lines += [f"[{parent}:{child}]", f"image_dir = images/{split}"]
            lines += [f"caption_path = annotations/captions_{split}.json"]
    lines += ["[coco-train2014-shards]", "dataset_class = WebDataset"]  # docs/datasets.md writes them
    lines += [f"urls = {root}/shards/train2014/shards-{{000000..000000}}.tar"]
    return "\n".join(lines)


def _other_datasets(root: Path) -> str:
    """The sections of all other datasets, each with its files in a folder of its own."""

    def videos(folder):
        make_msrvtt(folder, 6, 4)
        make_trecvid(folder, 4)

    def paragraphs(folder):
        make_paragraphs(folder, {"train": 6, "val": 4, "test": 4}, name="visualgenome:im2p")
        write_paragraph_features(folder, "resnet152-conv.lmdb", paragraph_map)
        shutil.copy(folder / "paragraphs.json", root / "paragraphs_v1.json")

    makers = (videos, partial(make_vist, train=6, val=4), partial(make_picsom, train=6, val=4))
    sections = []
    for number, make in enumerate((*makers, partial(make_regions, train=3, val=2), paragraphs)):
        folder = root / f"data{number}"
        folder.mkdir()
        make(folder)
        for file in folder.glob("features/pooled.*"):
            file.rename(file.with_stem("resnet152"))
        sections.append((folder / "datasets.conf").read_text().replace("%(here)s", str(folder)))
    return "\n".join(sections)


def _photos(root: Path) -> None:
    for number, name in enumerate(("photo.jpg", "beach.jpg", "holiday/1.jpg")):
        (root / name).parent.mkdir(exist_ok=True)
        draw(number).save(root / name)
    (root / "photos").mkdir()
    for number in range(19, 39):
        picture(number).save(root / f"photos/{number}.jpg")
    shutil.make_archive(str(root / "photos"), "zip", root / "photos")
    rows = [f"{number}.jpg,A picture of a thing.\n{number}.jpg,There is a thing\n" for number in range(19, 39)]
    (root / "captions.csv").write_text("image,caption\n" + "".join(rows))
    pairs = {"images": [{"id": 1, "file_name": "19.jpg"}]}
    pairs["annotations"] = [{"id": 1, "image_id": 1, "caption": "A picture of a red ball."}]
    (root / "photos/pairs.json").write_text(json.dumps(pairs))  # of datasets/pair_sentences.py
    (root / "rules.txt").write_text("ride VBZ rides\nhorse NNS horses\n")


def _models(root: Path) -> None:
    """Models from pixels and from a feature file, the bundled one where attention is needed, one of DeepCaption."""
    train = ["train.py", "--dataset", "coco:train2014", "--validate", "coco:val2014", "--vocab", "vocab.json", "--cpu"]
    train += [*SMALL, "--num_epochs", "1", "--num_workers", "0", "--batch_size", "20"]
    _run(*train, "--features", "efficientnet_lite0", "--model_name", "mymodel")
    _run(*train, "--features", "resnet.lmdb", "--model_name", "a")
    names = {"mymodel": ("mymodel/ep5", "lemmas/best"), "a": ("a/ep8", "a/ep9", "a/ep10", "b/best", "m/ep1", "m/ep2")}
    for made, copies in names.items():
        for name in copies:
            target = root / f"models/{name}.model"
            target.parent.mkdir(exist_ok=True)
            shutil.copy(root / f"models/{made}/best.model", target)
    shutil.copy(root / "models/a/train_stats.json", root / "models/b")
    (root / "models/attentive").mkdir()
    for name in ("attentive/best", "photos"):
        shutil.copy(ROOT / "models/photos.model", root / f"models/{name}.model")
    (root / "old").mkdir()
    save(OldModel(features=(["resnet.lmdb"], [])).contents, root / "old/ep4.model")
    shutil.copy(root / "vocab.pkl", root / "old/vocab.pkl")

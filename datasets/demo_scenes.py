#!/usr/bin/env python3
"""Make the pictures and captions of `make demo`, and check the captions that its model writes.

    python datasets/demo_scenes.py make demo/data
    python datasets/demo_scenes.py check demo/results.json demo/data

`make` imagines scenes (one to four objects of a kind and colour in a place, often beside another object), draws each
and describes it in sentences of a small grammar. It writes

    images/{train,val,test}/000001.jpg ...    the pictures
    captions_{train,val,test}.json            five sentences each, in COCO's format
    datasets.conf                             demo:train, demo:val, demo:test; their image_dir is resized/SPLIT
    scenes.json                               what each picture shows, and a sixth sentence

`check` compares captions of the test pictures (a COCO results list) with the scenes. It prints their CIDEr, that of the
sixth sentences, and how many captions name the main object, its colour and more. Status 1: below the targets.
"""

import os
import re
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the toolkit's folder
from captioning.command_line import Parser
from captioning.cores import core_count
from captioning.errors import UserError, run
from captioning.files import atomic_write, expect, member, read_json
from captioning.signals import serve

SPLITS = ("train", "val", "test")


def parse_args(argv=None):
    words = sys.argv[1:] if argv is None else list(argv)
    commands = {"make": parse_make, "check": parse_check}
    if words and words[0] in commands:
        args = commands[words[0]](words[1:])
        args.command = words[0]
        return args
    parser = Parser(__doc__, usage="%(prog)s {make,check} ...")
    parser.add_argument("command", choices=tuple(commands), help="make the pictures, or check captions of them")
    return parser.parse_args(words)


def parse_make(words: list[str]):
    parser = Parser("Write pictures, captions, datasets.conf and scenes.json.", prog="demo_scenes.py make")
    add = parser.add_argument
    add("folder", metavar="FOLDER", help="where to write; made if need be")
    for split, number in zip(SPLITS, (720, 80, 100)):
        add(f"--{split}", default=number, metavar="N", help=f"pictures in demo:{split}")
    add("--seed", default=42, help="same seed, same set")
    add("--num_workers", type=int, metavar="N", help="processes (default: all cores)")
    args = parser.parse_args(words)
    parser.at_least(1, args, *SPLITS, "num_workers")
    parser.at_least(0, args, "seed")
    args.num_workers = args.num_workers or core_count()
    return args


def parse_check(words: list[str]):
    parser = Parser("Judge captions of the test pictures; status 1 below the targets.", prog="demo_scenes.py check")
    add = parser.add_argument
    add("results", metavar="RESULTS.json", help='[{"image_id": ..., "caption": ...}, ...]')
    add("folder", metavar="FOLDER", help="the folder that `make` wrote")
    add("--cider_target", default=0.6, metavar="X", help="share of the sixth sentences' CIDEr")
    add("--object_target", default=0.8, metavar="X", help="share with object and colour right")
    return parser.parse_args(words)


if __name__ == "__main__":
    ARGS = parse_args()  # before the heavy imports, so that --help and mistakes answer at once

import json  # noqa: E402

import numpy as np  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parent))
from demo_objects import COLORS  # noqa: E402
from demo_pictures import render  # noqa: E402

# Of several words for one thing the first is the usual one. Singular and plural.
NOUNS = {
    "ball": [("ball", "balls")],
    "box": [("box", "boxes"), ("crate", "crates")],
    "car": [("car", "cars")],
    "house": [("house", "houses"), ("cottage", "cottages")],
    "boat": [("boat", "boats"), ("sailboat", "sailboats")],
    "cup": [("cup", "cups"), ("mug", "mugs")],
    "umbrella": [("umbrella", "umbrellas"), ("parasol", "parasols")],
    "chair": [("chair", "chairs")],
    "flower": [("flower", "flowers")],
    "balloon": [("balloon", "balloons")],
    "lamp": [("lamp", "lamps")],
    "duck": [("duck", "ducks")],
}
PAINTABLE = {"box", "car", "house", "boat", "chair"}
PLACES = {  # what is found there, colours that would vanish there, how the place is called
    "grass": (
        "ball box car house umbrella chair flower balloon duck cup",
        "green",
        ("on the grass", "on a lawn", "in a grassy field"),
    ),
    "beach": (
        "ball box boat house umbrella chair balloon car duck",
        "",
        ("on the beach", "on the sand", "on a sandy beach"),
    ),
    "snow": ("ball box car house chair umbrella duck balloon", "white", ("in the snow", "on the snow")),
    "road": ("car ball box umbrella chair balloon house", "black", ("on the road", "on the street", "on a paved road")),
    "table": (
        "cup flower lamp ball box duck cup flower lamp",
        "orange",
        ("on a wooden table", "on the table", "on a table"),
    ),
    "floor": (
        "chair lamp ball box umbrella balloon flower cup lamp",
        "",
        ("on a tiled floor", "on the floor", "on the tiles"),
    ),
    "lake": ("boat duck ball boat duck", "blue", ("on the water", "on a lake", "in the water")),
}
WEATHER = {
    "sunny": ("on a sunny day", "under a blue sky"),
    "cloudy": ("on a cloudy day", "under a gray sky"),
    "sunset": ("at sunset", "in the evening light"),
}
SIZES = {"big": ("big", "large"), "small": ("small", "little")}
NUMBERS = {1: ("a",), 2: ("two", "two", "a pair of"), 3: ("three",), 4: ("four",)}
RELATIONS = {  # main object first; then how the other object is added after "with"
    "left": (("to the left of", "on the left of"), ("on the right", "to the right")),
    "right": (("to the right of", "on the right of"), ("on the left", "to the left")),
    "front": (("in front of",), ("behind {it}", "in the back")),
    "behind": (("behind",), ("in front of {it}", "in front")),
}
BESIDE = ("next to", "beside", "near")
SHAPES = ((320, 240), (360, 240), (320, 240), (300, 300), (240, 320))  # width, height in pixels


# Imagining


def pick(rng, options, usual: float = 0.0):
    """One of `options` at random; `usual` is added to the probability of the first."""
    return options[0] if rng.random() < usual else options[int(rng.integers(len(options)))]


def imagine(seed: int, index: int) -> dict:
    """Scene number `index` in plain types. Objects take turns, so that all are equally frequent."""
    rng = np.random.default_rng((seed, index, 0))
    names = list(NOUNS)
    name = names[(index + index // len(names)) % len(names)]
    place = pick(rng, [place for place, (found, _, _) in PLACES.items() for other in found.split() if other == name])
    found, unseen, _ = PLACES[place]
    colors = [color for color in COLORS if color != unseen]
    color = pick(rng, colors)
    count = int(rng.choice([1, 2, 3, 4], p=[0.64, 0.18, 0.1, 0.08]))
    second = None
    if rng.random() < (0.6 if count == 1 else 0.25):
        second = {
            "object": pick(rng, [other for other in sorted(set(found.split())) if other != name]),
            "color": pick(rng, [other for other in colors if other != color]),
            "relation": pick(rng, list(RELATIONS)) if count == 1 else pick(rng, ["left", "right"]),
        }
    indoors = place in ("table", "floor")
    backdrop = "open"
    if indoors:
        backdrop = pick(rng, ["room", "wall"], usual=0.4)
    elif place == "road":
        backdrop = pick(rng, ["open", "wall"])
    width, height = pick(rng, SHAPES[: (5, 4, 2, 2)[count - 1]])  # a row needs a wide picture
    return {
        "object": name,
        "color": color,
        "count": count,
        "size": pick(rng, ["big", "small", None]) if count == 1 else None,
        "place": place,
        "weather": None if indoors else pick(rng, list(WEATHER)),
        "backdrop": backdrop,
        "second": second,
        "width": width,
        "height": height,
    }


# Describing


def phrase(rng, name: str, color: str, count: int = 1, size: str | None = None) -> str:
    """A noun phrase with its article or number: "a big red ball", "two cars painted blue"."""
    noun = pick(rng, NOUNS[name], usual=0.6)[count > 1]
    adjectives = [pick(rng, SIZES[size])] if size and rng.random() < 0.5 else []
    if name in PAINTABLE and rng.random() < 0.06:
        words = [*adjectives, noun, "painted", color]
    else:
        words = [*adjectives, color, noun]
    number = pick(rng, NUMBERS[count])
    if number == "a" and words[0][0] in "aeiou":
        number = "an"
    return " ".join([number, *words])


def relate(rng, relation: str) -> str:
    """The preposition from the main object to the other."""
    if relation in ("left", "right") and rng.random() < 0.4:
        return pick(rng, BESIDE)
    return pick(rng, RELATIONS[relation][0])


def describe(scene: dict, rng) -> str:
    """One sentence about `scene`: always its main object with its colour, the rest by chance."""
    main = phrase(rng, scene["object"], scene["color"], scene["count"], scene["size"])
    several, second = scene["count"] > 1, scene["second"]
    be = "are" if several else "is"
    where = pick(rng, PLACES[scene["place"]][2], usual=0.3)
    if scene["backdrop"] == "wall" and rng.random() < 0.3:
        where += " by a brick wall"
    elif scene["weather"] and scene["backdrop"] == "open" and rng.random() < 0.22:
        where += " " + pick(rng, WEATHER[scene["weather"]])
    floats = scene["place"] == "lake"
    verb = pick(
        rng, ["float", "float", "be"] if floats else ["be", "be", "stand" if scene["object"] != "ball" else "lie"]
    )
    verb = be if verb == "be" else verb + ("" if several else "s")
    if second and rng.random() < 0.82:
        other = phrase(rng, second["object"], second["color"])
        between = relate(rng, second["relation"])
        aside = pick(rng, RELATIONS[second["relation"]][1]).format(it="them" if several else "it")
        sentences = [
            f"{main} {between} {other} {where}",
            f"{main} {between} {other} {where}",
            f"{main} {verb} {between} {other} {where}",
            f"{main} {between} {other}",
            f"{where}, {main} {verb} {between} {other}",
            f"{main} and {other} {where}",
            f"{main} {where} with {other} {aside}",
            f"there {be} {main} {between} {other} {where}",
        ]
    else:
        sentences = [
            f"{main} {where}",
            f"{main} {where}",
            f"{main} {verb} {where}",
            f"there {be} {main} {where}",
            f"{where} there {be} {main}",
            f"a photo of {main} {where}",
        ]
    sentence = pick(rng, sentences)
    return sentence[0].upper() + sentence[1:] + "."


def sentences_of(scene: dict, seed: int, index: int) -> tuple[list[str], str]:
    """Five different captions, and a sixth that is drawn in the same way and may repeat one."""
    rng = np.random.default_rng((seed, index, 1))
    sixth, captions = describe(scene, rng), []
    while len(captions) < 5:
        sentence = describe(scene, rng)
        if sentence not in captions:
            captions.append(sentence)
    return captions, sixth


# Making


def make_picture(task: tuple, folder: str, seed: int) -> None:
    """Draw one scene and save it as JPEG."""
    index, scene = task
    picture = render(scene, np.random.default_rng((seed, index, 2)))
    picture.save(Path(folder) / "images" / scene["split"] / scene["file_name"], quality=90)


def clear(folder: Path, scenes: list[dict]) -> None:
    """Make the folders, and remove the pictures that an earlier set left there."""
    try:
        (folder / "scenes.json").unlink(missing_ok=True)  # written again last: where it is, the set is whole
        for split in SPLITS:
            images = folder / "images" / split
            images.mkdir(parents=True, exist_ok=True)
            kept = {scene["file_name"] for scene in scenes if scene["split"] == split}
            for path in images.glob("[0-9][0-9][0-9][0-9][0-9][0-9].jpg"):
                if path.name not in kept:
                    path.unlink()
    except OSError as error:
        raise UserError(f"cannot write into {folder}: {error.strerror or error}; name another folder") from error


def make(args) -> None:
    """Write the set into args.folder."""
    folder = Path(args.folder)
    scenes, files = [], {split: {"images": [], "annotations": []} for split in SPLITS}
    splits = [split for split in SPLITS for _ in range(getattr(args, split))]
    for index, split in enumerate(splits):
        name = f"{index + 1:06d}.jpg"
        scene = {"image_id": index + 1, "file_name": name, "split": split, **imagine(args.seed, index)}
        captions, scene["sentence"] = sentences_of(scene, args.seed, index)
        scenes.append(scene)
        content = files[split]
        content["images"].append(
            {"id": index + 1, "file_name": name, "width": scene["width"], "height": scene["height"]}
        )
        for number, caption in enumerate(captions):
            annotation = {"id": 5 * index + number + 1, "image_id": index + 1, "caption": caption}
            content["annotations"].append(annotation)
    clear(folder, scenes)
    draw = partial(make_picture, folder=str(folder), seed=args.seed)
    if args.num_workers == 1:
        for task in enumerate(scenes):
            draw(task)
    else:
        with ProcessPoolExecutor(args.num_workers, initializer=serve, initargs=(os.getpid(),)) as pool:
            list(pool.map(draw, enumerate(scenes), chunksize=8))
    for split in SPLITS:
        with atomic_write(folder / f"captions_{split}.json") as file:
            json.dump(files[split], file)
    with atomic_write(folder / "datasets.conf") as file:
        file.write(configuration())
    with atomic_write(folder / "scenes.json") as file:
        json.dump(scenes, file, indent=1)
    numbers = ", ".join(f"{getattr(args, split)} {split}" for split in SPLITS)
    print(
        f"{len(scenes)} pictures ({numbers}) with 5 captions each in {folder}; configuration {folder / 'datasets.conf'}"
    )


def configuration() -> str:
    lines = ["[demo]", "dataset_class = CocoDataset", "root_dir = %(here)s", "features_path = features"]
    for split in SPLITS:
        lines += ["", f"[demo:{split}]", f"image_dir = resized/{split}", f"caption_path = captions_{split}.json"]
    return "\n".join(lines) + "\n"


# Judging


def names(sentence: str, name: str, color: str | None = None) -> bool:
    """Whether `sentence` names the object, in one of its words; with `color`, as being of that colour."""
    nouns = "|".join(word for pair in NOUNS[name] for word in pair)
    pattern = rf"\b(?:{nouns})\b"
    if color:
        pattern = rf"\b{color} (?:{nouns})\b|\b(?:{nouns}) painted {color}\b"
    return re.search(pattern, sentence.lower()) is not None


def right_number(sentence: str, scene: dict) -> bool:
    """Whether the main object has the right number: singular, or plural with the right numeral."""
    plural = "|".join(words[1] for words in NOUNS[scene["object"]])
    has_plural = re.search(rf"\b(?:{plural})\b", sentence.lower()) is not None
    if scene["count"] == 1:
        return not has_plural and names(sentence, scene["object"])
    numerals = "|".join(NUMBERS[scene["count"]])
    return has_plural and re.search(rf"\b(?:{numerals})\b", sentence.lower()) is not None


def right_place(sentence: str, scene: dict) -> bool:
    return any(where in sentence.lower() for where in PLACES[scene["place"]][2])


def shares(sentences: dict[str, str], scenes: dict[str, dict]) -> dict[str, float]:
    """The share of sentences, by image id, that are right in each respect, of those that it applies to."""
    counted = {}
    for key, scene in scenes.items():
        sentence, second = sentences[key], scene["second"]
        answers = {
            "object": names(sentence, scene["object"]),
            "object and colour": names(sentence, scene["object"], scene["color"]),
            "number": right_number(sentence, scene),
            "place": right_place(sentence, scene),
        }
        if second:
            answers["second object and colour"] = names(sentence, second["object"], second["color"])
        for question, answer in answers.items():
            counted.setdefault(question, []).append(answer)
    return {question: sum(answers) / len(answers) for question, answers in counted.items()}


def read_set(folder: str) -> tuple[dict[str, dict], dict[str, list[str]]]:
    """The test scenes and their captions, by image id as text."""
    path = Path(folder) / "scenes.json"
    scenes = {}
    for number, scene in enumerate(expect(read_json(path, "scenes"), list, path)):
        if member(scene, "split", str, path, f"[{number}]") == "test":
            check_scene(scene, path, f"[{number}]")
            scenes[str(scene["image_id"])] = scene
    path = Path(folder) / "captions_test.json"
    references = {key: [] for key in scenes}
    for number, entry in enumerate(member(read_json(path, "captions"), "annotations", list, path)):
        place = f"annotations[{number}]"
        key = str(member(entry, "image_id", (int, str), path, place))
        if key not in references:
            raise UserError(f"{path}: {place}: image {key} is not in scenes.json; make the set again")
        references[key].append(member(entry, "caption", str, path, place))
    return scenes, references


def check_scene(scene: dict, path: Path, place: str) -> None:
    """Raises UserError where a scene of the file `path` is none that `make` wrote."""
    member(scene, "image_id", int, path, place)
    member(scene, "sentence", str, path, place)
    parts = {place: scene}
    if member(scene, "second", (dict, type(None)), path, place):
        parts[f"{place}.second"] = scene["second"]
    for where, part in parts.items():
        known = {"object": NOUNS, "color": COLORS} | ({"count": NUMBERS, "place": PLACES} if part is scene else {})
        for name, values in known.items():
            if member(part, name, (str, int), path, where) not in values:
                raise UserError(f"{path}: {where}.{name} {part[name]!r:.60} is unknown; make the set again")


def read_results(path: str, wanted: list[str]) -> dict[str, str]:
    """The captions of the results file by image id. Raises UserError where one of `wanted` has none."""
    captions = {}
    for number, entry in enumerate(expect(read_json(path, "results"), list, path)):
        key = str(member(entry, "image_id", (int, str), path, f"[{number}]"))
        captions[key] = member(entry, "caption", str, path, f"[{number}]")
    missing = [key for key in wanted if key not in captions]
    if missing:
        raise UserError(
            f"{path} lacks captions of {len(missing)} of the {len(wanted)} test pictures (image_id {missing[0]}, ...): "
            "run infer.py with --dataset demo:test"
        )
    return {key: captions[key] for key in wanted}


def check(args) -> int:
    """Print how good the captions are; 1 where they miss a target."""
    from captioning.scoring.metrics import score_captions

    scenes, references = read_set(args.folder)
    captions = read_results(args.results, list(scenes))
    sixth = {key: scene["sentence"] for key, scene in scenes.items()}
    cider, sixth_cider = (
        score_captions(sentences, references, metrics=("cider",), tokenizer="python").values["cider"]
        for sentences in (captions, sixth)
    )
    print(f"{len(scenes)} test pictures                captions  sixth sentence")
    print(f"  {'CIDEr':<34}{cider:8.3f}{sixth_cider:16.3f}")
    right, sixth_right = shares(captions, scenes), shares(sixth, scenes)
    for question, share in right.items():
        print(f"  {question + ' right':<34}{share:8.0%}{sixth_right[question]:16.0%}")
    passed = True
    for what, value, target in (
        ("CIDEr of the captions to that of the sixth sentences", cider / sixth_cider, args.cider_target),
        ("object and colour right", right["object and colour"], args.object_target),
    ):
        verdict = "reached" if value >= target else "MISSED"
        passed = passed and value >= target
        print(f"{what}: {value:.0%}, target {target:.0%} {verdict}")
    return 0 if passed else 1


def main(args) -> int | None:
    return make(args) if args.command == "make" else check(args)


if __name__ == "__main__":
    sys.exit(run(main, ARGS))

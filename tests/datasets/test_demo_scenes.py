"""The demo's scenes: the same seed gives the same set, captions tell the truth, and `check` counts what is right."""

import configparser
import json
import sys
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from running import ROOT, run_here

sys.path.insert(0, str(ROOT / "datasets"))
import demo_objects  # noqa: E402
import demo_pictures  # noqa: E402
import demo_scenes  # noqa: E402

SMALL = ("--train", 4, "--val", 2, "--test", 12, "--num_workers", 1)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "data"
    result = run_here("demo_scenes.py", "make", folder, *SMALL)
    assert result.status == 0, result.err
    assert result.out.startswith("18 pictures (4 train, 2 val, 12 test)") and result.out.count("\n") == 1
    return folder


def results_file(captions: dict, path):
    path.write_text(json.dumps([{"image_id": key, "caption": caption} for key, caption in captions.items()]))
    return path


def held_out(folder):
    return [scene for scene in json.loads((folder / "scenes.json").read_text()) if scene["split"] == "test"]


def test_the_set_is_in_coco_format_and_whole(made):
    for split, number in (("train", 4), ("val", 2), ("test", 12)):
        content = json.loads((made / f"captions_{split}.json").read_text())
        assert len(content["images"]) == number
        per_image = Counter(annotation["image_id"] for annotation in content["annotations"])
        assert per_image == {image["id"]: 5 for image in content["images"]}
        for image in content["images"]:
            with Image.open(made / "images" / split / image["file_name"]) as picture:
                assert picture.size == (image["width"], image["height"]) and picture.mode == "RGB"
    numbers = [annotation["id"] for annotation in content["annotations"]]
    assert len(set(numbers)) == len(numbers)


def test_the_configuration_names_what_was_written(made):
    config = configparser.ConfigParser(defaults={"here": str(made)})
    config.read(made / "datasets.conf")
    assert config["demo"]["root_dir"] == str(made)
    assert (made / config["demo:test"]["caption_path"]).is_file()
    assert config["demo:train"]["image_dir"] == "resized/train"


def test_same_seed_same_set_and_workers_do_not_matter(made, tmp_path):
    assert run_here("demo_scenes.py", "make", tmp_path / "a", *SMALL[:-1], 2).status == 0
    files = sorted(path.relative_to(made) for path in made.rglob("*") if path.is_file())
    assert len(files) == 18 + 5
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (made / name).read_bytes(), name
    (tmp_path / "b" / "images" / "val").mkdir(parents=True)
    for name in ("000999.jpg", "mine.jpg"):
        (tmp_path / "b" / "images" / "val" / name).write_bytes(b"")
    run_here("demo_scenes.py", "make", tmp_path / "b", *SMALL, "--seed", 7)
    left = {path.name for path in (tmp_path / "b" / "images" / "val").iterdir()}
    assert left == {"000005.jpg", "000006.jpg", "mine.jpg"}  # an older set's picture is gone, a stranger's is not
    assert (tmp_path / "b" / "scenes.json").read_bytes() != (made / "scenes.json").read_bytes()


def test_every_sentence_is_true_of_its_scene():
    for index in range(300):
        scene = demo_scenes.imagine(3, index)
        captions, sixth = demo_scenes.sentences_of(scene, 3, index)
        assert len(set(captions)) == 5
        for sentence in [*captions, sixth]:
            assert sentence[0].isupper() and sentence.endswith(".")
            assert demo_scenes.names(sentence, scene["object"], scene["color"]), (sentence, scene)
            assert demo_scenes.right_number(sentence, scene), (sentence, scene)
            assert " a orange" not in sentence.lower() and "{" not in sentence
            words = set(sentence.lower().strip(".").replace(",", "").split())
            allowed = {scene["color"], scene["second"] and scene["second"]["color"]}
            if "gray sky" not in sentence and "blue sky" not in sentence:
                assert words & set(demo_scenes.COLORS) <= allowed, (sentence, scene)
            relation = scene["second"] and scene["second"]["relation"]
            for side in ("left", "right"):
                if f"to the {side} of" in sentence:
                    assert relation == side
            if " behind a" in sentence:
                assert relation == "behind"


def test_objects_and_colours_are_met_about_equally_often():
    scenes = [demo_scenes.imagine(42, index) for index in range(720)]
    objects, colors = Counter(s["object"] for s in scenes), Counter(s["color"] for s in scenes)
    assert set(objects) == set(demo_objects.MODELS) and len(set(objects.values())) == 1
    assert set(colors) == set(demo_objects.COLORS) and min(colors.values()) > 60
    assert {s["count"] for s in scenes} == {1, 2, 3, 4}
    for scene in scenes:
        if scene["second"]:
            assert scene["second"]["object"] != scene["object"] and scene["second"]["color"] != scene["color"]


@pytest.mark.parametrize("name", list(demo_objects.MODELS))
def test_an_object_has_its_colour(name):
    """Most saturated pixels of a red object are red, and its silhouette fills a fair part of its box."""
    relief = demo_objects.Relief(160, 160, False)
    demo_objects.MODELS[name][1](relief, (205, 28, 32))
    pixels = np.asarray(relief.lit((0.5, -0.6), np.random.default_rng(0)), np.float32)
    inside = pixels[..., 3] > 128
    red = inside & (pixels[..., 0] > 1.5 * pixels[..., 1]) & (pixels[..., 0] > 1.5 * pixels[..., 2])
    assert inside.mean() > 0.2
    assert red.sum() / inside.sum() > 0.45


def test_what_is_left_is_left_and_all_is_inside_the_picture():
    for index in range(300):
        scene = demo_scenes.imagine(5, index)
        width, height = scene["width"], scene["height"]
        things = demo_pictures.arrange(scene, width, height, np.random.default_rng(index))
        mains = [thing for thing in things if thing["object"] == scene["object"]]
        assert len(mains) == scene["count"]
        for thing in things:
            half = thing["height"] * demo_objects.MODELS[thing["object"]][0] / 2
            assert thing["x"] - half > 0 and thing["x"] + half < width
            assert thing["base"] - thing["height"] > 0 and thing["base"] < height
        if scene["second"]:
            (other,) = [thing for thing in things if thing["object"] == scene["second"]["object"]]
            relation = scene["second"]["relation"]
            if relation in ("left", "right"):
                assert all((main["x"] < other["x"]) == (relation == "left") for main in mains)
            else:
                assert all((main["base"] > other["base"]) == (relation == "front") for main in mains)
            assert all(main["height"] > other["height"] * 0.5 for main in mains)


@pytest.mark.parametrize(
    ("sentence", "right"),
    [
        ("A big red car on the grass.", True),
        ("two cars painted red", True),
        ("a red box next to a blue car", False),
        ("a car and a red ball", False),
        ("a reddish card", False),
        ("RED CARS", True),
    ],
)
def test_names_wants_the_colour_at_its_object(sentence, right):
    assert demo_scenes.names(sentence, "car", "red") is right


def test_check_accepts_a_reference_and_refuses_nonsense(made, tmp_path):
    scenes = held_out(made)
    captions = json.loads((made / "captions_test.json").read_text())["annotations"]
    first = {annotation["image_id"]: annotation["caption"] for annotation in reversed(captions)}
    good = results_file(first, tmp_path / "good.json")
    result = run_here("demo_scenes.py", "check", good, made)
    assert result.status == 0, result.err
    assert "object and colour right: 100%, target 80% reached" in result.out
    other = {scene["image_id"]: "A dog." for scene in scenes}
    result = run_here("demo_scenes.py", "check", results_file(other, tmp_path / "bad.json"), made)
    assert result.status == 1 and result.out.count("MISSED") == 2
    assert "object and colour right: 0%" in result.out


def test_check_counts_shares(made, tmp_path):
    scenes = held_out(made)
    answers = {scene["image_id"]: "nothing" for scene in scenes}
    for scene in scenes[:9]:
        answers[scene["image_id"]] = f"a {scene['color']} {demo_scenes.NOUNS[scene['object']][0][0]}"
    path = results_file(answers, tmp_path / "results.json")
    result = run_here("demo_scenes.py", "check", path, made, "--cider_target", 0)
    assert result.status == 1
    assert "object and colour right: 75%, target 80% MISSED" in result.out
    assert run_here("demo_scenes.py", "check", path, made, "--cider_target", 0, "--object_target", 0.7).status == 0


def test_mistakes_are_one_line(made, tmp_path):
    short = results_file({7: "a car"}, tmp_path / "short.json")
    odd = tmp_path / "odd.json"
    odd.write_text('{"caption": "a car"}')
    blocked = tmp_path / "file"
    blocked.write_text("")
    for arguments, words in (
        (("check", short, made), ("lacks captions of 11 of the 12", "demo:test")),
        (("check", odd, made), ("odd.json is an object, not a list",)),
        (("check", tmp_path / "none.json", made), ("none.json",)),
        (("check", short, tmp_path), ("scenes.json",)),
        (("make", blocked, *SMALL), ("cannot write into", "file")),
    ):
        result = run_here("demo_scenes.py", *arguments)
        assert result.status == 2 and result.err.count("\n") == 1, result.err
        assert all(word in result.err for word in words), result.err
    for arguments, words in (
        (("make", tmp_path / "c", "--train", 0), "--train 0: must be at least 1"),
        (("make", tmp_path / "c", "--trian", 9), "demo_scenes.py make: error: unknown flag --trian; did you mean --tr"),
        (("make", "--seed", "x", tmp_path / "c"), "--seed"),
        (("check", short), "FOLDER"),
        ((), "command"),
        (("draw",), "'draw'"),
    ):
        result = run_here("demo_scenes.py", *arguments)
        assert (result.status, result.err.count("\n")) == (2, 1) and words in result.err, result.err
    for arguments in (("--help",), ("make", "--help"), ("check", "--help")):
        assert run_here("demo_scenes.py", *arguments).status == 0

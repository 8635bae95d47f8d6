"""datasets/pair_sentences.py: sentences of other photos for photos without captions, by a captioner's likelihood."""

import json
import subprocess
import sys

import pytest
from PIL import Image
from running import ROOT
from toy_captioner import WORDS, picture, save_photo_captioner

from captioning.batches.inputs import plan_inputs
from captioning.datasets.factory import open_dataset
from captioning.datasets.folder import GenericDataset
from data_loader import LoaderSettings, get_eval_loader
from inference.pairing import FEWEST, LEAST, SIMILARITY, Pair, Sentences, as_coco, pair_photos
from model import Caption, load_captioner
from vocabulary import Vocabulary

THINGS = [(a, b, c) for a in ("red", "blue", "green") for b in ("ball", "dog") for c in ("red", "blue")]
LINES = [f"the {a} {b} is on the {c} box" for a, b, c in THINGS]
LINES += ["the man runs under the red dog", "a dog", "the zebra is on the red box", LINES[0], f"{LINES[1]} ,", ""]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("pairs")
    save_photo_captioner(root / "photo.model")
    (root / "photos").mkdir()
    for number in range(6):
        picture(number).save(root / "photos" / f"{number}.png")
    (root / "sentences.txt").write_text("\n".join(LINES))
    return root


def pair(*arguments, root):
    command = [sys.executable, ROOT / "datasets" / "pair_sentences.py", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=root)


def flags(root, output):
    named = ["--model", root / "photo.model", "--image_dir", root / "photos", "--sentences", root / "sentences.txt"]
    return [*named, "--output", output, "--num_workers", 0, "--cpu"]


def test_sentences_that_can_be_used():
    found = Sentences(LINES, Vocabulary(WORDS))
    assert found.texts == LINES[:13]
    assert all(len(ids) >= FEWEST for ids in found.ids)


def test_scores_are_those_of_the_captioner(world):
    """Each pair's log-probability is the mean of what Captioner.explain gives for the sentence alone."""
    captioner = load_captioner(world / "photo.model")
    dataset = GenericDataset(image_dir=world / "photos")
    settings = LoaderSettings(4, num_workers=0)
    inputs = plan_inputs(captioner.config, dataset)
    loader = get_eval_loader(dataset, inputs, settings, transform=captioner.transform)
    sentences = Sentences(LINES, captioner.vocabulary)
    found = dict(pair_photos(captioner, loader, sentences, per_image=99))
    assert list(found) == [item.image_id for item in dataset.items] and any(found.values())
    for image_id, pairs in found.items():
        pixels = captioner.transform(Image.open(world / "photos" / image_id).convert("RGB"))[None]
        memory = captioner.encode(pixels, [None])
        for one in pairs:
            caption = Caption(one.sentence, captioner.vocabulary.encode(one.sentence), 0.0, 0)
            ((_, log_probs),) = captioner.explain(memory, [caption])
            assert one.log_prob == pytest.approx(float(log_probs.mean()), abs=1e-4)
            assert one.score == one.log_prob + SIMILARITY * one.similarity
        assert [one.score for one in pairs] == sorted((one.score for one in pairs), reverse=True)
        assert all(one.log_prob > LEAST for one in pairs[1:])


def test_the_best_share_is_kept():
    pairs = {key: [Pair(f"sentence {key}", -float(number), 0.5)] for number, key in enumerate("dcba")} | {"e": []}
    contents = as_coco({key: f"{key}.jpg" for key in "abcde"}, pairs, 0.4)
    assert [image["file_name"] for image in contents["images"]] == ["d.jpg", "c.jpg"]
    assert [one["caption"] for one in contents["annotations"]] == ["sentence d", "sentence c"]
    assert len(as_coco({key: key for key in "abcde"}, pairs, 1.0)["images"]) == 4


def test_the_file_is_a_dataset(world, tmp_path):
    done = pair(*flags(world, tmp_path / "pairs.json"), "--share", 1, root=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "13 of 17 sentences can be used" in done.stdout
    config = tmp_path / "datasets.conf"
    config.write_text(
        f"[p]\ndataset_class = CocoDataset\nimage_dir = {world}/photos\ncaption_path = {tmp_path}/pairs.json\n"
    )
    items = open_dataset("p", str(config)).items
    assert items and all(set(item.captions) <= set(LINES) and 1 <= len(item.captions) <= 3 for item in items)
    assert f"{len(items)} photos, {sum(len(item.captions) for item in items)} captions" in done.stdout
    again = pair(*flags(world, tmp_path / "pairs.json"), root=tmp_path)
    assert again.returncode == 2 and "pairs.json exists" in again.stderr


def test_a_broken_photo_is_named_and_left_out(world, tmp_path):
    (tmp_path / "photos").mkdir()
    picture(1).save(tmp_path / "photos" / "good.png")
    (tmp_path / "photos" / "bad.png").write_bytes(b"no picture")
    more = ["--image_dir", tmp_path / "photos", "--share", 1]
    done = pair(*flags(world, tmp_path / "pairs.json"), *more, root=tmp_path)
    assert done.returncode == 1 and "bad.png" in done.stderr, done.stderr
    names = [image["file_name"] for image in json.loads((tmp_path / "pairs.json").read_text())["images"]]
    assert set(names) <= {"good.png"}


def test_mistakes_are_one_line(world, tmp_path):
    (tmp_path / "few.txt").write_text("a dog\n")
    (tmp_path / "bland.txt").write_text("on the , on the , on the\n")
    (tmp_path / "empty").mkdir()
    for more, message in (
        (["--sentences", tmp_path / "no.txt"], "no.txt"),
        (["--sentences", tmp_path / "few.txt"], "no sentence has 7 to 16 words"),
        (["--sentences", tmp_path / "bland.txt"], "got a sentence: the model's captions share no words"),
        (["--image_dir", tmp_path / "empty"], "no images in"),
        (["--share", 0], "--share 0.0: above 0 and at most 1"),
        (["--per_image", 0], "--per_image"),
        (["--model", tmp_path / "no.model"], "no.model"),
    ):
        done = pair(*flags(world, tmp_path / "pairs.json"), *more, root=tmp_path)
        assert done.returncode == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
        assert not (tmp_path / "pairs.json").exists()

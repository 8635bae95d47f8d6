"""datasets/karpathy_split.py: split files become annotations that CocoDataset reads."""

import json
import subprocess
import sys
from pathlib import Path

from running import ROOT

from captioning.datasets.factory import open_dataset

SCRIPT = ROOT / "datasets" / "karpathy_split.py"


def convert(tmp_path, contents):
    source = tmp_path / "dataset_toy.json"
    source.write_text(contents if isinstance(contents, str) else json.dumps(contents))
    command = [sys.executable, SCRIPT, source, tmp_path / "annotations"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def image(number, split, captions, **more):
    sentences = [{"raw": text, "tokens": text.split(), "sentid": 10 * number + i} for i, text in enumerate(captions)]
    return {"filename": f"{number}.jpg", "imgid": number, "split": split, "sentences": sentences, **more}


def test_splits_are_read_by_the_dataset(tmp_path):
    images = [image(1, "train", ["a dog .", "A cat"]), image(2, "val", ["a bird"])]
    images.append(image(3, "train", ["a tree"], filepath="train2014", cocoid=777))
    done = convert(tmp_path, {"dataset": "toy", "images": images})
    assert done.returncode == 0, done.stderr
    assert "captions_train.json: 2 images, 3 captions" in done.stdout
    config = tmp_path / "datasets.conf"
    config.write_text(
        f"[toy]\ndataset_class = CocoDataset\nroot_dir = {tmp_path}\nimage_dir = .\n"
        "[toy:train]\ncaption_path = annotations/captions_train.json\n"
    )
    items = open_dataset("toy:train", str(config)).items
    assert [list(item.captions) for item in items] == [["a dog .", "A cat"], ["a tree"]]
    assert [Path(item.path).name for item in items] == ["1.jpg", "3.jpg"]
    assert Path(items[1].path).parent.name == "train2014" and items[1].image_id == 777


def test_other_files_are_one_line_errors(tmp_path):
    for contents, words in (
        ({"annotations": []}, "has no 'images'"),
        ({"images": [{"split": "x"}]}, "images[0] has no 'imgid'"),
        ({"images": [image(1, "../../x", ["a"])]}, "images[0].split '../../x' is no name of a split"),
        ({"images": [image(1, "x", ["a"], filepath="/etc")]}, "is no name of an image within a folder"),
        ({"images": [image(1, "x", ["a"], filepath="a/../..")]}, "is no name of an image within a folder"),
        (
            {"images": [{**image(1, "x", []), "sentences": [{"raw": 7, "sentid": 1}]}]},
            "images[0].sentences[0].raw is a number, not a text",
        ),
    ):
        done = convert(tmp_path, contents)
        assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1


def test_mistakes_on_the_command_line_are_one_line(tmp_path):
    for arguments, words in ((["--outputdir", "x"], "unknown flag --outputdir"), (["a.json"], "output_dir")):
        done = subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1) and words in done.stderr

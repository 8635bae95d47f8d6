"""JSON files: whatever stands in any place of one, its reader takes it or says in one line what is wrong."""

import json
import math
import sys

import numpy as np
import pytest
from odd_json import odd_texts
from running import ROOT

from captioning import checkpoint
from captioning.datasets.factory import open_dataset
from captioning.datasets.references import read_references
from captioning.errors import UserError
from captioning.features.factory import open_features
from captioning.features.partial import PartialFolder
from captioning.features.writer import FeatureWriter
from captioning.files import expect, member, read_json
from captioning.scoring.document_frequencies import CachedWords, count_documents
from inference import caption_files
from inference.results import reading
from training.curves import histories
from training.curves.runs import Run, chosen_scores, described
from training.run_folder import RunFolder, read_stats
from vocabulary import Vocabulary, build_vocabulary

sys.path.insert(0, str(ROOT / "datasets"))
import demo_scenes
import karpathy_split

EPOCHS = {"1": {"training_loss": 3.5, "validation_cider": None}, "2": {"training_loss": 3.0, "validation_cider": 0.5}}
RESULTS = [{"image_id": 1, "caption": "A dog."}, {"image_id": "b", "caption": "A cat."}]
TRUTH = {"annotations": RESULTS, "images": [{"id": 1}]}
CAPTION = {"caption": "A.", "log_prob": -1.0, "words": [[["a", 0.5], ["b", 0.25]], ["<end>"]]}
LINE = {"image_id": 1, "caption": "A.", "log_prob": -1.0, "n_best": [CAPTION]}
PROVENANCE = {"extractor": "resnet18", "weights_sha256": "ab", "transform": {"size": 8, "interpolation": "bilinear"}}
SPLIT = {"images": [{"split": "val", "filename": "a.jpg", "imgid": 1, "sentences": [{"raw": "A dog.", "sentid": 2}]}]}
SCENE = {"image_id": 1, "split": "test", "object": "cat", "color": "red", "count": 1, "place": "lake", "sentence": "A."}
SCENE["second"] = {"object": "ball", "color": "blue"}


def table_of_words(tmp_path):
    count_documents([[["a", "dog"]], [["a", "cat"]]]).save(tmp_path / "words.json")
    return json.loads((tmp_path / "words.json").read_text())


def resume(path):
    checkpoint.save({"training": {"epoch": 3}}, path.with_name("last.model"))
    folder = RunFolder(path.parent, [])
    folder.prepare(resume=True, replace=False)
    folder.add_epoch(3, {"training_loss": 2.0}, write=False)
    assert folder.best_epoch() in (*folder.stats, None)


def draw(path):
    run = Run("a", 0, [histories.History("a", 0, histories.read_stats(path))])
    assert described(run, chosen_scores([run], None)) is not None


def encode(path):
    words = Vocabulary.load(path)
    assert words.sentence(words.encode("a dog")) and json.dumps(words.to_dict())


def own_captions(path):
    for split in ("", ":val", ":train"):
        assert open_dataset(f"{path}{split}").items


def judge(path):
    (path.parent / "captions_test.json").write_text(json.dumps({"annotations": [{"image_id": 1, "caption": "A cat."}]}))
    scenes, references = demo_scenes.read_set(path.parent)
    demo_scenes.shares(dict.fromkeys(scenes, "a red cat"), scenes)


def reopen(path):
    """A feature file whose metadata stands beside it."""
    np.save(path.with_name("f.npy"), np.zeros((1, 2), np.float32))
    path.replace(path.with_name("f.json"))
    return open_features(path.with_name("f.npy")).provenance


def go_on(path):
    """An interrupted extraction."""
    partial = path.with_name("g.lmdb.partial")
    partial.mkdir(exist_ok=True)
    path.replace(partial / "settings.json")
    writer = FeatureWriter(path.with_name("g.lmdb"), (2,), provenance=PROVENANCE, resume=True)
    writer.store.finish()


def put_in_place(path):
    """An extraction that was killed as it put its file in place."""
    partial = path.with_name("h.npy.partial")
    partial.mkdir(exist_ok=True)
    for name in ("keys.txt", "provenance.json", "data"):
        (partial / name).write_text("x")
    path.replace(partial / "complete.json")
    folder = PartialFolder(path.with_name("h.npy"))
    try:
        folder.place()
        assert {file.name for file in path.parent.iterdir()} <= {"h.npy", "h.keys.txt", "h.json", "h.npy.partial"}
    finally:
        folder.leave()


KINDS = {
    "train_stats.json, drawn": ("train_stats.json", EPOCHS, draw),
    "train_stats.json, resumed": ("train_stats.json", EPOCHS, resume),
    "validation figures": ("v.json", EPOCHS, lambda path: read_stats(path, "--validate_only")),
    "results": ("r.json", RESULTS, lambda path: caption_files.read_results(str(path))),
    "references": ("t.json", TRUTH, read_references),
    "Karpathy's split, as it is": ("k.json", SPLIT, own_captions),
    "COCO, as it is": ("k.json", {**TRUTH, "images": [{"id": 1, "file_name": "a.jpg", "split": "val"}]}, own_captions),
    "captions in a list": ("l.json", [{"image": "a.jpg", "caption": ["A dog."], "split": "val"}], own_captions),
    "captions in lines": ("l.jsonl", {"file_name": "a.jpg", "text": "A dog.", "image_id": 3}, own_captions),
    "captions by names": ("n.json", {"a.jpg": ["A dog.", "A cat."], "b.jpg": "A bird."}, own_captions),
    "jsonl": ("r.jsonl", LINE, lambda path: reading.read_results(path, "jsonl", words=True)),
    "vocabulary": ("v.json", build_vocabulary(["a dog", "a cat"], 1).to_dict(), encode),
    "cached words": ("w.json", table_of_words, lambda path: CachedWords.load(path).to_dict()),
    "metadata of features": ("m.json", PROVENANCE, reopen),
    "settings of an extraction": ("s.json", {"shape": [2], "dtype": "float32", "maker": PROVENANCE}, go_on),
    "a complete extraction": ("c.json", {"name": "data", "provenance": True}, put_in_place),
    "Karpathy's split": ("k.json", SPLIT, lambda path: karpathy_split.convert(read_json(path, "split file"), path)),
    "scenes of the demo": ("scenes.json", [SCENE], judge),
    "results of the demo": ("r.json", RESULTS, lambda path: demo_scenes.read_results(str(path), ["1"])),
}


@pytest.mark.parametrize("kind", KINDS)
def test_any_value_in_any_place_is_taken_or_is_one_line(kind, tmp_path):
    name, content, read = KINDS[kind]
    path = tmp_path / name
    content = content(tmp_path) if callable(content) else content
    for what, text in odd_texts(content):
        path.write_text(text)
        try:
            read(path)
        except UserError as error:
            message = str(error)
            assert "\n" not in message, (what, message)
            assert str(path.parent) in message, (what, message)
        except Exception as error:
            pytest.fail(f"{what}: {type(error).__name__}: {error}")


@pytest.mark.parametrize(
    ("value", "kinds", "told"),
    [
        (1, str, "x.json: [3].id is a number, not a text"),
        (None, (int, str), "x.json: [3].id is null, not a whole number or a text"),
        (True, (int, float), "x.json: [3].id is true or false, not a whole number or a number"),
        (1.5, int, "x.json: [3].id is 1.5, not a whole number"),
        (math.nan, float, "x.json: [3].id is nan, not a finite number"),
        (10**400, float, "x.json: [3].id is too large, not a finite number"),
        ({}, list, "x.json: [3].id is an object, not a list"),
    ],
)
def test_a_wrong_type_is_named_with_its_place(value, kinds, told):
    with pytest.raises(UserError) as error:
        member({"id": value}, "id", kinds, "x.json", "[3]")
    assert str(error.value) == told


def test_what_is_right_is_handed_on():
    assert expect(10**400, int, "x.json") == 10**400 and expect(2, float, "x.json") == 2
    with pytest.raises(UserError, match=r"^x.json has no 'id'$"):
        member({}, "id", int, "x.json")
    with pytest.raises(UserError, match=r"^x.json is a list, not an object$"):
        member([], "id", int, "x.json")

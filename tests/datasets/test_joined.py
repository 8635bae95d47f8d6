"""Joined datasets whose images have the same ids: every image counts, or the join is refused."""

import json

import pytest
from toy import file_inputs, make_coco, write_config, write_features

from captioning.config import FeatureSpec, ModelConfig
from captioning.datasets.base import image_key, shared_ids
from captioning.datasets.factory import open_dataset
from captioning.decoder.search import Search
from captioning.scoring.metrics import Scores
from data_loader import LoaderSettings, get_eval_loader
from model import Captioner, build_model
from training.validation import measuring
from vocabulary import build_vocabulary


@pytest.fixture
def twice(tmp_path):
    """toy:val, and other, with the same ids as texts and other captions."""
    make_coco(tmp_path, {"val": 5})
    write_config(tmp_path, ["val"])
    write_features(tmp_path, "pooled.npy")
    data = json.loads((tmp_path / "annotations/captions_val.json").read_text())
    for image in data["images"]:
        image["id"] = str(image["id"])
    for annotation in data["annotations"]:
        annotation["caption"] = f"something else: {annotation['caption']}"
    (tmp_path / "other.json").write_text(json.dumps(data))
    with open(tmp_path / "datasets.conf", "a") as conf:
        conf.write("[other]\ndataset_class = CocoDataset\ncaption_path = other.json\nfeatures_path = features\n")
    return tmp_path


def test_validation_scores_every_image(twice, monkeypatch):
    dataset = open_dataset("toy:val+other", str(twice / "datasets.conf"))
    assert len(shared_ids(dataset)) == 5 and len({image_key(item) for item in dataset.items}) == 10
    words = build_vocabulary(dataset.captions(), 1)
    config = ModelConfig([FeatureSpec("pooled.npy", (16,), True)], hidden_size=8, embed_size=8)
    captioner = Captioner(build_model(config, words), words)
    scored = {}

    def score(candidates, references, *args, **kwargs):
        scored.update(references)
        return Scores()

    monkeypatch.setattr(measuring, "score_captions", score)
    loader = get_eval_loader(
        dataset, file_inputs(dataset, "pooled.npy"), LoaderSettings(4, num_workers=0), vocabulary=words
    )
    measuring.Validation(("cider",), Search()).measure(captioner, loader)
    assert sorted(scored.values()) == sorted(item.captions for item in dataset.items)


def test_a_results_file_cannot_tell_them_apart(twice, script):
    common = ["--dataset_config_file", twice / "datasets.conf", "--results_path", twice / "results"]
    done = script("infer.py", "--dataset", "toy:val+other", *common)
    assert done.status == 2 and done.err.count("\n") == 1
    assert "5 image ids are in more than one of them: 1, 2, 3, ...; caption them one by one" in done.err
    assert "--store_image_paths" in done.err
    assert not (twice / "results").exists()


def test_datasets_compare_says_so(twice, script):
    done = script(
        "datasets_compare.py", "--dataset_1", "toy:val+other", "--dataset_2", "other",
        "--dataset_config_file", twice / "datasets.conf",
    )  # fmt: skip
    assert done.status == 0
    assert "toy:val+other: 5 ids stand for several images" in done.err
    assert "There are 5 images shared" in done.out

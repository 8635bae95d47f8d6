"""Files that an earlier version wrote: today's code reads them and gives the same numbers.

What they are and how they were made: data/old_version/README.md.
"""

import json
import re
import shutil
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image

from captioning.decoder.search import Search
from captioning.features.factory import open_features
from captioning.scoring.document_frequencies import CachedWords
from captioning.scoring.metrics import score_captions
from model import caption_features, load_captioner
from vocabulary import Vocabulary

FILES = Path(__file__).parent / "data" / "old_version"
EXPECTED = json.loads((FILES / "expected.json").read_text())
FEATURES = {
    name: {key: np.array(value, np.float32) for key, value in made.items()}
    for name, made in json.loads((FILES / "features.json").read_text()).items()
}
KEYS = [f"{number:03d}.jpg" for number in range(9, 13)]  # of the validation images
KINDS = [path.parent.name for path in sorted(FILES.glob("runs/*/best.model"))]


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A copy of the files as the working directory."""
    shutil.copytree(FILES, tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")
    return tmp_path / "old"


def run(script, name: str, *arguments) -> None:
    done = script(name, *arguments)
    assert done.status == 0, done.err


def in_memory(specs) -> list[np.ndarray]:
    return [np.stack([FEATURES[key][spec.name.split(".")[0]] for key in KEYS]) for spec in specs]


@pytest.mark.parametrize("beam_size", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_captions_and_their_probabilities(kind, beam_size):
    captioner, search = load_captioner(FILES / "runs" / kind / "best.model", photos=False), Search(beam_size=beam_size)
    if kind == "encoder":
        found = captioner.caption_images([Image.open(FILES / "images" / key) for key in KEYS], search)
    else:
        config = captioner.config
        found = caption_features(captioner, in_memory(config.features), in_memory(config.persist_features), search)
    expected = EXPECTED[kind]["captions"][str(beam_size)]
    assert [several[0].text for several in found] == [text for text, _ in expected]
    assert [several[0].log_prob for several in found] == pytest.approx([log_prob for _, log_prob in expected], abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_validation_loss_and_scores(script, files, kind):
    section = "toy:val_paragraphs" if kind in ("paragraphs", "coherent") else "toy:val"
    model = files / "runs" / kind / "best.model"
    common = ["--dataset_config_file", "datasets.conf", "--cpu", "--num_workers", 0]
    run(script, "train.py", "--validate_only", "--load_model", model, "--validate", section, *common)
    (stats,) = json.loads(next(model.parent.glob("train_stats-*.json")).read_text()).values()
    expected = EXPECTED[kind]["validation"]
    assert {name: stats[name] for name in expected} == pytest.approx(expected, abs=1e-5)  # figures of today may be more


def test_a_run_that_was_killed_within_an_epoch_goes_on(script, files, fast):
    """On the fast paths, which draw other dropout masks than the plain ones and which made the expected losses."""
    run(script, "train.py", *EXPECTED["killed"]["flags"], "--resume")
    stats = json.loads((files / "runs" / "killed" / "train_stats.json").read_text())
    assert list(stats) == ["1", "2", "3"]
    for epoch, row in EXPECTED["killed"]["stats"].items():
        assert stats[epoch] == pytest.approx(row, abs=1e-5)


@pytest.mark.parametrize("name", ["pooled.npy", "pooled.lmdb", "pooled.bin", "pooled.h5", "map.npy", "map.lmdb"])
def test_feature_files(name):
    reader = open_features(FILES / "features" / name)
    stem, dtype = name.split(".")[0], np.float16 if name.startswith("map") else np.float32
    expected = {key: made[stem].astype(dtype) for key, made in FEATURES.items()}
    assert set(reader.keys()) == set(expected) and len(reader) == 12
    assert reader.shape == expected["001.jpg"].shape and reader.dtype == dtype
    assert np.allclose(
        reader.get_many(list(expected)), np.stack(list(expected.values())), atol=1e-3 if stem == "map" else 1e-6
    )
    assert reader.provenance["extractor"] == "made up"
    assert reader.provenance["transform"] == {"size": 64, "interpolation": "bicubic"}


def test_vocabularies_and_document_frequencies():
    as_json, as_pickle, as_text = (Vocabulary.load(FILES / f"vocab.{kind}") for kind in ("json", "pkl", "txt"))
    assert as_json.to_dict() == as_pickle.to_dict() == json.loads((FILES / "vocab.json").read_text())
    assert as_text.words == as_json.words and as_json.counts[as_json.words.index("ball")] == 12
    first, *others = (CachedWords.load(FILES / f"words.{kind}") for kind in ("npz", "json", "pkl"))
    assert first.images == 8 and first.to_dict()["document_frequency"][("ball",)] == 4
    for other in others:
        assert other.to_dict() == first.to_dict()


def test_scores_of_made_up_captions():
    words = [
        "a",
        "the",
        "dog",
        "cat",
        "ball",
        "red",
        "blue",
        "runs",
        "sits",
        "on",
        "in",
        "grass",
        "park",
        "with",
        "two",
    ]
    random = Random(0)
    captions = [" ".join(random.choices(words, k=random.randint(0, 14))) for _ in range(300 * 6)]
    candidates, references = (
        dict(enumerate(captions[:300])),
        {n: captions[300 + 5 * n : 305 + 5 * n] for n in range(300)},
    )
    table = CachedWords.load(FILES / "words.npz").to_dict()
    scores = score_captions(candidates, references, ("bleu", "rouge", "cider", "ciderd"), "python", table)
    assert scores.values == pytest.approx(EXPECTED["scores"]["values"], rel=0, abs=1e-12) and not scores.left_out
    for name, each in EXPECTED["scores"]["some"].items():
        assert scores.per_image[name][:20] == pytest.approx(each, rel=0, abs=1e-12)


ADDED = r', "mean_log_prob": -\d+\.\d+|,mean_log_prob,confidence$|,(-\d+\.\d+)?,$'  # behind what there was


def text_and_log_probs(path: Path) -> tuple[str, list[float]]:
    number = re.compile(r"-\d+\.\d+")
    text = re.sub(ADDED, "", path.read_text(), flags=re.MULTILINE)
    return number.sub("N", text), [float(found) for found in number.findall(text)]


def check_results(path: Path, expected: Path) -> None:
    """The same text, and log-probabilities that agree to the four digits written."""
    (text, log_probs), (old_text, old_log_probs) = text_and_log_probs(path), text_and_log_probs(expected)
    assert text == old_text
    assert log_probs == pytest.approx(old_log_probs, abs=2e-4)


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv"])
def test_results(script, files, kind):
    """Written again by the same model, and by going on with an interrupted file."""
    common = ["--dataset", "toy:val", "--dataset_config_file", "datasets.conf", "--model", "runs/soft/best.model"]
    common += ["--cpu", "--num_workers", 0]
    expected = files / f"captions.{kind}"
    run(script, "infer.py", *common, "--output_file", f"again.{kind}")
    check_results(files / f"again.{kind}", expected)
    if kind != "json":
        run(script, "infer.py", *common, "--output_file", f"unfinished.{kind}", "--resume")
        check_results(files / f"unfinished.{kind}", expected)
        assert not (files / f"unfinished.{kind}.part").exists()
    else:
        run(script, "score.py", "captions.json", "--ground_truth", "captions_val.json", "--scoring", "cider,bleu",
            "--tokenizer", "python", "--output", "scores.json")  # fmt: skip
        assert json.loads((files / "scores.json").read_text())["scores"]["bleu_1"] > 0.9


def test_statistics_can_be_drawn(script, files):
    run(script, "plot_stats.py", "runs/pooled/train_stats.json", "--output", "stats.png")
    assert (files / "stats.png").stat().st_size > 1000

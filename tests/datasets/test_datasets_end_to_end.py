"""Every dataset class through train.py and infer.py: from feature files, and from pixels with a small encoder."""

import json
import shutil

import pytest
import torch
from toy import scene
from toy_layouts import append, make_msrvtt, make_picsom, make_regions, make_trecvid, make_vist

from captioning.features.factory import open_features

SMALL = ["--embed_size", 32, "--hidden_size", 64, "--optimizer", "adam", "--learning_rate", 0.01]
SMALL += ["--batch_size", 20, "--vocab_threshold", 1, "--cpu"]


@pytest.fixture
def toolkit(tmp_path, script):
    """train(name, ...) and infer(name, ...) over tmp_path/datasets.conf; infer gives {image_id: caption}."""

    class Toolkit:
        config = ("--dataset_config_file", tmp_path / "datasets.conf")

        @staticmethod
        def train(dataset, validate, *flags, status=0):
            common = ["--model_path", tmp_path / "models", "--vocab_root", tmp_path / "vocab", "--model_name", "run"]
            sets = ["--dataset", dataset, "--validate", validate, *Toolkit.config]
            done = script("train.py", *sets, *common, *SMALL, *flags)
            assert done.status == status, done.err
            return json.loads((tmp_path / "models/run/train_stats.json").read_text())

        @staticmethod
        def infer(dataset, *flags, status=0):
            file = tmp_path / "captions.json"
            model = max((tmp_path / "models/run").glob("ep*.model"), key=lambda path: int(path.stem[2:]))
            sets = ["--dataset", dataset, *Toolkit.config, "--model", model, "--output_file", file, "--cpu"]
            done = script("infer.py", *sets, *flags)
            assert done.status == status, done.err
            return {entry["image_id"]: entry["caption"] for entry in json.loads(file.read_text())}

    return Toolkit


def right(captions: dict, scene_of) -> float:
    """Share of captions that name the colour and the shape of their scene."""
    return sum(all(word in text for word in scene(scene_of(key))) for key, text in captions.items()) / len(captions)


def test_msrvtt_and_trecvid(tmp_path, toolkit):
    make_msrvtt(tmp_path)
    make_trecvid(tmp_path)
    flags = ["--features", "pooled.lmdb", "--num_epochs", 24, "--validation_step", 24]
    rows = toolkit.train("msrvtt:train", "msrvtt:validate", *flags)
    assert rows["24"]["validation_cider"] > 1
    captions = toolkit.infer("msrvtt:validate", "--scoring", "bleu,cider")
    assert list(captions) == list(range(24, 36))
    assert right(captions, int) > 0.8
    captions = toolkit.infer("trecvid2018")
    assert list(captions) == list(range(12))
    assert right(captions, int) > 0.8


def test_picsom(tmp_path, toolkit):
    make_picsom(tmp_path)
    flags = ["--features", "pooled.bin", "--num_epochs", 24, "--validation_step", 24]
    rows = toolkit.train("picsom:toy:train", "picsom:toy:val", *flags)
    assert rows["24"]["validation_cider"] > 1
    captions = toolkit.infer("picsom:toy:val")
    assert list(captions) == [f"toy_{n:05}" for n in range(24, 36)]
    assert right(captions, lambda label: int(label[4:])) > 0.8
    assert toolkit.infer("picsom:toy:val", "--ext_features", "pooled.lmdb") == captions


def test_regions(tmp_path, toolkit):
    make_regions(tmp_path, 10, 3)
    sets = ("visualgenome:regions:train", "visualgenome:regions:val")
    flags = ["--features", "pooled.npy", "--num_epochs", 10, "--learning_rate", 0.02, "--validation_scoring", "none"]
    rows = toolkit.train(*sets, *flags)
    assert rows["10"]["validation_loss"] < 0.6 * rows["1"]["validation_loss"]
    captions = toolkit.infer("visualgenome:regions:val")
    assert len(captions) == 24
    assert right(captions, lambda region: region // 10) > 0.8


def test_vist(tmp_path, toolkit):
    make_vist(tmp_path)
    flags = ["--features", "pooled.lmdb", "--num_epochs", 12, "--validation_scoring", "none"]
    rows = toolkit.train("vist:train", "vist:val", *flags)
    assert rows["12"]["validation_loss"] < 0.5 * rows["1"]["validation_loss"]
    captions = toolkit.infer("vist:val", "--max_seq_length", 60)
    assert list(captions) == [str(40_024 + n) for n in range(12)]
    assert all(len(text.split()) > 20 for text in captions.values())


# ---- from pixels ----


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """Flags that name a small encoder with random weights."""
    from torchvision.models import squeezenet1_1

    torch.manual_seed(1)
    file = tmp_path_factory.mktemp("weights") / "squeezenet.pth"
    torch.save(squeezenet1_1().state_dict(), file)
    return ["--weights", file]


LAYOUTS = {
    "msrvtt": (make_msrvtt, ("msrvtt:train", "msrvtt:validate"), 24, 36, "0030:kf1.jpeg"),
    "vist": (make_vist, ("vist:train", "vist:val"), 24, 132, "80030.png"),
    "picsom": (make_picsom, ("picsom:toy:train", "picsom:toy:val"), 24, 36, "toy_00030.jpg"),
    "regions": (make_regions, ("visualgenome:regions:train", "visualgenome:regions:val"), 6, 72, "2300007.jpg"),
}


@pytest.mark.parametrize("name", list(LAYOUTS))
def test_pixels_give_the_captions_of_their_features(tmp_path, toolkit, script, encoder, name):
    """Extracted features, then the encoder in the model (a story: the mean of its photos), then the images zipped."""
    make, (train, val), count, records, photo = LAYOUTS[name]
    make(tmp_path, count, count // 2)
    extract = ["--extractor", "squeezenet1_1", "--crop_size", 64, "--num_workers", 0, "--cpu", *encoder]
    extract += ["--output_file", "own.lmdb", *toolkit.config]
    done = script("extract_features.py", "--dataset", f"{train}+{val}", *extract)
    assert done.status == 0, done.err
    assert len(open_features(tmp_path / "features/own.lmdb")) == records
    toolkit.train(train, val, "--features", "own.lmdb", "--num_epochs", 2)
    expected = toolkit.infer(val)
    shutil.move(tmp_path / "features/own.lmdb", tmp_path / "features/away.lmdb")
    flags = [*encoder, "--num_workers", 0]
    assert toolkit.infer(val, *flags) == expected

    (photos,) = {path.parent for path in tmp_path.rglob(photo)}
    shutil.make_archive(str(photos), "zip", photos.parent, photos.name)
    shutil.rmtree(photos)
    append(tmp_path, f"[{val}:zip]\nimage_dir = {photos}.zip\n")
    assert toolkit.infer(f"{val}:zip", *flags) == expected


def test_training_on_stories_from_pixels_goes_on_without_a_photo(tmp_path, toolkit, encoder):
    make_vist(tmp_path, 8, 4)
    (tmp_path / "images/train/70001.jpg").unlink()
    flags = ["--features", "squeezenet1_1", "--crop_size", 64, "--num_epochs", 2, "--num_workers", 0, *encoder]
    rows = toolkit.train("vist:train", "vist:val", *flags, "--batch_size", 4, status=1)
    assert rows["2"]["training_loss"] < rows["1"]["training_loss"]
    assert len(toolkit.infer("vist:val", *encoder, "--num_workers", 0)) == 4

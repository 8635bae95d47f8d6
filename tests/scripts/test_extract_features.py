"""extract_features.py through its command line: formats, crops, resuming, bad images."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import torchvision
from running import ROOT, run_here
from toy import draw, make_coco, write_config

from captioning.encoder.factory import build_encoder
from captioning.encoder.transforms import ImageTransform, TenCrops
from captioning.features.factory import open_features
from captioning.images.image_file import open_image
from inference.extraction import PhotoEncoder

LITE0 = ["--extractor", "efficientnet_lite0", "--num_workers", 0, "--cpu"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("toy")
    make_coco(root, {"train": 5, "val": 3})
    write_config(root, ["train", "val"])
    return root


@pytest.fixture
def extract(script, data, tmp_path):
    def call(*arguments, dataset="toy:train+toy:val"):
        source = ["--dataset", dataset, "--dataset_config_file", data / "datasets.conf"]
        return script("extract_features.py", *source, "--output_dir", tmp_path, *LITE0, *arguments)

    return call


def expected(path, name: str = "efficientnet_lite0") -> np.ndarray:
    extractor = build_encoder(name)
    transform = ImageTransform(extractor.transform["size"], extractor.transform["interpolation"])
    return extractor(transform(open_image(path)).unsqueeze(0))[0].numpy()


@pytest.mark.parametrize("name", ["out.npy", "out.lmdb", "out.bin"])
def test_features_are_those_of_the_encoder(extract, data, tmp_path, name):
    done = extract("--output_file", name)
    assert done.status == 0, done.err
    reader = open_features(tmp_path / name)
    assert reader.shape == (1280,) and len(reader) == 8
    assert reader.provenance["extractor"] == "efficientnet_lite0" and len(reader.provenance["weights_sha256"]) == 64
    own = expected(next(data.rglob("COCO_val_000000000007.jpg")))
    assert np.abs(reader["COCO_val_000000000007.jpg"] - own).max() < 1e-4 * np.abs(own).max()


def test_map_in_half_precision_with_the_default_name(extract, tmp_path):
    done = extract("--extractor", "efficientnet_lite0-conv", "--dtype", "float16", dataset="toy:val")
    assert done.status == 0, done.err
    reader = open_features(tmp_path / "toy-val-efficientnet_lite0-conv-plain.lmdb")
    assert reader.shape == (1280, 7, 7) and reader.dtype == np.float16
    assert str(tmp_path) in done.out and "images/s" in done.out
    name = tmp_path / "toy-val-efficientnet_lite0-conv-plain.lmdb"
    assert done.out.splitlines()[-1].endswith(f" --features {name} --attention soft")


def test_ten_crops_are_averaged_or_maximised(extract, tmp_path):
    crops = TenCrops(224, 256, "bicubic")(draw(3))
    assert crops.shape == (10, 3, 224, 224)
    assert torch.equal(crops[5:], crops[:5].flip(3))
    for kind in ("avg", "max"):
        assert extract("--feature_type", kind, "--output_file", f"{kind}.npy").status == 0
    average, maximum = (
        open_features(tmp_path / f"{kind}.npy")["COCO_train_000000000003.jpg"] for kind in ("avg", "max")
    )
    assert (maximum >= average - 1e-5).all() and not np.allclose(maximum, average)
    each = build_encoder("efficientnet_lite0")(crops).numpy()
    assert np.abs(average - each.mean(0)).max() < 0.35 * np.abs(each).max()


def test_normalisation_is_kept_with_the_features(extract, tmp_path):
    for kind in ("skip", "subtract_half", "default"):
        assert extract("--normalize", kind, "--output_file", f"{kind}.npy", dataset="toy:val").status == 0
    provenances = {
        kind: open_features(tmp_path / f"{kind}.npy").provenance for kind in ("skip", "subtract_half", "default")
    }
    assert provenances["skip"]["transform"]["std"] == [1.0] * 3
    assert provenances["subtract_half"]["transform"]["mean"] == [0.5] * 3
    assert provenances["default"]["transform"]["std"] == [0.5] * 3


def test_folder_and_broken_image(script, tmp_path):
    """One broken JPEG: named, the others encoded, status 1."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for index in range(3):
        draw(index).save(photos / f"{index}.jpg")
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 nothing")
    done = script("extract_features.py", "--image_dir", photos, "--output_file", tmp_path / "f.npy", *LITE0)
    assert done.status == 1
    assert "broken.jpg" in done.err and "1 images" in done.err
    assert sorted(open_features(tmp_path / "f.npy").keys()) == ["0.jpg", "1.jpg", "2.jpg"]


def test_several_encoders_by_one_run(extract, tmp_path, monkeypatch):
    """A map, its mean and the mirrored classes; what an interrupted run lacks of either file is made by the next."""
    both = ["--extractor", "efficientnet_lite0-conv, efficientnet_lite0-classes", "--crop_size", 64, "--batch_size", 2]
    files = ["--output_file", "m.npy,c.lmdb"]
    end_at_third_batch(monkeypatch, lambda: extract(*both, *files))
    done = extract(*both, *files, "--resume")
    assert done.status == 0, done.err
    found = [open_features(tmp_path / name) for name in ("m.npy", "c.lmdb")]
    assert [reader.provenance["extractor"][-4:] for reader in found] == ["conv", "sses"]
    alone = extract("--extractor", "efficientnet_lite0-classes", "--crop_size", 64, "--output_file", "alone.npy")
    assert alone.status == 0
    keys = (tmp_path / "alone.keys.txt").read_text().split()
    for one, other in ((found[1], open_features(tmp_path / "alone.npy")),):
        for key in keys:
            np.testing.assert_allclose(one[key], other[key], atol=1e-5)
    assert extract(*both, *files, "--resume").out.count("has all") == 2
    mirrored = ["--mirror", "--output_file", "left.npy,right.npy"]
    assert extract(*both, *mirrored).status == 0
    plain, mirror = (np.load(tmp_path / name) for name in ("m.npy", "left.npy"))
    assert np.abs(plain - mirror).max() > 0.1
    done = extract(*both, "--output_file", "one.npy")
    assert done.status == 2 and "name a file for each of the encoders of --extractor (2)" in done.err


def end_at_third_batch(monkeypatch, run) -> None:
    """Call `run`, which Ctrl-C ends as the third batch is encoded."""
    original, calls = PhotoEncoder.encode, []

    def dies(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(PhotoEncoder, "encode", dies)
        assert run().status == 130
    assert len(calls) == 3


def test_interrupted_run_goes_on(extract, tmp_path, monkeypatch):
    end_at_third_batch(monkeypatch, lambda: extract("--output_file", "f.lmdb", "--batch_size", 2))
    done = extract("--output_file", "f.lmdb", "--batch_size", 2)
    assert done.status == 2 and "add --resume to go on, or --force to begin anew" in done.err
    assert done.err.count("\n") == 1
    done = extract("--output_file", "f.lmdb", "--batch_size", 2, "--resume")
    assert done.status == 0, done.err
    assert "4 of them done already" in done.out
    assert len(open_features(tmp_path / "f.lmdb")) == 8
    done = extract("--output_file", "f.lmdb", "--resume")
    assert done.status == 0 and "has all 8 images" in done.out


def test_force_begins_anew_and_resume_goes_on_with_what_force_began(extract, tmp_path, monkeypatch):
    assert extract("--output_file", "f.npy").status == 0
    before = (tmp_path / "f.npy").read_bytes()
    end_at_third_batch(monkeypatch, lambda: extract("--output_file", "f.npy", "--batch_size", 2, "--force"))
    assert (tmp_path / "f.npy").read_bytes() == before
    done = extract("--output_file", "f.npy", "--batch_size", 2, "--resume")
    assert done.status == 0 and "4 of them done already" in done.out
    end_at_third_batch(monkeypatch, lambda: extract("--output_file", "f.npy", "--batch_size", 2, "--force"))
    done = extract("--output_file", "f.npy", "--force")
    assert done.status == 0 and "done already" not in done.out
    assert sorted(os.listdir(tmp_path)) == ["f.json", "f.keys.txt", "f.npy"]


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["--output_file", "/dev/null/x.npy"], "cannot make the folder"),
        (["--extractor", "resnet9000"], "resnet9000"),
        (["--output_file", "x.csv"], ".csv"),
        (["--output_file", "x.bin", "--dtype", "float16"], "float32"),
        (["--weights", "absent.pth"], "absent.pth"),
        (["--feature_type", "avg", "--image_size", 100], "ten crops"),
        (["--feature_type", "avg", "--extractor", "efficientnet_lite0-conv"], "ten crops"),
        (["--output_file", "x.bin", "--extractor", "efficientnet_lite0-conv"], "vectors only"),
        (["--num_workers", -1], "--num_workers -1"),
        (["--crop_size", 0], "--crop_size 0"),
        (["--dataset", "toy:test"], "toy:test"),
    ],
)
def test_mistakes_are_one_line(extract, arguments, told):
    done = extract(*arguments)
    assert done.status == 2 and told in done.err and "Traceback" not in done.err


def test_source_must_be_named(script, tmp_path):
    assert script("extract_features.py").status == 2
    (tmp_path / "empty").mkdir()
    done = script("extract_features.py", "--image_dir", tmp_path / "empty", *LITE0)
    assert done.status == 2 and "empty" in done.err


def test_an_existing_file_is_kept_without_force(extract, tmp_path):
    (tmp_path / "f.npy").write_text("mine")
    done = extract("--output_file", "f.npy", dataset="toy:val")
    assert done.status == 2 and "f.npy exists: --force replaces it" in done.err
    assert (tmp_path / "f.npy").read_text() == "mine"
    assert extract("--output_file", "f.npy", "--force", dataset="toy:val").status == 0
    assert len(open_features(tmp_path / "f.npy")) == 3


def test_an_image_in_two_parts_is_encoded_once_but_two_images_need_two_keys(extract, data, tmp_path):
    assert extract("--output_file", "f.npy", dataset="toy:val+toy:val").status == 0
    assert len(open_features(tmp_path / "f.npy")) == 3
    other = tmp_path / "other"
    shutil.copytree(data, other)
    (tmp_path / "two.conf").write_text(
        "".join(
            f"[{name}]\ndataset_class = GenericDataset\nimage_dir = {next(root.rglob('COCO_val*.jpg')).parent}\n"
            for name, root in (("one", data), ("two", other))
        )
    )
    done = extract("--dataset_config_file", tmp_path / "two.conf", "--output_file", "g.npy", dataset="one+two")
    assert done.status == 2 and "would have the same key" in done.err


# ---- DeepCaption's encoders ----


def caffe_resnet152():
    """The network and its preprocessing written out from the Caffe model, apart from the toolkit's own."""
    network = torchvision.models.resnet152(weights=None)
    network.maxpool = torch.nn.MaxPool2d(3, 2, 0, ceil_mode=True)
    for stage in (network.layer2, network.layer3, network.layer4):
        stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    network.fc = torch.nn.Identity()
    return network.eval()


def test_caffe_resnet152_from_a_local_file(script, tmp_path):
    """Blue, green, red in 0..255 minus Caffe's mean, by numpy; random weights, as the real ones are not at hand."""
    torch.manual_seed(0)
    network = caffe_resnet152()
    torch.save(network.state_dict(), tmp_path / "caffe.pth")
    (tmp_path / "photos").mkdir()
    draw(5, 64).save(tmp_path / "photos/a.png")
    extract = ("--image_dir", tmp_path / "photos", "--num_workers", 0, "--cpu", "--crop_size", 64)
    extract += ("--weights", tmp_path / "caffe.pth", "--output_file", tmp_path / "f.npy", "--force")
    image = np.asarray(draw(5, 64), np.float32)
    mean_bgr = np.array([103.939, 116.779, 123.68], np.float32)
    inputs = {
        "resnet152caffe-original": image[..., ::-1] - mean_bgr,
        "resnet152caffe-torchvision": (image / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225],
    }
    for name, pixels in inputs.items():
        done = script("extract_features.py", *extract, "--extractor", name)
        assert done.status == 0, done.err
        with torch.no_grad():
            expected = network(torch.from_numpy(pixels.transpose(2, 0, 1)[None].copy()).float())[0].numpy()
        found = open_features(tmp_path / "f.npy")["a.png"]
        assert np.abs(found - expected).max() < 1e-3 * np.abs(expected).max(), name
    provenance = json.loads((tmp_path / "f.json").read_text())
    assert provenance["extractor"] == "resnet152caffe-torchvision"


def test_caffe_resnet152_cannot_be_downloaded(extract):
    done = extract("--extractor", "resnet152caffe-original")
    assert done.status == 2 and "--weights FILE" in done.err and done.err.count("\n") == 1


@pytest.mark.parametrize(
    "name, dim, grid",
    [
        ("alexnet", 4096, None),
        ("densenet201", 1920, None),
        ("resnet152-conv", 2048, (7, 7)),
        ("resnet152caffe-original", 2048, None),
        ("resnet152caffe-original-conv", 2048, (7, 7)),
        ("vgg16", 4096, None),
        ("inceptionv3", 2048, None),
    ],
)
def test_names_of_deepcaption(name, dim, grid):
    extractor = build_encoder(name, pretrained=False)
    assert (extractor.dim, extractor.grid) == (dim, grid)


# ---- resuming and several processes ----


@pytest.mark.parametrize("name", ["f.npy", "f.bin", "f.h5"])
def test_every_format_is_resumed(extract, tmp_path, monkeypatch, name):
    options = ("--output_file", name, "--batch_size", 2, "--crop_size", 64)
    end_at_third_batch(monkeypatch, lambda: extract(*options))
    done = extract(*options, "--resume")
    assert done.status == 0 and "4 of them done already" in done.out, done.err
    assert extract("--output_file", f"whole.{name[2:]}", *options[2:]).status == 0
    resumed, whole = open_features(tmp_path / name), open_features(tmp_path / f"whole.{name[2:]}")
    keys = list(whole.keys())
    assert list(resumed.keys()) == keys and resumed.provenance == whole.provenance
    assert np.allclose(resumed.get_many(keys), whole.get_many(keys), atol=1e-5)


def torchrun(processes: int, *arguments, cwd) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
    command += [str(ROOT / "extract_features.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=300)


def test_two_processes_write_one_file(extract, data, tmp_path):
    """The same records in the same order as one process, a broken image named once: all of a process' first batch."""
    images = tmp_path / "in"
    shutil.copytree(next(data.rglob("COCO_train*.jpg")).parent, images)
    (images / "COCO_train_000000000000.jpg").write_bytes(b"\xff\xd8\xff\xe0 nothing")
    options = ("--image_dir", images, "--batch_size", 1, "--crop_size", 64, *LITE0)
    done = torchrun(2, *options, "--output_file", tmp_path / "two.npy", cwd=tmp_path)
    assert "5 records" in done.stdout and done.stdout.count("-> ") == 1, done.stderr
    assert done.returncode != 0 and done.stderr.count("1 images could not be read") == 1
    one = run_here("extract_features.py", *options, "--output_file", tmp_path / "one.npy")
    assert one.status == 1
    two, one = open_features(tmp_path / "two.npy"), open_features(tmp_path / "one.npy")
    assert list(two.keys()) == list(one.keys()) and two.provenance == one.provenance
    assert np.allclose(two.get_many(list(two.keys())), one.get_many(list(one.keys())), atol=1e-4)


@pytest.mark.slow
def test_two_processes_tell_of_a_mistake_once(data, tmp_path):
    """What the first process finds ends the others too; a file that is complete is left alone."""
    images = next(data.rglob("COCO_train*.jpg")).parent
    options = ("--image_dir", images, "--crop_size", 64, *LITE0)
    (tmp_path / "mine.npy").write_text("mine")
    refused = torchrun(2, *options, "--output_file", tmp_path / "mine.npy", cwd=tmp_path)
    assert refused.returncode != 0 and refused.stderr.count("exists: --force replaces it") == 1
    assert run_here("extract_features.py", *options, "--output_file", tmp_path / "f.npy").status == 0
    again = torchrun(2, *options, "--output_file", tmp_path / "f.npy", "--resume", cwd=tmp_path)
    assert again.returncode == 0 and "has all 5 images" in again.stdout, again.stderr

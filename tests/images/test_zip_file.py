"""Zip files that stand for folders of images: against zipfile itself, damaged ones, and in forked workers."""

import os
import pickle
import shutil
import tracemalloc
import warnings
import zipfile
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from toy import draw, make_coco, write_config

from captioning.datasets.factory import open_dataset
from captioning.errors import UserError
from captioning.images import zip_file
from captioning.images.archives import read_member
from captioning.images.image_file import ImageError, image_exists, image_size, open_image
from captioning.images.listing import list_images
from captioning.images.zip_file import open_zip, split_path
from data_loader import LoaderSettings, get_eval_loader

PICTURES = ("a.jpg", "b.PNG", "sub/c.jpg")


def make_zip(path: Path, prefix: str = "", method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for number, name in enumerate(PICTURES):
            draw(number).save(path.parent / "one.png")
            archive.write(path.parent / "one.png", prefix + name)
        archive.writestr(f"{prefix}notes.txt", "text")
        archive.writestr(f"{prefix}.hidden.jpg", "x")
        archive.writestr("__MACOSX/._a.jpg", "x")
        archive.mkdir(f"{prefix}empty")
    return path


def pixels(image) -> bytes:
    return image.tobytes()


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_members_are_those_of_zipfile(tmp_path, method):
    path = make_zip(tmp_path / "photos.zip", method=method)
    with zipfile.ZipFile(path) as archive:
        for name in PICTURES:
            assert read_member(path / name) == archive.read(name)
    assert open_zip(path).names() == [*PICTURES, "notes.txt"]
    assert [p.as_posix() for p in list_images(path)] == [f"{path}/a.jpg", f"{path}/b.PNG"]
    assert [p.name for p in list_images(path, recursive=True)] == ["a.jpg", "b.PNG", "c.jpg"]
    for number, name in enumerate(PICTURES):
        assert pixels(open_image(path / name)) == pixels(draw(number))
        assert image_size(path / name) == (96, 96)


def test_a_top_folder_may_be_left_out(tmp_path):
    path = make_zip(tmp_path / "photos.zip", "photos/")
    assert [p.as_posix() for p in list_images(path)] == [f"{path}/a.jpg", f"{path}/b.PNG"]
    for name in ("sub/c.jpg", "photos/sub/c.jpg"):
        assert image_exists(path / name)
        assert pixels(open_image(path / name)) == pixels(draw(2))
    assert not image_exists(path / "c.jpg")
    with zipfile.ZipFile(path, "a") as archive:  # no longer a single one; the changed file is read anew
        archive.writestr("other/x.jpg", b"x")
    assert not image_exists(path / "sub/c.jpg")
    assert image_exists(path / "photos/sub/c.jpg")


def test_a_folder_may_be_called_zip(tmp_path):
    folder = tmp_path / "old.zip" / "more.zip"
    folder.mkdir(parents=True)
    draw(1).save(folder / "a.png")
    assert split_path(folder / "a.png") is None
    assert pixels(open_image(folder / "a.png")) == pixels(draw(1))
    inner = make_zip(folder / "in.zip")
    assert split_path(inner / "sub/c.jpg") == (str(inner), "sub/c.jpg")
    assert image_exists(inner / "sub/c.jpg")


def test_what_is_wrong_with_an_image_names_it(tmp_path):
    path = tmp_path / "photos.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("empty.jpg", b"")
        archive.writestr("text.jpg", b"no image")
        draw(0).save(tmp_path / "one.png")
        archive.write(tmp_path / "one.png", "cut.png")
    for name, words in (("none.jpg", f"there is no none.jpg in {path}"), ("empty.jpg", "the file is empty")):
        with pytest.raises(ImageError, match=f"cannot read image {path}/{name}: {words}"):
            open_image(path / name)
    with pytest.raises(ImageError, match="text.jpg: not a JPEG"):
        open_image(path / "text.jpg")
    data = bytearray(path.read_bytes())
    where = data.index((tmp_path / "one.png").read_bytes()[50:90])
    data[where : where + 20] = bytes(20)
    path.write_bytes(data)
    with pytest.raises(ImageError, match=r"cut.png: its content in the zip file is damaged"):
        open_image(path / "cut.png")


def test_a_damaged_zip_is_one_line(tmp_path):
    path = make_zip(tmp_path / "photos.zip")
    for data in (b"", b"no zip", path.read_bytes()[:-30]):
        path.write_bytes(data)
        with pytest.raises(UserError, match=f"cannot read zip file {path}") as error:
            list_images(path)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="no such image folder"):
        list_images(tmp_path / "none.zip")


def test_processes_share_nothing_but_the_index(tmp_path, monkeypatch):
    path = make_zip(tmp_path / "photos.zip")
    expected = [read_member(path / name) for name in PICTURES]
    for start in ("fork", "spawn"):
        if start == "fork":  # the index came through the fork: it is not read again
            monkeypatch.setattr(zip_file, "ImageZip", None)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads
            with get_context(start).Pool(2) as pool:
                jobs = [str(path / name) for name in PICTURES] * 20
                assert pool.map(read_member, jobs, chunksize=1) == expected * 20
        monkeypatch.undo()


def test_members_whose_names_lead_out_are_left_out(tmp_path, capsys):
    path = tmp_path / "photos.zip"
    draw(3).save(tmp_path / "secret.png")
    with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a name that stands there twice
        for name in ("in/a.png", str(tmp_path / "secret.png"), "../secret.png", "in/../../secret.png", "in/..b.png"):
            archive.writestr(name, (tmp_path / "secret.png").read_bytes())
        archive.writestr("in/a.png", b"the last")
    assert [p.as_posix() for p in list_images(path, recursive=True)] == [f"{path}/a.png"]
    assert read_member(path / "in/a.png") == b"the last"
    with pytest.raises(ImageError, match="there is no"):
        open_image(path / "../secret.png")
    said = capsys.readouterr().err
    assert f"{path}: 3 members left out, whose names lead out of the zip file: " in said and said.count("left out") == 1
    assert f"{path}: 1 names stand there more than once, the last counts: in/a.png" in said


# ---------------------------------------------------------------- through the loader and the scripts


class Grey:
    """A transform: the mean colour."""

    def __call__(self, image, seed):
        return torch.tensor(image.resize((1, 1)).getpixel((0, 0)), dtype=torch.uint8).reshape(3, 1, 1)


@pytest.fixture
def zipped(tmp_path):
    """toy:train and toy:val, their images in zip files as DeepCaption kept them: a folder of the zip's name in it."""
    make_coco(tmp_path, {"train": 12, "val": 6})
    config = Path(write_config(tmp_path, ["train", "val"]))
    plain = tmp_path / "plain.conf"
    shutil.copy(config, plain)
    for split in ("train", "val"):
        shutil.make_archive(str(tmp_path / "images" / split), "zip", tmp_path / "images", split)
    config.write_text(
        config.read_text()
        .replace("image_dir = images/train", "image_dir = images/train.zip")
        .replace("image_dir = images/val", "image_dir = images/val.zip")
    )
    return tmp_path


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_from_a_zip_are_those_of_the_folder(zipped, num_workers):
    batches = []
    for conf in ("plain.conf", "datasets.conf"):
        dataset = open_dataset("toy:train+toy:val", str(zipped / conf))
        loader = get_eval_loader(dataset, settings=LoaderSettings(4, num_workers=num_workers), transform=Grey())
        batches.append([batch.pixels for batch in loader])
        assert not loader.bad_items
        loader.close()
    assert len(batches[0]) == 5
    assert all(torch.equal(a, b) for a, b in zip(*batches))


def test_missing_and_broken_members_are_named(zipped, capsys):
    path = zipped / "images/val.zip"
    with zipfile.ZipFile(path) as old:
        content = {name: old.read(name) for name in old.namelist() if name.endswith(".jpg")}
    names = sorted(content)
    with zipfile.ZipFile(path, "w") as new:
        for name in names[1:]:
            new.writestr(name, b"no image" if name == names[2] else content[name])
    dataset = open_dataset("toy:val", str(zipped / "datasets.conf"))
    loader = get_eval_loader(dataset, settings=LoaderSettings(4, num_workers=0), transform=Grey())
    assert sum(len(batch.items) for batch in loader) == 4
    said = capsys.readouterr().err
    missing, broken = (os.path.basename(name) for name in (names[0], names[2]))
    assert f"1 of 6 image files are missing and left out: {path}/{missing}" in said
    assert f"cannot read image {path}/{broken}: not a JPEG" in said
    assert len(loader.bad_items) == 2
    pickle.dumps(dataset)  # a spawned worker gets it


def test_resize_makes_a_zip_that_the_other_scripts_read(zipped, script, tmp_path):
    done = script("resize.py", "--image_dir", zipped / "images/val", "--output_dir", tmp_path / "small", "--create_zip")
    assert done.status == 0, done.err
    shutil.rmtree(zipped / "images/val")
    source = ["--extractor", "efficientnet_lite0", "--cpu", "--num_workers", 0, "--crop_size", 64]
    done = script("extract_features.py", "--image_dir", tmp_path / "small.zip", *source, "--output_dir", tmp_path)
    assert done.status == 0, done.err
    assert "6 records in" in done.out
    append_conf = zipped / "datasets.conf"
    append_conf.write_text(append_conf.read_text() + f"[toy:small]\nimage_dir = {tmp_path / 'small.zip'}\n")
    with open(append_conf, "a") as file:
        file.write("caption_path = annotations/captions_val.json\n")
    config = ["--dataset_config_file", append_conf]
    done = script("extract_features.py", "--dataset", "toy:small", *config, *source, "--output_file", "small.npy")
    assert done.status == 0, done.err
    assert (zipped / "features/small.npy").exists()


def test_training_and_captioning_from_a_zip(zipped, script):
    from torchvision.models import squeezenet1_1

    torch.manual_seed(1)
    torch.save(squeezenet1_1().state_dict(), zipped / "weights.pth")
    for split in ("train", "val"):
        shutil.rmtree(zipped / "images" / split)
    run = ["--weights", zipped / "weights.pth", "--num_workers", 2, "--cpu"]
    sets = ["--dataset", "toy:train", "--validate", "toy:val", "--dataset_config_file", zipped / "datasets.conf"]
    small = ["--embed_size", 16, "--hidden_size", 16, "--batch_size", 20, "--crop_size", 64, "--num_epochs", 1]
    small += ["--model_path", zipped / "models", "--vocab_root", zipped / "vocab", "--model_name", "run"]
    done = script("train.py", *sets, "--features", "squeezenet1_1", *small, *run)
    assert done.status == 0, done.err
    model = ["--model", zipped / "models/run/ep1.model"]
    folder = ["--image_dir", zipped / "images/val.zip", "--html", zipped / "gallery.html"]
    done = script("infer.py", *model, *folder, *run)
    assert done.status == 0, done.err
    assert [line.split(":")[0] for line in done.out.splitlines()] == [
        f"COCO_val_{number:012d}.jpg" for number in range(13, 19)
    ]
    done = script("infer.py", *model, zipped / "images/val.zip/COCO_val_000000000013.jpg", *run)
    assert done.status == 0, done.err
    assert "COCO_val_000000000013.jpg: " in done.out
    done = script("infer.py", *model, zipped / "images/val.zip", *run)
    assert done.status == 0 and done.out.count("COCO_val_") == 6, done.err
    assert (zipped / "gallery.html").read_text().count("data:image/webp;base64") == 6


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_member_that_unpacks_to_more_than_its_size_is_not_unpacked_whole(tmp_path, method):
    """The index claims 1,000 bytes, the member holds 300 MB."""
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", method) as archive, archive.open("a.jpg", "w") as member:
        for _ in range(30):
            member.write(bytes(10**7))
    whole = bytearray(path.read_bytes())
    entry = whole.index(b"PK\1\2")
    whole[entry + 24 : entry + 28] = (1000).to_bytes(4, "little")
    path.write_bytes(whole)
    tracemalloc.start()
    with pytest.raises(ValueError, match="damaged"):
        read_member(path / "a.jpg")
    assert tracemalloc.get_traced_memory()[1] < 10**7
    tracemalloc.stop()

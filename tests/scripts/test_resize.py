"""resize.py through its command line: names, sizes, restarts, broken files, zips."""

import csv
import importlib.util
import io
import os
import re
import struct
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

import resize


def photo(width, height, seed=0):
    """Smooth colours with some texture, a stand-in for a photo."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((width, height), Image.BICUBIC)
    return Image.fromarray((np.asarray(coarse) + rng.normal(0, 6, (height, width, 1))).clip(0, 255).astype(np.uint8))


def difference(one, other):
    return float(np.abs(np.asarray(one.convert("RGB"), float) - np.asarray(other.convert("RGB"), float)).mean())


@pytest.fixture
def folder(tmp_path):
    source = tmp_path / "photos"
    (source / "more").mkdir(parents=True)
    for i, name in enumerate(["a.jpg", "B.JPEG", "c.png", "d.webp", "e.bmp", "f.tif", "g.gif", "more/h.jpg"]):
        image = photo(150, 100, i)
        (image.quantize(256) if name.endswith("gif") else image).save(source / name)
    return source


def outputs(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_names_formats_and_sizes(script, folder, tmp_path):
    result = script("resize.py", "--image_dir", folder, "--output_dir", tmp_path / "out", "--image_size", 64)
    assert result.status == 0, result.err
    assert "8 images resized (64x64), 0 failed" in result.out
    assert f"\n  python train.py --images {tmp_path / 'out'} --captions CAPTIONS" in result.out
    assert outputs(tmp_path / "out") == outputs(folder)
    for name in outputs(folder):
        before, after = Image.open(folder / name), Image.open(tmp_path / "out" / name)
        assert (after.size, after.format) == ((64, 64), before.format)
        plain = before.convert("RGB").resize((64, 64), Image.BILINEAR)
        assert difference(after, plain) < (6 if name.endswith("gif") else 3), name


def test_formats_of_phones_and_scanners(script, tmp_path):
    forms = {"a.avif": "AVIF", "b.jp2": "JPEG2000", "c.pgm": "PPM", "d.jfif": "JPEG", "e.dib": "DIB"}
    if importlib.util.find_spec("pillow_heif"):
        importlib.import_module("pillow_heif").register_heif_opener()
        forms["f.HEIC"] = "HEIF"
    (tmp_path / "in").mkdir()
    for name, form in forms.items():
        photo(150, 100).save(tmp_path / "in" / name, form)
    (tmp_path / "in/notes.txt").touch()
    done = script("resize.py", "--image_dir", tmp_path / "in", "--output_dir", tmp_path / "out", "--image_size", 64)
    assert done.status == 0 and done.err == "resize.py: passed over: 1 .txt\n"
    assert outputs(tmp_path / "out") == sorted(forms)
    for name, form in forms.items():
        after = Image.open(tmp_path / "out" / name)
        assert after.format == form and difference(after, photo(150, 100).resize((64, 64), Image.BILINEAR)) < 8, name


def test_default_is_256_and_keep_aspect(script, folder, tmp_path):
    assert script("resize.py", "--image_dir", folder, "--output_dir", tmp_path / "o").status == 0
    assert Image.open(tmp_path / "o/more/h.jpg").size == (256, 256)
    arguments = ["--image_dir", folder, "--output_dir", tmp_path / "o", "--image_size", 50, "--keep_aspect"]
    assert "8 images resized" in script("resize.py", *arguments).out
    assert Image.open(tmp_path / "o/more/h.jpg").size == (75, 50)
    assert "8 already there" in script("resize.py", *arguments).out


@pytest.mark.parametrize("seed", range(3))
def test_reduced_scale_decoding_is_close(script, tmp_path, seed):
    (tmp_path / "in").mkdir()
    photo(1600, 1200, seed).save(tmp_path / "in/a.jpg", quality=92)
    arguments = ["--image_dir", tmp_path / "in", "--output_dir", tmp_path / "out", "--image_size", 128]
    assert script("resize.py", *arguments, "--quality", 100).status == 0
    full = Image.open(tmp_path / "in/a.jpg").resize((128, 128), Image.BILINEAR)
    assert difference(Image.open(tmp_path / "out/a.jpg"), full) < 1.5


def test_restart_redoes_only_what_is_wrong(script, folder, tmp_path):
    out = tmp_path / "out"
    arguments = ["--image_dir", folder, "--output_dir", out, "--image_size", 48, "--num_workers", 2]
    assert script("resize.py", *arguments).status == 0
    good = {name: (out / name).stat().st_mtime_ns for name in outputs(out)}
    (out / "a.jpg").write_bytes((out / "a.jpg").read_bytes()[:-200])  # cut short
    photo(20, 20).save(out / "c.png")  # of another size
    (out / "d.webp").unlink()
    later = (out / "e.bmp").stat().st_mtime + 5
    os.utime(folder / "e.bmp", (later, later))  # a new original
    result = script("resize.py", *arguments)
    assert (result.status, "4 images resized (48x48), 4 already there" in result.out) == (0, True)
    kept = {name for name in outputs(out) if (out / name).stat().st_mtime_ns == good.get(name)}
    assert kept == {"B.JPEG", "f.tif", "g.gif", "more/h.jpg"}
    assert Image.open(out / "c.png").size == (48, 48)


@pytest.mark.parametrize("kept", [0, 0.5])
def test_restart_redoes_what_a_power_failure_left(script, folder, tmp_path, kept):
    """The length of the file is on the disk, and of its content the beginning, or nothing."""
    arguments = ["--image_dir", folder, "--output_dir", tmp_path / "out", "--image_size", 64]
    assert script("resize.py", *arguments).status == 0
    damaged = tmp_path / "out" / "a.jpg"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[: int(kept * len(whole))].ljust(len(whole), b"\0"))
    assert "1 images resized (64x64)" in script("resize.py", *arguments).out
    assert damaged.read_bytes() == whole


def test_broken_images_are_named_counted_and_reported(script, folder, tmp_path):
    (folder / "bad.jpg").write_bytes((folder / "a.jpg").read_bytes()[:600])
    (folder / "more/page, saved.jpg").write_text("<html>")
    report = tmp_path / "report.csv"
    arguments = ["--image_dir", folder, "--output_dir", tmp_path / "out", "--num_workers", 2, "--report", report]
    result = script("resize.py", *arguments)
    assert result.status == 1 and "8 images resized (256x256), 2 failed" in result.out
    lines = [line for line in result.err.splitlines() if line.startswith("resize.py")]
    assert len(lines) == 2 and "bad.jpg" in lines[0] and "truncated" in lines[0].lower()
    rows = list(csv.DictReader(report.open()))
    assert [row["file"] for row in rows] == ["bad.jpg", "more/page, saved.jpg"]
    assert "not a JPEG" in rows[1]["reason"]
    assert "bad.jpg" not in outputs(tmp_path / "out")


def test_odd_files_of_a_folder(script, tmp_path):
    """What is no image fails by name; what is one, of whatever kind, becomes small; nothing is waited for."""
    folder = tmp_path / "in"
    (folder / "folder.jpg" / "deep.png").mkdir(parents=True)
    small = photo(90, 60)
    small.convert("CMYK").save(folder / "cmyk.jpg")
    small.convert("L").save(folder / "grey.jpg")
    Image.fromarray(np.arange(5400, dtype=np.uint16).reshape(60, 90) * 12).save(folder / "deep.png.png")
    small.save(folder / "moving.gif", save_all=True, append_images=[photo(90, 60, 2)])
    small.save(folder / "moving.webp", save_all=True, append_images=[photo(90, 60, 2)])
    small.convert("RGBA").save(folder / "clear.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    small.save(folder / "turned.jpg", exif=turned)
    small.save(folder / "folder.jpg" / "inner.jpg")
    small.save(folder / "a.JPG")
    small.save(folder / "A.jpg")
    (folder / "again").symlink_to(folder)  # a loop of folders
    good = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*") if path.is_file())

    os.mkfifo(folder / "pipe.jpg")
    (folder / "zero.jpg").touch()
    (folder / "loop.jpg").symlink_to("loop.jpg")
    (folder / "gone.jpg").symlink_to("nowhere.jpg")
    (folder / "device.png").symlink_to("/dev/zero")
    bomb = io.BytesIO()
    Image.new("1", (8, 8)).save(bomb, "PNG")
    header = b"IHDR" + struct.pack(">II", 60_000, 60_000) + bomb.getvalue()[24:29]
    bomb = bomb.getvalue()[:12] + header + struct.pack(">I", zlib.crc32(header)) + bomb.getvalue()[33:]
    (folder / "bomb.png").write_bytes(bomb)

    arguments = ["--image_dir", folder, "--output_dir", tmp_path / "out", "--image_size", 32, "--keep_aspect"]
    result = script("resize.py", *arguments, "--num_workers", 0)
    assert result.status == 1, result.err
    assert outputs(tmp_path / "out") == good and len(good) == 10
    failed = dict(re.findall(r"/in/(\w+\.\w+): (.*)", result.err))
    assert sorted(failed) == ["bomb.png", "device.png", "gone.jpg", "loop.jpg", "pipe.jpg", "zero.jpg"]
    assert failed["pipe.jpg"] == failed["device.png"] == "it is not a plain file"
    assert failed["zero.jpg"] == "the file is empty"
    assert "2 names differ in capitals alone" in result.err
    assert Image.open(tmp_path / "out/turned.jpg").size == (32, 48)
    assert all(getattr(Image.open(tmp_path / "out" / name), "n_frames", 1) == 1 for name in good)


def test_subset(script, folder, tmp_path):
    ids = tmp_path / "ids.txt"
    ids.write_text("a\r\n\ng.gif\r\nh\n")
    arguments = ["--image_dir", folder, "--output_dir", tmp_path / "out", "--image_size", 32, "--subset", ids]
    assert script("resize.py", *arguments).status == 0
    assert outputs(tmp_path / "out") == ["a.jpg", "g.gif", "more/h.jpg"]
    ids.write_text("a\nnone\n")
    result = script("resize.py", *arguments)
    assert result.status == 1 and "none: in --subset" in result.err and "1 failed" in result.out
    ids.write_text("none\n")
    result = script("resize.py", *arguments)
    assert result.status == 2 and "none of the 1 ids" in result.err


def test_zip(script, folder, tmp_path):
    """The folder stays beside it, as with DeepCaption; a second run writes the zip anew from what is there."""
    arguments = ["--image_dir", folder, "--output_dir", tmp_path / "o", "--create_zip"]
    result = script("resize.py", *arguments)
    assert result.status == 0 and outputs(tmp_path / "o") == outputs(folder)
    assert f"8 images resized (256x256), 0 failed\n{tmp_path}/o.zip: 8 images\n" in result.out
    with zipfile.ZipFile(tmp_path / "o.zip") as archive:
        assert sorted(archive.namelist()) == outputs(folder)
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
        assert all(archive.read(name) == (tmp_path / "o" / name).read_bytes() for name in outputs(folder))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o", "o.zip", "photos"]
    (tmp_path / "o.zip").unlink()
    assert f"8 already there, 0 failed\n{tmp_path}/o.zip: 8 images" in script("resize.py", *arguments).out
    assert zipfile.ZipFile(tmp_path / "o.zip").testzip() is None


def test_a_zip_that_is_named_has_its_folder_beside_it(script, folder, tmp_path):
    os.utime(folder / "a.jpg", (0, 0))  # 1970: before a zip's time begins
    (folder / "bad.jpg").write_text("<html>")
    arguments = ["--image_dir", folder, "--output_dir", tmp_path / "o.zip", "--create_zip", "--num_workers", 2]
    assert script("resize.py", *arguments).status == 1
    assert zipfile.ZipFile(tmp_path / "o.zip").namelist() == outputs(tmp_path / "o")
    assert "bad.jpg" not in outputs(tmp_path / "o")


def test_output_inside_the_source_is_not_resized_again(script, folder):
    arguments = ["--image_dir", folder, "--output_dir", folder / "small", "--image_size", 32]
    assert "8 images resized" in script("resize.py", *arguments).out
    assert "0 images resized (32x32), 8 already there" in script("resize.py", *arguments).out


def test_mistakes_are_one_line(script, folder, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    out = tmp_path / "out"
    cases = [
        (["--image_dir", tmp_path / "none", "--output_dir", out], "--image_dir"),
        (["--image_dir", tmp_path / "empty", "--output_dir", out], "has no images"),
        (["--image_dir", folder, "--output_dir", folder], "overwritten"),
        (["--image_dir", folder, "--output_dir", tmp_path], "overwritten"),
        (["--image_dir", folder, "--output_dir", tmp_path / "file" / "x"], "cannot make"),
        (["--image_dir", folder, "--output_dir", tmp_path / "file"], "cannot make"),
        (["--image_dir", folder, "--output_dir", out, "--image_size", 0], "--image_size"),
        (["--image_dir", folder, "--output_dir", out, "--quality", 101], "--quality"),
        (["--image_dir", folder, "--output_dir", out, "--num_workers", -1], "--num_workers"),
        (["--image_dir", folder, "--output_dir", out, "--subset", tmp_path / "none.txt"], "--subset"),
    ]
    for arguments, message in cases:
        result = script("resize.py", *arguments)
        assert (result.status, result.err.count("\n")) == (2, 1), arguments
        assert message in result.err
    assert not out.exists()


def test_too_narrow_an_image_fails_alone(script, folder, tmp_path):
    Image.new("RGB", (30000, 2)).save(folder / "line.jpg")
    arguments = ["--image_dir", folder, "--output_dir", tmp_path / "out", "--image_size", 64, "--keep_aspect"]
    result = script("resize.py", *arguments)
    assert result.status == 1 and "line.jpg" in result.err and "1 failed" in result.out


@pytest.fixture
def with_torch(monkeypatch):
    """Take torch for any number of images."""
    monkeypatch.setattr(resize, "TORCH_FROM", 0)


@pytest.mark.parametrize("workers", [1, 2])
def test_torch_and_pillow_write_the_same_pictures(script, folder, tmp_path, with_torch, monkeypatch, workers):
    photo(90, 60, 9).convert("L").save(folder / "grey.jpg")
    photo(90, 60, 9).convert("CMYK").save(folder / "cmyk.jpg")
    turned = Image.Exif()
    turned[0x0112] = 6
    photo(150, 100, 10).save(folder / "turned.jpg", exif=turned)
    photo(700, 30, 11).save(folder / "long.jpg")
    (folder / "bad.jpg").write_bytes((folder / "a.jpg").read_bytes()[:600])
    arguments = ["--image_dir", folder, "--num_workers", workers, "--image_size", 64]
    first = script("resize.py", *arguments, "--output_dir", tmp_path / "torch")
    monkeypatch.setattr(resize, "TORCH_FROM", 2000)
    second = script("resize.py", *arguments, "--output_dir", tmp_path / "pillow")
    assert (first.status, first.err) == (second.status, second.err) and "bad.jpg" in first.err
    assert outputs(tmp_path / "torch") == outputs(tmp_path / "pillow")
    for name in outputs(tmp_path / "torch"):
        ours, theirs = (Image.open(tmp_path / way / name) for way in ("torch", "pillow"))
        assert (ours.size, ours.mode, ours.format) == (theirs.size, theirs.mode, theirs.format)
        # a level more or less here and there may make coefficients, or a palette, of others
        assert difference(ours, theirs) < (0.05 if name.endswith(("png", "bmp", "tif")) else 1), name
    assert "12 already there" in script("resize.py", *arguments, "--output_dir", tmp_path / "torch").out


def test_a_zip_with_torch(script, folder, tmp_path, with_torch):
    result = script("resize.py", "--image_dir", folder, "--output_dir", tmp_path / "o", "--create_zip", "--keep_aspect")
    assert result.status == 0, result.err
    with zipfile.ZipFile(tmp_path / "o.zip") as archive, archive.open("a.jpg") as file:
        assert Image.open(file).size == (384, 256)


def test_a_disk_that_cannot_be_written_is_one_line(script, folder, tmp_path):
    (tmp_path / "out" / "a.jpg").mkdir(parents=True)
    result = script("resize.py", "--image_dir", folder, "--output_dir", tmp_path / "out", "--num_workers", 2)
    assert (result.status, result.err.count("\n")) == (2, 1)
    assert "--output_dir: cannot write" in result.err and "a.jpg" in result.err
    assert not list((tmp_path / "out").rglob("*.tmp"))


def test_as_a_program(script_alone, folder, tmp_path):
    result = script_alone("resize.py", "--image_dir", folder, "--output_dir", tmp_path / "out", "--num_workers", 2)
    assert (result.status, result.err) == (0, "")
    assert "8 images resized (256x256), 0 failed\n" in result.out

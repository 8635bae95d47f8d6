"""captioning/images/listing.py: which files of folders are images, and what is said of the others."""

import zipfile

import pytest

from captioning import errors
from captioning.images import listing
from captioning.images.listing import PassedOver, list_images


def test_list_images(tmp_path):
    good = ["b.JPG", "a.jpeg", "c.PnG", "d.webp", "e.BMP", "f.tif", "g.TIFF", "h.gif", "i.avif", "j.jp2", "k.jfif"]
    for name in [*good, ".hidden.jpg", "notes.txt", "jpg"]:
        (tmp_path / name).touch()
    (tmp_path / "sub" / "deep").mkdir(parents=True)
    (tmp_path / "sub" / "deep" / "z.jpg").touch()
    (tmp_path / "sub" / "loop").symlink_to(tmp_path)
    flat = [path.name for path in list_images(tmp_path)]
    assert flat == sorted(good)
    everything = list_images(str(tmp_path), recursive=True)
    assert everything == sorted(everything) and len(everything) == 12
    assert everything[-1] == tmp_path / "sub" / "deep" / "z.jpg"


def test_list_images_of_no_folder(tmp_path):
    with pytest.raises(errors.UserError, match="no such image folder"):
        list_images(tmp_path / "none")
    (tmp_path / "a.jpg").touch()
    with pytest.raises(errors.UserError, match="not a folder"):
        list_images(tmp_path / "a.jpg")


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("recursive", [False, True])
def test_what_is_passed_over_is_counted(tmp_path, recursive, zipped):
    names = ["a.jpg", "b.txt", "c.TXT", "d.mov", "none", ".DS_Store", "s/x.png", "s/y.txt", "s/t/z.mov", "u/v.json"]
    folder = tmp_path / "photos"
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    if zipped:
        with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
            for name in names:
                archive.write(folder / name, name)
        folder = tmp_path / "photos.zip"
    passed = PassedOver()
    found = [path.relative_to(folder).as_posix() for path in list_images(folder, recursive, passed)]
    if recursive:
        assert found == ["a.jpg", "s/x.png"]
        assert passed.line() == "passed over: 3 .txt, 2 .mov, 1 .json, 1 without an ending, 1 hidden"
    else:
        assert found == ["a.jpg"]
        wanted = "passed over: 2 .txt, 1 .mov, 1 without an ending, 1 hidden, 2 folders (--recursive)"
        assert passed.line() == wanted


def test_many_kinds_and_odd_names_make_a_short_line():
    passed = PassedOver()
    assert passed.line() == ""
    for number in range(30):
        passed.add(f"a.kind{number}")
    passed.add("a. \x1b[31m and more")
    line = passed.line()
    assert "23 of other kinds" in line and "\x1b" not in line and len(line) < 200


def test_heic_without_its_package(tmp_path, monkeypatch, capsys):
    for name in ("a.jpg", "b.HEIC", "c.heif"):
        (tmp_path / name).touch()
    monkeypatch.setattr("captioning.images.kinds.heif_is_there", lambda: True)
    assert len(list_images(tmp_path)) == 3
    monkeypatch.setattr("captioning.images.kinds.heif_is_there", lambda: False)
    passed = PassedOver()
    assert [path.name for path in list_images(tmp_path, passed=passed)] == ["a.jpg"]
    assert passed.line() == "passed over: 1 .heic (pip install pillow-heif), 1 .heif (pip install pillow-heif)"
    errors.note_once.cache_clear()
    assert capsys.readouterr().err == ""
    assert len(list_images(tmp_path)) == 1 and capsys.readouterr().err.count("pip install pillow-heif") == 2
    assert listing.list_images(tmp_path) and capsys.readouterr().err == ""  # it is said once

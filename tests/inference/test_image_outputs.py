"""inference/image_outputs.py: sidecars and copies, which files they are and what is found before any is written."""

import importlib.util
import os
import stat
import zipfile

import pytest
from odd_pictures import file_of
from PIL import Image

from captioning.datasets.base import ImageItem
from captioning.errors import UserError
from inference.image_outputs import Copies, Sidecars, outside
from inference.results.result import Result


def items_of(*paths) -> list[ImageItem]:
    return [ImageItem(str(path), os.path.basename(path), str(path)) for path in paths]


def result(*captions: str) -> Result:
    return Result("x", [(text, -1.0) for text in captions])


@pytest.fixture
def photos(tmp_path):
    """a.jpg, b.png, sub/c.jpg."""
    (tmp_path / "sub").mkdir()
    for name, form in (("a.jpg", "JPEG"), ("b.png", "PNG"), ("sub/c.jpg", "JPEG")):
        (tmp_path / name).write_bytes(file_of(form))
    return tmp_path


# ---- sidecars ----


def written(photos, existing: str, *captions: str, old: bytes | None = None, **around) -> bytes:
    (item,) = items_of(photos / "a.jpg")
    if old is not None:
        (photos / "a.txt").write_bytes(old)
    sidecars = Sidecars("txt", existing, **around)
    sidecars.plan([item])
    sidecars.write(item, result(*captions))
    return (photos / "a.txt").read_bytes()


def test_a_caption_a_line_between_prefix_and_suffix(photos):
    assert written(photos, "skip", "one 犬", "two", prefix="photo of ", suffix=", film") == (
        "photo of one 犬, film\nphoto of two, film\n".encode()
    )


def test_a_caption_stays_on_its_line(photos):
    assert written(photos, "skip", "one\nline\r", prefix="a\n") == b"a\\none\\nline\\r\n"


@pytest.mark.parametrize(
    ("existing", "old", "new"),
    [
        ("skip", b"old", b"old"),
        ("skip", b"", b"new\n"),  # as a run that was killed may leave it
        ("overwrite", b"old", b"new\n"),
        ("append", b"old", b"old\nnew\n"),
        ("append", b"\xff old\n", b"\xff old\nnew\n"),
        ("append", b"", b"new\n"),
        ("append", None, b"new\n"),
    ],
)
def test_what_becomes_of_a_file_that_is_there(photos, existing, old, new):
    assert written(photos, existing, "new", old=old) == new


def test_the_images_that_are_done_are_those_with_a_file(photos):
    one, other = items = items_of(photos / "a.jpg", photos / "sub/c.jpg")
    (photos / "a.caption").write_text("old")
    sidecars = Sidecars(".caption", "skip")
    sidecars.plan(items)
    assert sidecars.is_done(one) and not sidecars.is_done(other)
    sidecars.write(one, result("new"))
    sidecars.write(other, result("new"))
    assert (photos / "a.caption").read_text() == "old" and (photos / "sub/c.caption").read_text() == "new\n"
    assert sidecars.report() == "captions in text files beside the images (.caption): 1"


@pytest.mark.parametrize("ending", ["jpg", "ZIP", "t/x", "..", "heic", "a b"])
def test_endings_that_no_text_file_should_have(ending):
    with pytest.raises(UserError, match="--sidecar .*: give the ending of text files"):
        Sidecars(ending)


def test_what_cannot_be_written_is_found_before(photos, monkeypatch):
    (photos / "a.png").touch()
    with pytest.raises(UserError, match=r"a\.jpg and .*a\.png: more than one image would have the file .*a\.txt"):
        Sidecars("txt").plan(items_of(photos / "a.jpg", photos / "b.png", photos / "a.png"))
    with zipfile.ZipFile(photos / "p.zip", "w") as archive:
        archive.writestr("x.jpg", b"")
    with pytest.raises(UserError, match="--sidecar: nothing is written into zip or tar files: unpack .*p.zip first"):
        Sidecars("txt").plan(items_of(photos / "p.zip/x.jpg"))
    (photos / "b.txt").mkdir()
    with pytest.raises(UserError, match="b.txt is a folder"):
        Sidecars("txt").plan(items_of(photos / "b.png"))
    with pytest.raises(UserError, match="where the images lie is not known"):
        Sidecars("txt").plan([ImageItem(1, "1", None)])
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).endswith("sub"))  # root may write anywhere
    with pytest.raises(UserError, match="--sidecar: the folder .*sub cannot be written"):
        Sidecars("txt").plan(items_of(photos / "a.jpg", photos / "sub/c.jpg"))


# ---- copies with metadata ----

needs_exiv2 = pytest.mark.skipif(
    importlib.util.find_spec("pyexiv2") is None, reason="metadata needs the package pyexiv2"
)


@needs_exiv2
def test_copies_lie_as_the_images_do_and_hold_their_captions(photos):
    items = items_of(photos / "a.jpg", photos / "b.png", photos / "sub/c.jpg")
    os.utime(photos / "a.jpg", (1e9, 1e9))
    os.chmod(photos / "a.jpg", 0o640)
    copies = Copies(str(photos / "out"))
    copies.plan(items)
    for number, item in enumerate(items):
        copies.write(item, result(f"caption {number}", "another"))
    for number, name in enumerate(("a.jpg", "b.png", "sub/c.jpg")):
        with Image.open(photos / "out" / name) as copy, Image.open(photos / name) as image:
            assert copy.getexif()[0x10E] == f"caption {number}" and copy.tobytes() == image.tobytes()
            assert not image.getexif()
    status = os.stat(photos / "out/a.jpg")
    assert status.st_mtime == 1e9 and stat.S_IMODE(status.st_mode) == 0o640
    assert all(copies.is_done(item) for item in items) and copies.report().endswith("out: 3")


@needs_exiv2
def test_images_of_a_zip_are_copied_out_of_it(photos):
    with zipfile.ZipFile(photos / "p.zip", "w") as archive:
        archive.write(photos / "a.jpg", "in/a.jpg")
        archive.write(photos / "a.jpg", "b.jpg")
    items = items_of(photos / "p.zip/in/a.jpg", photos / "p.zip/b.jpg")
    copies = Copies(str(photos / "out"))
    copies.plan(items)
    for item in items:
        copies.write(item, result("text"))
    assert Image.open(photos / "out/in/a.jpg").getexif()[0x10E] == "text" and (photos / "out/b.jpg").exists()
    with pytest.raises(UserError, match="--write_metadata_in_place: nothing is written into zip or tar files"):
        Copies(None).plan(items)


@needs_exiv2
def test_in_place_keeps_the_permissions(photos):
    (item,) = items_of(photos / "a.jpg")
    os.chmod(photos / "a.jpg", 0o600)
    before = Image.open(photos / "a.jpg").tobytes()
    copies = Copies(None)
    copies.plan([item])
    copies.write(item, result("text"))
    image = Image.open(photos / "a.jpg")
    assert image.getexif()[0x10E] == "text" and image.tobytes() == before
    assert stat.S_IMODE(os.stat(photos / "a.jpg").st_mode) == 0o600
    assert copies.report() == "captions in the images: 1" and not copies.is_done(item)


@needs_exiv2
def test_images_that_cannot_hold_a_caption_are_named_and_counted(photos, capsys):
    (photos / "g.gif").write_bytes(file_of("GIF"))
    items = items_of(photos / "g.gif", photos / "gone.jpg")
    copies = Copies(str(photos / "out"))
    copies.plan(items)
    for item in items:
        copies.write(item, result("text"))
    assert copies.counts == {"failed": 2} and not list((photos / "out").iterdir())
    assert "g.gif: its caption is not written into it" in capsys.readouterr().err


def test_copies_of_an_earlier_run_are_no_images(photos):
    items = items_of(photos / "a.jpg", photos / "sub/c.jpg", photos / "sub2/d.jpg")
    assert outside(items, str(photos / "sub")) == [items[0], items[2]]
    assert outside(items, str(photos / "none")) == outside(items, str(photos)) == items


@needs_exiv2
def test_originals_are_not_written_over_by_copies(photos):
    with pytest.raises(UserError, match="the images themselves are there: name another folder"):
        Copies(str(photos)).plan(items_of(photos / "a.jpg", photos / "sub/c.jpg"))

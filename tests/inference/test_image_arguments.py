"""inference/image_arguments.py: what files, folders, zip files and patterns on a command line stand for."""

import glob
import zipfile

import pytest

from captioning.errors import UserError
from captioning.images.listing import PassedOver
from inference.image_arguments import holds_images, named_images


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """The current folder: a.jpg, odd[1].jpg, note.txt, holiday/ with subfolders, photos.zip."""
    monkeypatch.chdir(tmp_path)
    names = ["a.jpg", "b.JPG", "odd[1].jpg", "note.txt", "holiday/x.png", "holiday/x.txt", "holiday/.y.png"]
    names += ["holiday/sub/z.jpg", "holiday/sub/deep/w.webp", "holiday/sub/clip.mov"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with zipfile.ZipFile("photos.zip", "w") as archive:
        for name in ("one.jpg", "in/two.jpg", "read.me"):
            archive.writestr(name, b"")
    return tmp_path


def named(*arguments, recursive=False) -> tuple[list[str], str]:
    passed = PassedOver()
    return named_images(arguments, recursive, passed), passed.line()


def test_files_folders_and_zips_in_their_order(photos):
    assert named("b.JPG", "holiday", "photos.zip", "a.jpg") == (
        ["b.JPG", "holiday/x.png", "photos.zip/one.jpg", "a.jpg"],
        "passed over: 1 .me, 1 .txt, 1 hidden, 2 folders (--recursive)",
    )
    assert named("holiday/", "photos.zip/in/two.jpg", recursive=True) == (
        ["holiday/sub/deep/w.webp", "holiday/sub/z.jpg", "holiday/x.png", "photos.zip/in/two.jpg"],
        "passed over: 1 .mov, 1 .txt, 1 hidden",
    )


def test_patterns_stand_for_what_the_shell_would_make_of_them(photos):
    assert named("*.jpg") == (["a.jpg", "odd[1].jpg"], "")
    assert named("*") == (
        ["a.jpg", "b.JPG", "odd[1].jpg", "photos.zip/one.jpg"],
        "passed over: 1 .me, 1 .txt, 2 folders (--recursive)",
    )
    assert named("holiday/**/*.[jw]*") == (["holiday/sub/deep/w.webp", "holiday/sub/z.jpg"], "")
    assert named("holiday/**") == (
        ["holiday/sub/deep/w.webp", "holiday/sub/z.jpg", "holiday/x.png"],
        "passed over: 1 .mov, 1 .txt",
    )
    shell = [name for name in sorted(glob.glob("holiday/*/*")) if name.endswith("jpg")]
    assert named("holiday/*/*.jpg")[0] == shell == ["holiday/sub/z.jpg"]
    assert named("hol*", recursive=True)[0] == named("holiday", recursive=True)[0]


def test_a_name_that_looks_like_a_pattern_is_a_name_first(photos):
    assert named("odd[1].jpg") == (["odd[1].jpg"], "") and not holds_images("odd[1].jpg")


def test_an_image_named_twice_is_taken_once(photos):
    assert named("a.jpg", "*.jpg", "./a.jpg", str(photos / "a.jpg"))[0] == ["a.jpg", "odd[1].jpg"]
    assert named("holiday/x.png", "holiday", "holiday//x.png")[0] == ["holiday/x.png"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["gone.jpg"], "no such image: gone.jpg"),
        (["*.gone"], "no file matches the pattern"),
        (["photos.zip/gone.jpg"], "no such image: photos.zip/gone.jpg"),
        (["photos.zip/*.jpg"], "patterns do not reach into zip files"),
        (["*.txt"], r"no images in \*.txt \(passed over: 1 .txt\)"),
        (["a.jpg", "*.gone"], "no file matches"),
    ],
)
def test_what_is_not_there_is_named(photos, arguments, words):
    with pytest.raises(UserError, match=words):
        named(*arguments)


def test_a_file_that_is_named_is_taken_whatever_it_is_called(photos):
    assert named("note.txt", "a.jpg")[0] == ["note.txt", "a.jpg"]

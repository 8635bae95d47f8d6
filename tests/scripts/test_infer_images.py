"""infer.py: images named in every way, captions beside them and in them, and rules about their words."""

import json
import shutil
import zipfile
from pathlib import Path

import pytest
from PIL import Image
from toy_captioner import picture, save_photo_captioner


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """toy.model, holiday/ with three photos and other files, photos.zip with one photo."""
    root = tmp_path_factory.mktemp("world")
    save_photo_captioner(root / "toy.model")
    (root / "holiday/sub").mkdir(parents=True)
    for seed, name in enumerate(("holiday/a.jpg", "holiday/b.png", "holiday/sub/c.jpg")):
        picture(seed).save(root / name)
    (root / "holiday/notes.md").touch()
    with zipfile.ZipFile(root / "photos.zip", "w") as archive:
        archive.write(root / "holiday/a.jpg", "z.jpg")
        archive.writestr("clip.mov", b"")
    return root


@pytest.fixture
def infer(world, script, tmp_path, monkeypatch):
    """Runs infer.py in a folder of its own, which has holiday/ and photos.zip."""
    shutil.copytree(world / "holiday", tmp_path / "holiday")
    shutil.copy(world / "photos.zip", tmp_path)
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: script("infer.py", "--model", world / "toy.model", *arguments)


def ids(out: str) -> list[str]:
    return [line.partition(": ")[0] for line in out.splitlines()]


def test_the_title_of_a_gallery_says_where_its_images_are_from(infer):
    def title(*arguments) -> str:
        assert infer(*arguments, "--html", "g.html").status == 0
        return Path("g.html").read_text(encoding="utf-8").partition("<title>")[2].partition("</title>")[0]

    assert title("holiday") == "2 images of holiday"
    assert title("holiday/a.jpg") == "1 image"
    assert title("holiday/a.jpg", "photos.zip") == "2 images"


def test_folders_zips_patterns_and_files(infer):
    done = infer("holiday", "photos.zip", "holiday/*/*.jpg", "holiday/a.jpg")
    assert done.status == 0
    assert ids(done.out) == ["holiday/a.jpg", "holiday/b.png", "photos.zip/z.jpg", "holiday/sub/c.jpg"]
    assert done.err == "infer.py: passed over: 1 .md, 1 .mov, 1 folder (--recursive)\n"
    texts = dict(line.split(": ", 1) for line in done.out.splitlines())
    assert texts["holiday/a.jpg"] == texts["photos.zip/z.jpg"] and len(set(texts.values())) > 1


def test_images_of_a_folder_that_is_named_and_of_image_dir_have_ids_of_their_own(infer, tmp_path):
    shutil.copy("holiday/b.png", "a.jpg")
    done = infer("a.jpg", "--image_dir", "holiday", "--recursive", "--output_file", "r.json")
    entries = json.loads((tmp_path / "r.json").read_text())
    assert [entry["image_id"] for entry in entries] == ["a.jpg", "holiday/a.jpg", "b.png", "sub/c.jpg"]
    assert done.err.startswith("infer.py: passed over: 1 .md\n")


def test_images_that_are_named_and_lie_in_image_dir_are_captioned_once(infer):
    done = infer("holiday/b.png", "--image_dir", "./holiday")
    assert done.status == 0 and ids(done.out) == ["holiday/b.png", "a.jpg"]
    assert "infer.py: 1 images of ./holiday are named twice: each is captioned once\n" in done.err


def test_a_results_file_has_the_name_of_the_only_folder(infer, tmp_path):
    assert infer("holiday/", "--results_path", "out").status == 0
    assert [path.name for path in (tmp_path / "out").iterdir()][0].startswith("holiday_")


def test_sidecars_and_what_a_second_run_does(infer, tmp_path):
    first = infer("holiday", "photos.zip", "--sidecar", "txt")
    assert first.status == 2 and "photos.zip first" in first.err and not list(tmp_path.glob("holiday/*.txt"))
    done = infer("holiday", "--sidecar", "txt", "--n_best", 2, "--prefix", "x ", "--no_capitalize", "--num_workers", 1)
    assert (done.status, done.out) == (0, "")
    assert done.err.endswith("captions in text files beside the images (.txt): 2\n")
    lines = (tmp_path / "holiday/a.txt").read_text().splitlines()
    printed = infer("holiday/a.jpg", "--n_best", 2, "--no_capitalize").out.splitlines()
    assert [f"holiday/a.jpg: {line.removeprefix('x ')}" for line in lines] == [
        line.rpartition("  (")[0] for line in printed
    ]
    before = (tmp_path / "holiday/a.txt").stat().st_mtime_ns

    again = infer("holiday", "--sidecar", "txt", "--recursive", "--output_file", "new.json")
    assert again.status == 0 and "2 of 3 images have their files already" in again.err
    assert (tmp_path / "holiday/a.txt").stat().st_mtime_ns == before
    assert [entry["image_id"] for entry in json.loads((tmp_path / "new.json").read_text())] == ["holiday/sub/c.jpg"]
    assert (tmp_path / "holiday/sub/c.txt").read_text().count("\n") == 1

    assert infer("holiday", "--output_file", "r.jsonl").status == 0
    for name in ("a.txt", "b.txt"):
        shutil.move(f"holiday/{name}", name)
    resumed = infer("holiday", "--output_file", "r.jsonl", "--resume", "--sidecar", "txt", "--model", "gone.model")
    assert resumed.status == 0 and resumed.err.endswith("(.txt): 2\n")  # of the captions that are there
    entry = json.loads((tmp_path / "r.jsonl").read_text().splitlines()[0])
    assert (tmp_path / "holiday/a.txt").read_text() == f"{entry['caption']}\n"
    shutil.move("a.txt", "holiday/a.txt")
    nothing = infer("holiday/a.jpg", "--sidecar", "txt", "--model", "gone.model")
    assert nothing.status == 0 and "1 of 1 images have their files already" in nothing.err
    more = infer("holiday/a.jpg", "--sidecar", "txt", "--existing", "append", "--suffix", " (2)")
    assert more.status == 0 and (tmp_path / "holiday/a.txt").read_text().splitlines()[:2] == lines
    assert (tmp_path / "holiday/a.txt").read_text().endswith(". (2)\n")


def test_the_captions_in_copies_and_beside_the_images(infer, tmp_path):
    pytest.importorskip("pyexiv2", reason="writing metadata needs the package pyexiv2")
    Image.new("RGB", (40, 40), "red").save("holiday/d.gif")
    shutil.copytree("holiday/sub", "out/old")
    done = infer("holiday", "photos.zip", "out/*/*", "--write_metadata", "out", "--output_file", "r.jsonl")
    assert "passed over: 1 images in out, where the copies are" in done.err
    assert done.status == 1 and "holiday/d.gif: its caption is not written into it" in done.err
    assert "the captions of 1 images could not be written into them" in done.err
    captions = {
        entry["image_id"]: entry["caption"]
        for entry in map(json.loads, (tmp_path / "r.jsonl").read_text().splitlines())
    }
    assert len(captions) == 4
    for name, caption in captions.items():
        if not name.endswith(".gif"):
            assert Image.open(tmp_path / "out" / name).getexif()[0x10E] == caption
    done = infer("holiday/*.png", "--write_metadata_in_place", "--sidecar", "txt")
    assert done.status == 0 and done.err.endswith("captions in the images: 1\n")
    text = (tmp_path / "holiday/b.txt").read_text()
    assert f"{Image.open('holiday/b.png').getexif()[0x10E]}\n" == text


@pytest.mark.parametrize("search", [("--beam_size", 1), ("--beam_size", 4, "--n_best", 4), ("--sample", "--n_best", 3)])
def test_rules_about_words_hold_in_every_search(infer, tmp_path, search):
    rules = ("--min_words", 6, "--max_words", 7, "--no_repeat_words", "--may_repeat", "dog, on")
    done = infer("holiday", "--output_file", "r.jsonl", "--no_capitalize", *search, *rules)
    assert done.status == 0
    for entry in map(json.loads, (tmp_path / "r.jsonl").read_text().splitlines()):
        for one in entry.get("n_best", [entry]):
            words = one["caption"].replace(",", " ,").split()
            assert len(words) in (6, 7)
            assert all(words.count(word) <= 1 for word in ("red", "blue", "green", "ball", "box", "man", "runs")), words


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--min_words", "21"], "--min_words 21 is more than the 20 words"),
        (["--min_words", "6", "--max_words", "5"], "--min_words 6 is more than the 5 words"),
        (["--max_words", "0"], "--max_words 0: must be at least 1"),
        (["--no_repeat_words", "--repeat_words"], "--no_repeat_words and --repeat_words exclude each other"),
        (["--may_repeat", "dog"], "--may_repeat is for --no_repeat_words"),
        (["--prefix", "x"], "add --sidecar txt"),
        (["--existing", "skip"], "--existing is for --sidecar and --write_metadata"),
        (["--existing", "append", "--write_metadata", "out"], "--existing append is for --sidecar"),
        (["--write_metadata", "out", "--write_metadata_in_place"], "give one of them"),
        (["--sidecar", "jpg"], "give the ending of text files"),
        (["--recursive"], "--recursive is for folders"),
    ],
)
def test_mistakes_are_one_line(infer, flags, words):
    done = infer("holiday/a.jpg", *flags)
    assert done.status == 2 and words in done.err and done.err.count("\n") == 1

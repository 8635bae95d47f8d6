"""captioning/images/description.py on odd files: pixels, all other metadata, and the text as others read it."""

import io
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from odd_pictures import file_of, refused, writable
from PIL import Image

pyexiv2 = pytest.importorskip("pyexiv2", reason="writing metadata needs the package pyexiv2")

from captioning.errors import UserError  # noqa: E402
from captioning.images import description  # noqa: E402
from captioning.images.description import require_package, with_description  # noqa: E402

TEXT = 'Ein Hündchen läuft, 犬 & <b> "x".'
# What must change: the text, who wrote the XMP, that there is EXIF and XMP now, and where in the file things lie.
CHANGE = ("IFD0:ImageDescription", "XMP-dc:Description", "XMP-x:XMPToolkit", "File:ExifByteOrder", "RIFF:WebP_Flags")
CHANGE += ("File:FileType", "ExifTool:", "File:FileSize")
PLACES = ("Offset", "Offsets", "Start")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Folders `before` and `after` with the same names."""
    root = tmp_path_factory.mktemp("odd")
    for name, data in writable().items():
        for folder, content in (("before", data), ("after", with_description(data, TEXT))):
            (root / folder).mkdir(exist_ok=True)
            (root / folder / name).write_bytes(content)
    return root


def frames(path) -> list:
    with Image.open(path) as image:
        found = []
        for number in range(getattr(image, "n_frames", 1)):
            image.seek(number)
            found.append((image.mode, image.size, image.info.get("duration"), image.tobytes()))
        return found


@pytest.mark.parametrize("name", list(writable()))
def test_pixels_are_the_same_and_pillow_reads_the_text(files, name):
    assert frames(files / "before" / name) == frames(files / "after" / name)
    with Image.open(files / "after" / name) as image:
        if image.format != "JPEG2000":  # of which Pillow reads no metadata
            # Pillow takes texts of EXIF for Latin 1
            assert image.getexif()[0x10E].encode("latin-1").decode() == TEXT
            assert "Ein Hündchen läuft, 犬 &amp; &lt;b&gt;" in bytes(image.info["xmp"]).decode()


@pytest.mark.skipif(shutil.which("exiftool") is None, reason="exiftool is not installed")
def test_exiftool_reads_the_text_and_every_other_tag_as_before(files):
    def tags(folder: str) -> dict[str, dict]:
        command = ["exiftool", "-j", "-G1", "-a", "-u", "-U", "-charset", "exif=utf8", "-x", "System:all"]
        done = subprocess.run([*command, files / folder], capture_output=True, text=True)
        return {Path(entry.pop("SourceFile")).name: entry for entry in json.loads(done.stdout)}

    before, after = tags("before"), tags("after")
    assert before.keys() == after.keys() == writable().keys()
    for name, new in after.items():
        assert new["XMP-dc:Description"] == TEXT and new["IFD0:ImageDescription"] == TEXT, name
        for tag in new.keys() | before[name].keys():
            if tag.endswith(PLACES) or (tag.startswith(CHANGE) and not tag.endswith("-de")):
                continue
            assert new.get(tag) == before[name].get(tag), (name, tag)
    assert after["xmp.jpg"]["XMP-dc:Description-de"] == "ein alter Text"
    assert after["exif.jpg"]["Canon:OwnerName"] == "Somebody Owner"


@pytest.mark.parametrize("name", list(refused()))
def test_what_would_be_lost_is_refused(name):
    data, reason = refused()[name]
    with pytest.raises(ValueError) as caught:
        with_description(data, TEXT)
    assert reason in str(caught.value) and "\n" not in str(caught.value) and str(caught.value)


def test_written_twice_the_last_text_counts():
    data = with_description(with_description(file_of("PNG"), "one"), "two")
    with Image.open(io.BytesIO(data)) as image:
        assert image.getexif()[0x10E] == "two" and b"one<" not in image.info["xmp"]


def test_a_change_of_pixels_would_be_noticed(monkeypatch):
    one, other = file_of("PNG"), file_of("PNG", Image.new("RGB", (64, 48)))
    monkeypatch.setattr(description, "_rewritten", lambda data, text: other)
    with pytest.raises(ValueError, match="pictures would not stay"):
        with_description(one, "x")


def test_damaged_files_are_one_line_or_well():
    random.seed(1)
    whole = list(writable().values())
    for _ in range(150):
        data = bytearray(random.choice(whole))
        for _ in range(random.choice((1, 3, 20))):
            data[random.randrange(len(data))] = random.randrange(256)
        try:
            new = with_description(bytes(data), TEXT)
        except ValueError as error:
            assert "\n" not in str(error)
        else:
            assert TEXT.split(",")[0].encode() in new


def test_without_the_package(monkeypatch):
    require_package("--write_metadata")
    monkeypatch.setitem(sys.modules, "pyexiv2", None)
    with pytest.raises(UserError, match="--write_metadata needs a package: pip install pyexiv2"):
        require_package("--write_metadata")

"""captioning/images/image_file.py against files of every kind, made by Pillow and by hand."""

import io
import pickle
import struct
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from captioning.images import image_file
from captioning.images.image_file import ImageError, image_size, open_image, resize_square, target_size


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """A smooth picture with some texture, a stand-in for a photo."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((width, height), Image.BICUBIC)
    texture = rng.normal(0, 6, (height, width, 1))
    return Image.fromarray((np.asarray(coarse) + texture).clip(0, 255).astype(np.uint8))


def difference(one, other) -> float:
    return float(np.abs(np.asarray(one, float) - np.asarray(other, float)).mean())


def corners() -> Image.Image:
    """64x32, red top left, green top right, blue bottom left, white bottom right."""
    image = Image.new("RGB", (64, 32), "white")
    for box, colour in [((0, 0, 32, 16), "red"), ((32, 0, 64, 16), "lime"), ((0, 16, 32, 32), "blue")]:
        image.paste(colour, box)
    return image


# What a camera stores for each orientation, by the definition of EXIF: row 0 and column 0 of the file are these sides.
SIDES = {
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}


def stored(upright: np.ndarray, orientation: int) -> np.ndarray:
    row, column = SIDES[orientation]
    if row in ("left", "right"):
        upright = upright.transpose(1, 0, 2)
    if row in ("bottom", "right"):
        upright = upright[::-1]
    return upright[:, ::-1] if column in ("bottom", "right") else upright


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", SIDES)
def test_exif_orientation_is_applied(tmp_path, orientation, suffix):
    path = tmp_path / f"a.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.ascontiguousarray(stored(np.asarray(corners()), orientation)))
    sharp = {"jpg": {"quality": 95, "subsampling": 0}, "webp": {"lossless": True}}
    image.save(path, exif=exif, **sharp.get(suffix, {}))
    opened = open_image(path)
    assert opened.size == image_size(path) == (64, 32)
    assert difference(opened, corners()) < 1


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_leaves_the_picture(tmp_path):
    path = tmp_path / "a.jpg"
    corners().save(path, exif=b"Exif\0\0II*\0\xff\xff\xff\xffgarbage", quality=95)
    assert open_image(path).size == (64, 32)


MODES = {  # mode -> colour in that mode, the RGB it stands for
    "1": (1, (255, 255, 255)),
    "L": (100, (100, 100, 100)),
    "LA": ((100, 255), (100, 100, 100)),
    "RGB": ((10, 200, 30), (10, 200, 30)),
    "RGBA": ((255, 0, 0, 51), (255, 204, 204)),  # one fifth red over white
    "I;16": (51400, (200, 200, 200)),  # 51400 / 257
}


@pytest.mark.parametrize("mode", MODES)
def test_modes(tmp_path, mode):
    colour, expected = MODES[mode]
    path = tmp_path / "a.png"
    Image.new(mode, (5, 4), colour).save(path)
    opened = open_image(path)
    assert opened.mode == "RGB"
    assert np.abs(np.asarray(opened, int) - expected).max() <= 1


@pytest.mark.parametrize("mode", MODES)
def test_strips_of_large_images_are_those_of_the_whole(tmp_path, monkeypatch, mode):
    pixels = np.asarray(photo(40, 33))
    deep = Image.fromarray(pixels[..., 0].astype("u2") * 99)
    image = deep if mode == "I;16" else Image.fromarray(pixels).convert(mode)
    image.save(tmp_path / "a.png")
    whole = np.asarray(open_image(tmp_path / "a.png"))
    monkeypatch.setattr(image_file, "STRIP", 200)
    assert np.array_equal(np.asarray(open_image(tmp_path / "a.png")), whole)


def test_palettes_with_and_without_transparency(tmp_path):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 250, 20, 30])
    image.save(tmp_path / "opaque.png")
    image.save(tmp_path / "clear.png", transparency=1)
    image.save(tmp_path / "clear.gif", transparency=1)
    assert open_image(tmp_path / "opaque.png").getpixel((0, 0)) == (250, 20, 30)
    assert open_image(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)
    assert open_image(tmp_path / "clear.gif").getpixel((0, 0)) == (255, 255, 255)
    Image.new("RGB", (4, 4), (9, 8, 7)).save(tmp_path / "key.png", transparency=(9, 8, 7))
    assert open_image(tmp_path / "key.png").getpixel((0, 0)) == (255, 255, 255)


def test_cmyk_and_ycbcr_jpeg(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg", quality=95)
    red = np.asarray(open_image(tmp_path / "cmyk.jpg"), int)
    assert np.abs(red - (255, 0, 0)).max() <= 4


@pytest.mark.parametrize("dtype, top", [(np.uint16, 65535), (np.int32, 65535), (np.float32, 1.0), (np.float32, 255.0)])
def test_deep_tiff_keeps_its_greys(tmp_path, dtype, top):
    ramp = (np.linspace(0, 1, 256) * top).astype(dtype)[None].repeat(4, 0)
    Image.fromarray(ramp).save(tmp_path / "a.tif")
    assert np.abs(np.asarray(open_image(tmp_path / "a.tif"))[0, :, 0].astype(int) - np.arange(256)).max() <= 1


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (6, 6), colour) for colour in ("red", "blue")]
    for name in ("a.gif", "a.webp"):
        options = {"lossless": True} if name.endswith("webp") else {}
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
        assert open_image(tmp_path / name).getpixel((3, 3)) == (255, 0, 0)


def test_multi_picture_jpeg(tmp_path):
    photo(64, 48).save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[photo(64, 48, 1)], quality=95)
    assert difference(open_image(tmp_path / "a.jpg"), photo(64, 48)) < 6
    assert open_image(tmp_path / "a.jpg", 20).size == (32, 24)


def test_content_counts_not_extension(tmp_path):
    corners().save(tmp_path / "a.jpg", "PNG")
    assert difference(open_image(tmp_path / "a.jpg"), corners()) == 0


def bomb() -> bytes:
    """A PNG of a few bytes that claims 60000 x 60000 pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def half(form: str) -> bytes:
    buffer = io.BytesIO()
    photo(120, 90).save(buffer, form)
    return buffer.getvalue()[: len(buffer.getvalue()) // 2]


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "empty"),
        (b"<html>404 not found</html>", "not a JPEG"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF", ""),
        (bomb(), "pixels"),
        (half("JPEG"), "truncated"),
        (half("PNG"), "truncated"),
        (half("WEBP"), ""),
        (half("BMP"), "truncated"),
        (half("TIFF"), ""),
        (half("GIF"), ""),
    ],
    ids=["empty", "html", "header", "bomb", "jpeg", "png", "webp", "bmp", "tiff", "gif"],
)
@pytest.mark.parametrize("hint", [None, 32])
def test_bad_files_are_named(tmp_path, content, reason, hint):
    path = tmp_path / "bad.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageError, match="bad.jpg") as caught:
        open_image(path, hint)
    assert reason in caught.value.reason and "\n" not in str(caught.value)


def test_missing_file_folder_and_pixel_limit(tmp_path, monkeypatch):
    with pytest.raises(ImageError, match="No such file"):
        open_image(tmp_path / "none.jpg")
    with pytest.raises(ImageError, match="directory"):
        open_image(tmp_path)
    corners().save(tmp_path / "a.png")
    monkeypatch.setattr(image_file, "MAX_PIXELS", 2047)
    with pytest.raises(ImageError, match="64x32"):
        open_image(tmp_path / "a.png")


def test_error_travels_between_processes():
    error = pickle.loads(pickle.dumps(image_file.image_error("a.jpg", "broken")))
    assert (str(error), error.reason) == ("cannot read image a.jpg: broken", "broken")


@pytest.mark.parametrize("hint, size", [(None, (640, 480)), (241, (640, 480)), (240, (320, 240)), (50, (80, 60))])
def test_size_hint_bounds_the_shorter_side(tmp_path, hint, size):
    photo(640, 480).save(tmp_path / "a.jpg")
    assert open_image(tmp_path / "a.jpg", hint).size == size


@pytest.mark.parametrize("seed", range(3))
def test_reducing_gap_is_close_to_a_plain_resize(seed):
    image = photo(1500, 1100, seed)
    plain = image.resize((64, 64), Image.BILINEAR)
    assert difference(resize_square(image, 64), plain) < 0.5


def test_resize_is_antialiased_and_sized():
    stripes = Image.fromarray((np.indices((400, 400)).sum(0) % 2 * 255).astype(np.uint8)).convert("RGB")
    assert np.abs(np.asarray(resize_square(stripes, 50), float) - 127.5).max() < 3
    assert resize_square(photo(300, 200), 100, keep_aspect=True).size == (150, 100)
    assert resize_square(photo(200, 300), 100, keep_aspect=True).size == (100, 150)
    assert resize_square(photo(30, 20), 100).size == (100, 100)
    assert target_size((1000, 333), 333, keep_aspect=True) == (1000, 333)


def heif():
    return pytest.importorskip("pillow_heif", reason="HEIC needs the package pillow-heif")


def encoded(form: str, image: Image.Image | None = None, **options) -> bytes:
    if form == "HEIF":
        heif().register_heif_opener()
    buffer = io.BytesIO()
    (image or photo(120, 90)).save(buffer, form, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["AVIF", "JPEG2000", "HEIF", "PPM"])
def test_formats_of_phones_and_scanners(tmp_path, form):
    path = tmp_path / "a.jpg"  # the content counts
    path.write_bytes(encoded(form))
    opened = open_image(path)
    assert opened.size == image_size(path) == (120, 90) and opened.mode == "RGB"
    assert difference(opened, photo(120, 90)) < 8
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(ImageError, match="a.jpg"):
        open_image(path)


@pytest.mark.parametrize("form", ["AVIF", "HEIF"])
@pytest.mark.parametrize("orientation", [3, 5, 6, 8])
def test_orientation_of_phones(tmp_path, form, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.ascontiguousarray(stored(np.asarray(corners()), orientation)))
    path = tmp_path / "a.heic"
    path.write_bytes(encoded(form, image, exif=exif.tobytes(), quality=95))
    opened = open_image(path)
    assert opened.size == image_size(path) == (64, 32)
    assert difference(opened, corners()) < 12


def test_heic_without_its_package_names_it(tmp_path, monkeypatch):
    path = tmp_path / "a.heic"
    path.write_bytes(encoded("HEIF"))
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ImageError, match="a.heic: a HEIC image, which needs a package: pip install pillow-heif"):
        open_image(path)


def test_programs_in_images_are_not_run(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    with pytest.raises(ImageError, match="not a JPEG"):
        open_image(path)

"""Writing a description into an image file, of which nothing else changes.

    new = with_description(Path("photo.jpg").read_bytes(), "A dog runs.")

The text goes into XMP (`dc:description`) and EXIF (`ImageDescription`), where picture managers look for it. The package
pyexiv2 (Exiv2) rewrites the metadata and copies all other bytes; every picture of the result is compared.
"""

import io
from collections.abc import Iterator
from itertools import zip_longest

from PIL import Image, UnidentifiedImageError

from captioning.errors import UserError, one_line
from captioning.images.image_file import FORMATS, MAX_PIXELS

PACKAGE = "pyexiv2"
WRITABLE = ("JPEG", "MPO", "PNG", "WEBP", "TIFF", "JPEG2000")
KNOWN = "JPEG, PNG, WebP, TIFF and JPEG 2000"
MOST_COMPARED = 8 * MAX_PIXELS  # pixels of all frames of an animation
XMP, EXIF = "Xmp.dc.description", "Exif.Image.ImageDescription"
DEFAULT = 'lang="x-default"'  # the language that readers show where none is asked for


def require_package(option: str) -> None:
    """Raises UserError, naming the flag `option`, where the package that writes metadata is missing."""
    try:
        import pyexiv2  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:  # OSError, RuntimeError: its library does not run here
        raise UserError(f"{option} needs a package: pip install {PACKAGE} ({one_line(error)})") from error


def with_description(data: bytes, text: str) -> bytes:
    """The image file `data` with `text` as its description, in UTF-8; descriptions in other languages stay.

    Raises ValueError, whose message is one line, for a file that cannot hold it, that is damaged, or of which
    something would be lost.
    """
    try:
        form = _format(data)
        if form not in WRITABLE:
            raise ValueError(f"captions are written into {KNOWN} files, not into {form}")
        new = _rewritten(data, text)
        if any(before != after for before, after in zip_longest(_pictures(data), _pictures(new))):
            raise ValueError("its pictures would not stay as they are")
    except Exception as error:  # damaged files bring forth nearly every kind of exception
        raise ValueError(one_line(error)) from error
    return new


def _format(data: bytes) -> str:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return image.format
    except UnidentifiedImageError:
        return "other kinds"


def _rewritten(data: bytes, text: str) -> bytes:
    import pyexiv2

    pyexiv2.set_log_level(3)  # errors are raised; warnings would be printed
    with pyexiv2.ImageData(data) as image:
        old = image.read_xmp().get(XMP)
        languages = old if isinstance(old, dict) else {}
        image.modify_xmp({XMP: {**languages, DEFAULT: text}})
        image.modify_exif({EXIF: text})
        return image.get_bytes()


def _pictures(data: bytes) -> Iterator[tuple]:
    """Mode, size and content of every frame or page. JPEGs are decoded at an eighth of their size: it reads all."""
    compared = 0
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        frames = getattr(image, "n_frames", 1)
        if frames == 1:
            image.draft(None, (1, 1))  # does nothing but to JPEGs
        for number in range(frames):
            image.seek(number)
            compared += image.width * image.height
            if compared > MOST_COMPARED:
                raise ValueError(f"more than {MOST_COMPARED:,} pixels in all its frames")
            yield image.mode, image.size, image.info.get("duration"), image.tobytes()

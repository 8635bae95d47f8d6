"""Which files are images, by the ending of their names.

Whether a file that ends so is an image is for `captioning.images.image_file` to find out.
"""

import functools

from captioning.errors import is_installed

HEIF_EXTENSIONS = (".heic", ".heif", ".hif")
HEIF_BRANDS = {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs", b"mif1", b"msf1"}
HEIF_PACKAGE = "pillow-heif"
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
EXTENSIONS += (".jpe", ".jfif", ".dib", ".apng", ".avif", ".jp2", ".j2k", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm")
EXTENSIONS += HEIF_EXTENSIONS
KNOWN_FORMATS = "JPEG, PNG, WebP, BMP, TIFF, GIF, AVIF, JPEG 2000, HEIC or PPM"


def is_image_name(name: str) -> bool:
    """Whether the name of a file, without its folder, ends as that of an image does. Hidden files are none."""
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")


def is_readable_name(name: str) -> bool:
    """Whether `name` is that of an image which the packages that are installed can read."""
    return is_image_name(name) and (heif_is_there() or not name.lower().endswith(HEIF_EXTENSIONS))


@functools.cache
def heif_is_there() -> bool:
    """Whether the package for HEIC images is installed."""
    return is_installed("pillow_heif")

"""Writing an image anew: the content of a file in the format that its ending stands for."""

import io
import os

from captioning.images.image_file import image_error
from captioning.images.kinds import HEIF_EXTENSIONS

# A JPEG is decoded at a reduced scale as long as it keeps this many times the result: with three the mean difference
# from decoding in full is about half a grey level, with one it would be one and a half, on some photos four. Not quite
# three, so that photos of 4000x3000 and 4032x3024 go to 256 by way of a quarter of their size.
OVERSAMPLING = 2.9
# Extensions that are not the name of their format.
OTHER_FORMATS = {".jpg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".tif": "TIFF", ".dib": "DIB", ".apng": "PNG"}
OTHER_FORMATS |= dict.fromkeys((".jp2", ".j2k", ".jpx"), "JPEG2000") | dict.fromkeys((".pgm", ".pbm", ".pnm"), "PPM")
OTHER_FORMATS |= dict.fromkeys(HEIF_EXTENSIONS, "HEIF")
HAVE_QUALITY = ("JPEG", "WEBP", "AVIF", "HEIF")


def encoded(image, source, quality: int) -> bytes:
    """The content of a file of the PIL image, in the format that the extension of the path `source` stands for.

    quality: 1 to 100, of the formats that have one. Raises ImageError where the format cannot hold the image.
    """
    extension = os.path.splitext(source)[1].lower()
    form = OTHER_FORMATS.get(extension, extension[1:].upper())
    if image.mode == "RGBX" and form != "JPEG":
        image = image.convert("RGB")
    if form == "GIF":
        image = image.quantize(256)  # colours chosen for this image
    buffer = io.BytesIO()
    try:
        image.save(buffer, form, **({"quality": quality} if form in HAVE_QUALITY else {}))
    except Exception as error:  # too long a side for the format, mostly
        raise image_error(source, f"cannot be written as {form} at {image.width}x{image.height}: {error}") from error
    return buffer.getvalue()

"""Images of any kind in, upright RGB out: opening safely, resizing.

A member of a zip or tar file is an image as a file is: `photos.zip/sub/a.jpg`.
"""

import contextlib
import io
import os
import stat
import warnings
from collections.abc import Iterator

from PIL import ExifTags, Image, UnidentifiedImageError

from captioning.errors import UserError
from captioning.images.archives import archive_of, member_exists, read_member
from captioning.images.kinds import HEIF_BRANDS, HEIF_PACKAGE, KNOWN_FORMATS
from captioning.images.tar_file import plain_path

# Only the decoders of photos: some that Pillow has run other programs (EPS), or take nearly any file for theirs (TGA).
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "TIFF", "GIF", "AVIF", "JPEG2000", "PPM")
JPEG_FORMATS = ("JPEG", "MPO")  # MPO: a JPEG with more pictures, as many phones write
MAX_PIXELS = 2**27  # 134 megapixels: more is taken for a decompression bomb
MAX_DECODED = 60_000_000  # pixels that are unpacked, 480 MB with their copy in RGB; large JPEGs are decoded smaller
STRIP = 2**24  # pixels that are converted at a time
UPRIGHT = {  # EXIF orientation -> the transposition that undoes it
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Pillow's warnings (odd EXIF, large images) name no file; what matters of them is an ImageError here.
warnings.filterwarnings("ignore", module=r"PIL\.")


class ImageError(UserError):
    """An image that cannot be used. The message names the file; `reason` is the part without the name."""

    reason = ""


class TooManyPixels(ValueError):
    """An image that is larger than MAX_PIXELS, or MAX_DECODED."""


def image_error(path, reason) -> ImageError:
    reason = " ".join(str(reason).split())
    error = ImageError(f"cannot read image {plain_path(path)}: {reason}")
    error.reason = reason
    return error


def open_image(path, size_hint: int | None = None) -> Image.Image:
    """Read the first frame of the image file `path` as an upright 8-bit RGB image. `path` may be its bytes, a BytesIO.

    Palettes, greys, CMYK, 16-bit and float images are converted; transparent parts become white. The content
    decides the format, not the extension. With `size_hint` a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size
    (much faster) as long as its shorter side stays >= `size_hint` pixels.
    Raises ImageError for a file that is missing, no image, truncated, damaged or larger than MAX_PIXELS.
    """
    with opened(path) as image:
        if size_hint and image.format in JPEG_FORMATS:
            image.draft(None, (size_hint, size_hint))
        rgb = upright(image)
        rgb.info.clear()  # or saving would take the compression and profile of the old file for the new one
        return rgb


def upright(image: Image.Image) -> Image.Image:
    """A Pillow image as an upright 8-bit RGB image, transparent parts over white; perhaps the image itself.

    Raises ValueError where it has too many pixels, and what Pillow raises where it cannot be decoded.
    """
    if image.width * image.height > MAX_DECODED:
        raise TooManyPixels(f"{image.width}x{image.height} is more than {MAX_DECODED:,} pixels")
    image.load()
    turn = UPRIGHT.get(orientation(image))  # read after load(), which turns a TIFF by itself
    rgb = to_rgb(image)
    return rgb.transpose(turn) if turn is not None else rgb


def image_size(path) -> tuple[int, int]:
    """Width and height of the upright image, from the header alone. Raises ImageError."""
    with opened(path) as image:
        width, height = image.size
        # A TIFF already reports its upright size. Orientations 5 to 8 lie on their side.
        sideways = image.format != "TIFF" and orientation(image) >= 5
        return (height, width) if sideways else (width, height)


@contextlib.contextmanager
def opened(path) -> Iterator[Image.Image]:
    """The image file, or member of an archive, with its header read. What goes wrong within becomes an ImageError."""
    try:
        with _open(content_of(path)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise TooManyPixels(f"{image.width}x{image.height} is more than {MAX_PIXELS:,} pixels")
            yield image
    except Exception as error:
        raise explained(path, error) from error


def content_of(path):
    """What Pillow reads: the path of a plain file, or bytes as a BytesIO. Raises ValueError for what may never end."""
    if isinstance(path, io.BytesIO):
        return path
    if archive_of(path):
        return io.BytesIO(read_member(path))
    if not stat.S_ISREG(os.stat(path).st_mode) and not os.path.isdir(path):
        raise ValueError("it is not a plain file")  # a pipe
    return path


def _open(file) -> Image.Image:
    """The image in `file`, a path or bytes, with its header read."""
    try:
        return Image.open(file, formats=FORMATS)
    except Exception:
        if not _is_heif(file):
            raise
    try:
        import pillow_heif
    except ImportError:
        raise ValueError(f"a HEIC image, which needs a package: pip install {HEIF_PACKAGE}") from None
    pillow_heif.register_heif_opener()
    return Image.open(file, formats=("HEIF",))


def _is_heif(file) -> bool:
    """Whether the content begins as a HEIC or HEIF image does."""
    with contextlib.nullcontext(file) if isinstance(file, io.BytesIO) else open(file, "rb") as content:
        content.seek(0)
        head = content.read(12)
        content.seek(0)
    return head[4:8] == b"ftyp" and head[8:] in HEIF_BRANDS


def image_exists(path) -> bool:
    """Whether there is a file `path`, also within a zip or tar file. Raises UserError for a damaged zip file."""
    return os.path.exists(path) if archive_of(path) is None else member_exists(path)


def explained(path, error: Exception) -> ImageError:
    """The ImageError for whatever a decoder raised: damaged files bring forth nearly every kind of exception."""
    if isinstance(error, UnidentifiedImageError):
        content = content_of(path)
        empty = (content.getbuffer().nbytes if isinstance(content, io.BytesIO) else os.path.getsize(path)) == 0
        return image_error(path, "the file is empty" if empty else f"not a {KNOWN_FORMATS} image")
    if isinstance(error, OSError) and error.strerror:  # missing, a folder, no permission
        return image_error(path, error.strerror)
    if isinstance(error, Image.DecompressionBombError):
        return image_error(path, f"more than {MAX_PIXELS:,} pixels")
    return image_error(path, error or type(error).__name__)


def orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 (upright) where there is none or the EXIF block is damaged: the pixels are still good."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:
        return 1
    return value if value in UPRIGHT else 1


def to_rgb(image: Image.Image) -> Image.Image:
    """A loaded image of any Pillow mode as 8-bit RGB, transparent parts over white.

    Large images are converted in strips, so that memory holds two copies at most.
    """
    if image.mode == "RGB" and (image.format in JPEG_FORMATS or not image.has_transparency_data):
        return image  # as it is: the copy that convert() makes takes a fifth of the time of decoding
    top = image.getextrema()[1] if image.mode in ("I", "F") else None
    rows = max(1, STRIP // image.width)
    if rows >= image.height:
        return strip_to_rgb(image, top)
    whole = Image.new("RGB", image.size)
    for start in range(0, image.height, rows):
        strip = image.crop((0, start, image.width, min(start + rows, image.height)))
        whole.paste(strip_to_rgb(strip, top), (0, start))
    return whole


def strip_to_rgb(image: Image.Image, top: float | None) -> Image.Image:
    """`to_rgb` of an image or a strip of one, whose brightest pixel in modes "I" and "F" is `top`."""
    if image.mode.startswith("I;16"):
        image = scaled(image.convert("I"), 65535)
    elif top is not None:  # no full scale is known: the smallest usual one that holds the brightest pixel
        scales = ([1] if image.mode == "F" else []) + [255, 65535]
        image = scaled(image, next((scale for scale in scales if top <= scale), top))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        canvas = Image.new("RGB", image.size, "white")
        canvas.paste(rgba, mask=rgba.getchannel("A"))
        return canvas
    return image.convert("RGB")


def scaled(image: Image.Image, top: float) -> Image.Image:
    """An "I" or "F" image, 0..top, as 8-bit grey, rounded to the nearest level."""
    return image.point(lambda value: value * (255 / top) + 0.5).convert("L")


def resize_square(image: Image.Image, size: int, keep_aspect: bool = False) -> Image.Image:
    """Resize the whole image to size x size pixels, or with `keep_aspect` to a shorter side of `size`; bilinear.

    Antialiased. Very large images are first shrunk by a whole factor to no less than three times the result, which
    differs from a plain resize by half a grey level at most.
    """
    target = target_size(image.size, size, keep_aspect)
    if image.size == target:
        return image
    return image.resize(target, Image.Resampling.BILINEAR, reducing_gap=3.0)


def target_size(size: tuple[int, int], side: int, keep_aspect: bool = False) -> tuple[int, int]:
    """Width and height that `resize_square(..., side, keep_aspect)` gives an image of `size`."""
    if not keep_aspect:
        return side, side
    shorter = min(size)
    return max(side, round(size[0] * side / shorter)), max(side, round(size[1] * side / shorter))

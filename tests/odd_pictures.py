"""Image files as cameras, phones, scanners and editors write them, each odd in one way; for tests of metadata."""

import io
import struct
import zlib

import numpy as np
from PIL import Image, ImageCms, PngImagePlugin

XMP = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n<x:xmpmeta xmlns:x="adobe:ns:meta/">'
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
    'xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:Rating="4" xmlns:my="http://example.org/my/" my:thing="kept"/>'
    '<rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:subject><rdf:Bag><rdf:li>dog</rdf:li>'
    "<rdf:li>h\u00fcndchen</rdf:li></rdf:Bag></dc:subject><dc:description><rdf:Alt>"
    '<rdf:li xml:lang="x-default">an old text</rdf:li><rdf:li xml:lang="de">ein alter Text</rdf:li></rdf:Alt>'
    f"</dc:description></rdf:Description></rdf:RDF></x:xmpmeta>\n{' ' * 200}<?xpacket end='w'?>"
).encode()


def noise(width: int = 64, height: int = 48, channels: int = 3) -> Image.Image:
    values = np.random.default_rng(width).integers(0, 256, (height, width, channels), np.uint8)
    return Image.fromarray(values.squeeze())


def file_of(form: str, image: Image.Image | None = None, **options) -> bytes:
    out = io.BytesIO()
    (image or noise()).save(out, form, **options)
    return out.getvalue()


def segment(marker: int, data: bytes) -> bytes:
    """A segment of a JPEG file."""
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(data) + 2) + data


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


class Block:
    """An EXIF block under construction: directories and values one after the other, by absolute offsets."""

    def __init__(self, order: str):
        self.order, self.data = order, bytearray(struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, 0))

    def add(self, data: bytes) -> int:
        """Where `data` is put."""
        at = len(self.data)
        self.data += data + b"\0" * (len(data) % 2)
        return at

    def directory(self, entries: list[tuple[int, int, int, bytes | int]], following: int = 0) -> int:
        """Where a directory of (tag, type, count, value or its offset) is put."""
        packed = struct.pack(f"{self.order}H", len(entries))
        for tag, kind, count, value in entries:
            packed += struct.pack(f"{self.order}HHI", tag, kind, count)
            packed += value.ljust(4, b"\0") if isinstance(value, bytes) else struct.pack(f"{self.order}I", value)
        return self.add(packed + struct.pack(f"{self.order}I", following))

    def text(self, tag: int, text: bytes, kind: int = 2) -> tuple[int, int, int, int]:
        return tag, kind, len(text), self.add(text)


def exif(order: str = "<", description: bytes = b"", thumbnail: bytes = b"") -> bytes:
    """Make, model, orientation, a private tag, date, comment, a maker note of absolute offsets, GPS, a thumbnail."""
    block = Block(order)
    note = block.directory([block.text(7, b"Firmware 1.2.3\0\0"), block.text(9, b"Somebody Owner\0\0")])
    size = len(block.data) - note
    photo = block.directory(
        [block.text(0x9003, b"2024:05:06 07:08:09\0"), (0x927C, 7, size, note), block.text(0x9286, b"ASCII\0\0\0hi", 7)]
    )
    gps = block.directory([(1, 2, 2, b"N")])
    small = 0
    if thumbnail:
        small = block.directory([(0x201, 4, 1, block.add(thumbnail)), (0x202, 4, 1, len(thumbnail))])
    entries = [block.text(0x10E, description)] if description else []
    entries += [block.text(0x10F, b"Canon\0"), block.text(0x110, b"Canon EOS 5D\0")]
    entries += [(0x112, 3, 1, struct.pack(f"{order}H", 6)), (0x8769, 4, 1, photo), (0x8825, 4, 1, gps)]
    first = block.directory([*entries, block.text(0xC7A1, b"odd private data", 7)], small)
    struct.pack_into(f"{order}I", block.data, 4, first)
    return bytes(block.data)


def jpegs() -> dict[str, bytes]:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    large = bytearray(profile + bytes(150_000))
    struct.pack_into(">I", large, 0, len(large))
    head, app1 = b"Exif\0\0", exif()
    plain, thumbnail = file_of("JPEG"), file_of("JPEG", noise(16, 12))
    iptc = b"Photoshop 3.0\x008BIM\x04\x04\0\0\0\0\0\x0e\x1c\x02\x19\0\x03dog\x1c\x02\x50\0\x01x"
    return {
        "plain.jpg": plain,
        "without_jfif.jpg": plain[:2] + plain[20:],
        "exif.jpg": file_of("JPEG", exif=head + app1),
        "exif_motorola.jpg": file_of("JPEG", exif=head + exif(">", b"an old description\0")),
        "thumbnail.jpg": file_of("JPEG", exif=head + exif(thumbnail=thumbnail)),
        "progressive.jpg": file_of("JPEG", progressive=True),
        "cmyk.jpg": file_of("JPEG", noise(channels=4).convert("CMYK")),
        "grey.jpg": file_of("JPEG", noise(channels=1)),
        "icc.jpg": file_of("JPEG", icc_profile=profile),
        "large_icc.jpg": file_of("JPEG", icc_profile=bytes(large)),
        "xmp.jpg": file_of("JPEG", xmp=XMP),
        "xmp_exif.jpg": file_of("JPEG", xmp=XMP, exif=head + exif(description=b"old\0")),
        "trailing.jpg": file_of("JPEG", exif=head + app1) + b"trailing data " * 20,
        "other_segments.jpg": plain[:2] + segment(0xE4, b"unknown") + segment(0xED, iptc) + plain[2:],
        "comment.jpg": file_of("JPEG", comment=b"a comment"),
        "fill_bytes.jpg": plain[:2] + b"\xff" * 4 + plain[2:],
        "restarts.jpg": file_of("JPEG", restart_marker_blocks=2, subsampling=0),
        "two_pictures.jpg": file_of("MPO", save_all=True, append_images=[noise(32, 24)]),
    }


def pngs() -> dict[str, bytes]:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    texts, xmp = PngImagePlugin.PngInfo(), PngImagePlugin.PngInfo()
    texts.add_text("Title", "a title")
    texts.add_itxt("Author", "Jos\u00e9", "es", "Autor")
    texts.add_text("Comment", "squeeze me " * 50, zip=True)
    xmp.add_itxt("XML:com.adobe.xmp", XMP.decode())
    deep = np.random.default_rng(2).integers(0, 65536, (20, 30), np.uint16)
    plain, clear = file_of("PNG"), noise(channels=4)
    digits = (b"Exif\0\0" + exif()).hex().encode()
    lines = b"\n".join(digits[i : i + 72] for i in range(0, len(digits), 72))
    raw = zlib.compress(b"\nexif\n%8d\n" % (len(digits) // 2) + lines + b"\n")
    return {
        "plain.png": plain,
        "texts.png": file_of("PNG", pnginfo=texts, dpi=(72, 72)),
        "deep.png": file_of("PNG", Image.fromarray(deep)),
        "palette.png": file_of("PNG", noise().quantize(16), transparency=3),
        "exif_icc.png": file_of("PNG", exif=exif(), icc_profile=profile),
        "xmp.png": file_of("PNG", pnginfo=xmp),
        "animated.png": file_of("PNG", clear, save_all=True, append_images=[clear.rotate(90)], duration=50),
        "trailing.png": plain + b"after the end",
        "private_chunk.png": plain[:-12] + chunk(b"prVt", b"private") + plain[-12:],
        "imagemagick.png": plain[:33] + chunk(b"zTXt", b"Raw profile type exif\0\0" + raw) + plain[33:],
    }


def others() -> dict[str, bytes]:
    deep = np.random.default_rng(2).integers(0, 65536, (20, 30), np.uint16)
    clear = noise(channels=4)
    return {
        "lossy.webp": file_of("WEBP", quality=80),
        "lossless.webp": file_of("WEBP", clear, lossless=True),
        "full.webp": file_of("WEBP", clear, exif=exif(), xmp=XMP),
        "animated.webp": file_of("WEBP", save_all=True, append_images=[noise().rotate(180)], duration=100),
        "odd_size.webp": file_of("WEBP", noise(33, 27)),
        "plain.tif": file_of("TIFF"),
        "lzw.tif": file_of("TIFF", compression="tiff_lzw", description="an old description", software="odd"),
        "jpeg.tif": file_of("TIFF", compression="jpeg"),
        "deep.tif": file_of("TIFF", Image.fromarray(deep)),
        "two_pages.tif": file_of("TIFF", save_all=True, append_images=[noise(20, 20)]),
        "plain.jp2": file_of("JPEG2000"),
    }


def writable() -> dict[str, bytes]:
    """Name -> content of files that can hold a description."""
    return {**jpegs(), **pngs(), **others()}


def refused() -> dict[str, tuple[bytes, str]]:
    """Name -> (content, why) of files that cannot, or that would lose something."""
    plain = file_of("JPEG")
    pages = [noise(size, size) for size in (11, 12, 13, 14, 15)]
    return {
        "still.gif": (file_of("GIF"), "not into GIF"),
        "plain.bmp": (file_of("BMP"), "not into BMP"),
        "plain.avif": (file_of("AVIF"), "not into AVIF"),
        "big.tif": (file_of("TIFF", big_tiff=True), "unknown image type"),
        "six_pages.tif": (file_of("TIFF", save_all=True, append_images=pages), "would not stay as they are"),
        "damaged_exif.jpg": (file_of("JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xffgarbage"), "invalid"),
        "damaged_xmp.jpg": (file_of("JPEG", xmp=b"<x:xmpmeta broken"), "XMP"),
        "cut.jpg": (plain[: len(plain) // 2], ""),
        "text.jpg": (b"no image at all", "not into other kinds"),
        "empty.jpg": (b"", "not into other kinds"),
    }

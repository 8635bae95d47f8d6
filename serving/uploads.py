"""Photos out of a request: limits of size and time while they come, and a reason where they are refused.

    limits = Limits(bytes=32_000_000, photos=16, pixels=60_000_000, seconds=30)
    uploads = await read_uploads(request, limits)          # of a form, or the body itself; on disk where they are large
    pixels = pixels_of(uploads[0], captioner.transform, limits)

A photo that waits holds a megabyte of memory at most. As many as there are cores are decoded at a time.
"""

import asyncio
import contextlib
import io
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from tempfile import SpooledTemporaryFile

from PIL import Image, UnidentifiedImageError
from python_multipart.exceptions import FormParserError
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from torch import Tensor

from captioning.images.image_file import ImageError, TooManyPixels, image_size, open_image

IN_MEMORY = 2**20  # bytes of a photo; the rest goes to a temporary file
DROPPED = 2**30  # bytes of a body beyond its limit that are read and dropped, so that the client hears the answer
LARGE = 2**24  # pixels: larger photos are decoded one at a time
ONE_LARGE = threading.Lock()
UNKNOWN = ("", "application/octet-stream", "application/x-www-form-urlencoded")  # the last: curl says so of any file
FIELDS = {"max_fields": 16, "max_part_size": 2**16}  # of a form, besides its photos


class Refused(Exception):
    """A request, or a photo of it, that gets no caption: the HTTP status and the reason."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status, self.reason = status, reason


@dataclass(frozen=True)
class Limits:
    """The limits of a request: bytes of its body, photos, pixels of each photo, seconds until its body is complete."""

    bytes: int
    photos: int
    pixels: int
    seconds: float


@dataclass
class Upload:
    """A photo as it came: the name that the client gave it, if any, and its file."""

    name: str | None
    file: object  # binary, at its beginning


class Body:
    """The body of a request in pieces, within limits."""

    def __init__(self, request: Request, limits: Limits):
        self.request, self.limits = request, limits
        self.received, self.complete, self.last = 0, False, asyncio.get_running_loop().time() + limits.seconds
        announced = int(request.headers.get("content-length") or 0)  # a number, or the connection refuses it
        if announced > limits.bytes and request.headers.get("expect", "").lower() == "100-continue":
            raise self.too_large()  # before it is sent

    def too_large(self) -> Refused:
        return Refused(413, f"the request is larger than {self.limits.bytes / 1e6:g} MB")

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body. Raises Refused where it is too large, too slow, or ends too soon."""
        while not self.complete:
            piece = await self._next()
            if self.received > self.limits.bytes:
                raise self.too_large()
            yield piece

    async def drop(self) -> None:
        """Read the rest of the body: most clients do not listen before they have sent everything."""
        try:
            while not self.complete and self.received < self.limits.bytes + DROPPED:
                await self._next()
        except Refused:
            self.complete = True

    async def _next(self) -> bytes:
        try:
            left = self.last - asyncio.get_running_loop().time()
            message = await asyncio.wait_for(self.request.receive(), max(0.0, left))
        except (TimeoutError, asyncio.TimeoutError):
            raise Refused(408, f"the request was not complete after {self.limits.seconds:g} seconds") from None
        if message["type"] == "http.disconnect":
            raise Refused(400, "the request ended before it was complete")
        self.complete = not message.get("more_body", False)
        self.received += len(message.get("body", b""))
        if self.complete and self.request.scope.get("state", {}).get("cut_off"):  # see connections.py
            raise Refused(400, "the request ended before it was complete")
        return message.get("body", b"")


class Form(MultiPartParser):
    """A form with files. `ended`: whether its last boundary came."""

    ended = False

    def on_end(self) -> None:
        self.ended = True


async def read_uploads(request: Request, limits: Limits) -> list[Upload]:
    """The photos of a request, one at least. Raises Refused."""
    body = Body(request, limits)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        if kind == "multipart/form-data":
            return await of_form(request, body, limits)
        if kind not in UNKNOWN and not kind.startswith("image/"):
            raise Refused(
                415, f"the content type is {kind[:60]}: send a photo, or photos in a multipart/form-data form"
            )
        return [await of_body(body)]
    except Refused:
        await body.drop()
        raise


async def of_body(body: Body) -> Upload:
    """The photo that the body is."""
    file = SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115  pixels_of closes it
    try:
        async for piece in body.pieces():
            file.write(piece)
    except Refused:
        file.close()
        raise
    file.seek(0)
    return Upload(None, file)


async def of_form(request: Request, body: Body, limits: Limits) -> list[Upload]:
    """The photos of a form: all its fields that are files."""
    form = Form(request.headers, body.pieces(), max_files=limits.photos, **FIELDS)
    try:
        fields = await form.parse()
    except (MultiPartException, FormParserError) as error:
        raise Refused(400, f"the form is not valid: {getattr(error, 'message', error)}") from error
    uploads = [Upload(value.filename, value.file) for _, value in fields.multi_items() if not isinstance(value, str)]
    if not form.ended:
        reason = "the form ends in the middle of a part"
    elif not uploads:
        reason = "the form has no file: a photo is a part with a filename"
    else:
        return uploads
    for upload in uploads:
        upload.file.close()
    raise Refused(400, reason)


def pixels_of(upload: Upload, transform: Callable[[Image.Image, None], Tensor], limits: Limits) -> Tensor:
    """The pixels of a photo as `transform` makes them. Raises Refused. Closes the file."""
    with upload.file as file:
        content = io.BytesIO(file.read())
    try:
        width, height = image_size(content)
        if width * height > limits.pixels:
            raise Refused(413, f"{width}x{height} is more than {limits.pixels / 1e6:g} million pixels")
        content.seek(0)
        with ONE_LARGE if width * height > LARGE else contextlib.nullcontext():
            return transform(open_image(content, transform.size_hint), None)
    except ImageError as error:
        raise Refused(status_of(error.__cause__), error.reason) from error


def status_of(cause: BaseException | None) -> int:
    """The HTTP status of a photo that could not be opened, by what its decoder raised."""
    if isinstance(cause, (TooManyPixels, Image.DecompressionBombError)):
        return 413
    return 415 if isinstance(cause, UnidentifiedImageError) else 422

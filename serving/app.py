"""The web application of serve.py: photos in, captions out as JSON, and a page to drop photos on.

app = caption_app(Service(captioner, photos, limits, "best.model"))

POST /caption   a photo as the body, or a form with several -> {"photos": [{"name", "captions": [...]}]}
GET /health     {"status": "ok", ...}
GET /           the page
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from captioning.cores import own_cores
from captioning.errors import UserError
from captioning.text.cleaning import printable
from model import Caption, Captioner
from serving.photo_queue import Busy, PhotoQueue
from serving.uploads import Limits, Refused, Upload, pixels_of, read_uploads

PAGE = Path(__file__).parent / "page"
FILES = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
# The page loads nothing from elsewhere, and no other page may frame it.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SAFE = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Content-Security-Policy": POLICY}
LONGEST_NAME = 200  # characters of the name of a photo that the answer repeats


@dataclass
class Service:
    """What the application works with. log: is told of each request for captions in one line."""

    captioner: Captioner
    photos: PhotoQueue
    limits: Limits
    model: str
    log: Callable[[str], None] = lambda line: None
    decoders: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(own_cores()))

    async def health(self, request: Request) -> Response:
        waiting = len(self.photos.jobs)
        return answer(200, {"status": "ok", "model": self.model, "waiting": waiting})

    async def caption(self, request: Request) -> Response:
        """The captions of all photos of a request. A broken one among others has an `error` in place of captions."""
        began = time.monotonic()
        uploads = await read_uploads(request, self.limits)
        found = await asyncio.gather(*map(self.caption_upload, uploads), return_exceptions=True)
        photos = []
        for upload, result in zip(uploads, found):
            if isinstance(result, BaseException) and not isinstance(result, Refused):
                raise result
            named = {} if upload.name is None else {"name": printable(upload.name)[:LONGEST_NAME]}
            if isinstance(result, Refused):
                photos.append({**named, "error": result.reason})
            else:
                photos.append({**named, "captions": result})
        self.log(f"{len(uploads)} photos in {time.monotonic() - began:.3f} s")
        refused = [result for result in found if isinstance(result, Refused)]
        if len(refused) == len(found):
            raise refused[0]
        return answer(200, {"photos": photos})

    async def caption_upload(self, upload: Upload) -> list[dict]:
        """The captions of a photo in plain types, best first. Raises Refused."""
        loop = asyncio.get_running_loop()
        transform = self.captioner.transform
        pixels = await loop.run_in_executor(self.decoders, pixels_of, upload, transform, self.limits)
        captions = await asyncio.wrap_future(self.photos.submit(pixels))
        return [self.plain(caption) for caption in captions]

    def plain(self, caption: Caption) -> dict:
        """A caption as the answer has it; its confidence is None where the model has no calibration."""
        confidence = self.captioner.confidence(caption)
        return {
            "text": self.captioner.text(caption),
            "log_prob": round(caption.log_prob, 4),
            "confidence": None if confidence is None else round(confidence, 4),
        }

    @contextlib.asynccontextmanager
    async def running(self, app: Starlette):
        """What is around the life of the application."""
        yield
        self.decoders.shutdown()


def caption_app(service: Service) -> Starlette:
    """The application, for any ASGI server."""
    pages = [Route(path, page(*file), methods=["GET"]) for path, file in FILES.items()]
    work = [Route("/health", service.health), Route("/caption", service.caption, methods=["POST"])]
    handlers = {Refused: refuse, HTTPException: not_found, Busy: busy, UserError: failed, Exception: failed}
    return Starlette(routes=[*pages, *work], exception_handlers=handlers, lifespan=service.running)


def page(name: str, kind: str) -> Callable:
    """The endpoint of a file of the page."""
    content = (PAGE / name).read_bytes()

    async def endpoint(request: Request) -> Response:
        return Response(content, media_type=kind, headers=SAFE)

    return endpoint


def answer(status: int, content: dict, headers: dict | None = None) -> Response:
    return JSONResponse(content, status, {**SAFE, **(headers or {})})


async def refuse(request: Request, error: Refused) -> Response:
    """Of a body that did not come to its end, or would have none, nothing more is read."""
    closes = {"Connection": "close"} if error.status in (400, 408, 413) else {}
    return answer(error.status, {"error": error.reason}, closes)


async def not_found(request: Request, error: HTTPException) -> Response:
    """An address that is not there, or a method that it has not."""
    return answer(error.status_code, {"error": error.detail}, error.headers)


async def busy(request: Request, error: Busy) -> Response:
    return answer(503, {"error": "too many photos wait: try again"}, {"Retry-After": "1"})


async def failed(request: Request, error: Exception) -> Response:
    """A fault of the server: its log has more."""
    return answer(500, {"error": str(error) if isinstance(error, UserError) else "the server failed"})

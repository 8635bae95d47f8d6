"""serve.py: the application without a network, and its connections over sockets."""

import asyncio
import contextlib
import io
import json
import os
import socket
import struct
import threading
import time
import zlib
from concurrent.futures import Future

import pytest
import torch
from PIL import Image

for package in ("starlette", "uvicorn", "python_multipart", "httpx"):
    pytest.importorskip(package)

import httpx
import uvicorn

from captioning.encoder.transforms import ImageTransform
from captioning.errors import UserError
from captioning.images.image_file import open_image
from model import Caption
from serving import connections
from serving.app import Service, caption_app
from serving.photo_queue import Busy, PhotoQueue
from serving.uploads import Limits

LIMITS = Limits(bytes=200_000, photos=3, pixels=1_000_000, seconds=0.5)


class Colours:
    """Stands for a captioner: its captions tell the mean colour of a photo, so that no two get mixed up."""

    size, device, calibration = 8, torch.device("cpu"), None
    transform = ImageTransform(8)

    class config:
        specs = [None]

    def __init__(self):
        self.batches: list[int] = []

    def ready_decoder(self):
        return None

    def encode(self, pixels, inputs):
        return pixels.float().mean((2, 3))

    def caption(self, memory, search, decoder):
        self.batches.append(len(memory))
        time.sleep(0.01)
        return [[Caption(" ".join(f"{x:.0f}" for x in row), [], -1.5, 3)] for row in memory.tolist()]

    def text(self, caption):
        return caption.text

    def confidence(self, caption):
        return None if self.calibration is None else 0.25


def photo(colour=(250, 10, 20), size=(40, 30), form="PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, form)
    return file.getvalue()


@pytest.fixture
def service():
    with PhotoQueue(Colours(), None) as photos:
        yield Service(photos.captioner, photos, LIMITS, "toy.model")


def requests(service, *several, method="POST", path="/caption", **options) -> list[httpx.Response]:
    """The answers to requests that are made at the same time; each is a dict of options of httpx."""

    async def ask() -> list[httpx.Response]:
        transport = httpx.ASGITransport(caption_app(service), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            asked = [client.request(method, path, **{**options, **one}) for one in several or [{}]]
            return await asyncio.gather(*asked)

    return asyncio.run(ask())


def test_a_photo_as_the_body(service):
    (answer,) = requests(service, content=photo(), headers={"Content-Type": "image/png"})
    assert answer.status_code == 200
    assert answer.json() == {"photos": [{"captions": [{"text": "250 10 20", "log_prob": -1.5, "confidence": None}]}]}
    service.captioner.calibration = True
    (answer,) = requests(service, content=photo())
    assert answer.json()["photos"][0]["captions"][0]["confidence"] == 0.25


def test_photos_of_a_form_keep_their_order_and_names(service):
    files = [("a", ("ü.png", photo((1, 2, 3)))), ("b", ("x.jpg", b"<html>")), ("a", ("z.jpg", photo((200, 200, 200))))]
    (answer,) = requests(service, files=files)
    first, second, third = answer.json()["photos"]
    assert answer.status_code == 200
    assert (first["name"], first["captions"][0]["text"]) == ("ü.png", "1 2 3")
    assert second["name"] == "x.jpg" and second["error"].startswith("not a JPEG") and "captions" not in second
    assert third["captions"][0]["text"] == "200 200 200"


def test_requests_at_the_same_time_get_their_own_captions_by_the_batch(service):
    colours = [(n, 2 * n, 255 - n) for n in range(0, 120, 3)]
    answers = requests(service, *({"content": photo(colour)} for colour in colours))
    texts = [answer.json()["photos"][0]["captions"][0]["text"] for answer in answers]
    assert texts == [" ".join(map(str, colour)) for colour in colours]
    assert max(service.captioner.batches) > 1


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    data = zlib.compress(bytes(100_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


PART = b'--B\r\nContent-Disposition: form-data; name="a"; filename="a.png"\r\n\r\n%s\r\n'
FORM = "multipart/form-data; boundary=B"
BAD = {
    "nothing": (b"", "image/jpeg", 415),
    "HTML": (b"<html>", "text/html", 415),
    "HTML as a photo": (b"<!DOCTYPE html><html>", "image/jpeg", 415),
    "SVG": (b"<svg/>", "image/svg+xml", 415),
    "noise": (bytes(range(256)) * 9, "application/octet-stream", 415),
    "cut JPEG": (photo(size=(300, 300), form="JPEG")[:900], "image/jpeg", 422),
    "cut PNG": (photo(size=(300, 300))[:200], "image/png", 422),
    "too many pixels": (photo(size=(1001, 1000)), "image/png", 413),
    "bomb": (bomb(60_000, 60_000), "image/png", 413),
    "bomb within Pillow's limit": (bomb(9_000, 9_000), "image/png", 413),
    "too large": (bytes(200_001), "image/png", 413),
    "form without photos": (b"--B--\r\n", FORM, 400),
    "form that ends too soon": (PART % photo(), FORM, 400),
    "form whose second photo is cut off": (PART % photo() + (PART % photo())[:-40], FORM, 400),
    "form without a boundary": (PART % photo(), "multipart/form-data", 400),
    "form of another boundary": (PART % photo() + b"--B--\r\n", "multipart/form-data; boundary=C", 400),
    "form with a text": (b'--B\r\nContent-Disposition: form-data; name="a"\r\n\r\nhi\r\n--B--\r\n', FORM, 400),
    "form with too many photos": (PART % photo() * 4 + b"--B--\r\n", FORM, 400),
    "form with a photo that is none": (PART % b"<html>" + b"--B--\r\n", FORM, 415),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_answered_by_a_reason(service, name):
    content, kind, status = BAD[name]
    (answer,) = requests(service, content=content, headers={"Content-Type": kind})
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error"} and answer.json()["error"]


def test_other_addresses_and_methods(service):
    for method, path, status in (("GET", "/caption", 405), ("POST", "/", 405), ("GET", "/nowhere", 404)):
        (answer,) = requests(service, method=method, path=path)
        assert answer.status_code == status and "error" in answer.json()
    (answer,) = requests(service, method="GET", path="/health")
    assert answer.json() == {"status": "ok", "model": "toy.model", "waiting": 0}


def test_the_page_loads_nothing_from_elsewhere(service):
    for path, kind in (("/", "text/html"), ("/page.css", "text/css"), ("/page.js", "text/javascript")):
        (answer,) = requests(service, method="GET", path=path)
        assert answer.status_code == 200 and answer.headers["content-type"].startswith(kind)
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "//" not in answer.text.replace("// ", "") and "style=" not in answer.text


def test_a_full_queue_and_a_model_that_fails(service, monkeypatch):
    def refuse(pixels):
        raise Busy

    def fail(memory, search, decoder):
        raise UserError("the model's weights are no finite numbers")

    with monkeypatch.context() as patch:
        patch.setattr(service.photos, "submit", refuse)
        (answer,) = requests(service, content=photo())
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    with monkeypatch.context() as patch:
        patch.setattr(service.captioner, "caption", fail)
        (answer,) = requests(service, content=photo())
        assert answer.status_code == 500 and "no finite numbers" in answer.json()["error"]
    assert requests(service, content=photo())[0].status_code == 200


def test_a_closed_queue_has_captioned_what_waited():
    captioner = Colours()
    photos = PhotoQueue(captioner, None, max_batch=2)
    coming: list[Future] = [photos.submit(torch.full((3, 8, 8), n, dtype=torch.uint8)) for n in range(9)]
    photos.close()
    assert [one.result(0)[0].text for one in coming] == [f"{n} {n} {n}" for n in range(9)]
    assert max(captioner.batches) <= 2
    with pytest.raises(Busy):
        photos.submit(torch.zeros(3, 8, 8))


def test_content_is_opened_as_files_are(tmp_path):
    (tmp_path / "a.png").write_bytes(photo())
    assert open_image(io.BytesIO(photo())).tobytes() == open_image(tmp_path / "a.png").tobytes()


# ---- over sockets ----


@pytest.fixture
def port(service, monkeypatch):
    """Of a server in a thread."""
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.5)
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(caption_app(service), http=connections.Connection, ws="none", log_config=None)
    begun = threading.Event()
    server = connections.Server(config, begun.set)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    assert begun.wait(20)
    yield listener.getsockname()[1]
    server.should_exit = True
    thread.join()


def exchange(port: int, *pieces: bytes, ends: bool = False, pause: float = 0.0) -> tuple[int, dict]:
    """Status and JSON of the answer to what is sent; ends: nothing more will come."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        for piece in pieces:
            with contextlib.suppress(OSError):  # the server has answered and closed
                connection.sendall(piece)
            time.sleep(pause)
        if ends:
            connection.shutdown(socket.SHUT_WR)
        answer = connection.makefile("rb")
        status = int(answer.readline().split()[1])
        length = next(int(line.split(b":")[1]) for line in answer if line.lower().startswith(b"content-length"))
        while answer.readline().strip():
            pass
        return status, json.loads(answer.read(length))


def request(body: bytes, length: int | None = None, more: bytes = b"") -> bytes:
    size = b"%d" % (len(body) if length is None else length)
    return b"POST /caption HTTP/1.1\r\nHost: x\r\nContent-Length: " + size + b"\r\n" + more + b"\r\n" + body


def test_slow_and_cut_off_requests_are_answered(port):
    assert exchange(port, request(photo()))[0] == 200
    assert exchange(port, request(photo()), ends=True)[0] == 200  # the client listens still
    assert exchange(port, request(photo()[:20], 5000))[0] == 408
    assert exchange(port, request(photo()[:20], 5000), ends=True)[0] == 400
    assert exchange(port, b"POST /caption HT")[0] == 408
    assert exchange(port, b"POST /cap", ends=True)[0] == 400
    assert exchange(port, os.urandom(64) + b"\r\n\r\n")[0] == 400
    assert exchange(port, request(photo(), -1))[0] == 400
    assert exchange(port, request(b"", more=b"X: " + b"y" * 1_000_000 + b"\r\n"))[0] == 400
    assert exchange(port, request(photo()))[0] == 200


def test_a_body_that_is_too_large_is_answered_after_it_was_sent(port):
    for more in (b"", b"Connection: close\r\n", b"Content-Type: text/html\r\n"):
        status, answer = exchange(port, request(b"", 5_000_000, more), *[bytes(500_000)] * 10)
        assert status == (415 if b"html" in more else 413) and "error" in answer
    status, answer = exchange(port, request(b"", 5_000_000, b"Expect: 100-continue\r\n"))
    assert (status, answer) == (413, {"error": "the request is larger than 0.2 MB"})

#!/usr/bin/env python3
"""Serve captions over HTTP: a page to drop photos on, and JSON for other programs.

    ./serve.py                                              # the bundled model, at http://127.0.0.1:8000
    ./serve.py --model models/mymodel/best.model --port 8080 --beam_size 5
    curl --data-binary @photo.jpg http://127.0.0.1:8000/caption
    curl -F photo=@photo.jpg -F photo=@beach.jpg http://127.0.0.1:8000/caption

Captions are those of infer.py with the same flags. Photos that wait are captioned together. Only programs of this
machine reach the server, unless --host says otherwise; it asks nobody for a password. Ctrl-C or SIGTERM end it when
what it has begun is answered. Needs the packages starlette, uvicorn and python-multipart.
"""

import sys
from argparse import Namespace

from captioning.command_line import Parser, add_device
from captioning.errors import UserError, run, script_name
from captioning.files import require_file, require_model_file
from inference.flags import MOST_PENALTY, add_model_file, model_path
from serving.packages import require_packages

PACKAGES = ("starlette", "uvicorn", "python_multipart")
MOST_CONNECTIONS = 256  # others are told that the server is busy
GRACE = 20  # seconds that requests have to end when the server does


def parse_args(argv=None) -> Namespace:
    parser = Parser(__doc__)
    add = parser.group("model")
    add_model_file(add)
    add_device(add)
    add = parser.group("search")
    add(
        "--beam_size",
        type=int,
        metavar="K",
        help="beams; 1 is greedy (default: the model's or 3, or --n_best where that is more)",
    )
    add("--length_penalty", type=float, metavar="A", help="rank beams by log p / length^A (default: the model's, or 0)")
    add("--n_best", default=1, metavar="N", help="captions of each photo, best first")
    add("--max_seq_length", default=20, metavar="N", help="most words of a sentence")
    add = parser.group("server")
    add("--host", default="127.0.0.1", metavar="ADDRESS", help="address to listen at; 0.0.0.0: also for other machines")
    add("--port", default=8000, metavar="N", help="port to listen at; 0: any that is free")
    add("--max_batch", default=16, metavar="N", help="most photos that are captioned together")
    add("--max_wait", default=20.0, metavar="MS", help="milliseconds that a photo waits for others under load")
    add("--max_megabytes", default=32.0, metavar="MB", help="largest request")
    add("--max_megapixels", default=60.0, metavar="MP", help="largest photo, in millions of pixels")
    add("--max_photos", default=16, metavar="N", help="most photos of a request")
    add("--timeout", default=30.0, metavar="S", help="seconds until a request must be complete")
    add("--verbose", action="store_true", help="print a line for each request")
    args = parser.parse_args(argv)
    parser.at_least(1, args, "beam_size", "n_best", "max_seq_length", "max_batch", "max_photos")
    parser.at_most(10_000, args, "beam_size", "n_best", "max_seq_length", "max_batch", "max_photos", "max_wait")
    parser.at_least(0, args, "port", "max_wait")
    parser.at_most(65535, args, "port")
    parser.at_least(0.001, args, "max_megabytes", "max_megapixels", "timeout")
    parser.at_most(100_000, args, "max_megabytes", "max_megapixels", "timeout")
    parser.at_least(-MOST_PENALTY, args, "length_penalty")
    parser.at_most(MOST_PENALTY, args, "length_penalty")
    if args.beam_size and args.n_best > args.beam_size:
        parser.error(f"--n_best {args.n_best} needs as many beams, not --beam_size {args.beam_size}")
    parser.one_device(args)
    return args


if __name__ == "__main__":
    ARGS = parse_args()  # before the imports of packages, so that --help and mistakes answer at once

import contextlib
import logging
import socket
from dataclasses import replace

from captioning.errors import shown


def note(message: str) -> None:
    print(shown(f"{script_name()}: {message}"), file=sys.stderr, flush=True)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises UserError where the address or the port cannot be had."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise UserError(f"--host {host}: no such address ({getattr(error, 'strerror', None) or error})") from error
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        if sys.platform != "win32":  # there it would take a port that another server has
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise UserError(f"--host {host} --port {port}: {error.strerror}; --port 0 takes one that is free") from error
    return listener


def address_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def open_captioner(args):
    """The model.Captioner, ready for photos. Raises UserError."""
    from captioning.devices import choose_device
    from model import load_captioner

    return load_captioner(model_path(args.model), choose_device(args.device, args.cpu), args.weights)


def search_of(args, captioner):
    """The Search of infer.py with the same flags. Models of DeepCaption search as that did, unless a flag says how."""
    asked = args.beam_size or args.n_best > 1 or args.length_penalty
    search = captioner.default_search(not asked, args.beam_size, args.n_best, args.length_penalty)
    return replace(search, max_length=args.max_seq_length)


def serve(args, listener: socket.socket) -> None:
    """Serve until a signal comes, which is raised as Interrupted."""
    import uvicorn

    from serving.app import Service, caption_app
    from serving.connections import Connection, Server
    from serving.photo_queue import PhotoQueue
    from serving.uploads import Limits

    captioner = open_captioner(args)
    limits = Limits(
        bytes=round(args.max_megabytes * 1e6),
        photos=args.max_photos,
        pixels=round(args.max_megapixels * 1e6),
        seconds=args.timeout,
    )
    with PhotoQueue(captioner, search_of(args, captioner), args.max_batch, args.max_wait / 1000) as photos:
        photos.warm_up()
        log = note if args.verbose else lambda line: None
        app = caption_app(Service(captioner, photos, limits, model_path(args.model).name, log))
        for name in ("uvicorn", "python_multipart"):  # the client is told what is wrong with its request
            logging.getLogger(name).setLevel(logging.ERROR)
        options = {"http": Connection, "ws": "none", "log_config": None, "access_log": False, "server_header": False}
        options |= {"limit_concurrency": MOST_CONNECTIONS, "timeout_graceful_shutdown": GRACE}
        begun = lambda: note(f"{address_of(listener)} (Ctrl-C ends it)")  # noqa: E731
        Server(uvicorn.Config(app, **options), begun).run(sockets=[listener])


def main(args) -> int:
    require_packages("serve.py", PACKAGES)
    require_model_file(model_path(args.model))
    if args.weights:
        require_file("--weights", args.weights)
    with contextlib.closing(listen(args.host, args.port)) as listener:
        serve(args, listener)
    return 0


if __name__ == "__main__":
    sys.exit(run(main, ARGS))

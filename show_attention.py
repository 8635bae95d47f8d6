#!/usr/bin/env python3
"""Draw where a model with attention looked: the photo once for each word of its caption, bright where the model looked.

    ./show_attention.py --model models/attentive/best.model photo.jpg                   # photo_attention.png
    ./show_attention.py --model models/attentive/best.model photo.jpg --output figure.pdf
    ./show_attention.py --model models/attentive/best.model *.jpg --output figures/     # a PNG for each
    ./show_attention.py --model models/attentive/best.model *.jpg --output all.pdf      # a page for each

Above each panel stands the word and, in grey, its probability. Photos that cannot be read are named and skipped; the
exit status is then 1.
"""

import math
import sys
from argparse import Namespace
from pathlib import Path

from captioning.command_line import Parser
from captioning.errors import UserError, run
from captioning.files import check_writable, require_model_file
from inference.flags import length_penalty, model_path

FORMATS = (".png", ".pdf", ".svg")


def parse_args(argv=None) -> Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("images", nargs="+", metavar="PHOTO", help="photos to caption")
    add("--model", metavar="FILE", help="model file of train.py (default: the bundled model, models/flickr8k.model)")
    add("--weights", metavar="FILE", help="local file of the encoder's weights (default: package, cache or download)")
    add(
        "--output",
        metavar="FILE",
        help="file to write, .png, .svg or .pdf, or a folder; a .pdf has a page for each photo "
        "(default: PHOTO_attention.png in this folder)",
    )
    add("--beam_size", type=int, default=3, metavar="K", help="beams; 1 is greedy (default: 3)")
    add(
        "--length_penalty",
        type=float,
        metavar="A",
        help="rank beams by log p / length^A (default: the model's own, else 0)",
    )
    add("--max_seq_length", type=int, default=20, metavar="N", help="most words of a caption (default: 20)")
    add("--block_trigrams", action="store_true", help="write no three words twice in a caption")
    add("--columns", type=int, metavar="N", help="panels in a row (default: as many as give a shape near 3:2)")
    add(
        "--dpi",
        type=int,
        default=150,
        metavar="N",
        help="dots an inch, 2.35 inches a panel (default: 150)",
    )
    add("--no_capitalize", action="store_true", help="write lower-case words, without a capital and a period")
    add("--cpu", action="store_true", help="do not use a GPU")
    add("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps (default: the best there is)")
    args = parser.parse_args(argv)
    for name in ("beam_size", "max_seq_length", "columns", "dpi"):
        if (value := getattr(args, name)) is not None and value < 1:
            parser.error(f"--{name} {value}: must be at least 1")
    if not math.isfinite(args.length_penalty or 0.0):
        parser.error(f"--length_penalty {args.length_penalty}: must be a number")
    return args


def check_photos(images: list[str]) -> None:
    """Raises UserError for a photo that is not there, or is a folder."""
    for path in map(Path, images):
        if path.is_dir():
            raise UserError(f"{path} is a folder: name the photos in it, {path}/*.jpg")
        if not path.exists():
            raise UserError(f"no such image: {path}")


def output_paths(images: list[str], output: str | None) -> list[Path]:
    """The file for each photo; the same one for all where they become pages of one .pdf.

    Raises UserError where several photos would be written into one picture, or two into one file.
    """
    target = Path(output) if output else Path(".")
    if output and not target.is_dir() and not output.endswith("/"):
        if target.suffix.lower() not in FORMATS:
            raise UserError(f"--output {output}: end it in {', '.join(FORMATS)}, or in / for a folder")
        if len(images) > 1 and target.suffix.lower() != ".pdf":
            raise UserError(f"--output {output}: {len(images)} photos need a .pdf, a page for each, or a folder")
        return [target] * len(images)
    paths = [target / f"{Path(image).stem}_attention.png" for image in images]
    for number, path in enumerate(paths):
        if path in paths[:number]:
            other = images[paths.index(path)]
            raise UserError(f"{other} and {images[number]} would both be drawn into {path}: draw them one by one")
    return paths


def main(args) -> int:
    check_photos(args.images)
    paths = output_paths(args.images, args.output)
    for path in paths:
        check_writable("--output", path)
    model = model_path(args.model)
    require_model_file(model)

    # torch is imported only now, so that the mistakes above are answered at once
    from captioning.decoder.search import Search
    from inference.attention_figures import Artist, open_model, write_figures, write_pages

    captioner = open_model(model, args.device, args.cpu, args.weights)
    search = Search(
        beam_size=args.beam_size,
        max_length=args.max_seq_length,
        length_penalty=length_penalty(args.length_penalty, captioner),
        block_trigrams=args.block_trigrams,
    )
    artist = Artist(captioner, search, not args.no_capitalize, args.columns)
    if len(paths) > 1 and len(set(paths)) == 1:
        bad = write_pages(artist, args.images, paths[0], args.dpi)
    else:
        bad = write_figures(artist, args.images, paths, args.dpi)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(run(main, parse_args()))

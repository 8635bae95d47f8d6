#!/usr/bin/env python3
"""Draw where a model with attention looked: the photo once for each word of its caption, bright where the model looked.

    ./show_attention.py --model models/attentive/best.model photo.jpg                   # photo_attention.png
    ./show_attention.py --model models/attentive/best.model photo.jpg --output figure.pdf
    ./show_attention.py --model models/attentive/best.model *.jpg --output figures/     # a PNG for each
    ./show_attention.py --model models/attentive/best.model *.jpg --output all.pdf      # a page for each

Above each panel stands the word and, in grey, its probability. Photos that cannot be read are named and skipped; the
exit status is then 1.
"""

import os
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

from captioning.command_line import Parser, add_device
from captioning.errors import UserError, run
from captioning.files import check_writable, require_file, require_model_file
from inference.flags import MOST_PENALTY, add_model_file, model_path

FORMATS = (".png", ".pdf", ".svg")


def parse_args(argv=None) -> Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("images", nargs="+", metavar="PHOTO", help="photos to caption")
    add_model_file(add)
    add("--output", metavar="FILE", help=".png, .svg, .pdf (a page a photo) or folder (default: PHOTO_attention.png)")
    add("--beam_size", type=int, metavar="K", help="beams; 1 is greedy (default: the model's, or 3)")
    add("--length_penalty", type=float, metavar="A", help="rank beams by log p / length^A (default: the model's, or 0)")
    add("--max_seq_length", default=20, metavar="N", help="most words of a caption")
    add("--block_trigrams", action="store_true", help="write no three words twice in a caption")
    add("--columns", type=int, metavar="N", help="panels in a row (default: as many as give a shape near 3:2)")
    add("--dpi", default=150, metavar="N", help="dots an inch, 2.35 inches a panel")
    add("--no_capitalize", action="store_true", help="write lower-case words, without a capital and a period")
    add_device(add)
    args = parser.parse_args(argv)
    parser.at_least(1, args, "beam_size", "max_seq_length", "columns", "dpi")
    parser.at_most(10_000, args, "beam_size", "max_seq_length", "columns")
    parser.at_most(1200, args, "dpi")
    parser.at_least(-MOST_PENALTY, args, "length_penalty")
    parser.at_most(MOST_PENALTY, args, "length_penalty")
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
    if args.weights:
        require_file("--weights", args.weights)

    # torch is imported only now, so that the mistakes above are answered at once
    from captioning.devices import choose_device
    from inference.attention_maps import draw_caption, write_figures
    from model import load_captioner

    os.environ.pop("MPLBACKEND", None)  # figures go into files; matplotlib fails where it names one that is missing
    captioner = load_captioner(model, choose_device(args.device, args.cpu), args.weights, photos=False)
    if captioner.model.attended is None:
        raise UserError(f"--model {model}: it has no attention to show; train one with --attention soft")
    h, w = captioner.config.specs[captioner.model.attended].shape[1:]
    if w == 1 != h:
        raise UserError(f"--model {model}: its regions lie in no grid of the photo, so they cannot be drawn")
    captioner.prepare_for_photos()
    search = captioner.default_search(False, args.beam_size, length_penalty=args.length_penalty)
    search = replace(search, max_length=args.max_seq_length, block_trigrams=args.block_trigrams)

    def draw(image: str) -> tuple:
        return draw_caption(image, captioner, search, not args.no_capitalize, args.columns)

    return 1 if write_figures(args.images, paths, draw, args.dpi) else 0


if __name__ == "__main__":
    sys.exit(run(main, parse_args()))

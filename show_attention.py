#!/usr/bin/env python3
"""Draw where a model with attention looked: the photo once per word of its caption, lit where the word came from.

    ./show_attention.py --model models/attentive/best.model photo.jpg                   # photo_attention.png
    ./show_attention.py --model models/attentive/best.model photo.jpg --output figure.pdf
    ./show_attention.py --model models/attentive/best.model *.jpg --output figures/     # a PNG for each
    ./show_attention.py --model models/attentive/best.model *.jpg --output all.pdf      # a page for each

Above each panel stands the word and, in grey, how probable the model found it. Photos that cannot be read are named
and passed over; the exit status is then 1.
"""

import argparse
import sys
from pathlib import Path

from captioning.errors import UserError, run, script_name
from captioning.files import atomic_write
from inference.flags import BUNDLED

FORMATS = (".png", ".pdf", ".svg")


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("images", nargs="+", metavar="PHOTO", help="photos to caption")
    add("--model", metavar="FILE", help="model file of train.py (default: the bundled model, models/flickr8k.model)")
    add("--weights", metavar="FILE", help="local file of the encoder's weights (default: package, cache or download)")
    add(
        "--output",
        metavar="FILE",
        help="figure: .png, .svg, or .pdf, a page for each photo; or a folder (default: PHOTO_attention.png here)",
    )
    add("--beam_size", type=int, default=3, metavar="K", help="beams; 1 is greedy (default: 3)")
    add("--length_penalty", type=float, metavar="A", help="rank beams by log p / length^A (default: the model's, or 0)")
    add("--max_seq_length", type=int, default=20, metavar="N", help="most words of a caption (default: 20)")
    add("--block_trigrams", action="store_true", help="never repeat three words in a caption")
    add("--columns", type=int, metavar="N", help="panels in a row (default: what makes a pleasant shape)")
    add(
        "--dpi",
        type=int,
        default=150,
        metavar="N",
        help="dots an inch, 2.35 inches a panel (default: 150)",
    )
    add("--no_capitalize", action="store_true", help="the caption in plain lower-case words, without the period")
    add("--cpu", action="store_true", help="do not use a GPU")
    add("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps (default: the best there is)")
    args = parser.parse_args(argv)
    for name in ("beam_size", "max_seq_length", "columns", "dpi"):
        if (value := getattr(args, name)) is not None and value < 1:
            parser.error(f"--{name} {value}: must be at least 1")
    return args


if __name__ == "__main__":
    ARGS = parse_args()  # before the heavy imports, so that --help and mistakes answer at once

import math

import matplotlib

matplotlib.use("Agg")  # no window, no display needed

from captioning.decoder.search import Search
from captioning.devices import choose_device
from captioning.images.image_file import ImageError, open_image
from inference.attention_maps import draw_attention
from model import Captioner, load_captioner


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


def open_model(args) -> Captioner:
    """Raises UserError where there is no model, or one without attention."""
    if not args.model and not BUNDLED.exists():
        raise UserError("--model: give a model file, such as models/NAME/best.model; there is no bundled model here")
    path = args.model or str(BUNDLED)
    captioner = load_captioner(path, choose_device(args.device, args.cpu), args.weights, photos=False)
    if captioner.model.attended is None:
        raise UserError(f"--model {path}: it has no attention to show; train one with --attention soft")
    if any(captioner.external):
        captioner.prepare_for_photos()
    return captioner


def figure_of(args, captioner: Captioner, path: str):
    """The figure of one photo. Raises ImageError where it cannot be read."""
    photo = open_image(path)
    pixels = captioner.transform(photo, None).unsqueeze(0).to(captioner.device)
    memory = captioner.encode(pixels, [None] * len(captioner.external))
    search = Search(
        beam_size=args.beam_size,
        max_length=args.max_seq_length,
        length_penalty=captioner.length_penalty if args.length_penalty is None else args.length_penalty,
        block_trigrams=args.block_trigrams,
    )
    caption = captioner.caption(memory, search)[0][0]
    weights, log_probs = captioner.explain(memory, [caption])[0]
    h, w = captioner.config.specs[captioner.model.attended].shape[1:]
    maps, probabilities = weights.reshape(-1, h, w).numpy(), log_probs.exp().tolist()
    steps = zip(captioner.words(caption), maps, probabilities)
    # an end and a period look nowhere
    shown = [step for step in steps if step[0] != "<end>" and any(letter.isalnum() for letter in step[0])]
    words, maps, probabilities = zip(*shown) if shown else ((), (), ())
    text = captioner.text(caption, not args.no_capitalize)
    return draw_attention(photo, words, maps, text, probabilities, args.columns), text


def draw_all(args, captioner: Captioner, paths: list[Path]) -> int:
    """Draw every photo; gives how many could not be read."""
    from matplotlib.backends.backend_pdf import PdfPages

    bad, pages = 0, []
    one_file = len(paths) > 1 and len(set(paths)) == 1
    for image, path in zip(args.images, paths):
        try:
            figure, text = figure_of(args, captioner, image)
        except ImageError as error:
            print(f"{script_name()}: {error}", file=sys.stderr)
            bad += 1
            continue
        print(f"{image}: {text}" + ("" if one_file else f" -> {path}"), flush=True)
        if one_file:
            pages.append(figure)
            continue
        with atomic_write(path, "wb") as file:
            figure.savefig(file, format=path.suffix.lower()[1:], dpi=args.dpi)
    if bad == len(paths):
        raise UserError(f"none of the {bad} photos could be read")
    if one_file:
        with atomic_write(paths[0], "wb") as file, PdfPages(file) as pdf:
            for figure in pages:
                pdf.savefig(figure, dpi=args.dpi)
        print(f"{paths[0]}: {len(pages)} pages")
    return bad


def main(args) -> int:
    for path in map(Path, args.images):
        if path.is_dir():
            raise UserError(f"{path} is a folder: name the photos in it, {path}/*.jpg")
        if not path.exists():
            raise UserError(f"no such image: {path}")
    if not math.isfinite(args.length_penalty or 0.0):
        raise UserError(f"--length_penalty {args.length_penalty}: must be a number")
    paths = output_paths(args.images, args.output)
    return 1 if draw_all(args, open_model(args), paths) else 0


if __name__ == "__main__":
    sys.exit(run(main, ARGS))

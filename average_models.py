#!/usr/bin/env python3
"""Average the weights of trained models into one; or write one model in half precision.

    ./average_models.py models/a/ep8.model models/a/ep9.model models/a/ep10.model --output models/a/average.model
    ./average_models.py models/a/ep9.model models/a/ep10.model --weights 1 3 --output models/a/average.model
    ./average_models.py models/a/ep*.model --greedy --dataset coco:val2014 --output models/a/soup.model
    ./average_models.py models/a/best.model --half --output small.model             # half the size, for sharing
    ./average_models.py models/a/best.model --image_size 256 --output large.model   # trained on crops of 224 pixels

The models must come from one run, or have been trained on from the same model, with the same flags: means of unrelated
models say nothing. --greedy tries them one after the other, the best first, and keeps those that raise the CIDEr on
--dataset. The result is a model for infer.py, without the state of an optimizer.
"""

import argparse
import sys
from pathlib import Path


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("models", nargs="+", metavar="MODEL", help="model files of train.py")
    add("--output", required=True, metavar="FILE", help="model file to write")
    add("--force", action="store_true", help="write over --output where it exists")
    add("--weights", nargs="+", type=float, metavar="W", help="weight of each model in the mean (default: all alike)")
    add("--half", action="store_true", help="write float16, half the size; models are loaded in float32 (default: no)")
    add(
        "--image_size",
        type=int,
        metavar="PIXELS",
        help="kept in the file: photos are given to the encoder at this size",
    )
    add("--length_penalty", type=float, metavar="A", help="kept in the file: infer.py's default with this model")
    add("--greedy", action="store_true", help="take in only models that raise the CIDEr on --dataset (default: all)")
    add("--dataset", metavar="NAME", help="--greedy: validation data, sections of datasets.conf joined by +")
    add("--dataset_config_file", metavar="FILE", help="the datasets.conf to use (default: see README)")
    add("--beam_size", type=int, default=1, metavar="K", help="--greedy: beams of the captions (default 1: greedy)")
    add("--num_workers", type=int, metavar="N", help="--greedy: processes that load images (default: all cores)")
    add("--encoder_weights", metavar="FILE", help="--greedy: local file of the encoder's weights (default: download)")
    add("--device", metavar="NAME", help="--greedy: cpu, cuda, cuda:1, mps (default: the best there is)")
    add("--cpu", action="store_true", help="--greedy: the same as --device cpu")
    args = parser.parse_args(argv)
    if args.greedy and not args.dataset:
        parser.error("--greedy needs --dataset, whose captions the models are tried on")
    if args.greedy and args.weights:
        parser.error("--greedy and --weights exclude each other: a soup weighs its models alike")
    if args.dataset and not args.greedy:
        parser.error("--dataset is for --greedy")
    if args.image_size is not None and args.image_size < 1:
        parser.error(f"--image_size {args.image_size}: at least 1")
    if args.beam_size < 1:
        parser.error(f"--beam_size {args.beam_size}: at least 1")
    return args


if __name__ == "__main__":
    ARGS = parse_args()  # before the heavy imports, so that --help and mistakes answer at once

from captioning.decoder.search import Search
from captioning.devices import choose_device
from captioning.errors import UserError, run
from model import load_captioner
from training.averages import Average, check_alike, greedy_soup, read_model
from training.validation import validate, validation_loader


def soup(args) -> Average:
    """The greedy soup by CIDEr of captions on --dataset."""
    captioner = load_captioner(args.models[0], choose_device(args.device, args.cpu), args.encoder_weights, photos=False)
    loader = validation_loader(captioner, args.dataset, args.dataset_config_file, args.num_workers)
    search = Search(beam_size=args.beam_size)
    first = read_model(args.models[0])

    def score(name, average: Average) -> float:
        check_alike(average.contents, first, average.first, args.models[0])
        captioner.model.load_trained_state(average.state(), name)
        return validate(captioner, loader, ("cider",), search)["validation_cider"]

    try:
        return greedy_soup(args.models, score)
    finally:
        loader.close()


def main(args) -> int:
    output = Path(args.output)
    if output.exists() and not args.force:
        raise UserError(f"--output {output} exists: give another name, or --force to write over it")
    average = soup(args) if args.greedy else Average.of(args.models, args.weights)
    if args.image_size:
        average.give_images_at(args.image_size)
    extra = {} if args.length_penalty is None else {"length_penalty": args.length_penalty}
    average.write(output, half=args.half, command=sys.argv, **extra)
    kind = "" if len(average.paths) == 1 else f"the mean of {len(average.paths)} models, "
    print(f"{output}: {kind}{output.stat().st_size / 2**20:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(run(main, ARGS))

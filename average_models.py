#!/usr/bin/env python3
"""Average the weights of trained models into one; or write one model in half precision.

    ./average_models.py models/a/ep8.model models/a/ep9.model models/a/ep10.model --output models/a/average.model
    ./average_models.py models/a/ep9.model models/a/ep10.model --weights 1 3 --output models/a/average.model
    ./average_models.py models/a/ep*.model --greedy --dataset coco:val2014 --output models/a/soup.model
    ./average_models.py models/a/best.model --half --output small.model             # half the size, for sharing
    ./average_models.py models/a/best.model --with_encoders --output whole.model    # it needs no package of weights
    ./average_models.py models/a/best.model --calibrate coco:val2014 --output sure.model  # infer.py --min_confidence
    ./average_models.py models/a/best.model --image_size 256 --output large.model   # trained on crops of 224 pixels

The models must come from one run, or must have been trained on from the same model, with the same flags: a mean of
unrelated models writes nonsense. --greedy tries the models in turn, the best first, and keeps those that raise the
CIDEr on --dataset. --calibrate captions a dataset as infer.py does, and keeps in the file how often a caption of which
the model is so sure is a good one: infer.py then gives confidences. train.py does so itself when it validates. The
result is a model for infer.py, without the state of an optimizer.
"""

import sys
from argparse import Namespace
from contextlib import closing
from pathlib import Path

from captioning.command_line import Parser, add_device
from captioning.datasets.config import CONFIG_HELP, get_datasets
from captioning.errors import UserError, run
from captioning.files import check_new, check_writable, require_file, require_model_file
from inference.flags import MOST_PENALTY


def parse_args(argv=None) -> Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("models", nargs="+", metavar="MODEL", help="model files of train.py")
    add("--output", required=True, metavar="FILE", help="model file to write")
    add("--force", action="store_true", help="write over --output where it exists")
    add(
        "--weights", nargs="+", type=float, metavar="W", help="numbers: how much each model counts (default: all alike)"
    )
    add("--half", action="store_true", help="write float16, half the size; models are still loaded as float32")
    add("--with_encoders", action="store_true", help="keep the encoders' weights in the file, those of features too")
    add("--image_size", type=int, metavar="PIXELS", help="caption photos of this size with the result")
    add("--length_penalty", type=float, metavar="A", help="default of infer.py --length_penalty for the result")
    add("--beams", type=int, metavar="K", help="default of infer.py --beam_size for the result")
    add("--no_repeat_words", action="store_true", help="have infer.py write no word of content twice with the result")
    add("--calibrate", metavar="NAME", help="make confidences by the captions of this validation data")
    add("--greedy", action="store_true", help="average only models that raise the CIDEr on --dataset (default: all)")
    add("--dataset", metavar="NAME", help="--greedy: validation data, sections of datasets.conf joined by +")
    add("--dataset_config_file", metavar="FILE", help=CONFIG_HELP)
    add("--beam_size", default=1, metavar="K", help="--greedy: beams of the captions; 1 is greedy")
    add("--num_workers", type=int, metavar="N", help="processes that load images (default: all cores)")
    add("--encoder_weights", metavar="FILE", help="local file of the encoder's weights (default: download)")
    add_device(add)
    args = parser.parse_args(argv)
    if args.greedy and not args.dataset:
        parser.error("--greedy needs --dataset, whose captions the models are tried on")
    if args.greedy and args.weights:
        parser.error("--greedy and --weights exclude each other: a soup weighs its models alike")
    if args.dataset and not args.greedy:
        parser.error("--dataset is for --greedy")
    parser.at_least(1, args, "image_size", "beam_size", "beams")
    parser.at_least(0, args, "num_workers")
    parser.at_most(10_000, args, "image_size", "beam_size", "beams")
    parser.at_least(-MOST_PENALTY, args, "length_penalty")
    parser.at_most(MOST_PENALTY, args, "length_penalty")
    parser.at_most(1000, args, "num_workers")
    return args


def calibration(average, args, defaults: dict) -> dict:
    """What of log-probabilities makes confidences, by captions of --calibrate, as infer.py writes them by default.

    defaults: what the file will say of the search.
    """
    from captioning.devices import choose_device
    from captioning.scoring.calibration import LEAST_IMAGES
    from training.validation.data import validation_loader
    from training.validation.measuring import Validation

    captioner = average.captioner(choose_device(args.device, args.cpu), args.encoder_weights, args.half)
    captioner.info = captioner.info | defaults
    search = captioner.default_search()
    with closing(validation_loader(captioner, data_of(args, args.calibrate))) as loader:
        if (count := len(loader.items)) < LEAST_IMAGES:
            raise UserError(f"--calibrate {args.calibrate}: {count} images with captions are too few: {LEAST_IMAGES}")
        Validation(("cider",), search, blank=captioner.sees_pictures).measure(captioner, loader)
    found = captioner.calibration
    share = f"{found.good:.0%} of {found.images} captions have a CIDEr of {found.threshold:g} or more"
    print(f"{args.calibrate}: {share}; confidences are off by {found.error:.3f} on average")
    return found.to_dict()


def data_of(args, dataset: str):
    """The training.settings.DataSettings of validation on `dataset`."""
    from training.settings import DataSettings

    return DataSettings(validate=dataset, dataset_config_file=args.dataset_config_file, num_workers=args.num_workers)


def soup(paths: list[str], captioner, loader, beam_size: int):
    """The training.averages.Average that greedy_soup makes of `paths` by the CIDEr of captions of the loader's images.

    captioner: a model.Captioner of the first path.
    """
    from captioning.decoder.search import Search
    from training.averages import check_alike, greedy_soup, read_model
    from training.validation.measuring import Validation

    validation, first = Validation(("cider",), Search(beam_size=beam_size)), read_model(paths[0])

    def score(name, average) -> float:
        check_alike(average.contents, first, average.paths[0], paths[0])
        captioner.model.load_trained_state(average.state(), name)
        return validation.measure(captioner, loader)["validation_cider"]

    return greedy_soup(paths, score)


def main(args) -> int:
    output = Path(args.output)
    check_new("--output", output, args.force)
    check_writable("--output", output)
    for path in args.models:
        require_model_file(path)
    if args.encoder_weights:
        require_file("--encoder_weights", args.encoder_weights)
    for option in ("--dataset", "--calibrate"):
        if name := getattr(args, option[2:]):
            get_datasets(name, args.dataset_config_file, option)

    # torch is imported only now, so that the mistakes above are answered at once
    from captioning.devices import choose_device
    from model import load_captioner
    from training.averages import Average
    from training.validation.data import validation_loader

    if args.greedy:
        device = choose_device(args.device, args.cpu)
        captioner = load_captioner(args.models[0], device, args.encoder_weights, photos=False)
        with closing(validation_loader(captioner, data_of(args, args.dataset))) as loader:
            average = soup(args.models, captioner, loader, args.beam_size)
    else:
        average = Average(args.models, args.weights)
    if args.with_encoders:
        average.take_encoders(args.encoder_weights)
    if args.image_size:
        average.give_images_at(args.image_size)
    extra = {} if args.length_penalty is None else {"length_penalty": args.length_penalty}
    if args.beams:
        extra["beam_size"] = args.beams
    if args.no_repeat_words:
        if average.contents["vocabulary"].get("tokenizer") == "char":
            raise UserError("--no_repeat_words: the models write characters, not words")
        extra["no_repeat_words"] = True
    if args.calibrate:
        extra["calibration"] = calibration(average, args, extra)
    average.write(output, half=args.half, command=sys.argv, **extra)
    kind = "" if len(average.paths) == 1 else f"the mean of {len(average.paths)} models, "
    print(f"{output}: {kind}{output.stat().st_size / 2**20:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(run(main, parse_args()))

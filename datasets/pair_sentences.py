#!/usr/bin/env python3
"""Give photos without captions sentences that people wrote about other photos, as more data to train on.

    python datasets/pair_sentences.py --image_dir unlabelled/ --sentences sentences.txt --output pairs.json
    python datasets/pair_sentences.py --model models/a/best.model --image_dir unlabelled/ --sentences sentences.txt \\
        --output pairs.json --per_image 2 --share 0.5

The sentences are a text file with one in a line. A trained captioner chooses: for each photo it takes the sentences
that are like its own caption, and keeps those that are likely. Writes captions in COCO's format of the share of the
photos where the fit is best. Train on them together with photos that have captions of their own: train.py --dataset
flickr8k:train+pairs --mix 1,1 --load_model models/a/best.model.
"""

import json
import sys
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from captioning.command_line import Parser, add_device
from captioning.errors import UserError, run
from captioning.files import atomic_write, check_new, check_writable, read_lines, require_model_file
from inference.flags import model_path


def parse_args(argv=None) -> Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--model", metavar="FILE", help="model file of train.py (default: the bundled model)")
    add("--weights", metavar="FILE", help="local file of the encoder's weights (default: package, cache or download)")
    add("--image_dir", required=True, metavar="DIR", help="a folder or zip file of photos")
    add("--sentences", required=True, metavar="FILE", help="text file, a sentence in each line")
    add("--output", required=True, metavar="FILE", help="JSON file to write")
    add("--force", action="store_true", help="write over --output where it exists")
    add("--per_image", default=3, metavar="N", help="sentences of a photo, at most")
    add("--share", type=float, default=0.8, metavar="SHARE", help="keep this share of the photos, those that fit best")
    add("--batch_size", default=16, metavar="N", help="photos in a batch")
    add("--num_workers", type=int, metavar="N", help="processes that load images (default: all cores)")
    add_device(add)
    args = parser.parse_args(argv)
    parser.at_least(1, args, "per_image", "batch_size")
    parser.at_most(10_000, args, "per_image", "batch_size")
    parser.at_least(0, args, "num_workers")
    parser.at_most(1000, args, "num_workers")
    if not 0 < args.share <= 1:
        parser.error(f"--share {args.share}: above 0 and at most 1")
    return args


def main(args) -> int:
    output = Path(args.output)
    check_new("--output", output, args.force)
    check_writable("--output", output)
    model_file = model_path(args.model)
    require_model_file(model_file)
    lines = read_lines(args.sentences, "--sentences")

    # torch is imported only now, so that the mistakes above are answered at once
    from captioning.batches.inputs import plan_inputs
    from captioning.datasets.folder import GenericDataset
    from captioning.devices import choose_device
    from captioning.progress import Bar
    from data_loader import LoaderSettings, get_eval_loader
    from inference.pairing import Sentences, as_coco, pair_photos
    from model import load_captioner

    dataset = GenericDataset(image_dir=args.image_dir)
    captioner = load_captioner(model_file, choose_device(args.device, args.cpu), args.weights)
    if captioner.config.paragraphs is not None:
        raise UserError(f"--model {model_file} writes paragraphs: one of single sentences is needed")
    sentences = Sentences(lines, captioner.vocabulary)
    print(f"{args.sentences}: {len(sentences.texts):,} of {len(lines):,} sentences can be used")
    settings = LoaderSettings(args.batch_size, num_workers=args.num_workers)
    loader = get_eval_loader(dataset, plan_inputs(captioner.config, dataset), settings, transform=captioner.transform)
    pairs, names = {}, {item.image_id: item.key for item in dataset.items}
    with Bar(len(dataset.items), "pairs", "photo") as bar:
        for image_id, found in pair_photos(captioner, loader, sentences, args.per_image):
            pairs[image_id] = found
            bar.update(1)
    loader.close()
    contents = as_coco(names, pairs, args.share)
    if not contents["images"]:
        raise UserError(f"no photo of {args.image_dir} got a sentence: the model's captions share no words with them")
    with atomic_write(output) as file:
        json.dump(contents, file)
    print(f"{output}: {len(contents['images']):,} photos, {len(contents['annotations']):,} captions")
    return 1 if loader.bad_items else 0


if __name__ == "__main__":
    sys.exit(run(main, parse_args()))

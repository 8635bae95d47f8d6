#!/usr/bin/env python3
"""Export a captioner to ONNX: two graphs and a JSON file, with which other programs caption photos without PyTorch.

    ./export.py --output_dir exported                                    # the bundled model
    ./export.py --model models/mymodel/best.model --output_dir exported
    ./export.py --output_dir exported --int8 --image_dir photos          # a quarter of the size
    python recipes/onnx/caption.py exported photo.jpg                    # the example that reads them

encoder.onnx makes of photos all that captions start from, step.onnx the probabilities of the next word, and
captioner.json has the words, the size of images and the names of the tensors. The graphs are compared with PyTorch
before they are written. Needs the packages onnx, onnxscript and onnxruntime.
"""

import sys
from argparse import Namespace
from pathlib import Path

from captioning.command_line import Parser
from captioning.errors import UserError, run
from captioning.files import check_writable, require_file, require_model_file
from inference.flags import add_model_file, model_path
from serving.packages import require_packages

PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def parse_args(argv=None) -> Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add_model_file(add)
    add("--output_dir", metavar="DIR", required=True, help="folder for encoder.onnx, step.onnx and captioner.json")
    add("--int8", action="store_true", help="write weights and activations in 8 bits (default: float32)")
    add("--reduce_range", action="store_true", help="--int8: weights of 7 bits, for x86 processors without VNNI, "
        "where sums of 8-bit products overflow")  # fmt: skip
    add("--image_dir", metavar="DIR", help="--int8: photos like those to caption; their activations set the ranges")
    add("--max_photos", default=128, metavar="N", help="--int8: how many photos of --image_dir to look at")
    args = parser.parse_args(argv)
    parser.at_least(1, args, "max_photos")
    if args.int8 and not args.image_dir:
        parser.error("--int8 needs --image_dir, a folder of a hundred photos like those to caption")
    if (args.image_dir or args.reduce_range) and not args.int8:
        parser.error(f"--{'image_dir' if args.image_dir else 'reduce_range'} is for --int8")
    return args


if __name__ == "__main__":
    ARGS = parse_args()  # before the imports of packages, so that --help and mistakes answer at once

from captioning.errors import note_once, warn
from captioning.images.image_file import ImageError, open_image
from captioning.images.listing import list_images


def calibration_photos(captioner, folder: str, most: int) -> list:
    """Pixels (1, 3, S, S) of up to `most` photos, spread over the folder. Raises UserError where it has none."""
    paths = list_images(folder, recursive=True)
    photos = []
    for path in paths[:: max(1, len(paths) // most)][:most]:
        try:
            photos.append(captioner.transform(open_image(path, captioner.transform.size_hint)).numpy()[None])
        except ImageError as error:
            warn(str(error))
    if not photos:
        raise UserError(f"--image_dir {folder}: it holds no photo that can be read")
    return photos


def main(args) -> int:
    require_packages("export.py", PACKAGES)
    path, folder = model_path(args.model), Path(args.output_dir)
    require_model_file(path)
    if args.weights:
        require_file("--weights", args.weights)
    check_writable("--output_dir", folder / "captioner.json")
    # torch is imported only now, so that mistakes are answered at once
    from model import load_captioner
    from serving.graphs import export_graphs
    from serving.onnx_folder import describe, largest_difference, write_folder

    captioner = load_captioner(path, weights=args.weights)
    photos = calibration_photos(captioner, args.image_dir, args.max_photos) if args.int8 else []
    graphs = export_graphs(captioner)
    apart = largest_difference(captioner, graphs)
    note_once(f"the graphs compute what PyTorch does, up to {apart:.1g}")
    if args.int8:
        from serving.int8 import quantised

        graphs = quantised(graphs, photos, args.reduce_range)
    info = describe(captioner, graphs, path.name, "int8" if args.int8 else "float32")
    for written in write_folder(folder, info, graphs):
        note_once(f"{written}: {written.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(run(main, ARGS))

#!/usr/bin/env python3
"""Caption photos with the files of export.py: onnxruntime, numpy and Pillow, nothing of this toolkit.

python recipes/onnx/caption.py exported/ photo.jpg beach.jpg         # with --beam_size 1 a greedy search
"""

import argparse
import json
import re
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def read_pixels(path, size: int, interpolation: str) -> np.ndarray:
    """The upright photo squeezed to a square, uint8 (1, 3, size, size)."""
    image = Image.open(path)
    image.draft("RGB", (3 * size, 3 * size))  # a large JPEG is decoded at a half, a quarter or an eighth
    image = ImageOps.exif_transpose(image).convert("RGB")
    image = image.resize((size, size), getattr(Image.Resampling, interpolation.upper()), reducing_gap=3.0)
    return np.asarray(image).transpose(2, 0, 1)[None]


def search(encoder, step, info: dict, pixels: np.ndarray, beams: int, penalty: float) -> list[int]:
    """The words of the best caption that so many beams find; one beam is a greedy search."""
    made = dict(zip([x.name for x in encoder.get_outputs()], encoder.run(None, {"pixels": pixels})))
    state, memory = [made[name] for name in info["state"]], [made[name] for name in info["memory"]]
    once = set(info.get("once", ()))  # words that come once at most
    never, end = [info["special"][name] for name in ("pad", "start", "unk")], info["special"]["end"]
    rows, scores, ended = [[info["special"]["start"]]], np.zeros(1), []
    for length in range(1, info["max_words"] + 2):
        last = length > info["max_words"]
        read = {"tokens": np.array([words[-1] for words in rows])} | dict(zip(info["state"], state))
        read |= {name: np.repeat(x, len(rows), 0) for name, x in zip(info["memory"], memory)}
        log_probs, *state = step.run(["log_probs", *(f"next_{name}" for name in info["state"])], read)
        for row, words in enumerate(rows):
            log_probs[row, [word for word in words if word in once]] = -np.inf
        log_probs[:, np.arange(log_probs.shape[1]) != end if last else never] = -np.inf  # at last all captions end
        totals = (log_probs + scores[:, None]).ravel()
        best = np.argsort(-totals, kind="stable")[: 2 * beams]  # of these at least `beams` do not end
        parents, words = best // log_probs.shape[1], best % log_probs.shape[1]
        for place, (parent, word) in enumerate(zip(parents, words)):
            if word == end and (place < beams or last):
                ended.append((totals[best[place]] / length**penalty, rows[parent][1:]))
        ended = sorted(ended, key=lambda one: -one[0])[:beams]
        goes_on = np.flatnonzero(words != end)[:beams]
        rows = [[*rows[parents[i]], words[i]] for i in goes_on]
        scores, state = totals[best[goes_on]], [x[:, parents[goes_on]] for x in state]
        if last or (len(ended) == beams and scores[0] / length**penalty <= ended[-1][0]):
            break
    return ended[0][1]


def as_text(words: list[str]) -> str:
    """Words as a sentence; docs/serving.md says where the rules of the toolkit are finer."""
    text = re.sub(r" (,|\.|n't|'s|'re|;|:|!|\?)", r"\1", " ".join(words))
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder that export.py wrote")
    parser.add_argument("photos", nargs="+", metavar="PHOTO")
    parser.add_argument("--beam_size", type=int, help="beams (default: the model's); 1 is greedy")
    return parser.parse_args(argv)


def main(args) -> None:
    try:
        info = json.loads((file := args.folder / "captioner.json").read_text(encoding="utf-8"))
        encoder, step = (onnxruntime.InferenceSession(args.folder / f"{name}.onnx") for name in ("encoder", "step"))
        for file in args.photos:
            pixels = read_pixels(file, info["size"], info["interpolation"])
            beams = args.beam_size or info.get("beam_size", 3)
            found = search(encoder, step, info, pixels, beams, info["length_penalty"])
            print(f"{file}: {as_text([info['words'][word] for word in found])}")
    except OSError as error:  # the file is not there, or is no photo
        argparse.ArgumentParser().exit(2, f"caption.py: error: {file}: {error.strerror or error}\n")


if __name__ == "__main__":
    main(parse_args())

"""The folder of an exported captioner: encoder.onnx, step.onnx and captioner.json, which tells all else.

write_folder("exported", describe(captioner, graphs, "int8"), graphs)
"""

import json
from pathlib import Path

import numpy as np

from captioning.errors import UserError
from captioning.files import atomic_write
from captioning.text.tokens import END, PAD, START, UNK
from model import Captioner
from serving.graphs import Graphs

FORMAT = 1
ENCODER, STEP, DESCRIPTION = "encoder.onnx", "step.onnx", "captioner.json"
MAX_WORDS = 20  # of a caption, as of infer.py --max_seq_length
CLOSE = 1e-4  # how far numbers of the two may be apart: they add up in another order


def describe(captioner: Captioner, graphs: Graphs, model: str, precision: str) -> dict:
    """What captioner.json says; model: name of the model file."""
    return {
        "format": FORMAT,
        "model": model,
        "precision": precision,
        "size": captioner.size,
        "interpolation": captioner.transform.interpolation,
        "state": graphs.state,
        "memory": graphs.memory,
        "attention": graphs.attention,
        "special": {"pad": PAD, "start": START, "end": END, "unk": UNK},
        "max_words": MAX_WORDS,
        "beam_size": captioner.default_search().beam_size,
        "length_penalty": captioner.length_penalty,
        "once": list(captioner.once),
        "calibration": captioner.info.get("calibration"),
        "tokenizer": captioner.vocabulary.tokenizer,
        "words": captioner.vocabulary.words,
    }


def write_folder(folder: Path, info: dict, graphs: Graphs) -> list[Path]:
    """Write the three files, captioner.json last. Gives their paths. Raises UserError where they cannot be written."""
    paths = [folder / name for name in (ENCODER, STEP, DESCRIPTION)]
    for path, graph in zip(paths, (graphs.encoder, graphs.step)):
        with atomic_write(path, "wb") as file:
            file.write(graph.SerializeToString())
    with atomic_write(paths[2]) as file:
        json.dump(info, file, ensure_ascii=False, indent=1)
        file.write("\n")
    return paths


def largest_difference(captioner: Captioner, graphs: Graphs, images: int = 2) -> float:
    """How far numbers of the graphs, computed by onnxruntime, are from those of PyTorch, on images of noise.

    As a part of the largest number of a tensor, or of 1. Raises UserError where it is more than rounding explains.
    """
    import onnxruntime
    import torch

    noise = np.random.default_rng(1).integers(0, 256, (images, 3, captioner.size, captioner.size), np.uint8)
    encoder, step = (onnxruntime.InferenceSession(x.SerializeToString()) for x in (graphs.encoder, graphs.step))
    made = encoder.run(None, {"pixels": noise})
    words = np.full(images, START)
    found = step.run(None, {"tokens": words} | dict(zip([*graphs.state, *graphs.memory], made)))
    with torch.inference_mode():
        memory = captioner.encode(torch.from_numpy(noise), [None] * len(captioner.config.specs))
        decoder = captioner.model.decoder
        state = decoder.start(memory)
        logits, following, _ = decoder.step(torch.from_numpy(words), state, memory)
    wanted = [*state, *(getattr(memory, name) for name in graphs.memory), logits.log_softmax(1), *following]
    pairs = [(a, b.numpy()) for a, b in zip([*made, *found], wanted) if a.size]  # a Transformer's first state is empty
    apart = max(float(np.abs(a - b).max() / max(1.0, np.abs(b).max())) for a, b in pairs)
    if not apart <= CLOSE:
        raise UserError(f"--model: its graphs compute other numbers than PyTorch, up to {apart:.2g} apart")
    return apart

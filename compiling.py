"""--compile: torch.compile for the parts of a captioner that it can take, or word of why it cannot.

Compiled are the encoders that run within the model, whose inputs keep their shape, and the decoder's output layers. The
recurrence is not: it has a loop over the steps of each batch's own lengths, which would be compiled anew for each.
"""

import torch
from torch import nn

from model import Captioner
from vocabulary import END, START


def compile_captioner(captioner: Captioner, backend: str = "inductor") -> str | None:
    """Compile what can be compiled, and try it once. Returns why nothing was compiled, or None where it was.

    A machine without a C++ compiler, or an encoder with operations that cannot be traced, are found out by the trial;
    the captioner is then as before.
    """
    model = captioner.model
    if captioner.config.paragraphs is not None:
        return "it writes paragraphs"
    if not pays(captioner.device, backend):
        return "on a CPU its convolutions are fused without it, and a minute of compiling is never saved again"
    encoders = [extractor for extractor in model.extractors if not isinstance(extractor, nn.Identity)]
    try:
        for extractor in encoders:
            extractor.compile(backend=backend)
        # the number of tokens differs from batch to batch
        model.decoder._logits = torch.compile(model.decoder._logits, dynamic=True, backend=backend)
        try_step(captioner)
    except Exception as error:  # noqa: BLE001 - compilers fail in many ways
        for extractor in encoders:
            extractor._compiled_call_impl = None
        vars(model.decoder).pop("_logits", None)
        model.zero_grad(set_to_none=True)
        lines = str(error).strip().splitlines() or [""]
        return f"{type(error).__name__}: {lines[0][:150]}"
    return None


def pays(device: torch.device, backend: str) -> bool:
    """Whether compiling can be worth its time.

    Not on a CPU: encoders ran 0.95 to 1.1 times as fast there after 66 to 97 seconds of compiling (ResNet-152 and
    EfficientNet-Lite0), beside fusing.py, which does the same by hand; plain training makes no logits as a whole.
    """
    return device.type != "cpu" or backend != "inductor"


def try_step(captioner: Captioner) -> None:
    """One forward and backward pass over two made-up images."""
    model, device = captioner.model, captioner.device
    inputs = []
    for spec, external in zip(captioner.config.specs, captioner.external):
        shape = (spec.shape[1] * spec.shape[2], spec.shape[0]) if spec.spatial else spec.shape
        inputs.append(torch.zeros(2, *shape, device=device) if external else None)
    pixels = None
    if not all(captioner.external):
        pixels = torch.zeros(2, 3, captioner.size, captioner.size, dtype=torch.uint8, device=device)
    captions = torch.tensor([[START, END], [START, END]], device=device)
    statistics = [buffer.clone() for buffer in model.buffers()]  # batch norms would remember the made-up images
    was_training = model.training
    model.train()
    logits, _, _, _ = model(pixels, inputs, captions, torch.tensor([2, 2]), torch.arange(2, device=device))
    logits.sum().backward()
    model.zero_grad(set_to_none=True)
    model.train(was_training)
    with torch.no_grad():
        for buffer, before in zip(model.buffers(), statistics):
            buffer.copy_(before)

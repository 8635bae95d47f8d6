"""A captioner as two graphs that other programs run: the encoder with all that is done once per image, and a step.

    graphs = export_graphs(load_captioner("models/run/best.model"))
    graphs.encoder, graphs.step                          # onnx.ModelProto
    graphs.state, graphs.memory                          # names: what a step changes, and what it reads

The encoder makes the state before the first word and the memory. Each step reads a word, the state and the memory of
every row, and gives log-probabilities of the next word and the next state. Rows are images at first and beams later.

Shapes: B images, N rows, S pixels, L layers, H hidden, R regions, V vocabulary.
"""

import contextlib
import copy
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from captioning.config import ModelConfig
from captioning.decoder.sentence import Memory, SentenceDecoder
from captioning.decoder.transformer import TransformerDecoder, TransformerMemory
from captioning.encoder.encoder import ImageEncoder
from captioning.errors import UserError, one_line
from captioning.fast.switch import plain_paths
from captioning.text.tokens import START
from model import Captioner

OPSET = 18  # the newest that the exporters of torch 2.10 and later write without converting it
ANY, WORDS = torch.export.Dim("rows", min=1), torch.export.Dim("words", min=0, max=4096)
TRACED = 3  # images and rows of the examples: not 1, which is traced as a constant


@dataclass
class Graphs:
    """A captioner as two graphs.

    encoder: pixels -> state and memory; step: token, state and memory -> log_probs, next state, attention.
    """

    encoder: object  # onnx.ModelProto
    step: object
    state: list[str]  # names of tensors with rows in the second dimension
    memory: list[str]  # names of tensors (N, ...)
    attention: bool  # whether a step tells where it looked: `attention` (N, R)


class OneStep(nn.Module):
    """A step of an nn.LSTM or nn.GRU made of cells, which every exporter knows for any number of rows."""

    def __init__(self, rnn: nn.LSTM | nn.GRU):
        super().__init__()
        kind = {"LSTM": nn.LSTMCell, "GRU": nn.GRUCell}[rnn.mode]
        self.cells = nn.ModuleList()
        for layer in range(rnn.num_layers):
            cell = kind(rnn.hidden_size if layer else rnn.input_size, rnn.hidden_size)
            names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            cell.load_state_dict({name: getattr(rnn, f"{name}_l{layer}") for name in names})
            self.cells.append(cell)

    def forward(self, inputs: Tensor, state) -> tuple[Tensor, tuple[Tensor, Tensor] | Tensor]:
        """As the RNN: inputs (N, 1, .), state (h, c) or h, each (L, N, H) -> the last layer's (N, 1, H), new state."""
        x, made = inputs.squeeze(1), []
        for layer, cell in enumerate(self.cells):
            if isinstance(state, tuple):
                made.append(cell(x, (state[0][layer], state[1][layer])))
                x = made[-1][0]
            else:
                x = cell(x, state[layer])
                made.append((x,))
        stacked = tuple(torch.stack(parts) for parts in zip(*made))
        return x.unsqueeze(1), stacked if len(stacked) > 1 else stacked[0]


class EncoderGraph(nn.Module):
    """pixels (B, 3, S, S) uint8 -> the state before the first word, then the tensors of the memory `names`."""

    def __init__(self, model: nn.Module, names: list[str]):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        memory = self.model.encode(pixels, [None] * len(self.model.config.specs))
        return (*self.model.decoder.start(memory), *(getattr(memory, name) for name in self.names))


class StepGraph(nn.Module):
    """A word: tokens (N,), state, memory -> log_probs (N, V), the next state, attention (N, R) where there is one."""

    def __init__(self, decoder: SentenceDecoder | TransformerDecoder, names: list[str]):
        super().__init__()
        self.decoder, self.names = decoder, names
        self.kind = TransformerMemory if isinstance(decoder, TransformerDecoder) else Memory

    def forward(self, tokens: Tensor, state: tuple, memory: tuple) -> tuple[Tensor, ...]:
        logits, state, weights = self.decoder.step(tokens, state, self.kind(**dict(zip(self.names, memory))))
        return (logits.log_softmax(1), *state, *(() if weights is None else (weights,)))


def check_exportable(captioner: Captioner) -> None:
    """Raises UserError where the model is of a kind that is not written as two graphs."""
    config = captioner.config
    if config.paragraphs is not None:
        raise UserError("--model: it writes paragraphs; only models of single sentences can be exported")
    if config.attention == "updown":
        raise UserError(
            "--model: it has --attention updown, which is not exported; soft, spatial and a Transformer are"
        )
    for spec, extractor in zip(config.specs, captioner.model.extractors):
        if spec.varying:
            raise UserError(
                f"--model: it reads {spec.name}, as many regions as an image has, which no photo encoder makes"
            )
        if not isinstance(extractor, ImageEncoder):
            raise UserError(f"--model: it reads {spec.name}, features of ten crops, and only whole images are exported")


def export_graphs(captioner: Captioner) -> Graphs:
    """The graphs of a captioner that is ready for photos, on the CPU, float32. It stays as it was.

    Raises UserError where it is of another kind, and where torch's exporter cannot write it.
    """
    check_exportable(captioner)
    config = captioner.config
    model = copy.deepcopy(captioner.model).cpu().eval()
    state, memory = state_names(model.decoder), memory_names(model.decoder, config)
    encoder = EncoderGraph(model, memory)
    pixels = torch.zeros(TRACED, 3, captioner.size, captioner.size, dtype=torch.uint8)
    with plain_paths(), torch.no_grad():
        if isinstance(model.decoder, SentenceDecoder):
            model.decoder.rnn = OneStep(model.decoder.rnn)
        made = encoder(pixels)
        first = encoder_graph(encoder, pixels, state + memory)
        step = StepGraph(model.decoder, memory)
        second, attention = step_graph(step, made[: len(state)], made[len(state) :], state)
    return Graphs(first, second, state, memory, attention)


def state_names(decoder: SentenceDecoder | TransformerDecoder) -> list[str]:
    """Of an RNN h and perhaps c, (L, N, H); of a Transformer the keys and values of each layer, (1, N, h, T, d)."""
    if isinstance(decoder, TransformerDecoder):
        return [f"{kind}_{layer}" for layer in range(len(decoder.layers)) for kind in ("keys", "values")]
    return ["h", "c"] if decoder.rnn_arch == "LSTM" else ["h"]


def memory_names(decoder: SentenceDecoder | TransformerDecoder, config: ModelConfig) -> list[str]:
    """What of the memory the steps read."""
    if isinstance(decoder, TransformerDecoder):
        return ["values", "keys"]
    read = {"first": config.skip_start_token, "persist": config.persist_size > 0}
    read |= {"values": bool(config.attention), "keys": bool(config.attention)}
    return [name for name, needed in read.items() if needed]


def encoder_graph(encoder: EncoderGraph, pixels: Tensor, names: list[str]):
    """encoder.onnx: `pixels` -> outputs by `names`."""
    return traced(encoder, (pixels,), ({0: ANY},), ["pixels"], names)


def step_graph(step: StepGraph, state: tuple, memory: tuple, names: list[str]) -> tuple:
    """step.onnx: `tokens`, then inputs by the `names` of the state and those of the memory; whether it has attention.

    state, memory: examples, before the first word.
    """
    tokens = torch.full((TRACED,), START)
    outputs = ["log_probs", *(f"next_{name}" for name in names)]
    for _ in range(2):  # neither no word nor one may stand in a Transformer's state: either is traced as a constant
        found = step(tokens, state, memory)
        state = found[1 : len(names) + 1]
    if len(found) > len(outputs):
        outputs.append("attention")
    free = {1: ANY, 3: WORDS} if isinstance(step.decoder, TransformerDecoder) else {1: ANY}
    shapes = {0: ANY}, tuple(free for _ in state), tuple({0: ANY} for _ in memory)
    made = traced(step, (tokens, state, memory), shapes, ["tokens", *names, *step.names], outputs)
    return made, "attention" in outputs


def traced(module: nn.Module, arguments: tuple, shapes: tuple, inputs: list[str], outputs: list[str]):
    """The module as an onnx.ModelProto with inputs and outputs of these names. Raises UserError where it cannot be.

    shapes: which dimension of each argument is of ANY size, the same for all.
    """
    options = {"dynamo": True, "opset_version": OPSET, "input_names": inputs, "output_names": outputs, "verbose": False}
    with quiet():
        try:  # given the module, not the program, torch.onnx would fall back on graphs of a single batch size
            program = torch.export.export(module, arguments, dynamic_shapes=shapes, strict=False)
            program = torch.onnx.export(program, **options)
        except Exception as error:
            raise UserError(f"--model: torch cannot export it to ONNX: {one_line(error)}") from error
    return program.model_proto


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Within it torch's exporter prints nothing of its own work."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)

"""Captioners with random weights for the benchmark, built as train.py builds them."""

import contextlib
import io

import torch
from bench_data import VOCABULARY, words
from torch import Tensor

from captioning.config import FeatureSpec, ModelConfig
from captioning.decoder.transformer import TransformerDecoder, sinusoids
from captioning.decoder.updown import UpDownDecoder
from captioning.encoder.provenance import internal_spec
from captioning.text.tokens import END, PAD, SPECIALS, START, UNK
from model import Captioner, CaptionModel, build_model
from vocabulary import Vocabulary

POOLED, MAP = (1280,), (1280, 7, 7)  # EfficientNet-Lite0's vector and map
STEPS = 21  # words that a caption may have at most, and <end>


def vocabulary() -> Vocabulary:
    return Vocabulary([*SPECIALS, ".", *words(VOCABULARY - len(SPECIALS) - 1)])


def captioner(specs: list[FeatureSpec], extractors: dict | None = None, **settings) -> Captioner:
    """Embedding 256, hidden 512, attention 256, projected regions 512, unless `settings` say otherwise."""
    torch.manual_seed(0)
    config = ModelConfig(features=specs, **settings)
    return Captioner(build_model(config, vocabulary(), extractors=extractors or {}), vocabulary())


def from_file(name: str, shape: tuple[int, ...], provenance: dict | None = None, **settings) -> Captioner:
    """A captioner that reads the feature file `name`; one of maps attends to them."""
    soft = {"attention": "soft"} if len(shape) == 3 and settings.get("decoder") != "transformer" else {}
    return captioner([FeatureSpec(name, shape, True, provenance)], **{**soft, **settings})


def from_pixels(extractor, **settings) -> Captioner:
    """A captioner with an encoder of its own."""
    attention = {"attention": "soft"} if extractor.spatial else {}
    return captioner([internal_spec(extractor.name, extractor)], {extractor.name: extractor}, **attention, **settings)


@torch.inference_mode()
def plant_ending(model: CaptionModel, pixels: Tensor | None, inputs: list, mean_words: float = 10.5) -> None:
    """Make a model with random weights end its sentences as trained ones do: at different lengths, `mean_words` long.

    A random decoder hardly ever writes <end>, and every caption would have the longest length there is. Here one number
    that the output layer reads counts the steps and drives the logit of <end>; which step it wins at depends on the
    other weights, and so on the image. The logits are also made larger, as sharp as a trained model's.
    pixels, inputs: of a few images, to set the size of it by.
    """
    decoder = model.eval().decoder
    memory = model.encode(pixels, inputs)
    place = _count_steps(decoder)
    state = decoder.start(memory)
    last = torch.full((len(memory),), START, device=state[0].device)
    read, logits = [], []
    hook = decoder.linear.register_forward_pre_hook(lambda layer, inputs: read.append(inputs[0][:, place]))
    for _ in range(STEPS):
        out, state, _ = decoder.step(last, state, memory)
        logits.append(out)
        out = out.clone()
        out[:, [PAD, START, END, UNK]] = -torch.inf
        last = out.argmax(1)
    hook.remove()
    count, logits = torch.stack(read), torch.stack(logits)  # (T, N), (T, N, V)
    scale = 4 / logits.std()
    for parameter in (decoder.linear.weight, decoder.linear.bias):
        parameter *= scale
    logits = logits * scale
    own = logits[:, :, END].clone()
    logits[:, :, [PAD, START, END, UNK]] = -torch.inf
    ahead = logits.amax(2) - own  # by how much <end> is behind the likeliest word
    slope = ahead.std() / (2.5 * (count[11] - count[10]).mean())  # lengths then spread by about two and a half words
    low, high = (-slope * count.max()).item(), (ahead.max() - slope * count.min()).item()
    for _ in range(40):
        middle = (low + high) / 2
        ends = slope * count + middle > ahead
        ends[-1] = True
        short = ends.int().argmax(0).float().mean() < mean_words
        low, high = (low, middle) if short else (middle, high)
    decoder.linear.weight[END, place] = slope
    decoder.linear.bias[END] += middle


def _count_steps(decoder) -> int:
    """Have one number that the output layer reads count the steps, and no word but <end> depend on it; its index."""
    if isinstance(decoder, TransformerDecoder):
        place = _count_places(decoder)
    elif isinstance(decoder, UpDownDecoder):
        place = _count_in_cell(decoder.language_lstm, "")
    else:
        place = _count_in_cell(decoder.rnn, "_l0")
        if decoder.has_initial:
            for layer in (decoder.init_h[0], decoder.init_c[0]):
                layer.weight[0], layer.bias[0] = 0, 0
        if decoder.deep_output:
            decoder.hidden_to_output.weight[0], decoder.hidden_to_output.bias[0] = 0, 0
            decoder.hidden_to_output.weight[0, 0] = 1
            decoder.context_to_output.weight[0] = 0
            decoder.embed.weight[:, 0] = 0
    decoder.linear.weight[:, place] = 0
    return place


def _count_in_cell(lstm, layer: str) -> int:
    """Give cell 0 of an LSTM to a count of the steps."""
    weights = (getattr(lstm, f"weight_{kind}{layer}") for kind in ("ih", "hh"))
    biases = [getattr(lstm, f"bias_{kind}{layer}") for kind in ("ih", "hh")]
    rows = [gate * lstm.hidden_size for gate in range(4)]
    for weight in weights:
        weight[rows] = 0
    for row, bias in zip(rows, (8.0, 8.0, 0.05, 8.0)):  # input and forget gates open, 0.05 a step, output gate open
        biases[0][row], biases[1][row] = bias, 0
    return 0


def _count_places(decoder: TransformerDecoder) -> int:
    """Keep one number of a Transformer for a sine of the place in the sentence, which grows for 20 words."""
    waves = sinusoids(torch.tensor([0.0, STEPS]), decoder.embed.embedding_dim)[1]
    place = int((waves[: len(waves) // 2]).argmax())
    decoder.embed.weight[:, place] = 0
    for layer in decoder.layers:
        for output in (layer.output, layer.context_output, layer.feed_forward.linear2):
            output.weight[place], output.bias[place] = 0, 0
    return place


def random_encoder(name: str, pretrained: bool = False):
    """An encoder, without a download where it has random weights. Raises UserError where a package is missing."""
    from captioning.encoder.factory import build_encoder as build_extractor

    with contextlib.redirect_stdout(io.StringIO()):
        return build_extractor(name, pretrained=pretrained)

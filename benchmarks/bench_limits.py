"""What the matrix products of a captioner take: the arithmetic behind "of the products".

A product of (m, k) and (k, n) is 2 m k n operations. Each line is one product of the model: its operations in the
forward pass per image, per caption or per token, and how often training needs it: 3 times where both factors have a
gradient (the forward product and one more for each gradient), twice where one factor is data, once without training.
Tokens are real ones, words and <end>; padding counts nothing. Element-wise work, softmax, table look-ups and the
optimizer count nothing either: the limit is that of a machine that does all this for free.
"""

from collections.abc import Mapping
from dataclasses import dataclass

IMAGE, CAPTION, TOKEN = "image", "caption", "token"


@dataclass(frozen=True)
class Sizes:
    """Of a decoder: a one-layer LSTM, up-down attention, or a Transformer.

    pooled: D of the image vector read first (0: none); regions, region: R and D of the map attended to (0: no
    attention); value, attention: sizes of the projected region and of the score's hidden layer; layers, feed_forward:
    of a Transformer (0: it is none).
    """

    vocab: int
    embed: int
    hidden: int
    pooled: int = 0
    regions: int = 0
    region: int = 0
    value: int = 0
    attention: int = 0
    updown: bool = False
    layers: int = 0
    feed_forward: int = 0

    @classmethod
    def of(cls, captioner) -> "Sizes":
        """Those of a captioner without persistent features, whose LSTM has one layer.

        Of a Transformer, and of up-down attention, a map is all that it reads.
        """
        config, is_transformer = captioner.config, captioner.config.decoder == "transformer"
        attended = None if captioner.model.attended is None else config.specs[captioner.model.attended].shape
        return cls(
            vocab=len(captioner.vocabulary),
            embed=config.embed_size,
            hidden=config.hidden_size,
            pooled=sum(spec.shape[0] for i, spec in enumerate(config.specs) if i != captioner.model.attended),
            regions=attended[1] * attended[2] if attended else 0,
            region=attended[0] if attended else 0,
            value=config.value_size if attended else 0,
            attention=config.attention_size if attended else 0,
            updown=config.attention == "updown",
            layers=config.num_layers if is_transformer else 0,
            feed_forward=config.feed_forward_size if is_transformer else 0,
        )


@dataclass(frozen=True)
class Term:
    """One product. factors: (name, size) to be multiplied, the leading 2 left out."""

    name: str
    per: str
    factors: tuple[tuple[str, int], ...]
    in_training: int = 3

    @property
    def forward(self) -> int:
        operations = 2
        for _, size in self.factors:
            operations *= size
        return operations

    def operations(self, training: bool) -> int:
        return self.forward * (self.in_training if training else 1)

    def line(self, training: bool) -> str:
        """The arithmetic, for people."""
        names = " x ".join(name for name, _ in self.factors)
        numbers = " x ".join(str(size) for _, size in self.factors)
        times = f" x {self.in_training} (training)" if training else ""
        total = self.operations(training) / 1e6
        return f"{self.name}, per {self.per}: 2 x {names} = 2 x {numbers}{times} = {total:.3f} M"


def decoder_terms(s: Sizes) -> list[Term]:
    """Every matrix product of the decoder."""
    if s.layers:
        return transformer_terms(s)
    return updown_terms(s) if s.updown else lstm_terms(s)


def lstm_terms(s: Sizes) -> list[Term]:
    E, H, V = ("E", s.embed), ("H", s.hidden), ("V", s.vocab)
    gates = ("4H", 4 * s.hidden)
    terms = []
    if s.pooled:
        terms += [
            Term("pooled image to embedding", IMAGE, (("D", s.pooled), E), in_training=2),
            Term("LSTM step that reads the image", CAPTION, (("(E+H)", s.embed + s.hidden), gates)),
        ]
    if not s.regions:
        return [
            *terms,
            Term("LSTM step", TOKEN, (("(E+H)", s.embed + s.hidden), gates)),
            Term("hidden state to words", TOKEN, (H, V)),
        ]
    R, P, A = ("R", s.regions), ("P", s.value), ("A", s.attention)
    return [
        *terms,
        Term("regions projected", IMAGE, (R, ("D", s.region), P), in_training=2),
        Term("attention keys", IMAGE, (R, P, A)),
        Term("initial hidden and cell state", IMAGE, (("2", 2), P, H)),
        Term("LSTM step", TOKEN, (("(E+P+H)", s.embed + s.value + s.hidden), gates)),
        Term("attention query", TOKEN, (H, A)),
        Term("attention scores", TOKEN, (R, A)),
        Term("attended context", TOKEN, (R, P)),
        Term("context's gate", TOKEN, (H,)),
        Term("hidden state to output", TOKEN, (H, E)),
        Term("context to output", TOKEN, (P, E)),
        Term("output to words", TOKEN, (E, V)),
    ]


def updown_terms(s: Sizes) -> list[Term]:
    H, V, R, P, A = ("H", s.hidden), ("V", s.vocab), ("R", s.regions), ("P", s.value), ("A", s.attention)
    gates = ("4H", 4 * s.hidden)
    return [
        Term("regions projected", IMAGE, (R, ("D", s.region), P), in_training=2),
        Term("attention keys", IMAGE, (R, P, A)),
        Term("mean region in the attention LSTM", IMAGE, (P, gates)),
        Term("attention LSTM", TOKEN, (("(E+2H)", s.embed + 2 * s.hidden), gates)),
        Term("attention query", TOKEN, (H, A)),
        Term("attention scores", TOKEN, (R, A)),
        Term("attended region", TOKEN, (R, P)),
        Term("language LSTM", TOKEN, (("(P+2H)", s.value + 2 * s.hidden), gates)),
        Term("hidden state to words", TOKEN, (H, V)),
    ]


def transformer_terms(s: Sizes) -> list[Term]:
    """Attention of words to words is left out: it depends on the length, and is less than a hundredth of the rest."""
    H, V, R, L, F = ("H", s.hidden), ("V", s.vocab), ("R", s.regions), ("L", s.layers), ("F", s.feed_forward)
    return [
        Term("regions projected", IMAGE, (R, ("D", s.region), H), in_training=2),
        Term("keys and values of the regions", IMAGE, (L, R, H, ("2H", 2 * s.hidden))),
        Term("queries, keys and values of words, and what is read", TOKEN, (L, H, ("4H", 4 * s.hidden))),
        Term("queries to the regions, and what is read", TOKEN, (L, H, ("2H", 2 * s.hidden))),
        Term("scores of the regions, and what is attended to", TOKEN, (L, ("2R", 2 * s.regions), H)),
        Term("feed-forward layers", TOKEN, (L, ("2", 2), H, F)),
        Term("output to words", TOKEN, (H, V)),
    ]


def operations(terms: list[Term], counts: Mapping[str, float], training: bool) -> float:
    """Of all `terms` for `counts` of images, captions and tokens."""
    return sum(term.operations(training) * counts[term.per] for term in terms)


def encoder_terms(name: str, convolutions: list[tuple[int, int, int, int]]) -> list[Term]:
    """A frozen encoder as one term: convolutions are (outputs, input channels per group, kernel height, width)."""
    total = sum(outputs * channels * height * width for outputs, channels, height, width in convolutions)
    label = f"sum over {len(convolutions)} convolutions and linear layers of outputs x inputs of each"
    return [Term(f"{name}, forward only", IMAGE, ((label, total),), in_training=1)]


def convolutions_of(network, pixels) -> list[tuple[int, int, int, int]]:
    """(outputs of one image, input channels per group, kernel height, width) of every convolution and linear layer that
    runs on `pixels` (1, 3, H, W), found on torch's meta device: no arithmetic is done.
    """
    import copy

    from torch import nn

    found = []

    def note(module, inputs, output) -> None:
        if isinstance(module, nn.Linear):
            found.append((output[0].numel(), module.in_features, 1, 1))
        else:
            found.append((output[0].numel(), module.in_channels // module.groups, *module.kernel_size))

    network = copy.deepcopy(network).to("meta")
    hooks = [m.register_forward_hook(note) for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    network(pixels.to("meta"))
    for hook in hooks:
        hook.remove()
    return found


def beam_tokens(lengths: list[list[int]], beams: int) -> int:
    """Decoder rows that beam search cannot do without: one at the first step, `beams` at each later one until the
    longest of an image's kept sentences has ended. lengths: of each image's sentences, words and <end>.
    """
    return sum(1 + beams * (max(image) - 1) for image in lengths)

"""Small decoders of every kind, and one whose logits a test can work out by itself."""

import itertools
from dataclasses import dataclass

import pytest
import torch

from captioning.config import FeatureSpec, ModelConfig
from captioning.decoder.search import Search, beam_search
from captioning.decoder.sentence import Memory, SentenceDecoder
from captioning.decoder.transformer import TransformerDecoder
from captioning.decoder.updown import UpDownDecoder
from captioning.rows import Packing, log_probs_of, pack_sentences
from captioning.text.tokens import END, PAD, START, UNK

V, B, R = 11, 3, 5  # words, images, regions
SIZES = {"embed_size": 5, "hidden_size": 6, "value_size": 7, "attention_size": 4}
IMAGE, PERSIST, REGION = 4, 3, 8
KINDS = {
    "pooled": {"image": IMAGE},
    "pooled_nonlin_shared": {"image": IMAGE, "encoder_non_lin": True, "share_embedding_weights": True},
    "pooled_persist_skip": {"image": IMAGE, "persist": PERSIST, "skip_start_token": True},
    "pooled_projection": {"image": IMAGE, "share_embedding_weights": True, "projection": True},
    "from_features": {"image": IMAGE, "rnn_hidden_init": "from_features"},
    "from_features_persist_shared": {
        "image": IMAGE,
        "rnn_hidden_init": "from_features",
        "persist": PERSIST,
        "share_embedding_weights": True,
    },
    "persist": {"persist": PERSIST},
    "soft": {"attention": "soft"},
    "soft_pooled": {"attention": "soft", "image": IMAGE},
    "soft_persist_shared": {"attention": "soft", "persist": PERSIST, "share_embedding_weights": True},
    "soft_everything": {
        "attention": "soft",
        "image": IMAGE,
        "persist": PERSIST,
        "skip_start_token": True,
        "encoder_non_lin": True,
        "share_embedding_weights": True,
        "projection": True,
    },
    "spatial": {"attention": "spatial"},
    "spatial_pooled_persist": {"attention": "spatial", "image": IMAGE, "persist": PERSIST},
    "spatial_skip_shared": {
        "attention": "spatial",
        "image": IMAGE,
        "skip_start_token": True,
        "share_embedding_weights": True,
    },
}
CASES = [(kind, arch, layers) for kind in KINDS for arch in ("LSTM", "GRU") for layers in (1, 2)]
IDS = [f"{kind}-{arch}{layers}" for kind, arch, layers in CASES]
every_decoder = pytest.mark.parametrize(("kind", "arch", "layers"), CASES, ids=IDS)

STEPS = torch.tensor([4, 1, 6, 6, 3])  # of five captions, with <start> and without <end>
ROW_IMAGE = torch.tensor([2, 0, 2, 1, 0])
SOME_REGIONS = torch.arange(R) < torch.tensor([[R], [2], [1]])  # of B images


def config_of(image: int = 0, persist: int = 0, region: int = REGION, **settings) -> ModelConfig:
    """A config with features of so many numbers (0: none); with attention also a map of R regions."""
    features = [FeatureSpec("image", (image,), True)] if image else []
    if settings.get("attention"):
        features.append(FeatureSpec("map", (region, 1, R), True))
    persistent = [FeatureSpec("persist", (persist,), True)] if persist else []
    return ModelConfig(features, persistent, **{**SIZES, **settings})


def build(kind: str, arch: str = "LSTM", layers: int = 1, dtype=torch.float32, scale: float = 0.5, **changes):
    """A decoder whose weights are large enough that each of them shows in the logits."""
    torch.manual_seed(7)
    decoder = SentenceDecoder(V, config_of(**{**KINDS[kind], "rnn_arch": arch, "num_layers": layers, **changes}))
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.normal_(0, scale)
        if decoder.image is not None:
            decoder.image.bn.running_mean.normal_()
            decoder.image.bn.running_var.uniform_(0.5, 2)
    return decoder.to(dtype).eval()


def image_inputs(decoder, dtype=torch.float32, images: int = B) -> dict:
    """Random arguments of `prepare`: those that this decoder has."""
    torch.manual_seed(8)
    shapes = {
        "image": (images, IMAGE) if decoder.image is not None else None,
        "persist": (images, PERSIST) if decoder.persist_size else None,
        "regions": (images, R, REGION) if decoder.attention_kind else None,
        "initial": (images, IMAGE) if decoder.has_initial and not decoder.attention_kind else None,
    }
    return {name: None if shape is None else torch.randn(shape).to(dtype) for name, shape in shapes.items()}


def captions(steps=STEPS):
    """Input tokens (N, T): <start>, then words; after a row's end words that must not matter."""
    torch.manual_seed(9)
    tokens = torch.randint(END + 1, V, (len(steps), int(steps.max())))
    tokens[:, 0] = START
    return tokens


def loop(decoder, memory: Memory, tokens, steps, row_image):
    """What forward() returns, a row and a word at a time over `step`, as lists (N) of (T_n, V) and (T_n, R)."""
    logits, weights = [], []
    for row, length, index in zip(tokens, steps, row_image):
        mine = memory.select(index.view(1))
        state = decoder.start(mine)
        outputs = []
        for token in row[:length]:
            out, state, attended = decoder.step(token.view(1), state, mine)
            outputs.append((out, attended))
        logits.append(torch.cat([out for out, _ in outputs]))
        weights.append(torch.cat([w for _, w in outputs]) if outputs[0][1] is not None else None)
    return logits, weights


def packed(rows: list, packing: Packing):
    return torch.stack([rows[n][t] for n, t in zip(packing.row, packing.time)])


@torch.no_grad()
def brute_force(decoder, memory, length: int) -> list[tuple[float, list[int]]]:
    """All sentences of at most `length` words with their log-probabilities, the best first."""
    words = [w for w in range(V) if w > 3]
    sentences = [list(s) for n in range(length + 1) for s in itertools.product(words, repeat=n)]
    rows, packing = pack_sentences(sentences, "cpu")
    logits, _ = decoder(memory, rows, packing, torch.zeros(len(rows), dtype=torch.long))
    each = log_probs_of(logits, packing.targets(rows))
    totals = torch.zeros(len(rows), dtype=each.dtype).index_add(0, packing.row, each)
    return sorted(zip(totals.tolist(), sentences), reverse=True)


def check_beams_against_brute_force(decoder, memory) -> None:
    """With as many beams as there are sentences, the four best of each of B images are those of all sentences."""
    found = beam_search(decoder, memory, Search(beam_size=60, n_best=4, max_length=2))
    for image in range(B):
        best = brute_force(decoder, memory.select(torch.tensor([image])), 2)[:4]
        assert found.log_prob[image].tolist() == pytest.approx([p for p, _ in best], abs=1e-4)
        for tokens, (_, expected) in zip(found.tokens[image].tolist(), best):
            assert tokens[: tokens.index(END)] == expected


# ---- a decoder whose logits are a function of the image and of every word so far ----


@dataclass
class Keys:
    key: torch.Tensor  # (N,) int64

    @property
    def device(self):
        return self.key.device

    def select(self, index):
        return Keys(self.key[index])

    def __len__(self):
        return len(self.key)


def mix(state, token):
    """Works on numbers and on tensors alike."""
    return (state * 1_000_003 + token * 7_919 + 12_345) % 2**31


class TableDecoder:
    """Logits are row `state % rows` of a table, the state is a hash of the image and the words."""

    def __init__(self, words: int, seed: int = 0, end_bias: float = 0.0, spread: float = 1.5, rows: int = 4001):
        generator = torch.Generator().manual_seed(seed)
        self.table = torch.randn(rows, 4 + words, generator=generator) * spread
        self.table[:, END] += end_bias
        self.table[:, [PAD, START, UNK]] += 3.0  # tempting, but never to be written
        self.log_probs = self.table.log_softmax(1)
        self.calls = []  # how many rows each step had

    def start(self, memory):
        return (memory.key.view(1, -1, 1),)

    def step(self, tokens, state, memory):
        assert len(tokens) == state[0].shape[1] and len(tokens) % len(memory) == 0
        self.calls.append(len(tokens))
        state = mix(state[0], tokens.view(1, -1, 1))
        return self.table[state.view(-1) % len(self.table)], (state,), None

    def after(self, key: int, words: list[int]) -> list[float]:
        """Log-probabilities of the next word."""
        for token in [START, *words]:
            key = mix(key, token)
        return self.log_probs[key % len(self.table)].tolist()


# ---- up-down attention ----

UPDOWNS = {
    "map": {},
    "everything": {"image": IMAGE, "persist": PERSIST, "share_embedding_weights": True, "projection": True},
}
every_updown = pytest.mark.parametrize("kind", UPDOWNS)


def build_updown(kind: str, dtype=torch.float32, **changes) -> UpDownDecoder:
    """An up-down decoder whose weights are large enough that each of them shows in the logits."""
    torch.manual_seed(7)
    decoder = UpDownDecoder(V, config_of(**{**UPDOWNS[kind], "attention": "updown", **changes}))
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.normal_(0, 0.5)
    return decoder.to(dtype).eval()


def updown_inputs(kind: str, dtype=torch.float32) -> dict:
    """Random arguments of `prepare`: those that this decoder has."""
    torch.manual_seed(8)
    shapes = {"regions": (B, R, REGION), "image": (B, IMAGE), "persist": (B, PERSIST)}
    made = {name: torch.randn(shape).to(dtype) for name, shape in shapes.items()}
    return {name: x if name == "regions" or name in UPDOWNS[kind] else None for name, x in made.items()}


# ---- Transformers ----

WIDTH, HEADS = 12, 3
TRANSFORMERS = {
    "map": {"region": REGION},
    "map_refined": {"region": REGION, "region_layers": 2, "num_layers": 1},
    "map_learned_shared": {"region": REGION, "positions": "learned", "share_embedding_weights": True},
    "map_short_positions": {"region": REGION, "positions": "learned", "max_positions": 3},
    "pooled": {"image": IMAGE, "feed_forward_size": 5},
    "persist": {"persist": PERSIST, "region_layers": 1},
    "everything": {"region": REGION, "image": IMAGE, "persist": PERSIST, "region_layers": 1, "num_layers": 2},
}
every_transformer = pytest.mark.parametrize("kind", TRANSFORMERS)


def transformer_config(kind: str, **changes) -> ModelConfig:
    settings = {"hidden_size": WIDTH, "heads": HEADS, "num_layers": 2, "dropout": 0.0, **TRANSFORMERS[kind], **changes}
    sizes = {name: settings.pop(name, 0) for name in ("image", "persist", "region")}
    features = [FeatureSpec("image", (sizes["image"],), True)] if sizes["image"] else []
    features += [FeatureSpec("map", (sizes["region"], 1, R), True)] if sizes["region"] else []
    persistent = [FeatureSpec("persist", (sizes["persist"],), True)] if sizes["persist"] else []
    return ModelConfig(features, persistent, decoder="transformer", **settings)


def build_transformer(kind: str, dtype=torch.float32, **changes) -> TransformerDecoder:
    """A Transformer whose weights are large enough that each of them shows in the logits."""
    torch.manual_seed(7)
    decoder = TransformerDecoder(V, transformer_config(kind, **changes))
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.normal_(0, 0.4)
    return decoder.to(dtype).eval()


def transformer_inputs(decoder, dtype=torch.float32, images: int = B) -> dict:
    """Random arguments of `prepare`: those that this decoder has."""
    torch.manual_seed(8)
    shapes = {"image": (images, IMAGE), "persist": (images, PERSIST), "regions": (images, R, REGION)}
    made = {name: torch.randn(shape).to(dtype) for name, shape in shapes.items()}
    return {name: x if name in decoder.inputs else None for name, x in made.items()}

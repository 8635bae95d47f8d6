"""A Transformer that writes sentences (Vaswani et al. 2017), behind the three calls of every decoder.

    memory = decoder.prepare(image, persist, regions)      once per image
    state = decoder.start(memory)                          nothing read yet
    logits, state, weights = decoder.step(tokens, state, memory)

As captioning has used it since Herdade et al. 2019 and Cornia et al. 2020: the regions of the map, projected to the
decoder's width and perhaps refined by self-attention layers, are the memory that each word attends to; pooled and
persistent features stand beside them as one region each. Layer norms come before each sublayer, which trains without
care (Xiong et al. 2020); dropout acts where Vaswani et al. have it, on embeddings and on what each sublayer adds, and
another, if it is wanted, on the weights of each attention, as in torch.nn.MultiheadAttention.

`decoder(memory, tokens, packing, row_image)` reads whole sentences at once; a test holds it equal to `step`, whose
state holds the keys and values of the words so far.

Shapes: B images, N rows (sentences), K = N / B of them per image, T words so far, M real tokens of a batch, R regions,
S = R + pooled and persistent features, D feature size, H width, h heads, d = H / h, L layers, V vocabulary.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from captioning.config import ModelConfig
from captioning.decoder.multi_head import Places, attend, attention_weights, join_heads, split_heads, xavier
from captioning.fast.linear import Dropout, Linear
from captioning.rows import ImageMemory, Packing, State


@dataclass
class TransformerMemory(ImageMemory):
    """What the decoder keeps of each image: the keys and values that each layer attends to."""

    keys: Tensor  # (B, L, h, S, d)
    values: Tensor  # (B, L, h, S, d)
    mask: Tensor | None = None  # (B, S) True where a region is; None: all are
    persist: Tensor | None = None  # (B, D) persistent features, which a search may ask for what an image shows


class FeedForward(nn.Module):
    """W_2 relu(W_1 x) (Vaswani et al. 2017, eq. 2)."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.linear1, self.linear2 = Linear(width, hidden), Linear(hidden, width)
        xavier(self.linear1, self.linear2)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear2(torch.relu(self.linear1(x)))


class RegionLayer(nn.Module):
    """Self-attention among the regions of an image, then a feed-forward layer; a norm before each."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: Dropout, attention_dropout: Dropout):
        super().__init__()
        self.heads, self.dropout, self.attention_dropout = heads, dropout, attention_dropout
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.input, self.output = Linear(width, 3 * width), Linear(width, width)  # of queries, keys and values at once
        self.feed_forward = FeedForward(width, hidden)
        xavier(self.input, self.output)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x (B, S, H), mask (B, S) True where a region is -> (B, S, H)."""
        parts = (split_heads(part, self.heads) for part in self.input(self.norm1(x)).chunk(3, 2))
        contexts = attend(*parts, mask, dropout=probability(self.attention_dropout))
        x = x + self.dropout(self.output(join_heads(contexts)))
        return x + self.dropout(self.feed_forward(self.norm2(x)))


class DecoderLayer(nn.Module):
    """Self-attention over the words so far, attention over the image, and a feed-forward layer; a norm before each."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: Dropout):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.input, self.output = Linear(width, 3 * width), Linear(width, width)  # of self-attention
        self.query, self.context_output = Linear(width, width), Linear(width, width)  # of attention over the image
        self.key_value = Linear(width, 2 * width)
        self.feed_forward = FeedForward(width, hidden)
        xavier(self.input, self.output, self.query, self.context_output, self.key_value)

    def of_image(self, regions: Tensor) -> tuple[Tensor, Tensor]:
        """Regions (B, S, H) -> their keys and values (B, h, S, d)."""
        keys, values = self.key_value(regions).chunk(2, 2)
        return split_heads(keys, self.heads), split_heads(values, self.heads)

    def forward(self, x: Tensor, reading: "Sentences | Step", number: int) -> Tensor:
        """x (M, H) -> (M, H), as layer `number` of all; `reading` knows what the tokens attend to."""
        words = reading.attend_to_words(*self.input(self.norm1(x)).chunk(3, 1), number)
        x = x + self.dropout(self.output(words))
        x = x + self.dropout(self.context_output(reading.attend_to_image(self.query(self.norm2(x)), number)))
        return x + self.dropout(self.feed_forward(self.norm3(x)))


def probability(dropout: Dropout) -> float:
    """The probability with which `dropout` drops a number now: 0 unless it is in training."""
    return dropout.p if dropout.training else 0.0


class Reading:
    """What tokens attend to while all layers read them. weights: attention of the last layer over the image, or None.

    heads: h; last: the number of the layer whose weights are kept (None: of no layer); regions: R, which come first;
    dropout: on the weights of attention.
    """

    weights: Tensor | None = None

    def __init__(self, memory: TransformerMemory, heads: int, last: int | None, regions: int, dropout: Dropout):
        self.memory, self.heads, self.last, self.regions, self.dropout = memory, heads, last, regions, dropout

    def look(self, queries: Tensor, number: int) -> Tensor:
        """Attention of layer `number` over the image: queries (B, h, Q, d) -> contexts (B, Q, H)."""
        keys, values, mask = self.memory.keys[:, number], self.memory.values[:, number], self.memory.mask
        if number != self.last:
            return join_heads(attend(queries, keys, values, mask, dropout=probability(self.dropout)))
        weights = attention_weights(queries, keys, mask)
        self.weights = weights[..., : self.regions].mean(1)  # (B, Q, R)
        return join_heads(self.dropout(weights) @ values)


class Sentences(Reading):
    """Whole sentences: a row's words attend to each other, those of all captions of an image to it side by side."""

    def __init__(self, packing: Packing, row_image: Tensor, *others):
        super().__init__(*others)
        rows, steps = len(packing.order), len(packing.active)
        self.of_rows = Places(packing.row * steps + packing.time, rows, steps)
        self.of_images = Places.of(row_image[packing.row], len(self.memory))

    def attend_to_words(self, queries: Tensor, keys: Tensor, values: Tensor, number: int) -> Tensor:
        """Each (M, H) -> contexts (M, H)."""
        parts = (split_heads(self.of_rows.spread(part), self.heads) for part in (queries, keys, values))
        return self.of_rows.gather(join_heads(attend(*parts, causal=True, dropout=probability(self.dropout))))

    def attend_to_image(self, queries: Tensor, number: int) -> Tensor:
        """(M, H) -> contexts (M, H)."""
        return self.of_images.gather(self.look(split_heads(self.of_images.spread(queries), self.heads), number))

    def token_weights(self) -> Tensor | None:
        """(M, R)"""
        return None if self.weights is None else self.of_images.gather(self.weights)


class Step(Reading):
    """One word of each of N rows, after those whose keys and values `state` holds. new: the state after it."""

    def __init__(self, state: State, *others):
        super().__init__(*others)
        self.state, self.new = state, ()

    def attend_to_words(self, queries: Tensor, keys: Tensor, values: Tensor, number: int) -> Tensor:
        """Each (N, H) -> contexts (N, H)."""
        queries, *own = (x.unflatten(1, (self.heads, 1, -1)) for x in (queries, keys, values))  # (N, h, 1, d)
        before = self.state[2 * number : 2 * number + 2]
        both = [torch.cat([old, x.unsqueeze(0)], 3) for old, x in zip(before, own)]
        self.new += tuple(both)
        contexts = attend(queries, both[0][0], both[1][0], dropout=probability(self.dropout))
        return join_heads(contexts).squeeze(1)

    def attend_to_image(self, queries: Tensor, number: int) -> Tensor:
        """(N, H) -> contexts (N, H)."""
        by_image = queries.view(self.memory.rows, -1, queries.shape[1])
        return self.look(split_heads(by_image, self.heads), number).flatten(0, 1)

    def token_weights(self) -> Tensor | None:
        """(N, R)"""
        return None if self.weights is None else self.weights.flatten(0, 1)


class TransformerDecoder(nn.Module):
    """The Transformer that `config` describes. Raises UserError where features and settings do not go together.

    With `share_embedding_weights` the output layer uses the embedding matrix (Press and Wolf 2017).
    """

    def __init__(self, vocab_size: int, config: ModelConfig):
        super().__init__()
        config.check()
        H, self.heads = config.hidden_size, config.heads
        self.has_regions = config.region_size > 0
        self.dropout, self.region_dropout = Dropout(config.dropout), Dropout(config.encoder_dropout)
        self.attention_dropout = Dropout(config.attention_dropout)
        sizes = {"regions": config.region_size, "image": config.pooled_size, "persist": config.persist_size}
        self.inputs = nn.ModuleDict({name: Linear(size, H) for name, size in sizes.items() if size})
        sublayers = H, config.heads, config.feed_forward_size, self.dropout
        self.region_layers = nn.ModuleList(
            RegionLayer(*sublayers, self.attention_dropout) for _ in range(config.region_layers)
        )
        self.region_norm = nn.LayerNorm(H)
        self.embed = nn.Embedding(vocab_size, H)
        self.positions = nn.Embedding(config.max_positions, H) if config.positions == "learned" else None
        self.layers = nn.ModuleList(DecoderLayer(*sublayers) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(H)
        self.linear = Linear(H, vocab_size)
        nn.init.normal_(self.embed.weight, std=H**-0.5)  # read times sqrt(H)
        if self.positions is not None:
            nn.init.normal_(self.positions.weight, std=0.02)
        if config.share_embedding_weights:
            self.linear.weight = self.embed.weight
        xavier(*self.inputs.values())

    def set_dropout(self, p: float) -> None:
        """The dropout probability on embeddings and on what each sublayer adds."""
        self.dropout.p = p

    def set_encoder_dropout(self, p: float) -> None:
        """The dropout probability on the features."""
        self.region_dropout.p = p

    def set_attention_dropout(self, p: float) -> None:
        """The dropout probability on the weights of attention."""
        self.attention_dropout.p = p

    # ---- per image ----

    def prepare(
        self,
        image: Tensor | None,
        persist: Tensor | None,
        regions: Tensor | None,
        initial: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> TransformerMemory:
        """image (B, D), persist (B, D), regions (B, R, D), None where the decoder has no such input.

        mask: (B, R) True where a region is; None: all are. initial: for other decoders.
        """
        given = {"regions": regions, "image": image, "persist": persist}
        read = [layer(self.region_dropout(given[name])) for name, layer in self.inputs.items()]
        tokens = torch.cat([x if x.dim() == 3 else x.unsqueeze(1) for x in read], 1)  # (B, S, H)
        if mask is not None:  # the other features are there always
            others = mask.new_ones(len(mask), tokens.shape[1] - mask.shape[1])
            mask = torch.cat([mask, others], 1)
        for layer in self.region_layers:
            tokens = layer(tokens, mask)
        tokens = self.region_norm(tokens)
        keys, values = zip(*(layer.of_image(tokens) for layer in self.layers))
        return TransformerMemory(torch.stack(keys, 1), torch.stack(values, 1), mask, persist)

    def start(self, memory: TransformerMemory) -> State:
        """State before the first word: of each layer the keys and values, each (1, N, h, 0, d)."""
        _, L, h, _, d = memory.keys.shape
        return tuple(memory.keys.new_zeros(1, memory.rows, h, 0, d) for _ in range(2 * L))

    # ---- per step ----

    def step(self, tokens: Tensor, state: State, memory: TransformerMemory) -> tuple[Tensor, State, Tensor | None]:
        """One word: tokens (N,) -> logits (N, V) of the next word, the new state, attention weights (N, R) or None.

        The memory is of the N rows, or of B images with K = N / B rows each that stand together. state: of each layer
        the keys and values (1, N, h, T, d) of the T words before. The weights are those of `forward`.
        """
        reading = Step(state, *self._looking(memory))
        time = torch.full_like(tokens, state[0].shape[3])
        x = self._read(self.embed(tokens), time, reading)
        return self.linear(x), reading.new, reading.token_weights()

    def _read(self, embedded: Tensor, time: Tensor, reading: Reading) -> Tensor:
        """What the last layer reads of tokens: their embeddings (M, H) and places in the sentence (M,) -> (M, H)."""
        x = self.dropout(self._placed(embedded, time))
        for number, layer in enumerate(self.layers):
            x = layer(x, reading, number)
        return self.norm(x)

    def _looking(self, memory: TransformerMemory) -> tuple:
        """The arguments of every Reading: without regions there are no weights to keep."""
        regions = memory.keys.shape[3] - len(self.inputs) + 1
        last = len(self.layers) - 1 if self.has_regions else None
        return memory, self.heads, last, regions, self.attention_dropout

    def _placed(self, embedded: Tensor, time: Tensor) -> Tensor:
        """Embeddings of words (M, H) with those of their places in the sentence, time (M,), counted from 0."""
        embedded = embedded * math.sqrt(embedded.shape[1])
        if self.positions is not None:
            return embedded + self.positions(time.clamp(max=self.positions.num_embeddings - 1))
        wide = torch.promote_types(embedded.dtype, torch.float32)
        return embedded + sinusoids(time.to(wide), embedded.shape[1]).to(embedded.dtype)

    # ---- whole sentences ----

    def forward(
        self, memory: TransformerMemory, tokens: Tensor, packing: Packing, row_image: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Teacher forcing over input tokens (N, T), of which `packing` names the real ones.

        Row n is about image row_image[n] of `memory`. Returns logits (M, V) and attention weights (M, R) or None, token
        j of either belonging to [packing.row[j], packing.time[j]]. The weights are the mean over the heads of the last
        layer; the share of pooled and persistent features is left out, so that they sum to less than one beside those.
        """
        outputs, weights = self.outputs(memory, tokens, packing, row_image)
        return self.linear(outputs), weights

    def outputs(
        self, memory: TransformerMemory, tokens: Tensor, packing: Packing, row_image: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """`forward` up to the last layer, `linear`: what it reads, (M, H), instead of the logits."""
        return self.read_embedded(memory, self.embed(tokens[packing.row, packing.time]), packing, row_image)

    def read_embedded(
        self, memory: TransformerMemory, embedded: Tensor, packing: Packing, row_image: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """`outputs` from embeddings of words (M, H), which additive teacher forcing mixes."""
        reading = Sentences(packing, row_image, *self._looking(memory))
        return self._read(embedded, packing.time, reading), reading.token_weights()


def sinusoids(time: Tensor, size: int) -> Tensor:
    """Places in a sentence, time (M,), as waves (M, size): sines, then cosines, of wavelengths from 2 pi to 20,000 pi.

    time: floating numbers. Vaswani et al. 2017, section 3.5, but with sines and cosines side by side, not in turn.
    """
    half = (size + 1) // 2
    frequencies = torch.exp(torch.arange(half, device=time.device, dtype=time.dtype) * (-math.log(10_000) * 2 / size))
    angles = time.unsqueeze(1) * frequencies
    return torch.cat([angles.sin(), angles.cos()], 1)[:, :size]

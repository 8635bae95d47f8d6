"""Top-down attention over regions (Anderson et al. 2018, section 3.2): an attention LSTM and a language LSTM.

Behind the three calls of every decoder: `prepare`, `start`, `step`. The attention LSTM reads what the language LSTM
was about, the mean region and the word; its state asks the regions; the language LSTM reads what they answer, and that
state. Pooled and persistent features stand beside the mean region at every step.

Shapes: B images, N rows, T steps, M real tokens, R regions, D feature size, E embedding, H hidden, A attention,
P projected region, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from captioning.config import ModelConfig
from captioning.decoder.attention import Attention
from captioning.fast.linear import Dropout, Linear
from captioning.fast.updown import updown_applies, updown_layers
from captioning.rows import ImageMemory, Packing, State, each_row, first_states, mean_of_regions


@dataclass
class UpDownMemory(ImageMemory):
    """What the decoder keeps of each image, or row."""

    values: Tensor  # (N, R, P) projected regions
    keys: Tensor  # (N, R, A) the regions' part of the attention score
    context: Tensor  # (N, C) the mean region, and pooled and persistent features
    mask: Tensor | None = None  # (N, R) True where a region is; None: all are
    persist: Tensor | None = None  # (N, D) persistent features, which a search may ask for what an image shows


class UpDownDecoder(nn.Module):
    """The decoder that `config`, whose attention is "updown", describes.

    With `share_embedding_weights` the output layer uses the embedding matrix (Press and Wolf 2017), behind a layer from
    H to E; with `projection` a square layer stands before that. Raises UserError where features and settings do not go
    together.
    """

    def __init__(self, vocab_size: int, config: ModelConfig):
        super().__init__()
        config.check()
        E, H, P = config.embed_size, config.hidden_size, config.value_size
        self.hidden_size, self.attention_kind = H, config.attention
        self.dropout, self.region_dropout = Dropout(config.dropout), Dropout(config.encoder_dropout)
        self.embed = nn.Embedding(vocab_size, E)
        self.regions = Linear(config.region_size, P)
        self.attention = Attention(P, H, config.attention_size, gated=False)
        self.attention_lstm = nn.LSTMCell(H + P + config.pooled_size + config.persist_size + E, H)
        self.language_lstm = nn.LSTMCell(P + H, H)
        self.projection = Linear(H, H) if config.projection else None
        self.hidden_to_output = Linear(H, E) if config.share_embedding_weights else None
        self.linear = Linear(E if config.share_embedding_weights else H, vocab_size)
        nn.init.uniform_(self.embed.weight, -0.1, 0.1)
        if config.share_embedding_weights:
            self.linear.weight = self.embed.weight

    def set_dropout(self, p: float) -> None:
        """The dropout probability on embeddings and before the output layer."""
        self.dropout.p = p

    def set_encoder_dropout(self, p: float) -> None:
        """The dropout probability on the map and on the other features."""
        self.region_dropout.p = p

    def prepare(
        self,
        image: Tensor | None,
        persist: Tensor | None,
        regions: Tensor | None,
        initial: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> UpDownMemory:
        """image (B, D), persist (B, D), regions (B, R, D), mask (B, R) or None. initial: for other decoders."""
        values = torch.relu(self.regions(self.region_dropout(regions)))
        others = [self.region_dropout(x) for x in (image, persist) if x is not None]
        context = torch.cat([mean_of_regions(values, mask), *others], 1)
        return UpDownMemory(values, self.attention.key(values), context, mask, persist)

    def start(self, memory: UpDownMemory) -> State:
        """Zero: hidden states and cells (2, N, H), the attention LSTM's first."""
        zeros = memory.context.new_zeros(2, len(memory), self.hidden_size)
        return zeros, zeros

    def step(self, tokens: Tensor, state: State, memory: UpDownMemory) -> tuple[Tensor, State, Tensor | None]:
        """One word: tokens (N,) -> logits (N, V) of the next word, the new state, attention weights (N, R).

        The memory is of the N rows, or of B images with K = N / B rows each that stand together.
        """
        return self.step_embedded(self.embed(tokens), state, memory)

    def embed_words(self, tokens: Tensor, first: None = None) -> Tensor:
        """Embeddings of tokens (N, ...) -> (N, ..., E)."""
        return self.embed(tokens)

    def step_embedded(self, embedded: Tensor, state: State, memory: UpDownMemory) -> tuple[Tensor, State, Tensor]:
        """`step` from embeddings (N, E), which additive teacher forcing mixes."""
        state, weights = self._advance(self.dropout(embedded), state, memory)
        return self.linear(self._output(state[0][1])), state, weights

    def _advance(self, embedded: Tensor, state: State, memory: UpDownMemory) -> tuple[State, Tensor]:
        """The new state, and attention weights (N, R)."""
        (h1, h2), (c1, c2) = state
        h1, c1 = self.attention_lstm(torch.cat([h2, each_row(memory.context, len(h2)), embedded], 1), (h1, c1))
        attended, weights = self.attention(h1, memory.keys, memory.values, memory.mask)
        h2, c2 = self.language_lstm(torch.cat([attended, h1], 1), (h2, c2))
        return (torch.stack([h1, h2]), torch.stack([c1, c2])), weights

    def _output(self, hidden: Tensor) -> Tensor:
        """Hidden states of the language LSTM (M, H) -> what the last layer reads, (M, H) or (M, E)."""
        hidden = self.dropout(hidden)
        if self.projection is not None:
            hidden = self.projection(hidden)
        return hidden if self.hidden_to_output is None else self.hidden_to_output(hidden)

    # ---- whole sentences ----

    def forward(
        self, memory: UpDownMemory, tokens: Tensor, packing: Packing, row_image: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Teacher forcing over input tokens (N, T), of which `packing` names the real ones.

        Row n is about image row_image[n] of `memory`. Returns logits (M, V) and attention weights (M, R), token j of
        either belonging to [packing.row[j], packing.time[j]].
        """
        outputs, weights = self.outputs(memory, tokens, packing, row_image)
        return self.linear(outputs), weights

    def outputs(
        self, memory: UpDownMemory, tokens: Tensor, packing: Packing, row_image: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`forward` up to the last layer, `linear`: what it reads, instead of the logits."""
        memory = memory.select(row_image[packing.order])
        embedded = self.dropout(self.embed(tokens[packing.row, packing.time]))  # (M, E)
        if updown_applies():
            hidden, weights = updown_layers(self, embedded, memory, packing)
        else:
            hidden, weights = self._read(embedded, memory, packing)
        return self._output(hidden), weights

    def _read(self, embedded: Tensor, memory: UpDownMemory, packing: Packing) -> tuple[Tensor, Tensor]:
        """Packed words (M, E) -> the language LSTM's hidden states (M, H), attention weights (M, R)."""
        state, hidden, weights = self.start(memory), [], []
        for words in embedded.split(packing.active):
            n = len(words)
            if n < len(memory):
                memory, state = memory.first_rows(n), first_states(state, n)
            state, attended = self._advance(words, state, memory)
            hidden.append(state[0][1])
            weights.append(attended)
        return torch.cat(hidden), torch.cat(weights)

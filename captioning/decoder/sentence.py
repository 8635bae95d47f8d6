"""Sentence decoders: LSTM or GRU, from a pooled image, persistent features, or soft attention over a map.

Everything that writes or trains a sentence goes through three calls:

    memory = decoder.prepare(image, persist, regions)      once per image
    state = decoder.start(memory)                          zero, or from the image, after the image was read
    logits, state, weights = decoder.step(tokens, state, memory)

`decoder(memory, tokens, packing, row_image)` gives the logits of whole sentences under teacher forcing: what does not
depend on the step is computed once for all steps, and a test holds it equal to `step`. captioning/fast runs some LSTMs
over whole sentences more quickly.

Shapes: B images, N rows (sentences), T time steps, R regions, D feature size, E embedding, H hidden, A attention,
P projected region, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from captioning.config import ModelConfig
from captioning.decoder.attention import Attention
from captioning.decoder.batch_norm import BatchNorm
from captioning.fast.linear import Dropout, Linear
from captioning.fast.lstm import attention_lstm_applies, attention_lstm_layer, lstm_applies, lstm_layers
from captioning.rows import ImageMemory, Packing, State, each_row, first_states, mean_of_regions, select_state
from captioning.text.tokens import START


@dataclass
class Memory(ImageMemory):
    """What the decoder keeps of each image, or row."""

    first: Tensor | None = None  # (N, E) the pooled image, read as the first input
    initial: Tensor | None = None  # (N, D) what the initial state is computed from
    persist: Tensor | None = None  # (N, D) persistent features, concatenated to the input of every step
    values: Tensor | None = None  # (N, R, P) projected regions, to be averaged
    keys: Tensor | None = None  # (N, R, A) the regions' part of the attention score
    mask: Tensor | None = None  # (N, R) True where a region is; None: all are


class ImageEmbedding(nn.Module):
    """Pooled features (B, D) -> (B, E), to be read like a word: linear, SELU where `non_lin`, dropout, batch norm."""

    def __init__(self, image_size: int, embed_size: int, non_lin: bool = False, dropout: float = 0.0):
        super().__init__()
        self.linear = Linear(image_size, embed_size)
        self.non_lin = nn.SELU() if non_lin else nn.Identity()
        self.dropout = Dropout(dropout)
        self.bn = BatchNorm(embed_size, momentum=0.01)

    def forward(self, image: Tensor) -> Tensor:
        return self.bn(self.dropout(self.non_lin(self.linear(image))))


class SentenceDecoder(nn.Module):
    """One decoder class for all: the features and settings of `config` decide what is built.

    An LSTM or GRU reads the pooled image first (`image_size`), or starts from a state computed from it
    (`rnn_hidden_init`). Persistent features are concatenated to the input of every step. In a model of paragraphs the
    caller sets `memory.first` (N, E), a topic, which is read like an image.
    Attention "soft" is Xu et al. 2015: the context from the previous hidden state goes into the RNN. "spatial" is Lu et
    al. 2017 ("Knowing When to Look", section 2.2, without the sentinel): the context from the new hidden state goes
    into the output. With either the initial state is computed from the mean of the projected regions.
    With `share_embedding_weights` the output layer uses the embedding matrix (Press and Wolf 2017); with `projection`
    a square layer stands between the hidden state and that matrix, whose norm the loss penalises (the same paper;
    `losses.projection_regularisation`). With `skip_start_token` the pooled image is read in place of <start>.
    """

    def __init__(self, vocab_size: int, config: ModelConfig):
        """vocab_size: V. Raises UserError where features and settings do not go together."""
        super().__init__()
        config.check()
        E, H, P = config.embed_size, config.hidden_size, config.value_size
        self.embed_size, self.hidden_size = E, H
        self.num_layers, self.rnn_arch, self.attention_kind = config.num_layers, config.rnn_arch, config.attention
        self.dropout = Dropout(config.dropout)
        self.embed = nn.Embedding(vocab_size, E)
        self.image = None
        if config.image_size:
            self.image = ImageEmbedding(config.image_size, E, config.encoder_non_lin, config.encoder_dropout)
        self.persist_size, self.skip_start = config.persist_size, config.skip_start_token
        self.reads_first = self.image is not None or config.paragraphs is not None
        if config.attention:
            self.regions = Linear(config.region_size, P)
            self.region_dropout = Dropout(config.encoder_dropout)
            self.attention = Attention(P, H, config.attention_size, gated=config.attention == "soft")
            self.context_to_output = Linear(P, E, bias=False)
        self.has_initial = config.initial_size > 0
        if self.has_initial:
            self.init_h = nn.ModuleList(Linear(config.initial_size, H) for _ in range(self.num_layers))
            if self.rnn_arch == "LSTM":
                self.init_c = nn.ModuleList(Linear(config.initial_size, H) for _ in range(self.num_layers))
        recurrent = {"LSTM": nn.LSTM, "GRU": nn.GRU}[self.rnn_arch]
        input_size = E + (P if config.attention == "soft" else 0) + self.persist_size
        between = config.dropout if self.num_layers > 1 else 0.0
        self.rnn = recurrent(input_size, H, self.num_layers, batch_first=True, dropout=between)
        # Attention has the deep output of Xu et al. 2015 (eq. 7), so does sharing, whose output layer reads E numbers.
        self.deep_output = bool(config.attention) or config.share_embedding_weights
        if self.deep_output:
            self.hidden_to_output = Linear(H, E)
        self.projection = Linear(H, H) if config.projection and self.deep_output else None
        self.linear = Linear(E if self.deep_output else H, vocab_size)
        nn.init.uniform_(self.embed.weight, -0.1, 0.1)
        if config.share_embedding_weights:
            self.linear.weight = self.embed.weight

    def set_dropout(self, p: float) -> None:
        """The dropout probability on embeddings, between layers and before the output layer."""
        self.dropout.p = p
        self.rnn.dropout = p if self.num_layers > 1 else 0.0

    def set_encoder_dropout(self, p: float) -> None:
        """The dropout probability on the embedded image and on the map."""
        if self.image is not None:
            self.image.dropout.p = p
        if self.attention_kind:
            self.region_dropout.p = p

    # ---- per image ----

    def prepare(
        self,
        image: Tensor | None,
        persist: Tensor | None,
        regions: Tensor | None,
        initial: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Memory:
        """image (B, D), persist (B, D), regions (B, R, D), initial (B, D), None where the decoder has no such input.

        mask: (B, R) True where a region is; None: all are.
        """
        memory = Memory(persist=persist, initial=initial)
        if self.image is not None:
            memory.first = self.image(image)
        if self.attention_kind:
            memory.values = torch.relu(self.regions(self.region_dropout(regions)))
            memory.keys = self.attention.key(memory.values)
            memory.initial, memory.mask = mean_of_regions(memory.values, mask), mask
        return memory

    def start(self, memory: Memory) -> State:
        """State before the first word of each row: zero or computed from the image; then the pooled image is read."""
        names = ("h", "c") if self.rnn_arch == "LSTM" else ("h",)
        if self.has_initial:
            state = tuple(
                torch.stack([layer(memory.initial) for layer in getattr(self, f"init_{name}")]) for name in names
            )
        else:
            zeros = self.embed.weight.new_zeros(self.num_layers, memory.rows, self.hidden_size)
            state = tuple(zeros for _ in names)
        if self.reads_first and not self.skip_start:
            state, _, _ = self._advance(memory.first, state, memory)
        return state

    # ---- per step ----

    def step(self, tokens: Tensor, state: State, memory: Memory) -> tuple[Tensor, State, Tensor | None]:
        """One word: tokens (N,) -> logits (N, V) of the next word, the new state, attention weights (N, R) or None.

        The memory is of the N rows, or of B images with K = N / B rows each that stand together.
        """
        return self.step_embedded(self.embed_words(tokens, memory.first), state, memory)

    def embed_words(self, tokens: Tensor, first: Tensor | None) -> Tensor:
        """Embeddings of tokens (N, ...) -> (N, ..., E). With `skip_start` the pooled image replaces that of <start>:
        `first` is (N, ..., E), or (B, E) for N rows that stand together.
        """
        embedded = self.embed(tokens)
        if not self.skip_start:
            return embedded
        return torch.where((tokens == START).unsqueeze(-1), each_row(first, tokens.shape[0]), embedded)

    def step_embedded(self, embedded: Tensor, state: State, memory: Memory) -> tuple[Tensor, State, Tensor | None]:
        """`step` from embeddings (N, E), which additive teacher forcing mixes."""
        embedded = self.dropout(embedded)
        state, context, weights = self._advance(embedded, state, memory)
        return self.linear(self._output(state[0][-1], embedded, context)), state, weights

    def _advance(self, inputs: Tensor, state: State, memory: Memory) -> tuple[State, Tensor | None, Tensor | None]:
        """One RNN step from inputs (N, E) -> the new state, attended context (N, P), attention weights (N, R)."""
        context = weights = None
        parts = [inputs]
        if self.attention_kind == "soft":
            context, weights = self.attention(state[0][-1], memory.keys, memory.values, memory.mask)
            parts.append(context)
        if memory.persist is not None:
            parts.append(each_row(memory.persist, inputs.shape[0]))
        _, state = self.rnn(torch.cat(parts, 1).unsqueeze(1), state if len(state) > 1 else state[0])
        state = state if isinstance(state, tuple) else (state,)
        if self.attention_kind == "spatial":
            context, weights = self.attention(state[0][-1], memory.keys, memory.values, memory.mask)
        return state, context, weights

    def _output(self, hidden: Tensor, embedded: Tensor, context: Tensor | None) -> Tensor:
        """hidden (M, H), embedded (M, E) input words, context (M, P) -> what the last layer reads, (M, H) or (M, E)."""
        hidden = self.dropout(hidden)
        if not self.deep_output:
            return hidden
        out = self.hidden_to_output(hidden if self.projection is None else self.projection(hidden))
        if context is not None:
            out = out + self.context_to_output(context) + embedded
        return self.dropout(out)

    # ---- whole sentences ----

    def forward(
        self, memory: Memory, tokens: Tensor, packing: Packing, row_image: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Teacher forcing over input tokens (N, T), of which `packing` names the real ones.

        Row n is about image row_image[n] of `memory`. Returns logits (M, V) and attention weights (M, R) or None, token
        j of either belonging to [packing.row[j], packing.time[j]]: no padding is computed.
        """
        outputs, weights = self.outputs(memory, tokens, packing, row_image)
        return self.linear(outputs), weights

    def outputs(
        self, memory: Memory, tokens: Tensor, packing: Packing, row_image: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """`forward` up to the last layer, `linear`: what it reads, (M, H) or (M, E), instead of the logits."""
        rows = row_image[packing.order]
        state = select_state(self.start(memory), rows)  # computed once per image
        outputs, weights, _ = self._read(memory.select(rows), tokens, packing, state)
        return outputs, weights

    def read(self, memory: Memory, tokens: Tensor, packing: Packing) -> tuple[Tensor, Tensor | None, Tensor]:
        """`forward` with a memory whose rows are in `packing.order`; gives the last layer's states (M, H) too."""
        outputs, weights, hidden = self._read(memory, tokens, packing, self.start(memory))
        return self.linear(outputs), weights, hidden

    def _read(self, memory: Memory, tokens: Tensor, packing: Packing, state: State) -> tuple:
        """What the last layer reads, attention weights (M, R) or None, and hidden states (M, H)."""
        first = memory.first.index_select(0, packing.rank) if self.skip_start else None
        embedded = self.dropout(self.embed_words(tokens[packing.row, packing.time], first))  # (M, E)
        if self.attention_kind == "soft":
            hidden, context, weights = self._attend(embedded, state, memory, packing)
            return self._output(hidden, embedded, context), weights, hidden
        inputs = embedded
        if memory.persist is not None:
            inputs = torch.cat([embedded, memory.persist.index_select(0, packing.rank)], 1)
        hidden = self._recur(inputs, state, packing)
        context = weights = None
        if self.attention_kind == "spatial":
            context, weights = self._attend_after(hidden, memory, packing)
        return self._output(hidden, embedded, context), weights, hidden

    def _recur(self, inputs: Tensor, state: State, packing: Packing) -> Tensor:
        """The RNN over packed inputs (M, .) -> the last layer's hidden states (M, H)."""
        if lstm_applies(self.rnn, inputs):
            return lstm_layers(self.rnn, inputs, state, packing)
        sequence = nn.utils.rnn.PackedSequence(inputs, torch.tensor(packing.active))
        return self.rnn(sequence, state if len(state) > 1 else state[0])[0].data

    def _attend(self, embedded: Tensor, state: State, memory: Memory, packing: Packing) -> tuple[Tensor, ...]:
        """Soft attention over packed words (M, E), a step at a time: packed hidden states, contexts and weights."""
        if attention_lstm_applies(self.rnn):
            return attention_lstm_layer(self.rnn, self.attention, embedded, state, memory, packing)
        outputs = []
        for inputs in embedded.split(packing.active):
            n = len(inputs)
            if n < len(memory):
                memory, state = memory.first_rows(n), first_states(state, n)
            state, context, weights = self._advance(inputs, state, memory)
            outputs.append((state[0][-1], context, weights))
        return tuple(torch.cat(parts) for parts in zip(*outputs))

    def _attend_after(self, hidden: Tensor, memory: Memory, packing: Packing) -> tuple[Tensor, Tensor]:
        """Attention from hidden states (M, H) that do not depend on it, a step at a time to bound memory."""
        steps = hidden.split(packing.active)
        of_rows = [(memory if len(h) == len(memory) else memory.first_rows(len(h))) for h in steps]
        parts = [self.attention(h, rows.keys, rows.values, rows.mask) for h, rows in zip(steps, of_rows)]
        return tuple(torch.cat(part) for part in zip(*parts))

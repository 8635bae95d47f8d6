"""A sentence decoder made ready to write many captions: its steps without gradients, from weights prepared once.

    decoder = fast_decoder(model.decoder)                   once, at the start of a captioning loop
    generate(*ready(decoder, memory), search)               for each batch

The numbers are those of the plain step. Weights that change later are not followed. Weights lie in the order of the
processor's kernels (linear.packed). A Transformer and up-down attention keep their own steps, with packed layers in
place of theirs. Of an LSTM, products with the same factor are one product, and a word's part of the gates is looked up
in a table once as many words were read as the table has rows.

Shapes: B images, K rows of each, N = B K rows, R regions, E embedding, H hidden, A attention, P region, V vocabulary.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from captioning.fast import switch
from captioning.fast.attention import double_exponential, reciprocals
from captioning.fast.linear import Linear, PackedLinear, packed, product
from captioning.fast.lstm import PackedLSTMCell, advance_cell
from captioning.rows import ImageMemory, State, each_row

LARGEST_TABLE = 2**28  # bytes


def fast_decoder(decoder):
    """A decoder with fast steps from the weights of `decoder` as they are now, or `decoder` itself where it has none.

    It has them in eval mode, without gradients, on a CPU in float32, if it is no GRU and no RNN of several layers.
    """
    if isinstance(decoder, FastDecoder) or isinstance(decoder.linear, PackedLinear):
        return decoder
    if not switch.enabled or torch.is_grad_enabled() or decoder.training:
        return decoder
    weight = decoder.embed.weight
    if weight.device.type != "cpu" or weight.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return decoder
    if not hasattr(decoder, "rnn_arch"):  # up-down attention, or a Transformer
        return with_packed_layers(decoder)
    return decoder if decoder.rnn_arch != "LSTM" or decoder.num_layers > 1 else FastDecoder(decoder)


PACKED = {Linear: PackedLinear, nn.LSTMCell: PackedLSTMCell}


def with_packed_layers(decoder: nn.Module) -> nn.Module:
    """A copy of `decoder`, the layers that its steps run through packed; it shares the other weights."""
    shared = {id(tensor): tensor for tensor in (*decoder.parameters(), *decoder.buffers())}
    changed = copy.deepcopy(decoder, shared)
    for parent in list(changed.modules()):
        for name, layer in parent.named_children():
            if type(layer) in PACKED:
                setattr(parent, name, PACKED[type(layer)](layer))
    return changed


def ready(decoder, memory) -> tuple:
    """`decoder` and `memory` to search with: of a FastDecoder the memory that its steps read, else both as they are."""
    return decoder, decoder.extend(memory) if isinstance(decoder, FastDecoder) else memory


@dataclass
class FastMemory(ImageMemory):
    """A decoder's memory, and what each step would compute of its images again."""

    plain: ImageMemory
    key_powers: Tensor | None  # (B, R, A) exp(2 keys)
    persist_gates: Tensor | None  # (B, 4H) the persistent features' part of the gates


class FastDecoder:
    """`start` and `step` of a SentenceDecoder, over a memory that `extend` gave."""

    def __init__(self, decoder):
        self.decoder, self.rows_read, self.kind = decoder, 0, decoder.attention_kind
        self.embed = decoder.embed.weight.detach()
        rnn, H, E = decoder.rnn, decoder.hidden_size, decoder.embed_size
        P = decoder.regions.out_features if self.kind == "soft" else 0
        self.w_input, w_context, self.w_persist = rnn.weight_ih_l0.detach().split([E, P, decoder.persist_size], 1)
        self.w_input, self.w_persist = self.w_input.contiguous(), packed(self.w_persist)
        self.bias = (rnn.bias_ih_l0 + rnn.bias_hh_l0).detach()
        self.table: Tensor | None = None
        of_hidden = [rnn.weight_hh_l0]
        if self.kind:
            attention = decoder.attention
            self.minus_score = -2 * attention.score.weight.detach()[0]
            to_output = decoder.context_to_output.weight
            if self.kind == "soft":
                of_hidden += [attention.query.weight, attention.gate.weight]
                self.gate_bias = attention.gate.bias.detach()
                self.of_context = packed(torch.cat([w_context, to_output]))  # one product for gates and output
            else:
                self.of_query, self.of_context = packed(attention.query.weight), packed(to_output)
        self.of_hidden = packed(torch.cat(of_hidden))
        self.H, self.output, self.projection = H, None, None
        if decoder.deep_output:
            self.output = packed(decoder.hidden_to_output.weight), decoder.hidden_to_output.bias
            if decoder.projection is not None:
                self.projection = packed(decoder.projection.weight), decoder.projection.bias
        self.words = packed(decoder.linear.weight), decoder.linear.bias

    def extend(self, memory) -> FastMemory:
        """A memory of the decoder's `prepare`, with what the steps read besides."""
        key_powers = None if memory.keys is None else double_exponential(memory.keys)
        persist_gates = None if memory.persist is None else product(memory.persist, self.w_persist)
        return FastMemory(memory, key_powers, persist_gates)

    def start(self, memory: FastMemory) -> State:
        """As SentenceDecoder.start."""
        return self.decoder.start(memory.plain)

    def step(self, tokens: Tensor, state: State, memory: FastMemory) -> tuple[Tensor, State, Tensor | None]:
        """As SentenceDecoder.step."""
        hidden, cell = state[0][0], state[1][0]
        from_hidden = product(hidden, self.of_hidden)  # (N, 4H), of soft attention (N, 4H + A + 1)
        gates = from_hidden[:, : 4 * self.H] + self._of_words(tokens, memory)
        context = weights = None
        if self.kind == "soft":
            query, gate = from_hidden[:, 4 * self.H : -1], from_hidden[:, -1:] + self.gate_bias
            context, weights = self._attend(query, memory)
            context = product(context.mul_(gate.sigmoid_()), self.of_context)  # (N, 4H + E)
            gates += context[:, : 4 * self.H]
            context = context[:, 4 * self.H :]
        if memory.persist_gates is not None:
            gates += each_row(memory.persist_gates, len(tokens))
        cell_out, tanh_out, hidden_out = (torch.empty_like(cell) for _ in range(3))
        advance_cell(gates, cell, cell_out, tanh_out, hidden_out)
        if self.kind == "spatial":
            context, weights = self._attend(product(hidden_out, self.of_query), memory)
            context = product(context, self.of_context)  # (N, E)
        logits = product(self._output(hidden_out, context, tokens, memory), *self.words)
        return logits, (hidden_out.unsqueeze(0), cell_out.unsqueeze(0)), weights

    def _of_words(self, tokens: Tensor, memory: FastMemory) -> Tensor:
        """The words' part of the gates with the biases (N, 4H)."""
        if self.table is not None:
            return self.table[tokens]
        self.rows_read += len(tokens)
        size = len(self.embed) * len(self.bias) * self.embed.element_size()
        if self.rows_read > len(self.embed) and size <= LARGEST_TABLE and not self.decoder.skip_start:
            self.table = product(self.embed, self.w_input, self.bias)
        return product(self.decoder.embed_words(tokens, memory.plain.first), self.w_input, self.bias)

    def _attend(self, query: Tensor, memory: FastMemory) -> tuple[Tensor, Tensor]:
        """query (N, A) -> attended regions (N, P) and weights (N, R)."""
        B, R, A = memory.plain.keys.shape
        powers = memory.key_powers is not None
        keys = memory.key_powers if powers else memory.plain.keys
        r = reciprocals(keys.unsqueeze(1), query.reshape(B, -1, 1, A), powers)  # (B, K, R, A)
        scores = (r.reshape(-1, A) @ self.minus_score).view(B, -1, R)
        if memory.plain.mask is not None:
            scores.masked_fill_(~memory.plain.mask.unsqueeze(1), -torch.inf)
        weights = scores.softmax(2)
        return torch.bmm(weights, memory.plain.values).flatten(0, 1), weights.flatten(0, 1)

    def _output(self, hidden: Tensor, context: Tensor | None, tokens: Tensor, memory: FastMemory) -> Tensor:
        """What the last layer reads."""
        if self.output is None:
            return hidden
        out = product(hidden if self.projection is None else product(hidden, *self.projection), *self.output)
        return out if context is None else out.add_(context).add_(self.decoder.embed_words(tokens, memory.plain.first))

"""One step of a sentence decoder without gradients, from weights that are made ready once: what decoding runs.

`SentenceDecoder.step` asks `fast_steps(decoder)` for it. Products with the same factor are one product, weights lie in
the order of the processor's kernels (products.packed), and a word's part of the gates is looked up in a table once as
many words were read as the table has rows. The numbers are those of the plain step, which a test holds it to.

Shapes: B images, K rows of each, N = B K rows, R regions, E embedding, H hidden, A attention, P region, V vocabulary.
"""

import weakref

import torch
from torch import Tensor

from captioning.fast.linear import packed, product
from captioning.fast.lstm import advance_cell, double_exponential, reciprocals
from captioning.rows import each_row, image_for_start

LARGEST_TABLE = 2**28  # bytes
_made: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def fast_steps(decoder) -> "FastSteps | None":
    """The FastSteps of a SentenceDecoder as its weights are now; None where it must be stepped the plain way."""
    weight = decoder.embed.weight
    if torch.is_grad_enabled() or decoder.training or weight.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return None
    if decoder.rnn_arch != "LSTM" or decoder.num_layers != 1 or weight.dtype != torch.float32:
        return None
    try:
        stamp = [(p.data_ptr(), p._version) for p in decoder.parameters()]
    except RuntimeError:  # tensors made in inference mode do not tell when they change
        return None
    known = _made.get(decoder)
    if known is None or known.stamp != stamp:
        known = _made[decoder] = FastSteps(decoder, stamp)
    return known


def forget_steps(decoder) -> None:
    """Free what was made ready, and make it anew: an optimizer with `fused=True` does not raise a weight's version."""
    _made.pop(decoder, None)


class FastSteps:
    """See the module. stamp: what tells the weights apart from later ones."""

    def __init__(self, decoder, stamp: list):
        self.stamp, self.rows_read = stamp, 0
        self.kind, self.skip_start = decoder.attention_kind, decoder.skip_start
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
            self.A, self.minus_score = attention.query.out_features, -2 * attention.score.weight.detach()[0]
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

    def make_ready(self, memory) -> None:
        """Add to a memory what each step would compute of its images again."""
        if memory.keys is not None:
            memory.key_powers = double_exponential(memory.keys)
        if memory.persist is not None:
            memory.persist_gates = self._of_persist(memory)

    def _of_persist(self, memory) -> Tensor:
        """The persistent features' part of the gates (B, 4H)."""
        return product(memory.persist, self.w_persist)

    def step(self, tokens: Tensor, state, memory) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor | None]:
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
        if memory.persist is not None:
            known = memory.persist_gates
            gates += each_row(self._of_persist(memory) if known is None else known, len(tokens))
        cell_out, tanh_out, hidden_out = (torch.empty_like(cell) for _ in range(3))
        advance_cell(gates, cell, cell_out, tanh_out, hidden_out)
        if self.kind == "spatial":
            context, weights = self._attend(product(hidden_out, self.of_query), memory)
            context = product(context, self.of_context)  # (N, E)
        logits = product(self._output(hidden_out, context, tokens, memory), *self.words)
        return logits, (hidden_out.unsqueeze(0), cell_out.unsqueeze(0)), weights

    def _of_words(self, tokens: Tensor, memory) -> Tensor:
        """The words' part of the gates with the biases (N, 4H)."""
        if self.table is not None:
            return self.table[tokens]
        self.rows_read += len(tokens)
        size = len(self.embed) * len(self.bias) * self.embed.element_size()
        if self.rows_read > len(self.embed) and size <= LARGEST_TABLE and not self.skip_start:
            self.table = product(self.embed, self.w_input, self.bias)
        return product(self._embedded(tokens, memory), self.w_input, self.bias)

    def _embedded(self, tokens: Tensor, memory) -> Tensor:
        embedded = self.embed[tokens]
        return image_for_start(embedded, tokens, each_row(memory.first, len(tokens))) if self.skip_start else embedded

    def _attend(self, query: Tensor, memory) -> tuple[Tensor, Tensor]:
        """query (N, A) -> attended regions (N, P) and weights (N, R)."""
        B, R, A = memory.keys.shape
        powers = memory.key_powers is not None
        keys = memory.key_powers if powers else memory.keys
        r = reciprocals(keys.unsqueeze(1), query.reshape(B, -1, 1, A), powers)  # (B, K, R, A)
        weights = (r.reshape(-1, A) @ self.minus_score).view(B, -1, R).softmax(2)
        return torch.bmm(weights, memory.values).flatten(0, 1), weights.flatten(0, 1)

    def _output(self, hidden: Tensor, context: Tensor | None, tokens: Tensor, memory) -> Tensor:
        """What the last layer reads."""
        if self.output is None:
            return hidden
        out = product(hidden if self.projection is None else product(hidden, *self.projection), *self.output)
        return out if context is None else out.add_(context).add_(self._embedded(tokens, memory))

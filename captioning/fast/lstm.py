"""LSTMs over whole sentences, with and without attention, as one autograd function each; the layout they work on.

Under autograd each step's weight gradient is a product of its own and each slice of the image's regions a zero-filled
tensor. Here all steps write into shared buffers, and every weight gradient is a single product at the end.

tanh takes twenty times as long as the additions around it on a CPU: of the cell it is written as 2 sigmoid(2x) - 1.

Shapes: N rows, T steps, M real tokens, R regions, A attention, P projected region, H hidden.
"""

import torch
from torch import Tensor, nn

from captioning.fast import switch
from captioning.fast.attention import AttentionGradients, AttentionSteps
from captioning.fast.linear import dropout, linear, packed, product, weight_gradient
from captioning.rows import Packing, State

WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")  # of a layer of nn.LSTM


def lstm_applies(rnn: nn.RNNBase, inputs: Tensor) -> bool:
    """Whether `lstm_layers` can run `rnn`. A GPU and mixed precision have fast LSTMs of their own."""
    if not switch.enabled or not isinstance(rnn, nn.LSTM):
        return False
    return inputs.device.type == "cpu" and not torch.is_autocast_enabled("cpu")


def lstm_layers(rnn: nn.LSTM, inputs: Tensor, state: State, packing: Packing) -> Tensor:
    """All layers over packed inputs (M, .), from `state` in the packing's order -> the last hidden states (M, H)."""
    for layer, (hidden, cell) in enumerate(zip(*state)):
        if layer:
            inputs = dropout(inputs, rnn.dropout, rnn.training)
        w_input, w_hidden, b_input, b_hidden = (getattr(rnn, f"{name}_l{layer}") for name in WEIGHTS)
        inputs = _LSTM.apply(linear(inputs, w_input, b_input + b_hidden), hidden, cell, w_hidden, packing)
    return inputs


def attention_lstm_applies(rnn: nn.RNNBase) -> bool:
    """Whether `attention_lstm_layer` can run `rnn`: an LSTM of one layer."""
    return switch.enabled and isinstance(rnn, nn.LSTM) and rnn.num_layers == 1


def attention_lstm_layer(
    rnn: nn.LSTM, attention: nn.Module, embedded: Tensor, state: State, memory, packing: Packing
) -> tuple[Tensor, Tensor, Tensor]:
    """An LSTM layer with soft attention over packed words (M, E): what does not depend on the step is one product.

    attention: an Attention with a gate. memory: with keys, values and perhaps persistent features, rows in the order of
    the packing. Returns packed hidden states (M, H), gated contexts (M, P) and attention weights (M, R).
    """
    E, P = embedded.shape[1], memory.values.shape[2]
    w_embed, w_context, w_persist = rnn.weight_ih_l0.split([E, P, rnn.input_size - E - P], 1)
    inputs = linear(embedded, w_embed, rnn.bias_ih_l0 + rnn.bias_hh_l0)  # (M, 4H)
    if memory.persist is not None:
        inputs = inputs + (memory.persist @ w_persist.t()).index_select(0, packing.rank)
    weights = {"hidden": rnn.weight_hh_l0, "context": w_context, "query": attention.query.weight}
    weights |= {"score": attention.score.weight[0], "gate": attention.gate.weight[0], "gate_bias": attention.gate.bias}
    return attention_lstm(inputs, tuple(part[0] for part in state), memory, weights, packing)


def advance_cell(gates: Tensor, cell: Tensor, cell_out: Tensor, tanh_out: Tensor, hidden_out: Tensor) -> None:
    """An LSTM's element-wise part: gates (n, 4H) become the activated ones in place; the other outputs are (n, H)."""
    H, on_cpu = cell.shape[1], gates.device.type == "cpu"
    if on_cpu:
        g = gates[:, 2 * H : 3 * H].mul_(2)
        gates.sigmoid_()
        g.mul_(2).sub_(1)
    else:
        gates[:, : 2 * H].sigmoid_()
        gates[:, 2 * H : 3 * H].tanh_()
        gates[:, 3 * H :].sigmoid_()
    i, f, g, o = gates.chunk(4, 1)
    torch.mul(f, cell, out=cell_out).addcmul_(i, g)
    if on_cpu:
        torch.mul(cell_out, 2, out=tanh_out).sigmoid_().mul_(2).sub_(1)
    else:
        torch.tanh(cell_out, out=tanh_out)
    torch.mul(o, tanh_out, out=hidden_out)


def cell_gradients(
    gates: Tensor, cell_in: Tensor, tanh_cell: Tensor, grad_h: Tensor, grad_c: Tensor, out: Tensor
) -> None:
    """Gradients of the gates before activation into out (n, 4H), from those of the new state; grad_c (n, H) becomes the
    gradient of the cell before. gates: activated.
    """
    i, f, g, o = gates.chunk(4, 1)
    H = i.shape[1]
    d_o = grad_h * o
    grad_c.add_(d_o.addcmul_(d_o * tanh_cell, tanh_cell, value=-1))
    slope = torch.addcmul(gates, gates, gates, value=-1)  # s (1 - s); of g it is computed below
    torch.mul(grad_c, g, out=out[:, :H])
    torch.mul(grad_c, cell_in, out=out[:, H : 2 * H])
    torch.mul(grad_c, i, out=out[:, 2 * H : 3 * H])
    torch.mul(grad_h, tanh_cell, out=out[:, 3 * H :])
    slope[:, 2 * H : 3 * H] = 1 - g * g
    out.mul_(slope)
    grad_c.mul_(f)


class PackedLSTMCell(nn.Module):
    """An nn.LSTMCell for few rows at a time, again and again, from its weights as they are now. No gradient flows."""

    def __init__(self, cell: nn.LSTMCell):
        super().__init__()
        self.weight = packed(torch.cat([cell.weight_ih, cell.weight_hh], 1).detach())
        self.bias = (cell.bias_ih + cell.bias_hh).detach()

    def forward(self, x: Tensor, state: State) -> State:
        """x (N, .), hidden state and cell (N, H) -> the new ones."""
        hidden, cell = state
        cell_out, tanh_out, hidden_out = (torch.empty_like(cell) for _ in range(3))
        gates = product(torch.cat([x, hidden], 1), self.weight, self.bias)
        advance_cell(gates, cell, cell_out, tanh_out, hidden_out)
        return hidden_out, cell_out


class _LSTM(torch.autograd.Function):
    """One LSTM layer over every step of a batch (Hochreiter and Schmidhuber 1997, with forget gates).

    inputs (M, 4H), packed: the input's part of the gates i, f, g, o with both biases. hidden, cell (N, H): rows in
    `packing.order`. weight (4H, H): of the hidden state. Gives packed hidden states (M, H).
    """

    @staticmethod
    def forward(ctx, inputs, hidden, cell, weight, packing):
        gates = inputs.clone()  # becomes the activated gates
        hidden_out, hidden_in, cells_in, cells, tanhs = (
            inputs.new_empty(inputs.shape[0], hidden.shape[1]) for _ in range(5)
        )
        of_hidden = packed(weight)
        for now, n in packing.steps():
            hidden_in[now], cells_in[now] = hidden[:n], cell[:n]
            gate = gates[now].add_(product(hidden_in[now], of_hidden))
            advance_cell(gate, cells_in[now], cells[now], tanhs[now], hidden_out[now])
            hidden, cell = hidden_out[now], cells[now]
        ctx.packing = packing
        ctx.save_for_backward(weight, gates, hidden_in, cells_in, tanhs)
        return hidden_out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_hidden):
        weight, gates, hidden_in, cells_in, tanhs = ctx.saved_tensors
        grads = torch.empty_like(gates)
        grad_h, grad_c = (gates.new_zeros(ctx.packing.active[0], hidden_in.shape[1]) for _ in range(2))
        to_hidden = packed(weight.t())
        for now, n in reversed(ctx.packing.steps()):
            dh = grad_h[:n].add_(grad_hidden[now])
            cell_gradients(gates[now], cells_in[now], tanhs[now], dh, grad_c[:n], out=grads[now])
            grad_h[:n] = product(grads[now], to_hidden)
        return grads, grad_h, grad_c, weight_gradient(grads, hidden_in), None


def attention_lstm(
    inputs: Tensor, state: State, memory, weights: dict[str, Tensor], packing: Packing
) -> tuple[Tensor, Tensor, Tensor]:
    """LSTM with soft attention over every step of a batch (Xu et al. 2015, eqs. 1 to 5 and section 4.2.1).

    inputs (M, 4H), packed: the input's part of the gates i, f, g, o with both biases. state: hidden and cell (N, H),
    memory: with keys (N, R, A), values (N, R, P) and mask, (N, R) or None: rows in `packing.order`. weights: hidden
    (4H, H), context (4H, P), query (A, H), score (A,), gate (H,), gate_bias (1,).
    Returns packed hidden states (M, H), gated contexts (M, P) and attention weights (M, R).
    """
    w = weights
    of_weights = (w[name] for name in ("hidden", "query", "gate", "context", "score", "gate_bias"))
    tensors = (inputs, *state, memory.keys, memory.values, *of_weights)
    absent = None if memory.mask is None else ~memory.mask
    with torch.autocast(inputs.device.type, enabled=False):  # under mixed precision the recurrence stays in one type
        return _AttentionLSTM.apply(*(x.to(w["hidden"].dtype).contiguous() for x in tensors), absent, packing)


class _AttentionLSTM(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, inputs, hidden, cell, keys, values, w_hidden, w_query, w_gate, w_context, score, gate_bias, absent, packing
    ):
        H, A, R, P = hidden.shape[1], keys.shape[2], keys.shape[1], values.shape[2]
        M = inputs.shape[0]
        gates = inputs.clone()  # becomes the activated gates
        hidden_out, hidden_in, cells_in, cells, tanhs = (inputs.new_empty(M, H) for _ in range(5))
        contexts, gated = (inputs.new_empty(M, P) for _ in range(2))
        attention, betas, queries = inputs.new_empty(M, R), inputs.new_empty(M, 1), inputs.new_empty(M, A)
        w_query = torch.cat([w_query, w_gate.unsqueeze(0)])  # (A + 1, H)
        of_hidden, of_context = packed(torch.cat([w_hidden, w_query])), packed(w_context)  # one product each a step
        attend = AttentionSteps(keys, values, score, absent)
        for now, n in packing.steps():
            hidden_in[now], cells_in[now] = hidden[:n], cell[:n]
            from_hidden = product(hidden_in[now], of_hidden)  # (n, 4H + A + 1)
            queries[now] = from_hidden[:, 4 * H : 4 * H + A]
            attend.step(queries[now], out=(attention[now], contexts[now]))
            torch.sigmoid(from_hidden[:, -1:] + gate_bias, out=betas[now])
            torch.mul(contexts[now], betas[now], out=gated[now])
            gate = gates[now].add_(from_hidden[:, : 4 * H]).add_(product(gated[now], of_context))
            advance_cell(gate, cells_in[now], cells[now], tanhs[now], hidden_out[now])
            hidden, cell = hidden_out[now], cells[now]
        ctx.packing, ctx.powers = packing, attend.powers
        buffers = (gates, hidden_in, cells_in, tanhs, contexts, gated, attention, betas, queries)
        ctx.save_for_backward(attend.keys, values, w_hidden, w_query, w_context, score, *buffers)
        return hidden_out, gated, attention

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_hidden, grad_gated, grad_attention):
        key_terms, values, w_hidden, w_query, w_context, score, *buffers = ctx.saved_tensors
        gates, hidden_in, cells_in, tanhs, contexts, gated, attention, betas, queries = buffers
        packing = ctx.packing
        (N, _, A), H = key_terms.shape, hidden_in.shape[1]
        to_hidden, to_query, to_context = packed(w_hidden.t()), packed(w_query.t()), packed(w_context.t())
        grad_gates, grad_queries = torch.empty_like(gates), gates.new_empty(len(gates), A + 1)  # the last one of beta
        grad_h, grad_c = gates.new_zeros(N, H), gates.new_zeros(N, H)
        attended = AttentionGradients(key_terms, values, score, ctx.powers, len(packing.active))
        for t, (now, n) in reversed(list(enumerate(packing.steps()))):
            grads, of_query = grad_gates[now], grad_queries[now]
            dh = grad_h[:n].add_(grad_hidden[now])
            cell_gradients(gates[now], cells_in[now], tanhs[now], dh, grad_c[:n], out=grads)
            dz = product(grads, to_context).add_(grad_gated[now])  # (n, P)
            beta = betas[now]
            of_query[:, A:] = (dz * contexts[now]).sum(1, keepdim=True) * beta * (1 - beta)
            of_query[:, :A] = attended.step(t, queries[now], attention[now], dz * beta, grad_attention[now])
            torch.add(product(grads, to_hidden), product(of_query, to_query), out=grad_h[:n])
        grad_keys, grad_values, grad_score = attended.sums()
        grad_query = weight_gradient(grad_queries, hidden_in)  # (A + 1, H)
        of_images = grad_gates, grad_h, grad_c, grad_keys, grad_values
        of_hidden = weight_gradient(grad_gates, hidden_in), grad_query[:-1], grad_query[-1]
        of_context = weight_gradient(grad_gates, gated), grad_score, grad_queries[:, -1].sum().reshape(1)
        return *of_images, *of_hidden, *of_context, None, None

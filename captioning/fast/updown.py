"""The two LSTMs of up-down attention over whole sentences, as one autograd function (see lstm.py for why).

Shapes: N rows, M real tokens, R regions, E embedding, C context, A attention, P projected region, H hidden.
"""

import torch
from torch import Tensor, nn

from captioning.fast import switch
from captioning.fast.attention import AttentionGradients, AttentionSteps
from captioning.fast.linear import linear, packed, product, weight_gradient
from captioning.fast.lstm import advance_cell, cell_gradients
from captioning.rows import Packing


def updown_applies() -> bool:
    """Whether `updown_layers` can be used."""
    return switch.enabled


def updown_layers(decoder: nn.Module, embedded: Tensor, memory, packing: Packing) -> tuple[Tensor, Tensor]:
    """Both LSTMs of an UpDownDecoder, from zero states: the language LSTM's hidden states (M, H), attention (M, R).

    embedded (M, E): packed words. memory: an UpDownMemory whose rows are in the order of the packing. What does not
    depend on the step is one product.
    """
    first, second, attention = decoder.attention_lstm, decoder.language_lstm, decoder.attention
    sizes = [decoder.hidden_size, memory.context.shape[1], embedded.shape[1]]
    w_language, w_context, w_words = first.weight_ih.split(sizes, 1)
    inputs = linear(embedded, w_words, first.bias_ih + first.bias_hh)  # (M, 4H)
    inputs = inputs + linear(memory.context, w_context).index_select(0, packing.rank)
    w_states, w_answer = torch.cat([w_language, first.weight_hh], 1), torch.cat([second.weight_ih, second.weight_hh], 1)
    of_attention = memory.keys, memory.values, attention.query.weight, attention.score.weight[0]
    tensors = (inputs, *of_attention, w_states, w_answer, second.bias_ih + second.bias_hh)
    absent = None if memory.mask is None else ~memory.mask
    with torch.autocast(inputs.device.type, enabled=False):  # under mixed precision the recurrence stays in one type
        return _UpDown.apply(*(x.to(first.weight_hh.dtype).contiguous() for x in tensors), absent, packing)


class _UpDown(torch.autograd.Function):
    """inputs (M, 4H): the part of the attention LSTM's gates that does not depend on the step before.

    w_states (4H, 2H): of the language LSTM's state and the attention LSTM's own. w_answer (4H, P + 2H): of what the
    regions answer, the attention LSTM's new state, and the language LSTM's own.
    """

    @staticmethod
    def forward(ctx, inputs, keys, values, w_query, score, w_states, w_answer, bias, absent, packing):
        (N, R, A), P, H, M = keys.shape, values.shape[2], w_query.shape[1], len(inputs)
        gates1, gates2 = inputs.clone(), inputs.new_empty(M, 4 * H)  # become the activated gates
        states, answers, queries = inputs.new_empty(M, 2 * H), inputs.new_empty(M, P + 2 * H), inputs.new_empty(M, A)
        weights = inputs.new_empty(M, R)
        cells1_in, cells1, tanhs1, hidden1, cells2_in, cells2, tanhs2, hidden2 = inputs.new_empty(8, M, H)
        of_states, of_query, of_answer = packed(w_states), packed(w_query), packed(w_answer)
        attend = AttentionSteps(keys, values, score, absent)
        h1, c1, h2, c2 = inputs.new_zeros(4, N, H)
        for now, n in packing.steps():
            states[now, :H], states[now, H:], cells1_in[now], cells2_in[now] = h2[:n], h1[:n], c1[:n], c2[:n]
            gates1[now].add_(product(states[now], of_states))
            advance_cell(gates1[now], cells1_in[now], cells1[now], tanhs1[now], hidden1[now])
            queries[now] = product(hidden1[now], of_query)
            answer = answers[now]
            attend.step(queries[now], out=(weights[now], answer[:, :P]))
            answer[:, P : P + H], answer[:, P + H :] = hidden1[now], h2[:n]
            gates2[now] = product(answer, of_answer, bias)
            advance_cell(gates2[now], cells2_in[now], cells2[now], tanhs2[now], hidden2[now])
            h1, c1, h2, c2 = hidden1[now], cells1[now], hidden2[now], cells2[now]
        ctx.packing, ctx.powers = packing, attend.powers
        buffers = (gates1, cells1_in, tanhs1, hidden1, gates2, cells2_in, tanhs2, states, answers, queries, weights)
        ctx.save_for_backward(attend.keys, values, w_query, score, w_states, w_answer, *buffers)
        return hidden2, weights

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_hidden, grad_weights):
        keys, values, w_query, score, w_states, w_answer, *buffers = ctx.saved_tensors
        gates1, cells1_in, tanhs1, hidden1, gates2, cells2_in, tanhs2, states, answers, queries, weights = buffers
        N, P, H = len(values), values.shape[2], w_query.shape[1]
        to_states, to_query, to_answer = packed(w_states.t()), packed(w_query.t()), packed(w_answer.t())
        grads1, grads2, grad_queries = torch.empty_like(gates1), torch.empty_like(gates2), torch.empty_like(queries)
        h1, c1, h2, c2 = gates1.new_zeros(4, N, H)  # gradients of the states between two steps
        attended = AttentionGradients(keys, values, score, ctx.powers, len(ctx.packing.active))
        for t, (now, n) in reversed(list(enumerate(ctx.packing.steps()))):
            cell_gradients(gates2[now], cells2_in[now], tanhs2[now], h2[:n].add_(grad_hidden[now]), c2[:n], grads2[now])
            to_context, to_hidden1, to_hidden2 = product(grads2[now], to_answer).split([P, H, H], 1)
            of_query = attended.step(t, queries[now], weights[now], to_context.contiguous(), grad_weights[now])
            grad_queries[now] = of_query
            h1[:n].add_(to_hidden1).add_(product(of_query, to_query))
            cell_gradients(gates1[now], cells1_in[now], tanhs1[now], h1[:n], c1[:n], grads1[now])
            before = product(grads1[now], to_states)
            torch.add(to_hidden2, before[:, :H], out=h2[:n])
            h1[:n] = before[:, H:]
        grad_keys, grad_values, grad_score = attended.sums()
        of_attention = grad_keys, grad_values, weight_gradient(grad_queries, hidden1), grad_score
        of_layers = weight_gradient(grads1, states), weight_gradient(grads2, answers), grads2.sum(0)
        return grads1, *of_attention, *of_layers, None, None

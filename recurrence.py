"""The attention LSTM over whole sentences as one autograd function, and the packed layout that it works on.

Run step by step under autograd, each step's weight gradient is a product of its own and each slice of the image's
regions a zero-filled tensor. Here the rows of a batch are sorted by length so that finished rows leave the loop, all
steps write into shared buffers, and every weight gradient is a single product at the end.

Shapes: N rows, T steps, M real tokens, R regions, A attention, P projected region, H hidden.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Packing:
    """Real tokens of N rows in time-major order, longest row first (the order of `torch`'s PackedSequence).

    order (N,): rows by falling length. active: how many of them are alive at each step.
    row, time (M,): token j of the packed order stands at [row[j], time[j]] of the padded batch.
    rank (M,): its row's place in `order`.
    """

    order: Tensor
    active: list[int]
    row: Tensor
    time: Tensor
    rank: Tensor

    @classmethod
    def of(cls, steps: Tensor, device) -> "Packing":
        """From steps (N,), each row's number of real tokens, at least 1; on the CPU, so that none waits for a GPU."""
        steps, order = steps.sort(descending=True, stable=True)
        alive = torch.arange(int(steps[0])).unsqueeze(1) < steps.unsqueeze(0)  # (T, N)
        time, rank = alive.nonzero(as_tuple=True)
        active = alive.sum(1).tolist()
        move = {"device": device, "non_blocking": True}
        return cls(order.to(**move), active, order[rank].to(**move), time.to(**move), rank.to(**move))

    def starts(self) -> list[int]:
        """Where each step begins in the packed order."""
        starts = [0]
        for n in self.active[:-1]:
            starts.append(starts[-1] + n)
        return starts

    def ends(self) -> Tensor:
        """Where each row's last token is in the packed order (N,); rows as in `order`."""
        ranks = torch.arange(self.active[0])
        steps = (torch.tensor(self.active).unsqueeze(1) > ranks).sum(0)  # (N,)
        return (torch.tensor(self.starts())[steps - 1] + ranks).to(self.order.device)


def attention_lstm(
    inputs: Tensor,
    hidden: Tensor,
    cell: Tensor,
    keys: Tensor,
    values: Tensor,
    weights: dict[str, Tensor],
    packing: Packing,
) -> tuple[Tensor, Tensor, Tensor]:
    """LSTM with soft attention over every step of a batch (Xu et al. 2015, eqs. 1 to 5 and section 4.2.1).

    inputs (M, 4H), packed: the input's part of the gates i, f, g, o with both biases. hidden, cell (N, H),
    keys (N, R, A), values (N, R, P): rows in `packing.order`. weights: hidden (4H, H), context (4H, P), query (A, H),
    score (A,), gate (H,), gate_bias (1,).
    Returns packed hidden states (M, H), gated contexts (M, P) and attention weights (M, R).
    """
    w = weights
    recurrent = torch.cat([w["hidden"], w["query"], w["gate"].unsqueeze(0)])  # (4H + A + 1, H): one product a step
    tensors = [inputs, hidden, cell, keys, values, recurrent, w["context"], w["score"], w["gate_bias"]]
    with torch.autocast(inputs.device.type, enabled=False):  # under mixed precision the recurrence stays in one type
        return _AttentionLSTM.apply(*(x.to(w["hidden"].dtype) for x in tensors), packing)


class _AttentionLSTM(torch.autograd.Function):
    @staticmethod
    def forward(ctx, inputs, hidden, cell, keys, values, recurrent, w_context, score, gate_bias, packing):
        H, A, R, P = hidden.shape[1], keys.shape[2], keys.shape[1], values.shape[2]
        M = inputs.shape[0]
        gates = inputs.clone()  # becomes the activated gates
        hidden_out = inputs.new_empty(M, H)
        hidden_in = inputs.new_empty(M, H)
        cells_in = inputs.new_empty(M, H)
        cells = inputs.new_empty(M, H)
        contexts = inputs.new_empty(M, P)
        gated = inputs.new_empty(M, P)
        attention = inputs.new_empty(M, R)
        betas = inputs.new_empty(M, 1)
        scratch = torch.empty_like(keys)
        recurrent_t, w_context_t = recurrent.t(), w_context.t()
        for start, n in zip(packing.starts(), packing.active):
            now = slice(start, start + n)
            hidden, cell = hidden[:n], cell[:n]
            hidden_in[now], cells_in[now] = hidden, cell
            from_hidden = hidden @ recurrent_t  # (n, 4H + A + 1)
            squashed = torch.add(keys[:n], from_hidden[:, 4 * H : 4 * H + A].unsqueeze(1), out=scratch[:n]).tanh_()
            scores = (squashed.view(-1, A) @ score).view(n, R)
            torch.softmax(scores, 1, out=attention[now])
            torch.bmm(attention[now].unsqueeze(1), values[:n], out=contexts[now].unsqueeze(1))
            torch.sigmoid(from_hidden[:, -1:] + gate_bias, out=betas[now])
            torch.mul(contexts[now], betas[now], out=gated[now])
            gate = gates[now]
            gate += from_hidden[:, : 4 * H]
            gate.addmm_(gated[now], w_context_t)
            gate[:, : 2 * H].sigmoid_()
            gate[:, 2 * H : 3 * H].tanh_()
            gate[:, 3 * H :].sigmoid_()
            i, f, g, o = gate.chunk(4, 1)
            cell = torch.mul(f, cell, out=cells[now]).addcmul_(i, g)
            hidden = torch.mul(o, cell.tanh(), out=hidden_out[now])
        ctx.packing = packing
        buffers = (gates, hidden_in, cells_in, cells, contexts, gated, attention, betas)
        ctx.save_for_backward(keys, values, recurrent, w_context, score, *buffers)
        return hidden_out, gated, attention

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_hidden, grad_gated, grad_attention):
        keys, values, recurrent, w_context, score, *buffers = ctx.saved_tensors
        gates, hidden_in, cells_in, cells, contexts, gated, attention, betas = buffers
        packing = ctx.packing
        N, R, A = keys.shape
        H, P = cells.shape[1], values.shape[2]
        grad_from_hidden = gates.new_empty(gates.shape[0], 4 * H + A + 1)  # gates, query and beta of every step
        # Per row and step, for the regions' gradient as one product over time at the end.
        T = len(packing.active)
        attention_by_row, context_by_row = gates.new_zeros(N, T, R), gates.new_zeros(N, T, P)
        grad_keys, grad_score = torch.zeros_like(keys), torch.zeros_like(score)
        grad_h, grad_c = gates.new_zeros(N, H), gates.new_zeros(N, H)
        scratch = torch.empty_like(keys)
        for t, (start, n) in reversed(list(enumerate(zip(packing.starts(), packing.active)))):
            now = slice(start, start + n)
            grads = grad_from_hidden[now]
            i, f, g, o = gates[now].chunk(4, 1)
            dh = grad_h[:n].add_(grad_hidden[now])
            tanh_c = cells[now].tanh()
            dc = grad_c[:n].addcmul_(dh * o, 1 - tanh_c * tanh_c)
            torch.mul(dc * g, i * (1 - i), out=grads[:, :H])
            torch.mul(dc * cells_in[now], f * (1 - f), out=grads[:, H : 2 * H])
            torch.mul(dc * i, 1 - g * g, out=grads[:, 2 * H : 3 * H])
            torch.mul(dh * tanh_c, o * (1 - o), out=grads[:, 3 * H : 4 * H])
            dc.mul_(f)  # gradient of the previous cell
            dz = torch.addmm(grad_gated[now], grads[:, : 4 * H], w_context)  # (n, P)
            beta = betas[now]
            grads[:, -1:] = (dz * contexts[now]).sum(1, keepdim=True) * beta * (1 - beta)
            dcontext = torch.mul(dz, beta, out=context_by_row[:n, t])
            weights = attention[now]
            attention_by_row[:n, t] = weights
            dweights = torch.bmm(values[:n], dcontext.unsqueeze(2)).squeeze(2) + grad_attention[now]
            dscores = weights * (dweights - (weights * dweights).sum(1, keepdim=True))  # (n, R)
            # tanh is computed again: cheaper than keeping (N, R, A) numbers of every step
            hidden_query = hidden_in[now] @ recurrent[4 * H : 4 * H + A].t()
            squashed = torch.add(keys[:n], hidden_query.unsqueeze(1), out=scratch[:n]).tanh_()
            grad_score.addmv_(squashed.view(-1, A).t(), dscores.reshape(-1))
            slope = squashed.square_().neg_().add_(1).mul_(dscores.unsqueeze(2)).mul_(score)
            grad_keys[:n] += slope
            torch.sum(slope, 1, out=grads[:, 4 * H : 4 * H + A])
            torch.mm(grads, recurrent, out=grad_h[:n])
        grad_inputs = grad_from_hidden[:, : 4 * H]
        grad_values = torch.bmm(attention_by_row.transpose(1, 2), context_by_row)
        return (
            grad_inputs,
            grad_h,
            grad_c,
            grad_keys,
            grad_values,
            grad_from_hidden.t() @ hidden_in,
            grad_inputs.t() @ gated,
            grad_score,
            grad_from_hidden[:, -1].sum().reshape(1),
            None,
        )

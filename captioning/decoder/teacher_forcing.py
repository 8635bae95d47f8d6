"""How much of the truth a decoder sees in training: the schedule, and the pass that mixes in its own words.

Scheduled sampling is Bengio et al. 2015; the additive modes are those of DeepCaption.
"""

import math

import torch
from torch import Tensor

from captioning.rows import first_states


def truth_probability(iteration: int, k: float = 6500.0, beta: float = 0.3) -> float:
    """p(i) = k / (k + exp(i * beta / k)): inverse sigmoid decay from about 1 towards 0. Beta scales the speed.

    With k = 0 it is 1, as in DeepCaption.
    """
    if k == 0:
        return 1.0
    exponent = iteration * beta / k
    return 0.0 if exponent > 700 else k / (k + math.exp(exponent))


def mixed_read(decoder, memory, tokens: Tensor, packing, mode: str, p: float, coins: torch.Generator):
    """As `decoder.read(memory, tokens, packing)`, but the inputs are mixed with the model's own words.

    The first word always is the truth.
    mode "sampled": at each time step one coin for the whole batch, the truth with probability p, else the argmax.
    "additive": the embedding p * E[truth] + (1 - p) * E[argmax]. "additive_sampled": the truth with probability p, else
    that mixture. coins: a CPU generator, so that a resumed run throws the same.
    Returns logits (M, V) in packed order, attention weights (M, R) or None, and the last layer's states (M, H).
    """
    state = decoder.start(memory)
    first = memory.first.unsqueeze(1) if decoder.skip_start else None
    truth = decoder.embed_words(tokens[packing.order], first).unbind(1)  # T tensors (N, E)
    outputs, attention, hidden, previous = [], [], [], None
    for t, n in enumerate(packing.active):
        if n < len(memory):
            memory, state = memory.first_rows(n), first_states(state, n)
        inputs = truth[t][:n]
        if previous is not None:
            own = decoder.embed(previous[:n])
            keep_truth = torch.rand((), generator=coins).item() < p
            if mode == "sampled":
                inputs = inputs if keep_truth else own
            elif mode == "additive" or not keep_truth:
                inputs = p * inputs + (1 - p) * own
        logits, state, weights = decoder.step_embedded(inputs, state, memory)
        previous = logits.detach().argmax(1)
        outputs.append(logits)
        attention.append(weights)
        hidden.append(state[0][-1])
    weights = None if attention[0] is None else torch.cat(attention)
    return torch.cat(outputs), weights, torch.cat(hidden)

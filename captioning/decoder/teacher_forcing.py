"""How much of the truth a decoder sees in training: the schedule, and the passes that mix in its own words.

Scheduled sampling is Bengio et al. 2015; the additive modes are those of DeepCaption. A Transformer reads all words of
a sentence at once, so its own words come from a pass over the truth (Mihaylova and Martins 2019).
"""

import itertools
import math

import torch
from torch import Tensor

from captioning.rows import first_states

# Mode, probability of the truth, and coins, which are a CPU generator: a resumed run throws the same.
Forcing = tuple[str, float, torch.Generator]


def truth_probability(iteration: int, k: float = 6500.0, beta: float = 0.3) -> float:
    """p(i) = k / (k + exp(i * beta / k)): inverse sigmoid decay from about 1 towards 0. Beta scales the speed.

    With k = 0 it is 1, as in DeepCaption.
    """
    if k == 0:
        return 1.0
    exponent = iteration * beta / k
    return 0.0 if exponent > 700 else k / (k + math.exp(exponent))


def mixed_read(decoder, memory, tokens: Tensor, packing, forcing: Forcing):
    """As `decoder.read(memory, tokens, packing)`, but the inputs are mixed with the model's own words.

    The first word always is the truth. forcing: mode, p and coins. Mode "sampled": at each time step one coin for the
    whole batch, the truth with probability p, else the argmax. "additive": the embedding p * E[truth] +
    (1 - p) * E[argmax]. "additive_sampled": the truth with probability p, else that mixture.
    Returns logits (M, V) in packed order, attention weights (M, R) or None, and the last layer's states (M, H).
    """
    mode, p, coins = forcing
    state = decoder.start(memory)
    first = memory.first.unsqueeze(1) if getattr(decoder, "skip_start", False) else None
    truth = decoder.embed_words(tokens[packing.order], first).unbind(1)  # T tensors (N, E)
    outputs, attention, hidden, previous = [], [], [], None
    for t, n in enumerate(packing.active):
        if n < len(memory):
            memory, state = memory.first_rows(n), first_states(state, n)
        inputs = truth[t][:n]
        if previous is not None:
            keep_truth = torch.rand((), generator=coins).item() < p
            inputs = mixture(inputs, decoder.embed(previous[:n]), mode, p, keep_truth)
        logits, state, weights = decoder.step_embedded(inputs, state, memory)
        previous = logits.detach().argmax(1)
        outputs.append(logits)
        attention.append(weights)
        hidden.append(state[0][-1])
    weights = None if attention[0] is None else torch.cat(attention)
    return torch.cat(outputs), weights, torch.cat(hidden)


def mixture(truth: Tensor, own: Tensor, mode: str, p: float, keep_truth: bool) -> Tensor:
    """What is read of the embeddings of a true word and of the model's own, both (n, E), as the coin of a step fell."""
    if keep_truth and mode != "additive":
        return truth
    return own if mode == "sampled" else p * truth + (1 - p) * own


def two_pass_read(
    decoder, memory, tokens: Tensor, packing, row_image: Tensor, forcing: Forcing
) -> tuple[Tensor, Tensor | None]:
    """As `decoder(memory, tokens, packing, row_image)`, but the inputs are mixed with the model's own words.

    These are what it finds likeliest where it reads the truth before them (Mihaylova and Martins 2019, "Scheduled
    Sampling for Transformers", without gradients through the first pass). forcing: mode, p and coins of `mixed_read`.
    Returns logits (M, V) in packed order, attention weights (M, R) or None.
    """
    mode, p, coins = forcing
    with torch.no_grad():
        logits, _ = decoder(memory, tokens, packing, row_image)
    truth = decoder.embed(tokens[packing.row, packing.time])  # (M, E)
    own = decoder.embed(logits.argmax(1))
    mixed = [truth[: packing.active[0]]]
    for (before, _), (now, n) in itertools.pairwise(packing.steps()):
        keep_truth = torch.rand((), generator=coins).item() < p
        mixed.append(mixture(truth[now], own[before][:n], mode, p, keep_truth))
    outputs, weights = decoder.read_embedded(memory, torch.cat(mixed), packing, row_image)
    return decoder.linear(outputs), weights

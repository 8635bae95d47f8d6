"""Beam search for sentences in which given words must occur (Anderson et al. 2017, "Guided Open Vocabulary Image
Captioning with Constrained Beam Search").

A demand is a set of words, one of which the sentence must have: "dog", "dogs" or "puppy". There are beams for each
set of demands that are met so far, K of each, so that a sentence with an unlikely word need not outdo those without.

Shapes: B images, C demands, S = 2^C states (sets of demands that are met, as bits), K beams, T tokens, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from captioning.decoder.search import Ended, Search, Sentences, beam_search, restrict
from captioning.rows import select_state
from captioning.text.tokens import END, PAD, START

MOST_DEMANDS = 4  # beams double with each
# Of each photo, the objects that its classes are so sure of, these many at most.
SURE, MOST_SURE = 0.5, 2


@dataclass(frozen=True)
class Demand:
    """Word ids of which a caption must have one; with `classes`, where the photo's probability of these is high."""

    words: tuple[int, ...]
    classes: tuple[int, ...] = ()


def demands_of(demands: Sequence[Demand], probabilities: Tensor | None, images: int) -> list[list[tuple[int, ...]]]:
    """For each of the images the words that must occur. probabilities: (B, classes) of the photos."""
    always = [demand.words for demand in demands if not demand.classes]
    found = [list(always) for _ in range(images)]
    some = [demand for demand in demands if demand.classes]
    if not some or probabilities is None:
        return found
    sums = torch.stack([probabilities[:, list(demand.classes)].sum(1) for demand in some], 1)
    for words, row in zip(found, sums.tolist()):
        sure = sorted((-p, number) for number, p in enumerate(row) if p >= SURE)[:MOST_SURE]
        words += [some[number].words for _, number in sure]
    return found


def mentioning(decoder, memory, search: Search, demands: Sequence[Sequence[Sequence[int]]]) -> Sentences:
    """Sentences for every row of `memory`: a plain beam search for all rows without demands at once."""
    plain = [row for row, of_row in enumerate(demands) if not of_row]
    others = [row for row, of_row in enumerate(demands) if of_row]
    parts = []
    if plain:
        parts.append(beam_search(decoder, memory.select(torch.tensor(plain, device=memory.device)), search))
    if others:
        index = torch.tensor(others, device=memory.device)
        parts.append(constrained_search(decoder, memory.select(index), search, [demands[row] for row in others]))
    back = torch.tensor([*plain, *others], device=memory.device).argsort()
    return Sentences(*(torch.cat([getattr(part, name) for part in parts])[back] for name in ("tokens", "log_prob")))


def constrained_search(decoder, memory, search: Search, demands: Sequence[Sequence[Sequence[int]]]) -> Sentences:
    """The `n_best` best sentences of each row of `memory` with a word of each of its demands; best first.

    demands: of each row up to MOST_DEMANDS lists of word ids. Where no beam meets all demands before `max_length`,
    sentences that meet more of them go first. With K as large as the number of sentences the search is exact.
    """
    found = [search_row(decoder, memory, row, search, of_row) for row, of_row in enumerate(demands)]
    return Sentences(*(torch.stack(parts) for parts in zip(*found)))


def search_row(decoder, memory, row: int, search: Search, demands: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """`constrained_search` of one row: tokens (n, T) and log_prob (n,)."""
    assert len(demands) <= MOST_DEMANDS
    T, device = search.max_length + 1, memory.device
    memory = memory.select(torch.tensor([row], device=device))
    state, last = decoder.start(memory), torch.tensor([START], device=device)
    scores = torch.zeros(1, device=device)  # (N,) of the open beams
    met = torch.zeros(1, dtype=torch.long, device=device)  # (N,) their states
    tokens = torch.full((1, T), PAD, device=device)
    ended = Ended(2 ** len(demands), search.beam_size, T, search.length_penalty, device)
    for t in range(T):
        logits, state, _ = decoder.step(last, state, memory)
        log_probs = restrict(logits.float().log_softmax(1), tokens[:, :t], search, t == search.max_length)
        totals = scores.unsqueeze(1) + log_probs  # (N, V)
        parts = []
        for number, candidates, index in ways_on(totals, met, demands, 2 * search.beam_size):
            beam, word = index // totals.shape[1], index % totals.shape[1]
            after = tokens[beam]
            after[:, t] = word
            ends = word == END
            counted = ends.clone()
            counted[search.beam_size :] &= t == search.max_length  # as in a beam search without demands
            offered = candidates.masked_fill(~counted, -torch.inf)
            ended.add(met.new_tensor([number]), after.unsqueeze(0), offered.unsqueeze(0), t + 1)
            on = (~ends).nonzero().squeeze(1)[: search.beam_size]
            parts.append((candidates[on], beam[on], word[on], after[on], torch.full_like(on, number)))
        scores, beam, last, tokens, met = (torch.cat(several) for several in zip(*parts))
        if len(scores) == 0 or scores.max() / (t + 1) ** search.length_penalty <= ended.rank[-1, -1]:
            break
        state = select_state(state, beam)
    return best_of(ended, search.n_best)


def ways_on(totals: Tensor, met: Tensor, demands: Sequence[Sequence[int]], most: int) -> Iterator[tuple]:
    """Each state that is reached, the `most` best candidates for it, and where these stand among all.

    totals: (N, V) of beams in the states `met` (N,) with each word, -inf where it may not follow. Candidates are
    scores, in falling order, with their places in the flattened (N * V,).
    """
    bits = met.new_zeros(totals.shape[1])
    for number, words in enumerate(demands):
        bits[list(words)] |= 1 << number
    after = met.unsqueeze(1) | bits  # (N, V)
    for number in after.unique().tolist():
        reached = totals.masked_fill(after != number, -torch.inf).view(-1)
        candidates, index = reached.topk(min(most, len(reached)))
        possible = candidates > -torch.inf
        yield number, candidates[possible], index[possible]


def best_of(ended: Ended, count: int) -> tuple[Tensor, Tensor]:
    """The `count` best of all ended sentences: those that meet more demands first, then by rank."""
    S, K = ended.rank.shape
    demands = torch.tensor([number.bit_count() for number in range(S)], device=ended.rank.device)
    there = ended.rank > -torch.inf
    order = sorted(
        range(S * K),
        key=lambda i: (not bool(there.view(-1)[i]), -int(demands[i // K]), -float(ended.rank.view(-1)[i])),
    )
    chosen = torch.tensor(order[:count], device=ended.rank.device)
    return ended.tokens.view(S * K, -1)[chosen], ended.log_prob.view(-1)[chosen]

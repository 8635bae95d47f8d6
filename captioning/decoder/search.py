"""Writing sentences: greedy, sampling and beam search over `start()` and `step()` of any decoder.

A decoder is anything with `start(memory) -> state`, `step(tokens, state, memory) -> logits, state, weights`, where
state is a tuple of tensors with the rows in dimension 1 and memory has `select(index)`, `len()` and `device`. A step
has one row for each row of the memory, or equally many that stand together (the beams of an image).
Rows or images that are finished leave the batch.

Shapes: B images, N rows, K beams, T tokens, V vocabulary.
"""

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from captioning.errors import UserError
from captioning.rows import select_state
from captioning.text.tokens import END, PAD, START, UNK

BEAMS = 3  # of a search where nobody says how many
NEVER_WRITTEN = (PAD, START, UNK)  # <unk> only where `Search.allow_unk` says so


@dataclass(frozen=True)
class Search:
    """How sentences are searched for.

    The rules about sentences also hold for captions of a model without topics, whose sentences end in the word ".".
    Raises UserError for a length penalty, of a model file perhaps, by which lengths cannot be computed, and where
    min_length is more than max_length.
    """

    beam_size: int = 1  # 1: greedy, or sampling with `sample`
    max_length: int = 20  # most words before <end>
    # a: beams are ranked by log-probability / (number of tokens with <end>) ** a (Wu et al. 2016 without its offset)
    length_penalty: float = 0.0
    n_best: int = 1  # sentences kept per image, at most beam_size (or as many samples)
    sample: bool = False
    temperature: float = 1.0
    top_k: int = 0  # 0: off
    top_p: float = 1.0  # of the nucleus (Holtzman et al. 2020); 1.0: off
    allow_unk: bool = False  # whether <unk> may be written
    block_trigrams: bool = False  # never write a trigram twice in a sentence (Paulus et al. 2018)
    # a: the log-probability of a word that would repeat a trigram is lower by a * ln 2 for each earlier time
    # (Melas-Kyriazi et al. 2018); 0 or less: off
    trigram_penalty_alpha: float = 0.0
    mention: tuple = ()  # constrained.Demand objects: words that a caption must have
    no_repeat_sentences: bool = False  # a sentence that a paragraph has gives way to the next best beam, or to none
    only_complete_sentences: bool = False  # so does a sentence of `max_length` words, which was cut off there
    min_length: int = 0  # fewest words before <end>, as long as there is a word that may follow
    closing: tuple[int, ...] = ()  # ids of marks that end a sentence: not before the last of the `min_length` words
    once: tuple[int, ...] = ()  # ids of words that a sentence has once at most, such as content_words() gives

    def __post_init__(self):
        if not abs(self.length_penalty) <= 50:
            raise UserError(f"length penalty {self.length_penalty}: it must be from -50 to 50")
        if self.min_length > self.max_length:
            raise UserError(f"a sentence cannot have at least {self.min_length} and at most {self.max_length} words")


@dataclass
class Sentences:
    """The n sentences that a search found for each of B rows, best first.

    Where a beam search found fewer than n, the rest has log_prob -inf and tokens of no meaning.
    """

    tokens: Tensor  # (B, n, T) ids after <start> up to <end>, then <pad>
    log_prob: Tensor  # (B, n) of these tokens with <end>, less the trigram penalties of the search


def generate(decoder, memory, search: Search) -> Sentences:
    """Sentences for every row of `memory`, by the method that `search` names; best first."""
    if search.beam_size > 1 and not search.sample:
        return beam_search(decoder, memory, search)
    if search.sample and search.n_best > 1:
        return sample_several(decoder, memory, search)
    return generate_rows(decoder, memory, search)


def sample_several(decoder, memory, search: Search) -> Sentences:
    """`n_best` samples for each row of `memory`, the likeliest first."""
    n = search.n_best
    images = torch.arange(len(memory), device=memory.device)
    drawn = generate_rows(decoder, memory.select(images.repeat_interleave(n)), search)
    log_prob, order = drawn.log_prob.view(-1, n).sort(1, descending=True)
    tokens = drawn.tokens.view(len(images), n, -1)
    return Sentences(tokens.gather(1, order.unsqueeze(2).expand_as(tokens)), log_prob)


def generate_rows(decoder, memory, search: Search) -> Sentences:
    """Greedy decoding, or sampling with `search.sample`: one sentence a row. Gradients flow into log_prob."""
    state = decoder.start(memory)
    device = state[0].device
    rows = torch.arange(len(memory), device=device)  # which rows the shrinking batch still holds
    tokens = torch.full((len(memory), search.max_length + 1), PAD, device=device)
    log_prob = torch.zeros(len(memory), device=device)
    last = torch.full_like(rows, START)
    for t in range(search.max_length + 1):
        logits, state, _ = decoder.step(last, state, memory)
        log_probs = logits.float().log_softmax(1)
        open_to = restrict(log_probs, tokens[rows, :t], search, last_step=t == search.max_length)
        last = _draw(open_to, search) if search.sample else open_to.argmax(1)
        tokens[rows, t] = last
        log_prob = log_prob.index_add(0, rows, open_to.gather(1, last.unsqueeze(1)).squeeze(1))
        alive = (last != END).nonzero().squeeze(1)
        if len(alive) == 0:
            break
        if len(alive) < len(rows):
            rows, last = rows[alive], last[alive]
            state, memory = select_state(state, alive), memory.select(alive)
    return Sentences(tokens[:, : t + 1].unsqueeze(1), log_prob.unsqueeze(1))


def beam_search(decoder, memory, search: Search) -> Sentences:
    """The `n_best` best sentences of each row of `memory` among those that K = `beam_size` beams reach.

    An image is done when K sentences have ended and no open beam ranks above the worst of them. Sentences still open
    after max_length words are ended there.
    """
    K, n_images = search.beam_size, len(memory)
    state, device = decoder.start(memory), memory.device
    images = torch.arange(n_images, device=device)  # the images still searched
    last = torch.full((n_images,), START, device=device)
    scores = torch.zeros(n_images, 1, device=device)  # of the open beams: one at first, then as many as there are
    open_tokens = torch.full((n_images, 1, search.max_length + 1), PAD, device=device)
    ended = Ended(n_images, K, search.max_length + 1, search.length_penalty, device)
    for t in range(search.max_length + 1):
        logits, state, _ = decoder.step(last, state, memory)
        last_step = t == search.max_length
        log_probs = logits.float().log_softmax(1)
        log_probs = restrict(log_probs, open_tokens.view(-1, open_tokens.shape[2])[:, :t], search, last_step)
        b, k = scores.shape
        V = log_probs.shape[1]
        totals = log_probs.add_(scores.view(-1, 1)).view(b, k * V)
        # 2K candidates hold at least K that go on: each beam has one <end>
        candidates, index = totals.topk(min(2 * K, k * V), dim=1)
        beam, word = index // V, index % V
        tokens = open_tokens.gather(1, beam.unsqueeze(2).expand(-1, -1, open_tokens.shape[2]))
        tokens[:, :, t] = word
        ends = word == END
        ends[:, K:] &= last_step  # an end outside the K best does not count, or every sentence would end at once
        if ends.any():
            ended.add(images, tokens, candidates.masked_fill(~ends, -torch.inf), t + 1)
        if last_step:
            break
        # of the candidates that go on, the K best, in order
        scores, choice = candidates.masked_fill(word == END, -torch.inf).topk(min(K, candidates.shape[1]), dim=1)
        beam, last = beam.gather(1, choice), word.gather(1, choice)
        open_tokens = tokens.gather(1, choice.unsqueeze(2).expand(-1, -1, tokens.shape[2]))
        rows = torch.arange(b, device=device).unsqueeze(1) * k + beam
        alive = (scores[:, 0] / (t + 1) ** search.length_penalty > ended.rank[images, -1]).nonzero().squeeze(1)
        if len(alive) == 0:
            break
        if len(alive) < b:
            images, scores, last, rows, open_tokens = (x[alive] for x in (images, scores, last, rows, open_tokens))
            memory = memory.select(alive)
        state, last = select_state(state, rows.view(-1)), last.view(-1)
    return Sentences(ended.tokens[:, : search.n_best], ended.log_prob[:, : search.n_best])


class Ended:
    """The K best ended sentences of each image, the best first."""

    def __init__(self, n_images: int, beams: int, length: int, penalty: float, device):
        self.penalty = penalty
        self.tokens = torch.full((n_images, beams, length), PAD, device=device)
        self.log_prob = torch.full((n_images, beams), -torch.inf, device=device)
        self.rank = self.log_prob.clone()

    def add(self, images: Tensor, tokens: Tensor, log_prob: Tensor, length: int) -> None:
        """Offer candidates (b, M, T) with log_prob (b, M), -inf where the candidate has not ended."""
        log_prob = torch.cat([self.log_prob[images], log_prob], 1)
        rank = torch.cat([self.rank[images], log_prob[:, self.rank.shape[1] :] / length**self.penalty], 1)
        self.rank[images], keep = rank.topk(self.rank.shape[1], dim=1)
        self.log_prob[images] = log_prob.gather(1, keep)
        tokens = torch.cat([self.tokens[images], tokens], 1)
        self.tokens[images] = tokens.gather(1, keep.unsqueeze(2).expand(-1, -1, tokens.shape[2]))


def restrict(log_probs: Tensor, tokens: Tensor, search: Search, last_step: bool) -> Tensor:
    """log_probs (N, V), in place unless a gradient flows, with -inf for words that may not follow tokens (N, t)."""
    allowed = log_probs.clone() if log_probs.requires_grad else log_probs
    allowed[:, [PAD, START] if search.allow_unk else list(NEVER_WRITTEN)] = -torch.inf
    if last_step:
        end = allowed[:, END].clone()
        allowed.fill_(-torch.inf)
        allowed[:, END] = end
        return allowed
    if (search.block_trigrams or search.trigram_penalty_alpha > 0) and tokens.shape[1] >= 3:
        before = (tokens[:, :-2] == tokens[:, -2:-1]) & (tokens[:, 1:-1] == tokens[:, -1:])  # (N, t - 2)
        row, position = before.nonzero(as_tuple=True)
        cost = torch.inf if search.block_trigrams else search.trigram_penalty_alpha * math.log(2)
        allowed.index_put_((row, tokens[row, position + 2]), allowed.new_tensor(-cost), accumulate=True)
    if search.once and tokens.shape[1]:
        blocked = _once_only(search.once, allowed.shape[1], allowed.device)[tokens]  # (N, t)
        allowed.scatter_add_(1, tokens, allowed.new_zeros(tokens.shape).masked_fill(blocked, -torch.inf))
    if tokens.shape[1] < search.min_length:
        early = [END, *search.closing] if tokens.shape[1] < search.min_length - 1 else [END]
        kept = allowed[:, early]
        allowed[:, early] = -torch.inf
        stuck = allowed.amax(1, keepdim=True) == -torch.inf
        allowed[:, early] = kept.masked_fill(~stuck, -torch.inf)
    return allowed


@functools.lru_cache(maxsize=8)
def _once_only(words: tuple[int, ...], size: int, device: torch.device) -> Tensor:
    """Of each word id, V of them or more, whether it is among `words`."""
    mask = torch.zeros(max(size, max(words) + 1), dtype=torch.bool, device=device)
    mask[torch.tensor(words, device=device)] = True
    return mask


def _draw(log_probs: Tensor, search: Search) -> Tensor:
    """One word a row (N,) from log_probs (N, V) at the temperature, among the top_k words and the top_p nucleus."""
    scaled = log_probs / search.temperature
    if search.top_k:
        kth = scaled.topk(min(search.top_k, scaled.shape[1]), dim=1).values[:, -1:]
        scaled = scaled.masked_fill(scaled < kth, -torch.inf)
    probabilities = scaled.softmax(1)
    if search.top_p < 1.0:
        ordered, order = probabilities.sort(1, descending=True)
        ordered = ordered.masked_fill(ordered.cumsum(1) - ordered >= search.top_p, 0.0)
        probabilities = torch.zeros_like(probabilities).scatter(1, order, ordered)
    return torch.multinomial(probabilities, 1).squeeze(1)

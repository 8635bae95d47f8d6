"""The family of self-critical losses: what each name adds to the reward, and the frequency-aware cross-entropy.

    sc                           CIDEr-D alone (Rennie et al. 2017)
    sc_with_diversity            minus the distinct n-grams per token of all samples of the batch (n = 1..4)
    sc_with_relative_diversity   0.1 times how far the sample's n-gram counts are from the references' mean counts
    sc_with_bleu_diversity       0.15 times minus the sentence BLEU against the references
    sc_with_repetition           repeated n-grams of a caption, squared
    mixed                        gamma * sc + (1 - gamma) * cross-entropy (Paulus et al. 2018)
    mixed_with_face              the same with frequency-aware cross-entropy (Jiang et al. 2019)

A term that depends on drawn words only has no gradient of its own. Its value is in the loss that is reported; its
gradient is the score function's (Williams 1992), that is, each caption's cost is taken from its reward.

Shapes: N samples, M real tokens, V vocabulary.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from captioning.devices import summed

ORDERS = 4
RELATIVE_DIVERSITY, BLEU, UNIGRAM_REPETITION = 0.1, 0.15, 0.1  # weights, those of DeepCaption
Tokens = Sequence[int]


@dataclass
class Term:
    """What a loss adds: `value` as it is reported, costs (N,) as each caption's reward is lowered by.

    centred: the costs are measured against the rest of the batch already and want no baseline.
    """

    value: float
    costs: np.ndarray
    centred: bool = False


def extra_term(name: str, samples: list[Tokens], references: list[list[Tokens]]) -> Term | None:
    """The term that loss `name` adds for N samples, each with its references (tokens without <end>); None for none."""
    if name == "sc_with_diversity":
        return diversity(samples)
    if name == "sc_with_relative_diversity":
        costs = [RELATIVE_DIVERSITY * count_distance(*pair) for pair in zip(samples, references)]
    elif name == "sc_with_bleu_diversity":
        costs = [-BLEU * sentence_bleu(*pair) for pair in zip(samples, references)]
    elif name == "sc_with_repetition":
        costs = [repetition(sample) for sample in samples]
    else:
        return None
    return Term(float(np.sum(costs) if name == "sc_with_repetition" else np.mean(costs)), np.array(costs))


def runs(tokens: Tokens, n: int) -> list[tuple]:
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def diversity(samples: list[Tokens]) -> Term:
    """Minus the sum over n of the number of distinct n-grams of all samples over their number of tokens.

    The cost of a caption is N times what the value gains by it: leaving it out is a baseline that does not depend on
    it, so the gradient is unbiased.
    """
    distinct, alone = 0, np.zeros(len(samples))  # how many n-grams only this sample has
    for n in range(1, ORDERS + 1):
        sets = [set(runs(sample, n)) for sample in samples]
        spread = Counter(ngram for each in sets for ngram in each)
        distinct += len(spread)
        alone += [sum(spread[ngram] == 1 for ngram in each) for each in sets]
    lengths = np.array([len(sample) for sample in samples], float)
    value = -distinct / max(1.0, lengths.sum())
    without = -(distinct - alone) / np.maximum(1.0, lengths.sum() - lengths)
    return Term(float(value), len(samples) * (value - without), centred=True)


def count_distance(sample: Tokens, references: list[Tokens]) -> float:
    """L1 distance between the n-gram counts (n = 1..4) of a sample and the mean counts of its references."""
    distance = 0.0
    for n in range(1, ORDERS + 1):
        own = Counter(runs(sample, n))
        theirs = Counter(ngram for reference in references for ngram in runs(reference, n))
        distance += sum(abs(own[ngram] - theirs[ngram] / len(references)) for ngram in own.keys() | theirs.keys())
    return distance


def sentence_bleu(sample: Tokens, references: list[Tokens]) -> float:
    """BLEU-4 (Papineni et al. 2002) of one sentence; one is added to the counts of n > 1 (Lin and Och 2004)."""
    if not sample:
        return 0.0
    total = 0.0
    for n in range(1, ORDERS + 1):
        own = Counter(runs(sample, n))
        most: Counter = Counter()
        for reference in references:
            most |= Counter(runs(reference, n))
        matches, possible = sum((own & most).values()), max(1, sum(own.values()))
        if n > 1:
            matches, possible = matches + 1, possible + 1
        if not matches:
            return 0.0
        total += math.log(matches / possible) / ORDERS
    closest = min((len(reference) for reference in references), key=lambda length: (abs(length - len(sample)), length))
    return math.exp(total + min(0.0, 1 - closest / len(sample)))


def repetition(sample: Tokens) -> float:
    """0.1 d1 + d2 + d3 + d4, dn the sum over distinct n-grams of (count - 1)^2 over the number of n-grams."""
    total = 0.0
    for n in range(1, ORDERS + 1):
        ngrams = runs(sample, n)
        weight = UNIGRAM_REPETITION if n == 1 else 1.0
        total += weight * sum((count - 1) ** 2 for count in Counter(ngrams).values()) / max(1, len(ngrams))
    return total


class WordCounts:
    """How often the model has written each word, and the weights of FACE (Jiang et al. 2019, arXiv 1902.09191).

    counts (V,), float64, with <end>. The output frequency weighs before the softmax's loss: "FACE-OPR" in the paper.
    """

    def __init__(self, vocab_size: int):
        self.counts = torch.zeros(vocab_size, dtype=torch.float64)

    def add(self, tokens: Tensor) -> None:
        """Count ids (M,), those of all processes of a run."""
        self.counts += summed(torch.bincount(tokens, minlength=len(self.counts)).to(self.counts))

    def weights(self) -> Tensor:
        """(V,), with a mean of 1: the most frequent word has 0, one that was never written the most."""
        if self.counts.max() == 0:
            return torch.ones_like(self.counts, dtype=torch.float32)
        weights = 1 - self.counts / self.counts.max()
        total = weights.sum()
        return (weights / total * len(weights) if total > 0 else torch.ones_like(weights)).float()


def face_loss(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Mean over tokens of weight(target) * -log p(target): logits (M, V), targets (M,), weights (V,)."""
    return (weights[targets] * F.cross_entropy(logits.float(), targets, reduction="none")).mean()

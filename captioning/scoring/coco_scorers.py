"""BLEU, ROUGE-L and CIDEr as pycocoevalcap computes them, to the last bit, several times as fast.

    scorer = BleuScorer(n=4)                    # and CiderScorer(): as pycocoevalcap's classes of the same names
    scorer += ("a dog runs", ["a dog is running", "the dog runs"])
    Rouge().compute_score(references, hypotheses)

The formulas stay in pycocoevalcap; only its inner loops are replaced. Every sum is taken in the order in which it takes
it, so that not even the last bit of a score changes: tests/test_coco_scorers.py compares with `==`. `count` may be
`count_ngrams` with a cache, so that several metrics count the words of a caption once.
"""

from collections import Counter, defaultdict
from collections.abc import Callable
from itertools import chain

import numpy as np
from pycocoevalcap.bleu import bleu_scorer
from pycocoevalcap.cider import cider_scorer
from pycocoevalcap.rouge import rouge

ORDERS = 4  # n-grams of 1 to 4 words


class Ngrams(Counter):
    """n-gram -> occurrences; words: how many the text has."""

    words = 0


def count_ngrams(text: str) -> Ngrams:
    """n-grams of a text of tokens joined by blanks, first the single words, then pairs, to ORDERS."""
    words = text.split()
    shifted = [words[i:] for i in range(ORDERS)]
    counts = Ngrams(chain.from_iterable(zip(*shifted[:n]) for n in range(1, ORDERS + 1)))
    counts.words = len(words)
    return counts


class BleuScorer(bleu_scorer.BleuScorer):
    """Keeps of each caption what `compute_score` needs, and not the n-grams of its references."""

    __slots__ = ("count",)

    def __init__(self, n: int = ORDERS, count: Callable = count_ngrams):
        self.count = count
        super().__init__(n=n)

    def cook_append(self, test: str | None, refs: list[str] | None) -> None:
        self._score = None
        if refs is None:
            return
        cooked = [self.count(ref) for ref in refs]
        highest = dict(cooked[0])
        for counts in cooked[1:]:
            for ngram, count in counts.items():
                if count > highest.get(ngram, 0):
                    highest[ngram] = count
        counts = self.count(test)
        length, correct = counts.words, [0] * self.n
        for ngram, count in counts.items():
            if ngram in highest:
                correct[len(ngram) - 1] += min(highest[ngram], count)
        self.crefs.append(None)
        self.ctest.append(
            {
                "reflen": [counts.words for counts in cooked],
                "testlen": length,
                "guess": [max(0, length - k) for k in range(self.n)],
                "correct": correct,
            }
        )


class CiderScorer(cider_scorer.CiderScorer):
    """Weights and their squares are worked out once for each frequency instead of for each n-gram."""

    def __init__(self, n: int = ORDERS, sigma: float = 6.0, count: Callable = count_ngrams):
        self.count = count
        super().__init__(n=n, sigma=sigma)

    def cook_append(self, test: str | None, refs: list[str] | None) -> None:
        if refs is not None:
            self.crefs.append([self.count(ref) for ref in refs])
            self.ctest.append(self.count(test))

    def compute_doc_freq(self) -> None:
        counter = Counter(chain.from_iterable(set().union(*refs) for refs in self.crefs))
        self.document_frequency = defaultdict(float, counter)

    def compute_cider(self) -> list[float]:
        """A score for each image."""
        self.ref_len = np.log(float(len(self.crefs)))
        weights = _Weights(self.ref_len)
        scores = []
        frequency = self.document_frequency.get
        for test, refs in zip(self.ctest, self.crefs):
            vector = [(ngram, count, frequency(ngram, 0.0)) for ngram, count in test.items()]
            norm = self._norm(test, weights)
            score = np.zeros(self.n)
            for ref in refs:
                values = [0.0] * self.n
                for ngram, count, images in vector:
                    if ngram in ref:
                        weight, weight_ref = weights[count, images][0], weights[ref[ngram], images][0]
                        values[len(ngram) - 1] += min(weight, weight_ref) * weight_ref
                norm_ref = self._norm(ref, weights)
                delta = float(max(0, test.words - 1) - max(0, ref.words - 1))  # it counts pairs
                penalty = np.e ** (-(delta**2) / (2 * self.sigma**2))
                for k in range(self.n):
                    if norm[k] != 0 and norm_ref[k] != 0:
                        values[k] /= norm[k] * norm_ref[k]
                    values[k] *= penalty
                score += values
            scores.append(np.mean(score) / len(refs) * 10.0)
        return scores

    def _norm(self, counts: Ngrams, weights: "_Weights") -> list[float]:
        """Length of the vector of tf-idf weights for each n."""
        frequency, once, squares = self.document_frequency.get, weights.once, [0.0] * self.n
        for ngram, count in counts.items():
            images = frequency(ngram, 0.0)
            square = once.get(images) if count == 1 else None
            squares[len(ngram) - 1] += weights[count, images][1] if square is None else square
        return np.sqrt(squares).tolist()


class _Weights(dict):
    """(occurrences in the caption, images that have it) -> (tf-idf weight, its square).

    once: images that have it -> square of the weight of what occurs once, as nearly everything does.
    """

    def __init__(self, log_images: float):
        super().__init__()
        self.log_images = log_images
        self.once: dict[float, float] = {}

    def __missing__(self, key: tuple) -> tuple[float, float]:
        count, images = key
        weight = float(count) * (self.log_images - np.log(max(1.0, images)))
        self[key] = float(weight), float(pow(weight, 2))
        if count == 1:
            self.once[images] = self[key][1]
        return self[key]


class Rouge(rouge.Rouge):
    """The longest common subsequence from the bits of whole numbers, a word of a reference at a time."""

    def calc_score(self, candidate: list[str], refs: list[str]) -> float:
        words = candidate[0].split(" ")
        places: dict[str, int] = {}
        for place, word in enumerate(words):
            places[word] = places.get(word, 0) | 1 << place
        pairs = [(split := ref.split(" "), common_length(split, places, len(words))) for ref in refs]
        precision = max(common / float(len(words)) for _, common in pairs)
        recall = max(common / float(len(split)) for split, common in pairs)
        if precision == 0 or recall == 0:
            return 0.0
        return ((1 + self.beta**2) * precision * recall) / float(recall + self.beta**2 * precision)


def common_length(words: list[str], places: dict[str, int], length: int) -> int:
    """Length of the longest common subsequence of `words` and a sentence of `length` words.

    places: word -> bits at its places in that sentence. Hyyrö, Bit-parallel LCS-length computation revisited (2004):
    a bit of the row is 0 where the row of the usual table grows by one.
    """
    full = row = (1 << length) - 1
    for word in words:
        if word in places:
            matches = row & places[word]
            row = (row + matches | row - matches) & full
    return length - row.bit_count()

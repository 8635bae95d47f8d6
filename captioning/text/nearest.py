"""Sentences of a large list that are like a given one, by the n-grams that they share.

sentences = NearestSentences([["a", "red", "train"], ["two", "dogs"]])
sentences.of(["a", "train", "on", "tracks"], 16)     # [(0, 0.41)]: numbers and similarities, the nearest first
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from captioning.text.function_words import FUNCTION_WORDS

WORD, PAIR = 2.0, 1.0  # how much a word of content and two words in a row count


def without_marks(words: Iterable[str]) -> list[str]:
    """The words that have a letter or a digit."""
    return [word for word in words if any(map(str.isalnum, word))]


def ngrams(words: Sequence[str]) -> Counter:
    """The words of content and the pairs of neighbours, with their weights; what has no letter or digit is left out."""
    kept = without_marks(words)
    found: Counter = Counter()
    for word in kept:
        if word.lower() not in FUNCTION_WORDS:
            found[word] += WORD
    for pair in zip(kept, kept[1:]):
        found[pair] += PAIR
    return found


class NearestSentences:
    """N sentences, each a list of words, to be searched by the cosine of their tf-idf vectors.

    Salton and Buckley 1988, "Term-weighting approaches in automatic text retrieval".
    """

    def __init__(self, sentences: Sequence[Sequence[str]]):
        rows: dict = {}
        values: dict = {}
        for number, words in enumerate(sentences):
            for ngram, weight in ngrams(words).items():
                rows.setdefault(ngram, []).append(number)
                values.setdefault(ngram, []).append(weight)
        self.idf = {ngram: math.log(len(sentences) / len(numbers)) for ngram, numbers in rows.items()}
        squares = np.zeros(len(sentences))
        self.columns = {}  # n-gram -> the sentences that have it, and its weight there
        for ngram, numbers in rows.items():
            column = np.array(numbers), np.array(values[ngram]) * self.idf[ngram]
            squares[column[0]] += column[1] ** 2
            self.columns[ngram] = column
        self.norms = np.sqrt(squares)

    def of(self, words: Sequence[str], count: int) -> list[tuple[int, float]]:
        """Numbers of the `count` nearest sentences and their similarities, above 0 and at most 1, the nearest first.

        There are fewer where fewer share an n-gram with `words`. Of equal ones the first in the list comes first.
        """
        products, norm = np.zeros(len(self.norms)), 0.0
        for ngram, weight in ngrams(words).items():
            if ngram in self.columns:
                numbers, weights = self.columns[ngram]
                products[numbers] += weight * self.idf[ngram] * weights
                norm += (weight * self.idf[ngram]) ** 2
        shared = np.flatnonzero(products)
        if not len(shared):
            return []
        cosines = products[shared] / (self.norms[shared] * math.sqrt(norm))
        order = np.argsort(-cosines, kind="stable")[:count]
        return [(int(shared[n]), float(cosines[n])) for n in order]

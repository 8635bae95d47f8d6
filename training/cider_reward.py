"""CIDEr-D (Vedantam et al. 2015) of word ids as a reward: what the COCO scorer computes, many times faster.

An n-gram is one number (its token ids written in base `size`), so that counting and looking up need no tuples; the
references of an image are one table from n-gram to the references that have it; what a sample shares with its
references is then found in one look-up per n-gram.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from captioning.scoring import document_frequencies
from captioning.scoring.document_frequencies import (
    END_TOKEN,
    ORDERS,
    CachedWords,
    count_documents,
    tokenized,
    tokenizer_of,
)
from captioning.text.score_tokens import score_tokens
from vocabulary import Vocabulary

MOST_TABLES = 20_000  # images whose references are kept ready: about 30 kB each


class CiderReward:
    """CIDEr-D of word ids against the captions of their image, as the COCO scorer computes it.

    references: for each image its captions. Words are compared as the tokens of scores, so that punctuation
    counts as little as there. words: document frequencies; without them they are counted over these references. Where
    they are without <end>, as files of other programs are, n-grams with <end> are counted over these references all the
    same.
    """

    def __init__(
        self,
        references: dict[object, Sequence[str]],
        vocabulary: Vocabulary,
        end_token: bool = True,
        words: CachedWords | None = None,
    ):
        texts = tokenized(references, end_token)
        own = words is None
        words = count_documents(texts.values()) if words is None else words
        self.ids: dict[str, int] = {}

        tokens = score_tokens(tokenizer_of(references))

        def number(token: str) -> int:
            return self.ids.setdefault(token, len(self.ids) + 1)

        self.words = [tuple(map(number, tokens(word))) for word in vocabulary.words]
        self.words[:4] = [(), (), (number(END_TOKEN),) if end_token else (), (number("<unk>"),)]
        self.references = {key: [list(map(number, text)) for text in group] for key, group in texts.items()}
        self.size = document_frequencies.pack_size(len(self.ids))
        self.log_images = math.log(max(words.images, 2))
        self.idf = self._idf(words)
        if end_token and not own and END_TOKEN not in words.tokens:
            self._count_ends(texts)
        self.tables: dict[object, tuple] = {}

    def _idf(self, words: CachedWords) -> dict[int, float]:
        """Packed n-gram -> log(images) - log(images that have it)."""
        ours = np.array([*(self.ids.get(token, -1) for token in words.tokens), 0], np.int64)[words.ngrams]
        known = (ours >= 0).all(1)  # others can occur in no sample and no reference
        idf = self.log_images - np.log(np.maximum(1.0, words.counts[known]))
        return dict(zip(document_frequencies.pack(ours[known], self.size).tolist(), idf.tolist()))

    def _count_ends(self, texts: dict[object, list[list[str]]]) -> None:
        """Add the n-grams that have <end>, as rare as they are in these references."""
        own = count_documents(texts.values())
        log_images, end = math.log(max(own.images, 2)), own.tokens.index(END_TOKEN) if len(own) else -1
        with_end = (own.ngrams == end).any(1)
        ends = CachedWords(own.tokens, own.ngrams[with_end], own.counts[with_end], own.images)
        self.idf |= {k: v + log_images - self.log_images for k, v in self._idf(ends).items()}

    def score_ids(self, key, ids: Iterable[int], sigma: float = 6.0) -> float:
        """CIDEr-D, times ten as usual, of word ids up to and with <end> against the captions of image `key`."""
        tokens = [token for i in ids for token in self.words[i]]
        shared_by, lengths = self.tables.get(key) or self._table(key)
        totals = [0.0] * len(lengths)
        for ngrams, found in zip(document_frequencies.packed_ngrams(tokens, self.size), shared_by):
            values, square = self._tf_idf(ngrams)
            if square <= 0:
                continue
            norm = math.sqrt(square)
            for ngram, value in values:
                for reference, theirs, share in found.get(ngram, ()):
                    totals[reference] += (value if value < theirs else theirs) * share / norm
        length = max(0, len(tokens) - 1)  # the COCO scorer counts bigrams
        total = 0.0
        for similarity, other in zip(totals, lengths):
            total += similarity * math.exp(-((length - other) ** 2) / (2 * sigma**2))
        return 10 * total / ORDERS / len(lengths)

    def tokens(self, ids: Iterable[int]) -> list[int]:
        """Token numbers of word ids without <end>: what the diversity terms of the losses compare."""
        end = self.ids.get(END_TOKEN)
        return [token for i in ids for token in self.words[i] if token != end]

    def reference_tokens(self, key) -> list[list[int]]:
        """The same of the captions of image `key`."""
        end = self.ids.get(END_TOKEN)
        return [[token for token in text if token != end] for text in self.references[key]]

    def _tf_idf(self, ngrams: list[int]) -> tuple[list[tuple[int, float]], float]:
        """(n-gram, tf-idf) of the distinct n-grams, and the sum of the squares."""
        idf, rarest = self.idf, self.log_images
        if len(set(ngrams)) == len(ngrams):
            values = [(ngram, idf.get(ngram, rarest)) for ngram in ngrams]
        else:
            values = [(ngram, count * idf.get(ngram, rarest)) for ngram, count in Counter(ngrams).items()]
        return values, sum([value * value for _, value in values])

    def _table(self, key) -> tuple[list[dict], list[int]]:
        """For each n: n-gram -> (reference, its tf-idf, that divided by the reference's norm); and the lengths."""
        found: list[dict[int, list]] = [{} for _ in range(ORDERS)]
        for reference, text in enumerate(self.references[key]):
            for table, ngrams in zip(found, document_frequencies.packed_ngrams(text, self.size)):
                values, square = self._tf_idf(ngrams)
                for ngram, value in values if square > 0 else ():
                    table.setdefault(ngram, []).append((reference, value, value / math.sqrt(square)))
        if len(self.tables) >= MOST_TABLES:
            self.tables.clear()
        self.tables[key] = found, [max(0, len(text) - 1) for text in self.references[key]]
        return self.tables[key]

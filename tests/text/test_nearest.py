"""Nearest sentences: cosines of tf-idf vectors, against a computation of the whole matrix."""

import math

import numpy as np

from captioning.text.nearest import NearestSentences, ngrams

SENTENCES = ["a red train", "two dogs run", "a dog and a red ball .", "a red train on the tracks", "the"]
WORDS = [text.split() for text in SENTENCES]


def cosines(query: list[str]) -> list[float]:
    every = sorted({gram for words in WORDS for gram in ngrams(words)}, key=str)
    idf = [math.log(len(WORDS) / sum(gram in ngrams(words) for words in WORDS)) for gram in every]
    vector, *rows = (np.array([ngrams(w)[g] * x for g, x in zip(every, idf)]) for w in (query, *WORDS))
    return [float(row @ vector / (np.linalg.norm(row) * np.linalg.norm(vector) or 1)) for row in rows]


def test_similarities_are_cosines():
    for query in ("a red train", "a red dog", "two dogs run on the tracks", "red"):
        found = NearestSentences(WORDS).of(query.split(), 9)
        wanted = cosines(query.split())
        assert {n for n, _ in found} == {n for n, x in enumerate(wanted) if x > 0}
        for number, similarity in found:
            assert math.isclose(similarity, wanted[number])
        assert [x for _, x in found] == sorted((x for _, x in found), reverse=True)


def test_the_same_sentence_is_the_nearest_and_no_more_come_than_asked_for():
    nearest = NearestSentences(WORDS)
    ((number, similarity),) = nearest.of(WORDS[3], 1)
    assert number == 3 and math.isclose(similarity, 1)


def test_words_that_no_sentence_has_find_nothing():
    assert NearestSentences(WORDS).of(["zebra"], 5) == []
    assert NearestSentences(WORDS).of([], 5) == []


def test_function_words_and_punctuation_count_in_pairs_or_not_at_all():
    assert dict(ngrams(["The", "dog", "."])) == {"dog": 2.0, ("The", "dog"): 1.0}

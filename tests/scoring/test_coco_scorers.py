"""coco_scorers.py against pycocoevalcap, to the last bit."""

import math
from collections import defaultdict

import numpy as np
import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.bleu.bleu_scorer import precook
from pycocoevalcap.cider import cider_scorer
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge import rouge

from captioning.scoring.coco_scorers import BleuScorer, CiderScorer, Rouge, count_ngrams
from captioning.scoring.metrics import CiderD, silenced


@pytest.fixture(scope="module", params=range(3))
def corpus(request):
    """(hypotheses, references): few words, so that n-grams repeat; empty captions and ones equal to a reference too."""
    random = np.random.default_rng(request.param)
    words = [f"w{n}" for n in range((6, 40, 400)[request.param])]

    def caption(longest=18):
        return " ".join(random.choice(words, random.integers(0, longest)))

    references = {i: [caption() for _ in range(random.integers(1, 7))] for i in range(60)}
    references[7], references[8] = ["", ""], [" ".join(words * 12), caption()]
    hypotheses = {i: [caption()] for i in references}
    hypotheses |= {3: [references[3][0]], 4: [""], 8: [" ".join(words * 11)]}
    return hypotheses, references


def same(ours, theirs):
    assert np.array_equal(np.asarray(ours[0], float), np.asarray(theirs[0], float))
    assert np.array_equal(np.asarray(ours[1], float), np.asarray(theirs[1], float))


def test_ngrams_in_the_order_of_pycocoevalcap():
    for text in ("", "a", "a b a b a", "the cat  sat on the mat the cat"):
        assert list(count_ngrams(text).items()) == list(precook(text)[1].items())


def test_bleu_to_the_last_bit(corpus):
    hypotheses, references = corpus
    with silenced():
        theirs = Bleu(4).compute_score(references, hypotheses)
    scorer = BleuScorer()
    for i, captions in references.items():
        scorer += (hypotheses[i][0], captions)
    same(scorer.compute_score("closest", verbose=0), theirs)


def test_cider_to_the_last_bit(corpus):
    hypotheses, references = corpus
    scorer = CiderScorer()
    for i, captions in references.items():
        scorer += (hypotheses[i][0], captions)
    theirs = Cider().compute_score(references, hypotheses)
    same(scorer.compute_score(), theirs)
    assert theirs[0] > 0


def test_ciderd_to_the_last_bit(corpus):
    """With frequencies that are no whole numbers, and some larger than the number of images by a rounding."""
    hypotheses, references = corpus
    grams = sorted({ngram for captions in references.values() for text in captions for ngram in count_ngrams(text)})
    frequencies = {ngram: 1 + 0.37 * (n % 900) for n, ngram in enumerate(grams) if n % 3}
    table = {"document_frequency": frequencies, "ref_len": math.log(max(frequencies.values())) * (1 - 1e-9)}

    class Theirs(cider_scorer.CiderScorer):
        ref_len = property(lambda self: table["ref_len"], lambda self, value: None)

    ours, theirs = CiderD(table), Theirs()
    theirs.document_frequency = defaultdict(float, frequencies)
    for i, captions in references.items():
        ours += (hypotheses[i][0], captions)
        theirs += (hypotheses[i][0], captions)
    each = theirs.compute_cider()
    same(ours.compute_score(), (np.mean(np.array(each)), each))


def test_rouge_to_the_last_bit(corpus):
    hypotheses, references = corpus
    same(Rouge().compute_score(references, hypotheses), rouge.Rouge().compute_score(references, hypotheses))

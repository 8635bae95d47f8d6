"""Scores from sums over images, against pycocoevalcap's and METEOR's own."""

import numpy as np
import pytest
from pycocoevalcap.bleu.bleu import Bleu
from toy import CANDIDATES, REFERENCES

from captioning.scoring.corpus_scores import bleu_sums, means, meteor_sums
from captioning.scoring.metrics import java_missing, score_captions, tokenize

# What METEOR 1.5 prints for five captions of different quality, with its scores of each and of all five.
METEOR_LINES = """\
17.0 10.0 6.0 4.0 1.0 1.0 2.0 2.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 1.0 2.0 2.0 0.0 2.0 6.0 5.0
14.0 12.0 7.0 4.0 4.0 4.0 3.0 3.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 1.0 2.0 2.0 0.0 4.0 10.0 9.0
16.0 10.0 8.0 4.0 4.0 4.0 3.0 3.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 1.0 1.0 0.0 0.0 4.0 8.0 8.0
0.0 12.0 0.0 5.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0
10.0 10.0 5.0 5.0 5.0 5.0 5.0 5.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 1.0 10.0 10.0""".splitlines()
METEOR_EACH = [0.1754845645194608, 0.3273951459637895, 0.34148299242447105, 0.0, 1.0]


def of_all(part):
    return part.scores(part.rows.sum(0), len(part.rows))


def test_bleu_of_any_sample_is_that_of_the_scorer():
    scores = score_captions(CANDIDATES, REFERENCES, ("bleu",), "python")
    (part,) = scores.additive
    assert part.names == ("bleu_1", "bleu_2", "bleu_3", "bleu_4")
    assert of_all(part) == pytest.approx(list(scores.values.values()), abs=1e-12)
    keys = list(CANDIDATES)
    for sample in ([0, 0, 2], [1, 3], [2], [3, 3, 3, 0, 1]):
        hypotheses = {n: tokenize([CANDIDATES[keys[place]]], "python")[0] for n, place in enumerate(sample)}
        references = {n: tokenize(REFERENCES[keys[place]], "python")[0] for n, place in enumerate(sample)}
        expected, _ = Bleu(4).compute_score(references, hypotheses, verbose=0)
        assert of_all(part.of_images(sample)) == pytest.approx(expected, abs=1e-12)


def test_bleu_takes_the_closest_reference_and_the_shorter_of_two():
    caption = {"testlen": 5, "reflen": [9, 6, 4], "guess": [5, 4, 3, 2], "correct": [5, 4, 3, 2]}
    part = bleu_sums([caption])
    assert part.rows[0].tolist() == [5, 4, 5, 4, 3, 2, 5, 4, 3, 2]
    assert of_all(part) == pytest.approx([1, 1, 1, 1])
    assert of_all(bleu_sums([caption | {"reflen": [10]}])) == pytest.approx([np.exp(-1)] * 4)


def test_means_are_those_of_the_metrics():
    scores = score_captions(CANDIDATES, REFERENCES, ("rouge", "cider"), "python")
    for part in scores.additive:
        assert of_all(part) == pytest.approx([scores.values[name] for name in part.names])
    part = means({"a": [1, 2, 6], "b": [0, 0, 3]})
    assert of_all(part).tolist() == [3, 1]
    assert part.scores(np.array([[2.0, 4], [6, 8]]), 2).tolist() == [[1, 2], [3, 4]]


def test_meteor_by_its_formula():
    part = meteor_sums(METEOR_LINES)
    assert [float(part.scores(row, 1)[0]) for row in part.rows] == pytest.approx(METEOR_EACH, abs=1e-12)
    with pytest.raises(ValueError, match="METEOR prints 3 figures, not 23"):
        meteor_sums(["1 2 3"])


@pytest.mark.skipif(java_missing(), reason="needs Java")
@pytest.mark.slow
def test_meteor_of_all_captions(request):
    if "slow" not in (request.config.getoption("-m") or ""):
        pytest.skip("starting METEOR takes half a minute; run with -m slow")
    candidates = CANDIDATES | {5: "a dog runs", 6: ""}  # a perfect one and an empty one
    scores = score_captions(candidates, REFERENCES | {5: ["A dog runs."], 6: ["A cat."]}, ("meteor",))
    (part,) = scores.additive
    assert of_all(part)[0] == pytest.approx(scores.values["meteor"], abs=1e-12)
    assert part.scores(part.rows, 1)[:, 0] == pytest.approx(scores.per_image["meteor"], abs=1e-12)

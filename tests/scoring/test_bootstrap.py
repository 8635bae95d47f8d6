"""Intervals and p-values on made-up data: against textbook formulas, against all swaps, and how often they are right.

The two questions "does the interval hold the true score?" and "does noise look like a difference?" are asked of a
hundred made-up data sets, and of a thousand by `-m slow`.
"""

import itertools
from statistics import NormalDist

import numpy as np
import pytest

from captioning.scoring.bootstrap import differences, few_images_note, intervals
from captioning.scoring.corpus_scores import bleu_sums, means
from captioning.scoring.metrics import score_captions

IMAGES = 120
WORDS = 10
EXPECTED = np.array([0.7, 0.5, 0.32, 0.2])  # share of the n-grams that references have, n = 1 to 4


def skewed(random, systems: int):
    """Scores of images as CIDEr has them: many small ones, a few large. The true score is 0.6."""
    difficulty = random.gamma(1.5, 0.2, IMAGES)
    return [means({"cider": difficulty + random.gamma(1.5, 0.2, IMAGES)}) for _ in range(systems)]


def bleu(random, systems: int):
    """Figures of captions of ten words whose images are of different difficulty."""
    guesses = np.arange(WORDS, WORDS - 4, -1)
    easy = random.uniform(0.6, 1.4, (IMAGES, 1)) * EXPECTED
    parts = []
    for _ in range(systems):
        correct = random.binomial(guesses, easy)
        captions = [{"testlen": WORDS, "reflen": [WORDS], "guess": guesses, "correct": row} for row in correct]
        parts.append(bleu_sums(captions))
    return parts


TRUTH = {skewed: 0.6, bleu: float(np.prod(EXPECTED) ** 0.25)}
NAME = {skewed: "cider", bleu: "bleu_4"}
TIMES = [pytest.param(100, 0.9, 0.99, 0.13), pytest.param(1000, 0.93, 0.97, 0.07, marks=pytest.mark.slow)]


@pytest.mark.parametrize("make", [skewed, bleu])
@pytest.mark.parametrize(("times", "least", "most", "most_noise"), TIMES)
def test_how_often_they_are_right(make, times, least, most, most_noise, request):
    if times > 100 and "slow" not in (request.config.getoption("-m") or ""):
        pytest.skip("a thousand data sets; run with -m slow")
    random, name = np.random.default_rng(7), NAME[make]
    held = different = 0
    for seed in range(times):
        first, second = make(random, 2)
        low, high = intervals([first], 95, seed=seed)[name]
        held += low <= TRUTH[make] <= high
        different += differences([first], [second], seed=seed)[name].p < 0.05
    print(f"{make.__name__}: {held / times:.1%} hold the truth, {different / times:.1%} have p < 0.05")
    assert least <= held / times <= most
    assert (0.03 if times == 1000 else 0.0) <= different / times <= most_noise


def test_the_interval_of_a_mean_is_the_textbooks():
    values = np.random.default_rng(1).normal(3, 2, 2000)
    low, high = intervals([means({"x": values})], 90, resamples=4000)["x"]
    half = NormalDist().inv_cdf(0.95) * values.std(ddof=1) / len(values) ** 0.5
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=half * 0.06)
    wide = intervals([means({"x": values})], 99)["x"]
    assert wide[0] < low < high < wide[1]


def test_p_is_the_share_of_all_swaps():
    random = np.random.default_rng(3)
    first, second = random.normal(0, 1, 9), random.normal(0.7, 1, 9)
    swaps = np.array(list(itertools.product((1, -1), repeat=9)))
    all_differences = swaps @ (second - first)
    expected = np.mean(np.abs(all_differences) >= abs((second - first).sum()) - 1e-12)
    found = differences([means({"x": first})], [means({"x": second})], resamples=20_000)["x"]
    assert found.p == pytest.approx(expected, abs=0.01)
    assert found.value == pytest.approx((second - first).mean())
    assert found.low < found.value < found.high


def test_a_large_difference_is_found_though_the_images_differ_more():
    random = np.random.default_rng(4)
    images = random.gamma(1, 1, 300)
    first, second = (means({"x": images + shift + random.normal(0, 0.1, 300)}) for shift in (0, 0.05))
    found = differences([first], [second])["x"]
    assert found.p < 0.01 and 0 < found.low < found.high
    low, high = intervals([first])["x"]
    assert low < intervals([second])["x"][0] < high  # the intervals of both overlap


def test_the_same_results_do_not_differ():
    texts = {n: f"a dog {n % 7} runs on the grass" for n in range(20)}
    references = {n: [f"a dog {n % 5} runs on grass", "a dog"] for n in range(20)}
    scores = score_captions(texts, references, ("bleu", "rouge", "cider"), "python")
    for found in differences(scores.additive, scores.additive).values():
        assert (found.value, found.low, found.high, found.p) == (0, 0, 0, 1)
    assert intervals(scores.additive) == intervals(scores.additive)  # the same figures every time
    assert set(intervals(scores.additive)) == set(scores.values)
    for name, (low, high) in intervals(scores.additive).items():
        assert low <= scores.values[name] <= high


def test_scores_that_cannot_vary():
    assert intervals([means({"x": [0.5] * 10})])["x"] == (0.5, 0.5)
    assert intervals([means({"x": [0.5]})]) == {}  # one image tells nothing
    assert differences([means({"x": [0.5]})], [means({"x": [1]})]) == {}
    low, high = intervals([means({"x": [0, 1]})])["x"]
    assert (low, high) == (0, 1)
    assert differences([means({"x": [1, 2]})], [means({"y": [1, 2]})]) == {}  # nothing that both have


def test_few_images():
    assert few_images_note(100) is None
    assert few_images_note(1).startswith("scores of 1 image mean little")
    assert few_images_note(99).startswith("scores of 99 images mean little")

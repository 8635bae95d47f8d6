"""Confidence in scores: intervals by resampling the images, and the test of a difference between two results.

found = intervals(scores.additive, confidence=95)              # {"cider": (0.57, 0.63), ...}
found = differences(scores.additive, other.additive)           # {"cider": Difference(0.02, -0.01, 0.05, 0.19), ...}

An interval answers: had other photos of the same kind been scored, between which figures would the score be? It says
nothing of another training run. The same seed is used at each call, so that the same captions give the same figures.

Shapes: N images, S figures of an image, R resamples, M scores.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from captioning.scoring.corpus_scores import Additive

RESAMPLES = 1000
SEED = 1
NUMBERS_AT_ONCE = 2_000_000  # random numbers held at a time: 16 MB
# With captions of good quality the standard deviation of CIDEr over images is about as large as its mean. The 95%
# interval of 100 images is then 20% of the score to either side: more than what most papers report as progress.
FEW_IMAGES = 100
NOISE = 0.01  # a score below it says nothing about captions: chance decides which model has the highest


@dataclass(frozen=True)
class Difference:
    """How much higher the second results score than the first; its interval; the p-value of no difference."""

    value: float
    low: float
    high: float
    p: float


def few_images_note(images: int) -> str | None:
    """One line that warns of scores of a few images; None where there are enough."""
    if images >= FEW_IMAGES:
        return None
    return f"scores of {images} image{'s' * (images != 1)} mean little: chance moves them by a fifth and more; " \
        f"use {FEW_IMAGES} images or more"  # fmt: skip


def intervals(
    parts: Sequence[Additive], confidence: float = 95, resamples: int = RESAMPLES, seed: int = SEED
) -> dict[str, tuple[float, float]]:
    """Name of a score -> (low, high), between which the score lies with `confidence` percent.

    Images are drawn with replacement, and the score of all drawn captions is computed anew. The bounds are BCa
    quantiles (Efron 1987): scores of images are skewed, and plain quantiles then cover too little. They are widened as
    Student's t is wider than the normal distribution, which matters below a hundred images (Hesterberg 2015).
    CIDEr keeps its document frequencies: they are weights of the metric, and a sample in which images occur twice
    would change them.
    """
    found = {}
    for part in parts:
        images, total = len(part.rows), part.rows.sum(0)
        if images < 2:
            continue
        drawn = _samples(part.rows, resamples, seed, _draw)
        values = np.sort(part.scores(drawn, images), axis=0)  # (R, M)
        left_out = part.scores(total - part.rows, images - 1)  # (N, M): the scores without each image in turn
        for column, (name, score) in enumerate(zip(part.names, part.scores(total, images))):
            found[name] = _bounds(values[:, column], float(score), left_out[:, column], confidence)
    return found


def _bounds(values: np.ndarray, score: float, left_out: np.ndarray, confidence: float) -> tuple[float, float]:
    """The BCa interval of a score from its sorted resampled `values` (R,) and its jackknife values (N,)."""
    if values[0] == values[-1]:
        return float(values[0]), float(values[-1])
    normal, size = NormalDist(), len(values)
    below = (np.sum(values < score) + np.sum(values <= score)) / (2 * size)
    bias = normal.inv_cdf(float(np.clip(below, 1 / size, 1 - 1 / size)))
    deviation = left_out.mean() - left_out
    spread = np.sum(deviation**2) ** 1.5
    acceleration = np.sum(deviation**3) / (6 * spread) if spread else 0.0
    widened = _student(normal.inv_cdf(0.5 + confidence / 200), len(left_out))
    places = []
    for side in (-widened, widened):
        shifted = bias + side
        places.append(normal.cdf(bias + shifted / (1 - acceleration * shifted)))
    low, high = np.quantile(values, places, method="weibull")
    return float(low), float(high)


def _student(z: float, images: int) -> float:
    """The normal quantile `z`, as far out as Student's t would be for the mean of `images` images.

    The bootstrap divides by N where the variance needs N - 1, hence the factor; the series is Cornish and Fisher's.
    """
    free = images - 1
    t = z + (z**3 + z) / (4 * free) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * free**2)
    return t * (images / free) ** 0.5


def differences(
    first: Sequence[Additive],
    second: Sequence[Additive],
    confidence: float = 95,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> dict[str, Difference]:
    """Of the scores that both have, by how much `second` is higher. Row for row they must be of the same images.

    The interval is that of a paired bootstrap (Koehn 2004): both are scored on the same drawn images. The p-value, of
    both sides, is that of approximate randomization (Noreen 1989), which finds fewer differences where there are none
    (Riezler and Maxwell 2005): captions are swapped between the two for half the images, drawn at random; p is the
    share of draws with as large a difference, the one at hand counted as one of them.
    """
    found = {}
    by_name = {part.names: part for part in second}
    for one in first:
        other = by_name.get(one.names)
        if other is None or len(one.rows) < 2:
            continue
        pair = _paired(one, other)
        bounds = intervals([pair], confidence, resamples, seed)
        value = pair.scores(pair.rows.sum(0), len(pair.rows))
        chances = _randomization(pair, one, other, resamples, seed)
        for column, name in enumerate(pair.names):
            found[name] = Difference(float(value[column]), *bounds[name], float(chances[column]))
    return found


def _paired(one: Additive, other: Additive) -> Additive:
    """The difference between two scores as a score: its figures are those of both, side by side."""
    width = one.rows.shape[1]

    def formula(sums: np.ndarray, images: int) -> np.ndarray:
        return other.scores(sums[..., width:], images) - one.scores(sums[..., :width], images)

    return Additive(one.names, np.hstack([one.rows, other.rows]), formula)


def _randomization(pair: Additive, one: Additive, other: Additive, resamples: int, seed: int) -> np.ndarray:
    """The p-values (M,) of the scores of `pair`."""
    images, total = len(pair.rows), pair.rows.sum(0)
    change = other.rows - one.rows
    moved = _samples(np.hstack([change, -change]), resamples, seed, _coins)
    observed = np.abs(pair.scores(total, images))
    as_large = np.abs(pair.scores(total + moved, images)) >= observed - 1e-12  # sums of the same numbers differ by less
    return (1 + as_large.sum(0)) / (1 + resamples)


def _samples(rows: np.ndarray, resamples: int, seed: int, draw: Callable) -> np.ndarray:
    """Sums (R, S) of `rows` (N, S), each weighed by the numbers that `draw` gives it."""
    random, size = np.random.default_rng(seed), max(1, NUMBERS_AT_ONCE // len(rows))
    return np.concatenate(
        [draw(random, min(size, resamples - at), len(rows)) @ rows for at in range(0, resamples, size)]
    )


def _draw(random: np.random.Generator, samples: int, images: int) -> np.ndarray:
    """How often each image is drawn (samples, images): in all as often as there are images."""
    drawn = random.integers(0, images, (samples, images)) + images * np.arange(samples)[:, None]
    return np.bincount(drawn.ravel(), minlength=samples * images).reshape(samples, images).astype(float)


def _coins(random: np.random.Generator, samples: int, images: int) -> np.ndarray:
    """0 or 1 for each image (samples, images), 1 for about half of them."""
    return random.integers(0, 2, (samples, images)).astype(float)

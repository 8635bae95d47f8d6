"""Scores of a set of images from figures that add up over the images, so that any sample of them is scored at once.

bleu = bleu_sums(scorer.ctest)                        # an Additive of BLEU-1 to BLEU-4
bleu.scores(bleu.rows.sum(0), len(bleu.rows))         # the four scores of all images

Shapes: N images, S figures of an image, R samples, M scores.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

ORDERS = 4  # BLEU counts n-grams of one to four words
# METEOR 1.5 for English (Denkowski and Lavie 2014): the weights of its four matchers, then its four parameters.
METEOR_WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])
ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75
METEOR_FIGURES = 23
CHUNKS, MATCHED, REFERENCE_MATCHED = 20, 21, 22  # places among METEOR's figures; the lengths are at 0 and 1


@dataclass(frozen=True)
class Additive:
    """Scores that are computed from sums over images.

    names: the M scores; rows (N, S): the figures of each image; formula: (sums (..., S), number of images) -> (..., M).
    """

    names: tuple[str, ...]
    rows: np.ndarray
    formula: Callable[[np.ndarray, int], np.ndarray]

    def scores(self, sums: np.ndarray, images: int) -> np.ndarray:
        """The scores (..., M) of samples of `images` images, whose figures add up to `sums` (..., S)."""
        return self.formula(sums, images)

    def of_images(self, places: Sequence[int]) -> "Additive":
        """The same scores of the images at `places` (rows of this one), in this order."""
        return replace(self, rows=self.rows[np.asarray(places)])


def means(per_image: Mapping[str, Sequence[float]]) -> Additive:
    """Scores that are the mean of those of the images, as ROUGE-L, CIDEr and SPICE are."""
    rows = np.array(list(per_image.values()), float).T
    return Additive(tuple(per_image), rows, lambda sums, images: sums / images)


def bleu_sums(captions: Sequence[Mapping]) -> Additive:
    """BLEU-1 to BLEU-4 (Papineni et al. 2002) from `ctest` of pycocoevalcap's BleuScorer, an entry for each caption.

    The figures of a caption: its length, that of the closest reference, its n-grams, and those that references have.
    """
    rows = [
        (c["testlen"], min((abs(n - c["testlen"]), n) for n in c["reflen"])[1], *c["guess"], *c["correct"])
        for c in captions
    ]
    return Additive(tuple(f"bleu_{n}" for n in range(1, ORDERS + 1)), np.array(rows, float), _bleu)


def _bleu(sums: np.ndarray, images: int) -> np.ndarray:
    """pycocoevalcap's formula, with the small numbers that it adds."""
    length, reference, guessed, correct = sums[..., 0], sums[..., 1], sums[..., 2:6], sums[..., 6:10]
    precisions = np.cumprod((correct + 1e-15) / (guessed + 1e-9), axis=-1) ** (1 / np.arange(1, ORDERS + 1))
    ratio = (length + 1e-15) / (reference + 1e-9)
    return precisions * np.exp(np.minimum(0, 1 - 1 / ratio))[..., None]


def meteor_sums(lines: Sequence[str]) -> Additive:
    """METEOR from the figures that its program prints for each caption. Raises ValueError where they are others.

    The program leaves the chunk of a perfect caption out of its sums; so do the figures here.
    """
    rows = np.array([[float(figure) for figure in line.split()] for line in lines])
    if rows.shape != (len(lines), METEOR_FIGURES):
        raise ValueError(f"METEOR prints {rows.shape[-1]} figures, not {METEOR_FIGURES}")
    rows[:, CHUNKS] *= ~_perfect(rows)
    return Additive(("meteor",), rows, _meteor)


def _perfect(figures: np.ndarray) -> np.ndarray:
    whole = (figures[..., MATCHED] == figures[..., 0]) & (figures[..., REFERENCE_MATCHED] == figures[..., 1])
    return whole & (figures[..., CHUNKS] == 1)


def _meteor(sums: np.ndarray, images: int) -> np.ndarray:
    """Denkowski and Lavie 2014, equations 1 to 4, with content and function words weighed apart."""
    content, function = sums[..., 4:20:4], sums[..., 6:20:4]  # matches of each matcher in the captions
    reference_content, reference_function = sums[..., 5:20:4], sums[..., 7:20:4]
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = _weighed(content, function) / _length(sums[..., 0], sums[..., 2])
        recall = _weighed(reference_content, reference_function) / _length(sums[..., 1], sums[..., 3])
        mean = precision * recall / (ALPHA * precision + (1 - ALPHA) * recall)
        fragments = sums[..., CHUNKS] / ((sums[..., MATCHED] + sums[..., REFERENCE_MATCHED]) / 2)
        score = mean * (1 - GAMMA * fragments**BETA)
    return np.nan_to_num(score)[..., None]  # nothing matches: 0


def _weighed(content: np.ndarray, function: np.ndarray) -> np.ndarray:
    return ((DELTA * content + (1 - DELTA) * function) * METEOR_WEIGHTS).sum(-1)


def _length(words: np.ndarray, function_words: np.ndarray) -> np.ndarray:
    return DELTA * (words - function_words) + (1 - DELTA) * function_words

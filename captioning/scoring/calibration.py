"""How sure a captioner may be of its captions: log-probabilities turned into the chance that a caption is a good one.

calibration = fit(mean_log_probs, scores)      # of captions of images that have reference captions
calibration.confidence(-0.71)                  # 0.64: of such captions 64 in a hundred are good
Calibration.from_dict(calibration.to_dict(), "x.model")

A caption is called good where its CIDEr against the references of its image is at least GOOD. How often that is so a
log-probability alone does not tell: models differ, by their training above all.

Shapes: N captions.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np

from captioning.errors import UserError

METRIC, GOOD = "cider", 0.5
LEAST_IMAGES = 50  # fewer say too little of a share
FOLDS, BINS = 5, 10
RIDGE = 1e-6  # keeps the fit finite where all captions are equally likely


@dataclass(frozen=True)
class Calibration:
    """The logistic function of a caption's mean log-probability that Platt (1999) turns scores into chances by.

    slope, bias: of the function; threshold: from which CIDEr on a caption is good; good: the share of good captions
    among those of the fit; images: how many those were; error: the expected calibration error on captions that were
    left out of the fit; beam_size, length_penalty: of the search that wrote the captions.
    """

    slope: float
    bias: float
    threshold: float
    good: float
    images: int
    error: float
    beam_size: int = 1
    length_penalty: float = 0.0

    def confidence(self, mean_log_prob: float) -> float:
        """The chance, from 0 to 1, that a caption is good. mean_log_prob: natural, of a token, <end> included."""
        return float(sigmoid(np.float64(self.slope * mean_log_prob + self.bias)))

    def to_dict(self) -> dict:
        """The calibration in plain types, as model files hold it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, state, source: str) -> "Calibration":
        """The calibration in a model file. Raises UserError, naming `source`, where `state` is none."""
        kinds = {field.name: (int,) if field.type is int else (int, float) for field in fields(cls)}
        if not isinstance(state, dict) or state.keys() != kinds.keys():
            raise UserError(f"{source} has a calibration that is not what average_models.py --calibrate writes")
        for name, value in state.items():
            sound = type(value) in kinds[name] and abs(value) < 1e6
            if not sound or (name in ("good", "error") and not 0 <= value <= 1):
                raise UserError(f"{source} has a calibration with the {name} {str(value)[:60]!r}, which none can have")
        return cls(**state)


def fit(
    mean_log_probs: Sequence[float], scores: Sequence[float], beam_size: int = 1, length_penalty: float = 0.0
) -> Calibration:
    """The calibration of a captioner by N captions and their CIDEr against the references of their images.

    The error is measured by cross-validation in five parts. beam_size, length_penalty: of the search that wrote the
    captions. Raises UserError where there are too few captions.
    """
    if len(scores) < LEAST_IMAGES:
        raise UserError(f"{len(scores)} captioned images are too few to calibrate: give {LEAST_IMAGES} or more")
    means, good = np.asarray(mean_log_probs, float), np.asarray(scores, float) >= GOOD
    left_out, fold_of = np.empty(len(good)), np.arange(len(good)) % FOLDS
    for fold in range(FOLDS):
        there = fold_of == fold
        slope, bias = platt(means[~there], good[~there])
        left_out[there] = sigmoid(slope * means[there] + bias)
    error = expected_calibration_error(left_out, good)
    slope, bias = platt(means, good)
    return Calibration(slope, bias, GOOD, float(good.mean()), len(good), error, beam_size, float(length_penalty))


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(x, -500, 500)))


def platt(x: np.ndarray, good: np.ndarray) -> tuple[float, float]:
    """Slope and bias of the logistic function of x (N,) that fits `good` (N,) best, by Newton's method.

    The targets are not 1 and 0, but what a prior of one caption of either kind makes of them, so that the fit stays
    sound where no caption, or each, is good (Platt 1999, "Probabilistic outputs for support vector machines").
    """
    positives, negatives = good.sum(), (~good).sum()
    targets = np.where(good, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    middle, spread = x.mean(), max(x.std(), 1e-6)
    z = np.stack([(x - middle) / spread, np.ones(len(x))], 1)
    weights = np.array([0.0, np.log((positives + 1) / (negatives + 1))])
    for _ in range(100):
        p = sigmoid(z @ weights)
        gradient = z.T @ (p - targets) + RIDGE * weights
        curvature = (z * (p * (1 - p))[:, None]).T @ z + RIDGE * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        weights -= step * min(1.0, 2 / max(abs(step).max(), 1e-12))  # far from the solution a step may be too long
        if abs(step).max() < 1e-9:
            break
    slope = weights[0] / spread
    return float(slope), float(weights[1] - slope * middle)


def expected_calibration_error(confidences: Sequence[float], good: Sequence[bool]) -> float:
    """How far confidences are from the share of good captions, mean over captions: 0 is perfect, 1 the worst.

    Captions are put into ten bins of equal width by their confidence. In each bin the mean confidence is compared with
    the share of good ones (Guo et al. 2017, arXiv 1706.04599, equation 3).
    """
    confidences, good = np.asarray(confidences, float), np.asarray(good, float)
    bins = np.minimum((confidences * BINS).astype(int), BINS - 1)
    gaps = [abs((confidences - good)[bins == number].sum()) for number in range(BINS)]
    return float(sum(gaps) / max(1, len(good)))

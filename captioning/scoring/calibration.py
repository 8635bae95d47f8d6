"""How sure a captioner may be of its captions: log-probabilities turned into the chance that a caption is a good one.

calibration = fit(mean_log_probs, scores)      # of captions of images that have reference captions
calibration.confidence(-0.71)                  # 0.64: of such captions 64 in a hundred are good
Calibration.from_dict(calibration.to_dict(), "x.model")

A caption is called good where its CIDEr against the references of its image is at least GOOD. How often that is so a
log-probability alone does not tell: models differ, by their training above all.

A bland caption is likely whatever the photo shows. So the log-probability of the same words about a blank picture may
count too: what is as likely there says little about the photo.

Shapes: N captions, F numbers of each.
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
    left out of the fit; beam_size, length_penalty: of the search that wrote the captions; blank_slope: the factor of
    the mean log-probability about a blank picture, 0 where that does not count.
    """

    slope: float
    bias: float
    threshold: float
    good: float
    images: int
    error: float
    beam_size: int = 1
    length_penalty: float = 0.0
    blank_slope: float = 0.0

    def confidence(self, mean_log_prob: float, blank: float | None = None) -> float:
        """The chance, from 0 to 1, that a caption is good. mean_log_prob: natural, of a token, <end> included.

        blank: the same of these words about a blank picture. Raises ValueError where it counts and is not given.
        """
        if self.blank_slope and blank is None:
            raise ValueError("this calibration needs the log-probability about a blank picture too")
        known = self.slope * mean_log_prob + self.blank_slope * (blank or 0.0)
        return float(sigmoid(np.float64(known + self.bias)))

    def to_dict(self) -> dict:
        """The calibration in plain types, as model files hold it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, state, source: str) -> "Calibration":
        """The calibration in a model file. Raises UserError, naming `source`, where `state` is none."""
        kinds = {field.name: (int,) if field.type is int else (int, float) for field in fields(cls)}
        if not isinstance(state, dict) or {"blank_slope": 0.0, **state}.keys() != kinds.keys():
            raise UserError(f"{source} has a calibration that is not what average_models.py --calibrate writes")
        for name, value in state.items():
            sound = type(value) in kinds[name] and abs(value) < 1e6
            if not sound or (name in ("good", "error") and not 0 <= value <= 1):
                raise UserError(f"{source} has a calibration with the {name} {str(value)[:60]!r}, which none can have")
        return cls(**state)


def fit(
    mean_log_probs: Sequence[float],
    scores: Sequence[float],
    beam_size: int = 1,
    length_penalty: float = 0.0,
    blank: Sequence[float] | None = None,
) -> Calibration:
    """The calibration of a captioner by N captions and their CIDEr against the references of their images.

    The error is measured by cross-validation in five parts. beam_size, length_penalty: of the search that wrote the
    captions. blank: mean log-probabilities of the same words about a blank picture, where these are to count. Raises
    UserError where there are too few captions.
    """
    if len(scores) < LEAST_IMAGES:
        raise UserError(f"{len(scores)} captioned images are too few to calibrate: give {LEAST_IMAGES} or more")
    x, good = np.stack([mean_log_probs] if blank is None else [mean_log_probs, blank], 1), np.asarray(scores) >= GOOD
    left_out, fold_of = np.empty(len(good)), np.arange(len(good)) % FOLDS
    for fold in range(FOLDS):
        there = fold_of == fold
        slopes, bias = platt(x[~there], good[~there])
        left_out[there] = sigmoid(x[there] @ slopes + bias)
    error = expected_calibration_error(left_out, good)
    slopes, bias = platt(x, good)
    slope, *of_blank = map(float, slopes)
    share = float(good.mean())
    return Calibration(slope, bias, GOOD, share, len(good), error, beam_size, float(length_penalty), *of_blank)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(x, -500, 500)))


def platt(x: np.ndarray, good: np.ndarray) -> tuple[np.ndarray, float]:
    """Slopes (F,) and bias of the logistic function of x (N, F) that fits `good` (N,) best, by Newton's method.

    The targets are not 1 and 0, but what a prior of one caption of either kind makes of them, so that the fit stays
    sound where no caption, or each, is good (Platt 1999, "Probabilistic outputs for support vector machines").
    """
    positives, negatives = good.sum(), (~good).sum()
    targets = np.where(good, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    middle, spread = x.mean(0), np.maximum(x.std(0), 1e-6)
    z = np.concatenate([(x - middle) / spread, np.ones((len(x), 1))], 1)
    weights = np.append(np.zeros(x.shape[1]), np.log((positives + 1) / (negatives + 1)))
    for _ in range(100):
        p = sigmoid(z @ weights)
        gradient = z.T @ (p - targets) + RIDGE * weights
        curvature = (z * (p * (1 - p))[:, None]).T @ z + RIDGE * np.eye(len(weights))
        step = np.linalg.solve(curvature, gradient)
        weights -= step * min(1.0, 2 / max(abs(step).max(), 1e-12))  # far from the solution a step may be too long
        if abs(step).max() < 1e-9:
            break
    slopes = weights[:-1] / spread
    return slopes, float(weights[-1] - slopes @ middle)


def expected_calibration_error(confidences: Sequence[float], good: Sequence[bool]) -> float:
    """How far confidences are from the share of good captions, mean over captions: 0 is perfect, 1 the worst.

    Captions are put into ten bins of equal width by their confidence. In each bin the mean confidence is compared with
    the share of good ones (Guo et al. 2017, arXiv 1706.04599, equation 3).
    """
    confidences, good = np.asarray(confidences, float), np.asarray(good, float)
    bins = np.minimum((confidences * BINS).astype(int), BINS - 1)
    gaps = [abs((confidences - good)[bins == number].sum()) for number in range(BINS)]
    return float(sum(gaps) / max(1, len(good)))

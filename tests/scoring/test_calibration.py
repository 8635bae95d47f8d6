"""Confidences: the fit against torch's optimizer, the error by hand, what they promise on captions of known odds."""

import json
import math

import numpy as np
import pytest
import torch

from captioning.errors import UserError
from captioning.scoring.calibration import GOOD, Calibration, expected_calibration_error, fit, platt, sigmoid

FITTED = fit(np.linspace(-3, 0, 60), np.arange(60) % 7 / 4, 3, 0.7)


def drawn(n: int, slope: float, bias: float, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities, and scores that are good with the chance of a logistic function."""
    draw = np.random.default_rng(seed)
    x = draw.normal(-1.2, 0.4, n)
    return x, np.where(draw.random(n) < sigmoid(slope * x + bias), GOOD, GOOD - 1e-6)


def test_the_fit_is_that_of_another_optimizer():
    x, scores = drawn(300, 3.0, 3.2)
    good = scores >= GOOD
    n1, n0 = good.sum(), (~good).sum()
    targets = torch.tensor(np.where(good, (n1 + 1) / (n1 + 2), 1 / (n0 + 2)))
    weights = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        logits = weights[0] * torch.tensor(x) + weights[1]
        value = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
        value.backward()
        return value

    optimizer.step(loss)
    slopes, bias = platt(x[:, None], good)
    assert [*slopes, bias] == pytest.approx(weights.tolist(), abs=1e-4)


def test_what_is_as_likely_about_a_grey_picture_counts_less():
    draw = np.random.default_rng(2)
    x, blank = draw.normal(-0.5, 0.15, 4000), draw.normal(-2.2, 0.5, 4000)
    good = draw.random(4000) < sigmoid(4 * x - 1.2 * blank - 0.7)
    found = fit(x, good * 1.0, 5, 0.8, blank)
    assert (found.slope, found.blank_slope, found.bias) == pytest.approx((4, -1.2, -0.7), abs=0.5)
    assert found.confidence(-0.5, -2.5) > found.confidence(-0.5, -1.0) + 0.2
    assert Calibration.from_dict(json.loads(json.dumps(found.to_dict())), "x.model") == found
    older = {name: value for name, value in FITTED.to_dict().items() if name != "blank_slope"}
    assert Calibration.from_dict(older, "x.model") == FITTED
    with pytest.raises(ValueError, match="blank picture"):
        found.confidence(-0.5)


def test_confidences_are_the_share_of_good_captions():
    calibration = fit(*drawn(4000, 3.0, 3.2))
    assert (calibration.slope, calibration.bias) == pytest.approx((3.0, 3.2), abs=0.4)
    assert calibration.error < 0.03 and calibration.images == 4000
    x, scores = drawn(20000, 3.0, 3.2, seed=2)
    for low in (-2.0, -1.5, -1.0):
        there = (x >= low) & (x < low + 0.2)
        told = np.mean([calibration.confidence(value) for value in x[there]])
        assert told == pytest.approx((scores[there] >= GOOD).mean(), abs=0.04)


@pytest.mark.parametrize("score, low, high", [(0.0, 0.0, 0.05), (2.0, 0.95, 1.0)])
def test_where_all_captions_are_bad_or_good(score, low, high):
    calibration = fit(np.linspace(-3, -0.5, 60), np.full(60, score))
    assert all(low <= calibration.confidence(value) <= high for value in (-3, -1.5, -0.5))


def test_where_all_captions_are_the_same():
    calibration = fit([-1.0] * 60, [0.2, 0.6] * 30)
    assert calibration.confidence(-1.0) == pytest.approx(0.5, abs=1e-6)


def test_where_log_probabilities_tell_all():
    x = np.linspace(-3, 0, 100)
    calibration = fit(x, np.where(x > -1, 1.0, 0.0))
    assert calibration.confidence(-2) < 0.05 and calibration.confidence(-0.2) > 0.95
    assert 0 <= calibration.confidence(-1e300) <= calibration.confidence(0.0) <= 1


def test_few_captions_are_refused():
    with pytest.raises(UserError, match="49 captioned images are too few"):
        fit([-1.0] * 49, [1.0] * 49)


def test_the_error_is_guos():
    told = [0.05, 0.15, 0.12, 0.95, 1.0]
    good = [False, True, False, True, False]
    # bins: [0.05], [0.15, 0.12], [0.95, 1.0]
    expected = (abs(0 - 0.05) + 2 * abs(0.5 - 0.135) + 2 * abs(0.5 - 0.975)) / 5
    assert expected_calibration_error(told, good) == pytest.approx(expected)
    assert expected_calibration_error([], []) == 0


def test_it_comes_back_from_plain_types():
    assert Calibration.from_dict(json.loads(json.dumps(FITTED.to_dict())), "x.model") == FITTED


@pytest.mark.parametrize("name", FITTED.to_dict())
@pytest.mark.parametrize("lie", ["1", None, True, math.nan, math.inf, 10**400, [1.0], {}, -(10.0**9)])
def test_a_damaged_one_is_refused(name, lie):
    with pytest.raises(UserError, match="x.model has a calibration with") as caught:
        Calibration.from_dict({**FITTED.to_dict(), name: lie}, "x.model")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


@pytest.mark.parametrize("state", [None, [], "x", {}, {"slope": 1.0}, {**FITTED.to_dict(), "more": 1}])
def test_what_is_none_is_refused(state):
    with pytest.raises(UserError, match="x.model has a calibration that is not"):
        Calibration.from_dict(state, "x.model")

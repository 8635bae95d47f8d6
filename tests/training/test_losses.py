"""The losses against their formulas in plain Python."""

import math

import pytest
import torch
from torch.nn import functional as F

from captioning.fast.cross_entropy import ROWS_AT_ONCE, output_cross_entropy
from training.losses import attention_regularisation, projection_regularisation, token_cross_entropy


def log_softmax(row):
    total = math.log(sum(math.exp(x) for x in row))
    return [x - total for x in row]


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_cross_entropy_by_hand(smoothing):
    """Szegedy et al. 2016, section 7: the target is (1 - e) one-hot + e / V."""
    torch.manual_seed(0)
    logits, targets = torch.randn(6, 5) * 3, torch.tensor([0, 1, 2, 3, 4, 2])
    total = 0.0
    for row, target in zip(logits.tolist(), targets.tolist()):
        for word, log_prob in enumerate(log_softmax(row)):
            total -= ((1 - smoothing) * (word == target) + smoothing / 5) * log_prob
    assert token_cross_entropy(logits, targets, smoothing).item() == pytest.approx(total / 6, rel=1e-5)


def test_a_uniform_guess_costs_the_logarithm_of_the_vocabulary():
    assert token_cross_entropy(torch.zeros(3, 1000), torch.tensor([1, 2, 3])).item() == pytest.approx(math.log(1000))


def test_half_precision_is_summed_in_full():
    torch.manual_seed(0)
    logits, targets = torch.randn(50, 2000).bfloat16(), torch.randint(2000, (50,))
    loss = token_cross_entropy(logits, targets)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(token_cross_entropy(logits.float(), targets).item(), rel=1e-6)


def test_attention_regularisation_by_hand():
    """Xu et al. 2015, eq. 14, averaged over regions and rows."""
    weights = torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5], [1.0, 0.0, 0.0], [0.1, 0.8, 0.1]])
    row = torch.tensor([1, 0, 1, 1])
    sums = [[0.2, 0.3, 0.5], [1.6, 1.3, 0.1]]
    expected = sum((1 - s) ** 2 for each in sums for s in each) / 6
    assert attention_regularisation(weights, row, 2).item() == pytest.approx(expected, rel=1e-6)


def test_attention_that_sees_every_region_once_costs_nothing():
    assert attention_regularisation(torch.full((4, 4), 0.25), torch.zeros(4, dtype=torch.long), 1).item() == 0


def test_its_gradient():
    torch.manual_seed(0)
    weights = torch.rand(5, 3, dtype=torch.float64).requires_grad_()
    row = torch.tensor([0, 1, 0, 2, 1])
    assert torch.autograd.gradcheck(lambda w: attention_regularisation(w, row, 3), (weights,))


def test_projection_regularisation_by_hand():
    """The L2 norm of all numbers, not the largest singular value; its gradient is P / ||P||."""
    weight = torch.tensor([[3.0, 0.0, 1.0], [0.0, -4.0, 1.0], [1.0, 1.0, 2.0]], requires_grad=True)
    norm = projection_regularisation(weight)
    assert norm.item() == pytest.approx(math.sqrt(9 + 1 + 16 + 1 + 1 + 1 + 4))
    norm.backward()
    torch.testing.assert_close(weight.grad, weight.detach() / norm.item())


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("rows", [1, ROWS_AT_ONCE, 2 * ROWS_AT_ONCE + 3])
def test_cross_entropy_from_what_the_last_layer_reads(smoothing, rows):
    """The same loss and the same gradients as by way of the logits."""
    torch.manual_seed(rows)
    tensors = torch.randn(rows, 6, dtype=torch.float64), torch.randn(9, 6, dtype=torch.float64), torch.randn(9).double()
    targets = torch.randint(9, (rows,))

    def gradients(loss_of):
        leaves = [x.clone().requires_grad_() for x in tensors]
        loss = loss_of(*leaves)
        (3 * loss).backward()
        return [loss.detach(), *(x.grad for x in leaves)]

    found = gradients(lambda *leaves: output_cross_entropy(*leaves, targets, smoothing))

    def plain(outputs, weight, bias):
        return F.cross_entropy(outputs @ weight.t() + bias, targets, label_smoothing=smoothing)

    for a, b in zip(found, gradients(plain)):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_it_stays_finite_where_the_true_word_has_no_probability_left():
    outputs, weight = torch.tensor([[1.0]]), torch.tensor([[500.0], [-500.0]])
    loss = output_cross_entropy(outputs, weight, torch.zeros(2), torch.tensor([1]))
    torch.testing.assert_close(loss, torch.tensor(1000.0))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_no_digits_are_lost_where_all_logits_are_far_from_zero(smoothing):
    torch.manual_seed(0)
    logits, targets = (torch.randn(300, 7) * 8).round() / 8 + 1e5, torch.randint(7, (300,))
    loss = output_cross_entropy(logits, torch.eye(7), torch.zeros(7), targets, smoothing)
    exact = F.cross_entropy(logits.double(), targets, label_smoothing=smoothing)
    assert loss.item() == pytest.approx(exact.item(), rel=0.003 if smoothing else 1e-5)  # the mean of 1e5 has 1/128


@pytest.mark.parametrize("target", [-1, 4])
def test_targets_out_of_range_are_refused_as_by_the_plain_loss(target):
    targets = torch.tensor([0, target])
    for loss in (
        lambda: token_cross_entropy(torch.zeros(2, 4), targets),
        lambda: output_cross_entropy(torch.zeros(2, 3), torch.zeros(4, 3), torch.zeros(4), targets),
    ):
        with pytest.raises(IndexError, match="out of bounds"):
            loss()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_not_hidden(smoothing, wrong):
    bias, targets = torch.tensor([0.0, wrong, 0.0]), torch.tensor([0, 1])
    found = output_cross_entropy(torch.zeros(2, 4), torch.zeros(3, 4), bias, targets, smoothing)
    expected = token_cross_entropy(bias.expand(2, 3), targets, smoothing)
    torch.testing.assert_close(found, expected, equal_nan=True)
    assert not found.isfinite()

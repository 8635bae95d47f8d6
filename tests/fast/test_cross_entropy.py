"""The cross-entropy of the output layer against the plain one, by way of the logits."""

import pytest
import torch
from torch.nn import functional as F

from captioning.fast.cross_entropy import ROWS_AT_ONCE, output_cross_entropy


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("rows", [1, ROWS_AT_ONCE, 2 * ROWS_AT_ONCE + 3])
def test_cross_entropy_from_what_the_last_layer_reads(smoothing, rows, plainly):
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

    off = plainly(gradients, lambda *leaves: output_cross_entropy(*leaves, targets, smoothing))
    for expected in (gradients(plain), off):
        for a, b in zip(found, expected):
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
        lambda: F.cross_entropy(torch.zeros(2, 4), targets),
        lambda: output_cross_entropy(torch.zeros(2, 3), torch.zeros(4, 3), torch.zeros(4), targets),
    ):
        with pytest.raises(IndexError, match="out of bounds"):
            loss()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_not_hidden(smoothing, wrong):
    bias, targets = torch.tensor([0.0, wrong, 0.0]), torch.tensor([0, 1])
    found = output_cross_entropy(torch.zeros(2, 4), torch.zeros(3, 4), bias, targets, smoothing)
    expected = F.cross_entropy(bias.expand(2, 3), targets, label_smoothing=smoothing)
    torch.testing.assert_close(found, expected, equal_nan=True)
    assert not found.isfinite()

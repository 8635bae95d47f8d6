"""The losses against their formulas in plain Python."""

import math

import pytest
import torch

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


def test_regions_that_an_image_lacks_do_not_count():
    """A batch padded to its longest image has the mean of what its images have by themselves."""
    few, many = torch.tensor([[0.3, 0.7], [0.6, 0.4]]), torch.tensor([[0.1, 0.2, 0.3, 0.4]])
    alone = [attention_regularisation(x, torch.zeros(len(x), dtype=torch.long), 1) for x in (few, many)]
    padded = torch.cat([torch.nn.functional.pad(few, (0, 2)), many])
    assert attention_regularisation(padded, torch.tensor([0, 0, 1]), 2).item() == pytest.approx(float(sum(alone)) / 2)


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

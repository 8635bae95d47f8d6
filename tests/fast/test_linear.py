"""Products, linear layers and dropout against torch's own."""

import os
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from captioning.fast import linear as products
from captioning.fast.linear import Dropout, Linear, linear, packed, product, weight_gradient


@pytest.fixture(params=["onednn", "torch"])
def either(request, monkeypatch):
    """With oneDNN where torch has it, and without."""
    if request.param == "torch":
        monkeypatch.setattr(products, "onednn", None)
    elif products.onednn is None:
        pytest.skip("torch was built without oneDNN")


def expected(x, weight, bias=None):
    out = x.double() @ weight.double().t()
    return (out if bias is None else out + bias.double()).float()


@pytest.mark.parametrize("rows", [0, 1, 2, 7, 64, 65])
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (3, 5), (33, 257), (512, 64)])
def test_product(either, rows, inputs, outputs):
    torch.manual_seed(rows)
    x, weight, bias = torch.randn(rows, inputs), torch.randn(outputs, inputs), torch.randn(outputs)
    for w in (weight, packed(weight)):
        torch.testing.assert_close(product(x, w, bias), expected(x, weight, bias), rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(product(x, w), expected(x, weight), rtol=1e-5, atol=1e-4)


def test_parts_of_larger_matrices(either):
    """Columns of a matrix, transposed or not, on either side."""
    torch.manual_seed(0)
    x, weight = torch.randn(9, 40)[:, 3:23], torch.randn(30, 50)[:, 7:27]
    torch.testing.assert_close(product(x, weight), expected(x, weight), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(product(x, packed(weight)), expected(x, weight), rtol=1e-5, atol=1e-5)
    turned = torch.randn(50, 30)[7:27, 2:12].t()  # (10, 20)
    torch.testing.assert_close(product(x, turned), expected(x, turned), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(product(x, packed(turned)), expected(x, turned), rtol=1e-5, atol=1e-5)


def test_packed_weights_do_not_follow_the_matrix_and_need_no_gradient(either):
    weight = torch.randn(6, 4, requires_grad=True)
    before = weight.detach().clone()
    other = packed(weight)
    assert not other.requires_grad or other is weight
    torch.testing.assert_close(product(torch.eye(4), other).detach(), before.t())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_are_torchs(dtype):
    x, weight = torch.randn(3, 4, dtype=dtype), torch.randn(5, 4, dtype=dtype)
    assert packed(weight) is weight
    assert torch.equal(product(x, weight), F.linear(x, weight))


def test_weight_gradient():
    grad, x = torch.randn(11, 3, dtype=torch.float64), torch.randn(11, 4, dtype=torch.float64)
    torch.testing.assert_close(weight_gradient(grad, x), torch.einsum("mn,mk->nk", grad, x))


@pytest.mark.parametrize("shape", [(4, 6), (2, 3, 6), (6,), (0, 6)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_layer_and_its_gradients(either, shape, bias):
    torch.manual_seed(1)
    ours, theirs = Linear(6, 5, bias=bias), nn.Linear(6, 5, bias=bias)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(shape)
    results = []
    for layer in (ours, theirs):
        own = x.clone().requires_grad_()
        out = layer(own)
        (out * torch.arange(out.numel()).view(out.shape)).sum().backward()
        results.append([out.detach(), own.grad, *(p.grad for p in layer.parameters())])
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_only_gradients_that_are_asked_for(either):
    layer = Linear(3, 2)
    layer.weight.requires_grad_(False)
    x = torch.randn(4, 3)
    layer(x).sum().backward()
    assert layer.weight.grad is None and layer.bias.grad.tolist() == [4.0, 4.0] and x.grad is None


def test_autocast_gives_half_precision():
    with torch.autocast("cpu", torch.bfloat16):
        assert Linear(3, 2)(torch.randn(4, 3)).dtype == torch.bfloat16


@pytest.mark.parametrize("p", [0.2, 0.4, 0.5])
def test_dropout_drops_that_share_and_keeps_the_mean(p):
    torch.manual_seed(3)
    x = torch.ones(1001, 1001)
    out = Dropout(p)(x)
    assert abs(float((out == 0).double().mean()) - p) < 0.002  # four times the spread of a million throws
    assert out.unique().numel() == 2 and abs(float(out.max()) - 1 / (1 - p)) < 1e-4
    # neighbours are independent of each other, also those that share a draw of 64 bits
    dropped = (out.flatten()[:1_000_000] == 0).view(-1, 4).double()
    for a, b in ((0, 1), (1, 2), (0, 3)):
        assert abs(float((dropped[:, a] * dropped[:, b]).mean()) - p * p) < 0.003


def test_dropout_follows_the_seed_and_its_gradient_is_the_mask():
    layer, x = Dropout(0.3), torch.randn(5, 7, requires_grad=True)
    torch.manual_seed(4)
    first = layer(x)
    torch.manual_seed(4)
    assert torch.equal(first, layer(x))
    first.sum().backward()
    torch.testing.assert_close(x.grad * x, first)
    assert torch.equal(layer.eval()(x), x)


@pytest.mark.parametrize(("p", "left"), [(0.0, 1.0), (1.0, 0.0), (1e-9, 1.0)])
def test_dropout_of_nothing_and_of_all(p, left):
    assert torch.equal(Dropout(p)(torch.ones(6)), torch.full((6,), left))


@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(7, 0, 3), (7, 5, 0), (0, 5, 3)])
def test_no_rows_and_no_columns(either, rows, inputs, outputs):
    x, weight, bias = torch.randn(rows, inputs), torch.randn(outputs, inputs), torch.randn(outputs)
    for found in (product(x, weight, bias), product(x, packed(weight), bias), linear(x, weight, bias)):
        torch.testing.assert_close(found, expected(x, weight, bias))
    x.requires_grad_()
    linear(x, weight, bias).sum().backward()
    torch.testing.assert_close(x.grad, weight.sum(0).expand(rows, inputs))


@pytest.mark.parametrize("bias", [torch.arange(10.0)[::2], torch.ones(1), torch.ones(()).expand(5)], ids=str)
def test_biases_of_any_stride_and_those_to_be_broadcast(either, bias):
    x, weight = torch.randn(3, 6), torch.randn(5, 6)
    torch.testing.assert_close(product(x, weight, bias), expected(x, weight, bias))


def test_what_does_not_fit_is_told_as_torch_does(either):
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        linear(torch.randn(3, 6), torch.randn(5, 7))


def _other_arguments(*arguments):
    raise TypeError("takes 3 positional arguments but 6 were given")


@pytest.mark.parametrize("layer", [_other_arguments, lambda *arguments: torch.zeros(2, 2), None])
def test_a_torch_whose_onednn_is_called_otherwise(monkeypatch, layer):
    """Then everything is torch's own."""
    known = {} if layer is None else {"_linear_pointwise": SimpleNamespace(default=layer)}
    known["_reorder_linear_weight"] = SimpleNamespace(default=lambda weight, rows: weight)
    monkeypatch.setattr(torch, "ops", SimpleNamespace(mkldnn=SimpleNamespace(**known)))
    assert products.find_onednn() is None


def test_it_is_found_whatever_the_default_type():
    found = products.find_onednn() is None
    torch.set_default_dtype(torch.float64)
    try:
        assert (products.find_onednn() is None) == found
    finally:
        torch.set_default_dtype(torch.float32)


def test_with_the_switch_off_everything_is_torchs(plainly):
    ours, theirs = Linear(6, 5), nn.Linear(6, 5)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(9, 6)
    assert torch.equal(plainly(ours, x), theirs(x))
    torch.manual_seed(2)
    dropped = plainly(Dropout(0.4), x)
    torch.manual_seed(2)
    assert torch.equal(dropped, nn.Dropout(0.4)(x))


def test_the_limits_of_caches_are_those_of_whoever_set_them(monkeypatch):
    monkeypatch.setenv("LRU_CACHE_CAPACITY", "7")
    monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", raising=False)
    products.limit_caches()
    assert os.environ["LRU_CACHE_CAPACITY"] == "7"
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == str(products.CACHED)

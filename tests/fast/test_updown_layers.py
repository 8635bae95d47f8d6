"""Up-down attention over whole sentences: the one function against the plain steps, and against finite differences."""

import pytest
import torch
from toy_decoders import ROW_IMAGE, SOME_REGIONS, STEPS, R, build_updown, captions, every_updown, updown_inputs

from captioning.fast.updown import _UpDown
from captioning.rows import Packing


def read(decoder, inputs, mask, half=False):
    """Logits, attention weights and the gradients of all weights."""
    decoder.zero_grad()
    packing = Packing.of(STEPS, "cpu")
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        logits, weights = decoder(decoder.prepare(**inputs, mask=mask), captions(), packing, ROW_IMAGE)
    (logits.to(weights.dtype).square().sum() + (weights * torch.arange(R)).sum()).backward()
    return logits.detach(), weights.detach(), *(p.grad.clone() for p in decoder.parameters())


@every_updown
@pytest.mark.parametrize("mask", [None, SOME_REGIONS], ids=["all", "some"])
def test_whole_sentences_are_those_of_the_plain_path(kind, mask, plainly):
    decoder, inputs = build_updown(kind, torch.float64), updown_inputs(kind, torch.float64)
    for ours, plain in zip(read(decoder, inputs, mask), plainly(read, decoder, inputs, mask)):
        torch.testing.assert_close(ours, plain, rtol=1e-8, atol=1e-8 * max(1.0, float(plain.abs().max())))


@pytest.mark.parametrize("steps", [[3, 1, 2], [2, 2]])
@pytest.mark.parametrize("largest", [1, 30], ids=["small", "large keys"])
def test_gradcheck(steps, largest):
    torch.manual_seed(1)
    (N, M), (R, A, P, H) = (len(steps), sum(steps)), (3, 2, 4, 3)
    shapes = (M, 4 * H), (N, R, A), (N, R, P), (A, H), (A,), (4 * H, 2 * H), (4 * H, P + 2 * H), (4 * H,)
    tensors = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    tensors[1][0, 0, 0] = largest
    packing = Packing.of(torch.tensor(steps), "cpu")
    absent = torch.zeros(N, R, dtype=torch.bool)
    absent[0, 1] = True
    leaves = [x.requires_grad_() for x in tensors]
    assert torch.autograd.gradcheck(lambda *x: _UpDown.apply(*x, absent, packing), leaves)


def test_mixed_precision_stays_close():
    decoder, inputs = build_updown("everything"), updown_inputs("everything")
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.mul_(0.6)
    full, half = (read(decoder, inputs, None, half) for half in (False, True))
    for ours, exact in zip(half[:2], full[:2]):
        assert (ours.float() - exact).norm() < 0.05 * exact.norm()

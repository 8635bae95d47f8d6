"""The packed layout against torch's own, and the attention LSTM's hand-written gradients against finite differences."""

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence
from toy_decoders import ROW_IMAGE, STEPS, build, captions, every_decoder, image_inputs

from captioning.decoder.sentence import Memory
from captioning.fast.lstm import attention_lstm
from captioning.rows import Packing


@pytest.mark.parametrize("steps", [[4, 1, 6, 6, 3], [2], [3, 3, 3], [1, 1], [1, 2, 3, 4, 5]])
def test_packing_is_that_of_torch(steps):
    steps = torch.tensor(steps)
    padded = torch.arange(len(steps) * int(steps.max())).view(len(steps), -1)
    packing = Packing.of(steps, "cpu")
    theirs = pack_padded_sequence(padded[packing.order], steps[packing.order], batch_first=True)
    assert packing.active == theirs.batch_sizes.tolist()
    assert torch.equal(padded[packing.row, packing.time], theirs.data)
    assert torch.equal(packing.order[packing.rank], packing.row)
    assert [packing.time[now].unique().tolist() for now, _ in packing.steps()] == [[t] for t in range(int(steps.max()))]


def test_packing_keeps_the_order_of_equal_rows():
    assert Packing.of(torch.tensor([2, 5, 2, 5]), "cpu").order.tolist() == [1, 3, 0, 2]


def arguments(steps, H=3, A=2, P=4, R=3, dtype=torch.float64):
    torch.manual_seed(1)
    packing = Packing.of(torch.tensor(steps), "cpu")
    N, M = len(steps), sum(steps)
    shapes = {
        "inputs": (M, 4 * H),
        "hidden": (N, H),
        "cell": (N, H),
        "keys": (N, R, A),
        "values": (N, R, P),
    }
    weights = {
        "hidden": (4 * H, H),
        "context": (4 * H, P),
        "query": (A, H),
        "score": (A,),
        "gate": (H,),
        "gate_bias": (1,),
    }
    tensors = {name: torch.randn(shape, dtype=dtype).requires_grad_() for name, shape in shapes.items()}
    return tensors, {name: torch.randn(shape, dtype=dtype).requires_grad_() for name, shape in weights.items()}, packing


def fast(tensors, weights, packing):
    inputs, hidden, cell, keys, values = tensors.values()
    return attention_lstm(inputs, (hidden, cell), Memory(keys=keys, values=values), weights, packing)


@pytest.mark.parametrize("steps", [[3, 1, 2], [1], [2, 2]])
def test_gradcheck(steps):
    tensors, weights, packing = arguments(steps)

    def run(*flat):
        return fast(dict(zip(tensors, flat)), dict(zip(weights, flat[len(tensors) :])), packing)

    assert torch.autograd.gradcheck(run, (*tensors.values(), *weights.values()))


def plain(tensors, weights, packing):
    """The same recurrence under autograd, row by row, in the packed order."""
    w, outputs = weights, {}
    starts = [now.start for now, _ in packing.steps()]
    for n in range(packing.active[0]):
        h, c = tensors["hidden"][n], tensors["cell"][n]
        for t, active in enumerate(packing.active):
            if n >= active:
                break
            scores = torch.tanh(tensors["keys"][n] + w["query"] @ h) @ w["score"]
            attention = scores.softmax(0)
            beta = torch.sigmoid(w["gate"] @ h + w["gate_bias"])
            context = beta * (attention @ tensors["values"][n])
            gates = tensors["inputs"][starts[t] + n] + w["hidden"] @ h + w["context"] @ context
            i, f, g, o = gates.chunk(4)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            outputs[starts[t] + n] = (h, context, attention)
    return [torch.stack(part) for part in zip(*(outputs[j] for j in sorted(outputs)))]


@pytest.mark.parametrize("used", [(0, 1, 2), (0,), (1,), (2,)], ids=str)
def test_gradients_where_only_some_outputs_are_used(used):
    tensors, weights, packing = arguments([5, 2, 4, 5], H=6, A=5, P=7, R=4)
    leaves = [*tensors.values(), *weights.values()]
    ours, slow = fast(tensors, weights, packing), plain(tensors, weights, packing)
    for a, b in zip(ours, slow):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    torch.manual_seed(2)
    factors = [torch.randn_like(part) for part in slow]
    found, expected = (
        torch.autograd.grad(sum((out[k] * factors[k]).sum() for k in used), leaves, materialize_grads=True)
        for out in (ours, slow)
    )
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_its_inputs_are_left_as_they_were():
    tensors, weights, packing = arguments([3, 2])
    before = {name: x.detach().clone() for name, x in tensors.items()}
    sum(part.sum() for part in fast(tensors, weights, packing)).backward()
    for name, x in before.items():
        assert torch.equal(tensors[name], x)


def test_nothing_is_kept_without_gradients():
    tensors, weights, packing = arguments([3, 2])
    with torch.inference_mode():
        hidden, context, attention = fast(tensors, weights, packing)
    assert not hidden.requires_grad and hidden.shape == (5, 3) and context.shape == (5, 4) and attention.shape == (5, 3)


@pytest.mark.parametrize("kind", ["soft_everything", "spatial_pooled_persist", "pooled"])
def test_mixed_precision_stays_close(kind):
    decoder = build(kind, scale=0.3).train()
    packing = Packing.of(STEPS, "cpu")

    def run(enabled):
        decoder.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            logits, _ = decoder(decoder.prepare(**image_inputs(decoder)), captions(), packing, ROW_IMAGE)
        logits.float().square().mean().backward()
        return logits.detach().float(), decoder.embed.weight.grad.clone()

    for half, full in zip(run(True), run(False)):
        assert half.isfinite().all()
        assert (half - full).norm() < 0.05 * full.norm()


def compared(tensors, weights, packing):
    """Outputs and gradients of the one function and of the plain recurrence."""
    leaves = [*tensors.values(), *weights.values()]
    results = []
    for out in (fast(tensors, weights, packing), plain(tensors, weights, packing)):
        torch.manual_seed(2)
        loss = sum((part * torch.randn_like(part)).sum() for part in out)
        results.append([*(part.detach() for part in out), *torch.autograd.grad(loss, leaves)])
    return zip(*results)


@pytest.mark.parametrize(("keys", "queries"), [(60, 60), (60, 1), (1, 60), (19, 300), (45, 40)])
def test_keys_and_queries_that_explode(keys, queries):
    """Far apart from zero, but together close to it, where the tanh is not yet flat."""
    tensors, weights, packing = arguments([4, 2, 3], H=6, A=5, R=4)
    with torch.no_grad():
        tensors["keys"].add_(tensors["keys"].sign() * keys)
        weights["query"].mul_(queries)
    for ours, theirs in compared(tensors, weights, packing):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["inputs", "hidden", "cell", "keys", "values"])
def test_nan_is_not_hidden(name):
    tensors, weights, packing = arguments([3, 2])
    with torch.no_grad():
        tensors[name].view(-1)[0] = torch.nan
    ours, theirs = fast(tensors, weights, packing), plain(tensors, weights, packing)
    assert any(part.isnan().any() for part in theirs)
    for a, b in zip(ours, theirs):
        assert torch.equal(a.isnan(), b.isnan())


def test_inputs_of_any_strides():
    tensors, weights, packing = arguments([3, 2, 2])
    turned = {name: x.detach().mT.contiguous().mT.requires_grad_() for name, x in tensors.items()}
    turned["keys"] = tensors["keys"].detach()[:1].expand_as(tensors["keys"]).requires_grad_()
    for ours, theirs in compared(turned, weights, packing):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_a_second_derivative_is_refused():
    tensors, weights, packing = arguments([3, 2])
    loss = fast(tensors, weights, packing)[0].square().sum()
    (first,) = torch.autograd.grad(loss, tensors["keys"], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@every_decoder
def test_whole_sentences_are_those_of_the_plain_path(kind, arch, layers, plainly):
    decoder = build(kind, arch, layers, torch.float64).train()  # batch norm by the batch; there is no dropout
    inputs, packing = image_inputs(decoder, torch.float64), Packing.of(STEPS, "cpu")

    def run():
        decoder.zero_grad()
        logits, weights = decoder(decoder.prepare(**inputs), captions(), packing, ROW_IMAGE)
        (logits.square().sum() + (0 if weights is None else weights.square().sum())).backward()
        return logits.detach(), [p.grad for p in decoder.parameters()]

    (logits, gradients), (expected, plain) = run(), plainly(run)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-10)
    for a, b in zip(gradients, plain):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8 * max(1.0, float(b.abs().max())))


@pytest.mark.parametrize("kind", ["pooled_persist_skip", "spatial"])
def test_dropout_between_layers_drops_the_same_share_as_torchs(kind, plainly):
    decoder = build(kind, layers=2).train()
    decoder.set_dropout(0.5)
    decoder.dropout.p = 0.0
    memory, packing = decoder.prepare(**image_inputs(decoder)), Packing.of(STEPS, "cpu")
    torch.manual_seed(0)

    @torch.no_grad()
    def spread():
        drawn = torch.stack([decoder(memory, captions(), packing, ROW_IMAGE)[0] for _ in range(1000)])
        return float(drawn.var(0).sum())

    assert spread() == pytest.approx(plainly(spread), rel=0.05)

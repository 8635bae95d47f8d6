"""The schedule by hand, and each mode against its definition written out one caption at a time."""

import math

import pytest
import torch
from torch import nn
from toy_decoders import ROW_IMAGE, STEPS, B, V, build, captions, every_decoder, image_inputs

from captioning.decoder.teacher_forcing import mixed_read, truth_probability
from captioning.rows import Packing

MODES = ("sampled", "additive", "additive_sampled")


@pytest.mark.parametrize(
    ("iteration", "expected"),
    [
        (0, 6500 / 6501),
        (6500, 6500 / (6500 + 1.3498588075760032)),  # e^0.3
        (100_000, 6500 / (6500 + 101.0329)),  # e^4.61538
        (190_235, 0.5),  # k ln(k) / beta
        (300_000, 6500 / (6500 + 1_031_115)),  # e^13.84615
        (10**9, 0.0),
    ],
)
def test_the_schedule_by_hand(iteration, expected):
    assert truth_probability(iteration) == pytest.approx(expected, rel=1e-3)


def test_the_schedule_falls_and_beta_scales_its_speed():
    values = [truth_probability(i, 100.0, 1.0) for i in range(0, 100_000, 500)]
    assert values == sorted(values, reverse=True) and all(0 <= v <= 1 for v in values)
    assert truth_probability(1000, 50.0, 0.6) == pytest.approx(truth_probability(2000, 50.0, 0.3))


def test_without_k_the_truth_is_read_always():
    assert [truth_probability(i, 0.0) for i in (0, 10**9)] == [1.0, 1.0]


def mixed(decoder, memory, mode, p, seed=0):
    packing = Packing.of(STEPS, "cpu")
    rows, coins = memory.select(ROW_IMAGE[packing.order]), torch.Generator().manual_seed(seed)
    logits, weights, _ = mixed_read(decoder, rows, captions(), packing, (mode, p, coins))
    return (logits, weights), packing


def definition(decoder, memory, mode, p, seed=0):
    """Every caption by itself; the coin of a time step is the same for all. Logits as lists [row][time]."""
    coins = torch.Generator().manual_seed(seed)
    truthful = [True] + [torch.rand((), generator=coins).item() < p for _ in range(int(STEPS.max()) - 1)]
    rows = []
    for tokens, length, image in zip(captions(), STEPS, ROW_IMAGE):
        mine = memory.select(image.view(1))
        state, logits = decoder.start(mine), []
        for t in range(length):
            truth = decoder.embed_words(tokens[t].view(1), mine.first)
            if t == 0:
                inputs = truth
            else:
                own = decoder.embed.weight[logits[-1].argmax(1)]
                if mode == "sampled":
                    inputs = truth if truthful[t] else own
                else:
                    inputs = p * truth + (1 - p) * own
                    inputs = truth if mode == "additive_sampled" and truthful[t] else inputs
            out, state, _ = decoder.step_embedded(inputs, state, mine)
            logits.append(out)
        rows.append(logits)
    return rows


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("p", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("kind", ["pooled_persist_skip", "soft_everything", "spatial_pooled_persist"])
def test_each_mode_is_what_its_definition_says(mode, p, kind):
    decoder = build(kind, layers=2 if kind == "pooled_persist_skip" else 1)
    memory = decoder.prepare(**image_inputs(decoder))
    (logits, _), packing = mixed(decoder, memory, mode, p, seed=3)
    rows = definition(decoder, memory, mode, p, seed=3)
    expected = torch.cat([rows[n][t] for n, t in zip(packing.row, packing.time)])
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


@every_decoder
def test_the_truth_with_certainty_is_the_fast_pass(kind, arch, layers):
    decoder = build(kind, arch, layers)
    memory = decoder.prepare(**image_inputs(decoder))
    expected, attended = decoder(memory, captions(), Packing.of(STEPS, "cpu"), ROW_IMAGE)
    for mode in MODES:
        (logits, weights), _ = mixed(decoder, memory, mode, 1.0)
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
        if attended is not None:
            torch.testing.assert_close(weights, attended, rtol=0, atol=1e-6)


def test_never_the_truth_is_free_running():
    decoder = build("pooled")
    memory = decoder.prepare(**image_inputs(decoder))
    (logits, _), packing = mixed(decoder, memory, "sampled", 0.0)
    for n in range(len(STEPS)):
        mine = memory.select(ROW_IMAGE[n : n + 1])
        state, token = decoder.start(mine), captions()[n, :1]
        for expected in logits[packing.row == n]:
            out, state, _ = decoder.step(token, state, mine)
            token = out.argmax(1)
            torch.testing.assert_close(out[0], expected, rtol=0, atol=1e-5)


def test_a_time_step_has_one_coin_for_the_whole_batch():
    decoder = build("pooled")
    memory = decoder.prepare(**image_inputs(decoder))
    fed = []
    real = decoder.step_embedded

    def spy(inputs, state, memory):
        fed.append(inputs)
        return real(inputs, state, memory)

    decoder.step_embedded = spy
    packing = Packing.of(torch.tensor([200] * B), "cpu")
    torch.manual_seed(0)
    tokens = torch.randint(4, V, (B, 200))
    with torch.no_grad():
        mixed_read(decoder, memory, tokens, packing, ("sampled", 0.5, torch.Generator().manual_seed(1)))
    truth = decoder.embed(tokens)
    same = torch.stack([(inputs == truth[:, t]).all(1) for t, inputs in enumerate(fed)])  # (T, B)
    kept = same.all(1)
    assert kept[0] and 75 < kept[1:].sum() < 125
    # where the truth was not kept a row has it only if the model's own word was the right one
    assert same[~kept].float().mean() < 0.4


@pytest.mark.parametrize("mode", ["sampled", "additive_sampled"])
def test_the_generator_decides(mode):
    decoder = build("soft")
    memory = decoder.prepare(**image_inputs(decoder))
    runs = []
    for seed in (1, 1, 2, 3, 4):
        torch.manual_seed(seed + 100 * len(runs))  # torch's own generator has no say
        runs.append(mixed(decoder, memory, mode, 0.5, seed)[0][0])
    assert torch.equal(runs[0], runs[1])
    assert any(not torch.equal(runs[0], other) for other in runs[2:])


@pytest.mark.parametrize("mode", MODES)
def test_gradients_flow(mode):
    decoder = build("soft_everything", layers=2).train()
    (logits, weights), _ = mixed(decoder, decoder.prepare(**image_inputs(decoder)), mode, 0.5)
    (logits.square().mean() + weights.square().mean()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in decoder.parameters())


def test_the_recurrent_state_stays_contiguous():
    decoder = build("pooled", "GRU", layers=2)
    seen = []
    decoder.rnn.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[1].is_contiguous()))
    mixed(decoder, decoder.prepare(**image_inputs(decoder)), "sampled", 0.5)
    assert isinstance(decoder.rnn, nn.GRU) and all(seen)


def test_half_life_of_the_schedule():
    k, beta = 200.0, 0.5
    assert truth_probability(k * math.log(k) / beta, k, beta) == pytest.approx(0.5)

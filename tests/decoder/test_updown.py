"""The two LSTMs of Anderson et al. 2018 against a write-up in numpy, and whole sentences against `step`."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_sentence import sigmoid
from toy_decoders import (
    ROW_IMAGE,
    SOME_REGIONS,
    STEPS,
    build_updown,
    captions,
    check_beams_against_brute_force,
    config_of,
    every_updown,
    loop,
    packed,
    updown_inputs,
)

from captioning.decoder.teacher_forcing import mixed_read
from captioning.errors import UserError
from captioning.rows import Packing
from serving.graphs import check_exportable


def equations(decoder, tokens, regions, image, persist):
    """Logits (T, V) and attention weights (T, R) of one sentence about one image."""
    w = {name: value.double().numpy() for name, value in decoder.state_dict().items()}

    def linear(name, x):
        return w[f"{name}.weight"] @ x + w.get(f"{name}.bias", 0)

    def cell(name, x, h, c):
        a = w[f"{name}.weight_ih"] @ x + w[f"{name}.bias_ih"] + w[f"{name}.weight_hh"] @ h + w[f"{name}.bias_hh"]
        i, f, g, o = np.split(a, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        return sigmoid(o) * np.tanh(c), c

    values = [np.maximum(linear("regions", region), 0) for region in regions]
    context = np.concatenate([sum(values) / len(values), *(x for x in (image, persist) if x is not None)])
    h1 = c1 = h2 = c2 = np.zeros(decoder.hidden_size)
    logits, attended = [], []
    for token in tokens:
        h1, c1 = cell("attention_lstm", np.concatenate([h2, context, w["embed.weight"][token]]), h1, c1)
        query = w["attention.query.weight"] @ h1
        scores = [w["attention.score.weight"][0] @ np.tanh(linear("attention.key", v) + query) for v in values]
        weights = np.exp(scores) / np.exp(scores).sum()
        h2, c2 = cell("language_lstm", np.concatenate([sum(a * v for a, v in zip(weights, values)), h1]), h2, c2)
        out = linear("projection", h2) if "projection.weight" in w else h2
        out = linear("hidden_to_output", out) if "hidden_to_output.weight" in w else out
        logits.append(linear("linear", out))
        attended.append(weights)
    return np.array(logits), np.array(attended)


@every_updown
def test_the_numbers_are_those_of_the_paper(kind):
    decoder, inputs, packing = (
        build_updown(kind, torch.float64),
        updown_inputs(kind, torch.float64),
        Packing.of(STEPS, "cpu"),
    )
    with torch.no_grad():
        logits, weights = decoder(decoder.prepare(**inputs), captions(), packing, ROW_IMAGE)
    for n, (row, length, index) in enumerate(zip(captions(), STEPS, ROW_IMAGE)):
        mine = {name: None if x is None else x[index].numpy() for name, x in inputs.items()}
        expected, attended = equations(decoder, row[:length].tolist(), **mine)
        np.testing.assert_allclose(logits[packing.row == n].numpy(), expected, rtol=0, atol=1e-10)
        np.testing.assert_allclose(weights[packing.row == n].numpy(), attended, rtol=0, atol=1e-12)


@every_updown
@pytest.mark.parametrize("mask", [None, SOME_REGIONS], ids=["all", "some"])
def test_step_and_whole_sentences_agree(kind, mask):
    decoder, packing = build_updown(kind), Packing.of(STEPS, "cpu")
    with torch.no_grad():
        memory = decoder.prepare(**updown_inputs(kind), mask=mask)
        logits, weights = decoder(memory, captions(), packing, ROW_IMAGE)
        each, attended = loop(decoder, memory, captions(), STEPS, ROW_IMAGE)
        forced, _, _ = mixed_read(
            decoder, memory.select(ROW_IMAGE[packing.order]), captions(), packing, ("sampled", 1.0, torch.Generator())
        )
    torch.testing.assert_close(logits, packed(each, packing), rtol=0, atol=1e-5)
    torch.testing.assert_close(weights, packed(attended, packing), rtol=0, atol=1e-6)
    torch.testing.assert_close(forced, logits, rtol=0, atol=1e-5)


@every_updown
def test_beam_search_is_brute_force(kind):
    decoder = build_updown(kind)
    with torch.no_grad():
        memory = decoder.prepare(**updown_inputs(kind), mask=SOME_REGIONS)
        check_beams_against_brute_force(decoder, memory)


def test_every_weight_gets_a_gradient():
    decoder, packing = build_updown("everything").train(), Packing.of(STEPS, "cpu")
    logits, _ = decoder(decoder.prepare(**updown_inputs("everything")), captions(), packing, ROW_IMAGE)
    logits.square().sum().backward()
    assert all(p.grad.abs().max() > 0 for p in decoder.parameters())


def test_it_is_not_exported():
    captioner = SimpleNamespace(config=config_of(attention="updown"))
    with pytest.raises(UserError, match="--attention updown, which is not exported"):
        check_exportable(captioner)


@pytest.mark.parametrize("setting", [{"rnn_arch": "GRU"}, {"num_layers": 2}, {"skip_start_token": True}])
def test_settings_of_other_decoders(setting):
    with pytest.raises(UserError, match=f"--{next(iter(setting))}: --attention updown has one attention LSTM"):
        build_updown("everything", **setting)

"""The steps that decoding takes against the plain ones."""

import pytest
import torch
from toy_decoders import (
    KINDS,
    TRANSFORMERS,
    B,
    V,
    build,
    build_transformer,
    build_updown,
    image_inputs,
    transformer_inputs,
    updown_inputs,
)

from captioning.decoder.search import Search, generate
from captioning.fast import steps as fast_steps
from captioning.fast.steps import FastDecoder, fast_decoder, ready

IMAGES = 5


@torch.no_grad()
def made(decoder) -> FastDecoder:
    return fast_decoder(decoder)


@torch.no_grad()
def run(decoder, fast, rows=1, steps=4):
    """Steps over made-up words with `rows` rows an image, the two compared at each."""
    torch.manual_seed(5)
    memory = decoder.prepare(**image_inputs(decoder, images=IMAGES))
    _, extended = ready(fast, memory)
    state = tuple(part.repeat_interleave(rows, 1) for part in fast.start(extended))
    for t in range(steps):
        tokens = torch.randint(4, V, (IMAGES * rows,)) if t else torch.ones(IMAGES * rows).long()
        logits, advanced, weights = fast.step(tokens, state, extended)
        expected = decoder.step(tokens, state, memory)
        for a, b in zip((logits, *advanced), (expected[0], *expected[1])):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-6)
        assert (weights is None) == (expected[2] is None)
        if weights is not None:
            torch.testing.assert_close(weights, expected[2], rtol=0, atol=2e-6)
        state = advanced


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 3])
def test_every_decoder(kind, rows):
    decoder = build(kind)
    run(decoder, made(decoder), rows)


@pytest.mark.parametrize("kind", ["pooled", "soft"])
def test_with_a_table_of_words(kind):
    decoder = build(kind)
    fast = made(decoder)
    assert fast.table is None
    run(decoder, fast, steps=V)
    assert fast.table is not None and fast.table.shape == (V, 4 * decoder.hidden_size)
    run(decoder, fast)


def test_a_table_that_would_be_too_large(monkeypatch):
    monkeypatch.setattr(fast_steps, "LARGEST_TABLE", 100)
    decoder = build("soft")
    fast = made(decoder)
    run(decoder, fast, steps=V)
    assert fast.table is None


@pytest.mark.parametrize(
    "decoder",
    [build("soft", "GRU"), build("soft", layers=2), build("soft", dtype=torch.float64), build("soft").train()],
    ids=["gru", "two layers", "double", "training"],
)
def test_where_the_plain_step_is_needed(decoder):
    assert made(decoder) is decoder
    memory = decoder.prepare(**image_inputs(decoder, next(decoder.parameters()).dtype))
    assert ready(decoder, memory) == (decoder, memory)


def test_the_plain_step_is_taken_with_gradients_in_mixed_precision_and_without_the_switch(plainly):
    decoder = build("soft")
    assert fast_decoder(decoder) is decoder
    assert plainly(made, decoder) is decoder
    with torch.autocast("cpu", torch.bfloat16):
        assert made(decoder) is decoder
    fast = made(decoder)
    assert fast is not decoder and fast_decoder(fast) is fast


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("search", [Search(), Search(beam_size=4, n_best=4), Search(sample=True, n_best=3)], ids=str)
def test_captions_are_those_of_the_plain_steps_to_the_word(kind, search):
    decoder = build(kind)
    with torch.inference_mode():
        memory = decoder.prepare(**image_inputs(decoder, images=IMAGES))
        found = []
        for one in (decoder, fast_decoder(decoder)):
            torch.manual_seed(1)
            found.append(generate(*ready(one, memory), search))
    assert torch.equal(found[0].tokens, found[1].tokens)
    torch.testing.assert_close(found[0].log_prob, found[1].log_prob, rtol=0, atol=1e-5)


PACKED = [*TRANSFORMERS, "updown map", "updown everything"]


def packed_case(kind: str):
    """A decoder with its inputs."""
    if kind.startswith("updown"):
        name = kind.split()[1]
        return build_updown(name), updown_inputs(name)
    decoder = build_transformer(kind)
    return decoder, transformer_inputs(decoder)


@pytest.mark.parametrize("kind", PACKED)
@pytest.mark.parametrize("search", [Search(max_length=6), Search(beam_size=3, n_best=3, max_length=6)], ids=str)
def test_packed_layers_give_the_captions_of_the_plain_steps(kind, search, plainly):
    decoder, inputs = packed_case(kind)
    with torch.inference_mode():
        memory = decoder.prepare(**inputs)
        fast = fast_decoder(decoder)
        assert fast is not decoder and fast_decoder(fast) is fast and plainly(fast_decoder, decoder) is decoder
        assert fast.embed.weight is decoder.embed.weight
        found, expected = (generate(*ready(one, memory), search) for one in (fast, decoder))
    assert torch.equal(found.tokens, expected.tokens)
    torch.testing.assert_close(found.log_prob, expected.log_prob, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", PACKED)
def test_packed_layers_give_the_logits_and_weights_of_the_plain_steps(kind):
    decoder, inputs = packed_case(kind)
    with torch.inference_mode():
        memory = decoder.prepare(**inputs)
        fast, tokens = fast_decoder(decoder), torch.arange(4, 4 + B)
        state = decoder.start(memory)
        for _ in range(3):
            (logits, state, weights), expected = fast.step(tokens, state, memory), decoder.step(tokens, state, memory)
            torch.testing.assert_close(logits, expected[0], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(weights, expected[2])


def test_the_memory_repeats_and_drops_rows():
    decoder = build("soft_everything")
    fast, memory = ready(made(decoder), decoder.prepare(**image_inputs(decoder)))
    chosen = memory.select(torch.tensor([2, 2, 0]))
    assert len(memory) == B and len(chosen) == 3 and chosen.device == memory.device
    for name in ("key_powers", "persist_gates"):
        assert torch.equal(getattr(chosen, name), getattr(memory, name)[[2, 2, 0]])


@pytest.mark.parametrize("kind", ["soft", "spatial"])
def test_regions_that_explode(kind):
    decoder = build(kind)
    with torch.no_grad():
        decoder.attention.key.bias.copy_(torch.linspace(-60, 60, len(decoder.attention.key.bias)))
        decoder.attention.query.weight.mul_(20)
        fast, memory = ready(fast_decoder(decoder), decoder.prepare(**image_inputs(decoder, images=IMAGES)))
    assert memory.key_powers is None
    run(decoder, fast)

"""The steps that decoding takes against SentenceDecoder's plain ones."""

import copy

import pytest
import torch
from toy_decoders import KINDS, build, image_inputs

from captioning.decoder.search import Search, generate
from captioning.fast import steps as fast_steps
from captioning.fast.steps import FastSteps

IMAGES = 5


def both(decoder, tokens, state, memory):
    """(logits, state, weights) of the fast step and of the plain one."""
    with torch.no_grad():
        fast = fast_steps.fast_steps(decoder).step(tokens, state, memory)
    return fast, decoder.step(tokens, state, memory)  # with gradients: the plain one


def run(decoder, rows=1, steps=4):
    """Steps over made-up words with `rows` rows an image, the two compared at each."""
    torch.manual_seed(5)
    with torch.no_grad():
        memory = decoder.prepare(**image_inputs(decoder, images=IMAGES))
        state = tuple(part.repeat_interleave(rows, 1) for part in decoder.start(memory))
    for t in range(steps):
        tokens = torch.randint(4, decoder.vocab_size, (IMAGES * rows,)) if t else torch.ones(IMAGES * rows).long()
        fast, plain = both(decoder, tokens, state, memory)
        for a, b in zip((fast[0], *fast[1]), (plain[0], *plain[1])):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-6)
        assert (fast[2] is None) == (plain[2] is None)
        if fast[2] is not None:
            torch.testing.assert_close(fast[2], plain[2], rtol=0, atol=2e-6)
        state = fast[1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 3])
def test_every_decoder(kind, rows):
    run(build(kind), rows)


@pytest.mark.parametrize("kind", ["pooled", "soft"])
def test_with_a_table_of_words(kind):
    decoder = build(kind)
    with torch.no_grad():
        steps = fast_steps.fast_steps(decoder)
    assert steps.table is None
    run(decoder, steps=decoder.vocab_size)
    assert steps.table is not None and steps.table.shape == (decoder.vocab_size, 4 * decoder.hidden_size)
    run(decoder)


def test_a_table_that_would_be_too_large(monkeypatch):
    monkeypatch.setattr(fast_steps, "LARGEST_TABLE", 100)
    decoder = build("soft")
    run(decoder, steps=decoder.vocab_size)
    with torch.no_grad():
        assert fast_steps.fast_steps(decoder).table is None


def test_weights_that_change_are_noticed():
    decoder = build("soft")
    with torch.no_grad():
        before = fast_steps.fast_steps(decoder)
        assert fast_steps.fast_steps(decoder) is before
        decoder.linear.weight.mul_(2)
        assert fast_steps.fast_steps(decoder) is not before
    run(decoder)
    optimizer = torch.optim.SGD(decoder.parameters(), lr=0.5)
    for parameter in decoder.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    run(decoder)
    decoder.load_state_dict(build("soft", scale=0.1).state_dict())
    run(decoder)


def test_a_copy_has_steps_of_its_own():
    decoder = build("pooled")
    run(decoder)
    other = copy.deepcopy(decoder)
    with torch.no_grad():
        other.linear.bias.add_(1)
    run(other)
    run(decoder)


@pytest.mark.parametrize(
    "decoder",
    [build("soft", "GRU"), build("soft", layers=2), build("soft", dtype=torch.float64), build("soft").train()],
    ids=["gru", "two layers", "double", "training"],
)
def test_where_the_plain_step_is_needed(decoder):
    with torch.no_grad():
        assert fast_steps.fast_steps(decoder) is None
    assert fast_steps.fast_steps(build("soft")) is None, "gradients are wanted"
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert fast_steps.fast_steps(build("soft")) is None


def test_weights_of_inference_mode():
    """They do not tell when they change."""
    with torch.inference_mode():
        decoder = build("soft")
        assert fast_steps.fast_steps(decoder) is None
        found = generate(decoder, decoder.prepare(**image_inputs(decoder, images=2)), Search(max_length=5))
    assert found.tokens.shape[0] == 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("beams", [1, 4])
def test_captions_are_those_of_the_plain_steps_to_the_word(kind, beams, monkeypatch):
    decoder = build(kind)
    search = Search(beam_size=beams, n_best=beams, max_length=9)
    with torch.inference_mode():
        memory = decoder.prepare(**image_inputs(decoder, images=IMAGES))
        fast = generate(decoder, memory, search)
        monkeypatch.setattr("captioning.decoder.sentence.fast_steps", lambda decoder: None)
        monkeypatch.setattr(FastSteps, "step", None)
        plain = generate(decoder, memory, search)
    assert torch.equal(fast.tokens, plain.tokens)
    torch.testing.assert_close(fast.log_prob, plain.log_prob, rtol=0, atol=1e-5)


def test_weights_that_changed_while_training_are_noticed_whatever_their_versions():
    """An optimizer with `fused=True` writes past autograd's version counters, as `.data` does."""
    decoder = build("soft")
    run(decoder)
    decoder.train()
    assert decoder not in fast_steps._made
    for parameter in decoder.parameters():
        parameter.data.mul_(0.7)
    decoder.eval()
    run(decoder)
    with torch.no_grad():
        made = fast_steps.fast_steps(decoder)
        decoder.eval()
        assert fast_steps.fast_steps(decoder) is made, "nothing was trained"


@pytest.mark.parametrize("kind", ["soft", "spatial"])
def test_regions_that_explode(kind):
    decoder = build(kind)
    with torch.no_grad():
        decoder.attention.key.bias.copy_(torch.linspace(-60, 60, len(decoder.attention.key.bias)))
        decoder.attention.query.weight.mul_(20)
        assert decoder.prepare(**image_inputs(decoder, images=IMAGES)).key_powers is None
    run(decoder)

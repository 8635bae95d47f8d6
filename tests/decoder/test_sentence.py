"""The decoders against the published equations written out in numpy, and the fast pass against `step`."""

import numpy as np
import pytest
import torch
from toy_decoders import (
    CASES,
    KINDS,
    ROW_IMAGE,
    SIZES,
    SOME_REGIONS,
    STEPS,
    B,
    V,
    build,
    captions,
    config_of,
    every_decoder,
    image_inputs,
    loop,
    packed,
)

from captioning.decoder.sentence import SentenceDecoder
from captioning.errors import UserError
from captioning.rows import Packing
from captioning.text.tokens import START

# ---- an independent write-up, one image at a time ----


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


class Equations:
    """The LSTM with forget gates, the GRU as torch defines it, the attention of Xu et al. 2015 and Lu et al. 2017."""

    def __init__(self, decoder, arch, layers, settings):
        self.w = {name: value.double().numpy() for name, value in decoder.state_dict().items()}
        self.arch, self.layers, self.settings = arch, layers, settings

    def linear(self, name, x):
        bias = self.w.get(f"{name}.bias")
        return self.w[f"{name}.weight"] @ x + (0 if bias is None else bias)

    def cell(self, x, h, c):
        """All layers; h and c are lists with one vector a layer."""
        h, c = list(h), list(c)
        for k in range(self.layers):
            a = self.w[f"rnn.weight_ih_l{k}"] @ x + self.w[f"rnn.bias_ih_l{k}"]
            b = self.w[f"rnn.weight_hh_l{k}"] @ h[k] + self.w[f"rnn.bias_hh_l{k}"]
            if self.arch == "LSTM":
                i, f, g, o = np.split(a + b, 4)
                c[k] = sigmoid(f) * c[k] + sigmoid(i) * np.tanh(g)
                h[k] = sigmoid(o) * np.tanh(c[k])
            else:
                (ar, az, an), (br, bz, bn) = np.split(a, 3), np.split(b, 3)
                z = sigmoid(az + bz)
                h[k] = (1 - z) * np.tanh(an + sigmoid(ar + br) * bn) + z * h[k]
            x = h[k]
        return h, c

    def attend(self, h, values, gated):
        scores = [
            self.w["attention.score.weight"][0]
            @ np.tanh(self.linear("attention.key", a) + self.w["attention.query.weight"] @ h)
            for a in values
        ]
        weights = np.exp(scores) / np.exp(scores).sum()
        context = sum(weight * a for weight, a in zip(weights, values))
        if gated:
            context = context * sigmoid(self.linear("attention.gate", h))
        return context, weights

    def embed_image(self, image):
        x = self.linear("image.linear", image)
        if self.settings.get("encoder_non_lin"):  # SELU, Klambauer et al. 2017
            x = 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * (np.exp(x) - 1))
        w = self.w
        normal = (x - w["image.bn.running_mean"]) / np.sqrt(w["image.bn.running_var"] + 1e-5)
        return normal * w["image.bn.weight"] + w["image.bn.bias"]

    def sentence(self, tokens, image=None, persist=None, regions=None, initial=None):
        """Logits (T, V) and attention weights [(R,)] of T words."""
        s = self.settings
        attention = s.get("attention")
        first = None if image is None else self.embed_image(image)
        values = None
        if attention:
            values = [np.maximum(self.linear("regions", a), 0) for a in regions]
            initial = sum(values) / len(values)
        h = c = [np.zeros(SIZES["hidden_size"])] * self.layers
        if initial is not None:
            h = [self.linear(f"init_h.{k}", initial) for k in range(self.layers)]
            c = [self.linear(f"init_c.{k}", initial) for k in range(self.layers)] if self.arch == "LSTM" else c
        persist = np.zeros(0) if persist is None else persist

        def advance(x, h, c):
            context = weights = None
            if attention == "soft":
                context, weights = self.attend(h[-1], values, gated=True)
                x = np.concatenate([x, context])
            h, c = self.cell(np.concatenate([x, persist]), h, c)
            if attention == "spatial":
                context, weights = self.attend(h[-1], values, gated=False)
            return h, c, context, weights

        if first is not None and not s.get("skip_start_token"):
            h, c, _, _ = advance(first, h, c)
        logits, attended = [], []
        for token in tokens:
            x = first if s.get("skip_start_token") and token == START else self.w["embed.weight"][token]
            h, c, context, weights = advance(x, h, c)
            out = h[-1]
            if s.get("projection"):
                out = self.linear("projection", out)
            if attention or s.get("share_embedding_weights"):
                out = self.linear("hidden_to_output", out)
            if attention:  # L_o (E y + L_h h + L_z z)
                out = out + x + self.w["context_to_output.weight"] @ context
            logits.append(self.w["linear.weight"] @ out + self.w["linear.bias"])
            attended.append(weights)
        return np.array(logits), attended


@every_decoder
def test_the_fast_pass_gives_the_numbers_of_the_equations(kind, arch, layers):
    decoder = build(kind, arch, layers, torch.float64)
    inputs = image_inputs(decoder, torch.float64)
    tokens, packing = captions(), Packing.of(STEPS, "cpu")
    with torch.no_grad():
        logits, weights = decoder(decoder.prepare(**inputs), tokens, packing, ROW_IMAGE)
    equations = Equations(decoder, arch, layers, KINDS[kind])
    for n, (row, length, index) in enumerate(zip(tokens, STEPS, ROW_IMAGE)):
        mine = {name: None if x is None else x[index].numpy() for name, x in inputs.items()}
        expected, attended = equations.sentence(row[:length].tolist(), **mine)
        np.testing.assert_allclose(logits[packing.row == n].numpy(), expected, rtol=0, atol=1e-10)
        if weights is not None:
            np.testing.assert_allclose(weights[packing.row == n].numpy(), attended, rtol=0, atol=1e-12)
    assert (weights is None) == (decoder.attention_kind is None)


@every_decoder
def test_step_and_the_fast_pass_agree(kind, arch, layers):
    decoder = build(kind, arch, layers)
    tokens, packing = captions(), Packing.of(STEPS, "cpu")
    with torch.no_grad():
        for mask in (None, SOME_REGIONS) if decoder.attention_kind else (None,):
            memory = decoder.prepare(**image_inputs(decoder), mask=mask)
            logits, weights = decoder(memory, tokens, packing, ROW_IMAGE)
            each, attended = loop(decoder, memory, tokens, STEPS, ROW_IMAGE)
            torch.testing.assert_close(logits, packed(each, packing), rtol=0, atol=1e-5)
            if weights is not None:
                torch.testing.assert_close(weights, packed(attended, packing), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["pooled", "soft_persist_shared", "spatial_pooled_persist"])
def test_step_and_the_fast_pass_agree_at_a_usual_size(kind):
    decoder = build(kind, scale=0.08, embed_size=128, hidden_size=256, value_size=256, attention_size=128)
    tokens, packing = captions(), Packing.of(STEPS, "cpu")
    with torch.no_grad():
        memory = decoder.prepare(**image_inputs(decoder))
        logits, _ = decoder(memory, tokens, packing, ROW_IMAGE)
        each, _ = loop(decoder, memory, tokens, STEPS, ROW_IMAGE)
    torch.testing.assert_close(logits, packed(each, packing), rtol=0, atol=1e-5)


def gradients(decoder, inputs, run) -> dict:
    """Gradients of a random function of run(memory) -> (logits, weights), by parameter and input."""
    decoder.zero_grad()
    inputs = {name: None if x is None else x.clone().requires_grad_() for name, x in inputs.items()}
    logits, weights = run(decoder.prepare(**inputs))
    torch.manual_seed(10)
    loss = (logits * torch.randn_like(logits)).sum()
    if weights is not None:
        loss = loss + (weights * torch.randn_like(weights)).sum()
    loss.backward()
    found = {name: p.grad.clone() for name, p in decoder.named_parameters()}
    return found | {f"input {name}": x.grad for name, x in inputs.items() if x is not None}


@every_decoder
def test_both_have_the_same_gradients(kind, arch, layers):
    decoder = build(kind, arch, layers, torch.float64).train()  # batch norm by the batch; there is no dropout
    inputs = image_inputs(decoder, torch.float64)
    tokens, packing = captions(), Packing.of(STEPS, "cpu")

    def slowly(memory):
        logits, weights = loop(decoder, memory, tokens, STEPS, ROW_IMAGE)
        return packed(logits, packing), None if weights[0] is None else packed(weights, packing)

    fast = gradients(decoder, inputs, lambda memory: decoder(memory, tokens, packing, ROW_IMAGE))
    slow = gradients(decoder, inputs, slowly)
    assert fast.keys() == slow.keys()
    for name, expected in slow.items():
        # relative to the size of the gradient: the input's pass through a batch norm of three images
        scale = max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(fast[name], expected, rtol=0, atol=1e-8 * scale, msg=lambda m, n=name: f"{n}: {m}")


def test_every_weight_gets_a_gradient():
    for kind in KINDS:
        decoder = build(kind).train()
        tokens, packing = captions(), Packing.of(STEPS, "cpu")
        found = gradients(
            decoder, image_inputs(decoder), lambda m, d=decoder, p=packing, t=tokens: d(m, t, p, ROW_IMAGE)
        )
        # a bias before batch norm has none by construction
        dead = [name for name, g in found.items() if not g.abs().max() > 0 and "image.linear.bias" not in name]
        assert dead == [], kind


def test_words_after_a_rows_end_do_not_matter():
    decoder = build("soft_pooled")
    memory = decoder.prepare(**image_inputs(decoder))
    tokens, packing = captions(), Packing.of(STEPS, "cpu")
    other = tokens.clone()
    other[torch.arange(tokens.shape[1]) >= STEPS.unsqueeze(1)] = 0
    expected, _ = decoder(memory, tokens, packing, ROW_IMAGE)
    assert torch.equal(decoder(memory, other, packing, ROW_IMAGE)[0], expected)


@pytest.mark.parametrize("kind", ["pooled", "soft", "spatial"])
def test_the_order_of_the_rows_does_not_matter(kind):
    decoder = build(kind)
    memory = decoder.prepare(**image_inputs(decoder))
    tokens = captions()
    shuffled = torch.tensor([3, 0, 4, 2, 1])
    one, two = Packing.of(STEPS, "cpu"), Packing.of(STEPS[shuffled], "cpu")
    a, _ = decoder(memory, tokens, one, ROW_IMAGE)
    b, _ = decoder(memory, tokens[shuffled], two, ROW_IMAGE[shuffled])
    for place, n in enumerate(shuffled):
        torch.testing.assert_close(b[two.row == place], a[one.row == n], rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["pooled", "soft", "spatial"])
@pytest.mark.parametrize("arch", ["LSTM", "GRU"])
def test_the_recurrent_state_is_contiguous(kind, arch):
    """As cuDNN demands; a CPU does not mind."""
    decoder = build(kind, arch, layers=2)
    seen = []

    def check(module, arguments):
        state = arguments[1] if isinstance(arguments[1], tuple) else (arguments[1],)
        seen.append(all(part.is_contiguous() for part in state))

    decoder.rnn.register_forward_pre_hook(check)
    with torch.autocast("cpu", torch.bfloat16):  # as on a GPU, the layers are run by torch
        memory = decoder.prepare(**image_inputs(decoder))
        decoder(memory, captions(), Packing.of(STEPS, "cpu"), ROW_IMAGE)
    assert seen and all(seen)


@pytest.mark.parametrize("kind", ["pooled_nonlin_shared", "soft_everything", "spatial_pooled_persist"])
def test_dropout_is_for_training_only(kind):
    decoder = build(kind, layers=2, dropout=0.5, encoder_dropout=0.5)
    tokens, packing, inputs = captions(), Packing.of(STEPS, "cpu"), image_inputs(decoder)

    def run(decoder):
        return decoder(decoder.prepare(**inputs), tokens, packing, ROW_IMAGE)[0]

    assert torch.equal(run(decoder), run(decoder))
    assert torch.equal(run(decoder), run(build(kind, layers=2)))
    decoder.train()
    assert not torch.equal(run(decoder), run(decoder))


@pytest.mark.parametrize("kind", ["pooled_persist_skip", "soft_everything", "spatial_pooled_persist"])
@pytest.mark.parametrize("arch", ["LSTM", "GRU"])
def test_dropout_that_changes_later_acts_as_if_built_with_it(kind, arch):
    """Also between the layers, whether they are run over whole sentences or step by step."""
    inputs, tokens, packing = None, captions(), Packing.of(STEPS, "cpu")

    def outputs(decoder):
        """Of whole sentences and of one step, under one seed."""
        torch.manual_seed(5)
        memory = decoder.prepare(**inputs)
        state = decoder.start(memory)
        return [*decoder(memory, tokens, packing, ROW_IMAGE), decoder.step(tokens[:B, 0], state, memory)[0]]

    built = build(kind, arch, layers=2, dropout=0.4, encoder_dropout=0.3).train()
    changed = build(kind, arch, layers=2).train()
    inputs = image_inputs(built)
    without = outputs(changed)
    changed.set_dropout(0.4)
    changed.set_encoder_dropout(0.3)
    for a, b, c in zip(outputs(changed), outputs(built), without):
        assert a is b is None or (torch.equal(a, b) and not torch.equal(a, c))
    changed.set_dropout(0.0)
    changed.set_encoder_dropout(0.0)
    assert torch.equal(outputs(changed)[0], without[0])


def test_the_first_word_depends_on_the_image():
    for kind, arch, layers in CASES:
        decoder = build(kind, arch, layers)
        memory = decoder.prepare(**image_inputs(decoder))
        logits, _, weights = decoder.step(torch.full((B,), START), decoder.start(memory), memory)
        assert (logits[0] - logits[1]).abs().max() > 1e-3
        if weights is not None:
            torch.testing.assert_close(weights.sum(1), torch.ones(B))


def test_shared_embeddings_are_one_matrix():
    decoder = build("pooled_nonlin_shared")
    assert decoder.linear.weight is decoder.embed.weight
    assert sum(p.shape == (V, SIZES["embed_size"]) for p in decoder.parameters()) == 1


def test_skip_start_needs_a_pooled_image():
    with pytest.raises(UserError, match="--skip_start_token needs pooled initial features"):
        SentenceDecoder(V, config_of(attention="soft", skip_start_token=True))


def test_memory_select_repeats_and_drops():
    decoder = build("soft_everything")
    memory = decoder.prepare(**image_inputs(decoder))
    chosen = memory.select(torch.tensor([2, 2, 0]))
    assert len(memory) == B and len(chosen) == 3 and len(chosen.first_rows(1)) == 1
    for name, whole in vars(memory).items():
        part = getattr(chosen, name)
        assert (part is None) == (whole is None)
        if part is not None:
            assert torch.equal(part, whole[[2, 2, 0]])

"""The Transformer against torch's own layers and a write-up in numpy, and whole sentences against `step`."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn
from toy_decoders import (
    HEADS,
    ROW_IMAGE,
    SOME_REGIONS,
    STEPS,
    TRANSFORMERS,
    WIDTH,
    B,
    R,
    V,
    build_transformer,
    captions,
    check_beams_against_brute_force,
    every_transformer,
    loop,
    packed,
    transformer_config,
    transformer_inputs,
)

from captioning.config import FeatureSpec, ModelConfig
from captioning.decoder.multi_head import Places, attend, attention_weights
from captioning.decoder.search import Search, generate, generate_rows
from captioning.decoder.teacher_forcing import two_pass_read
from captioning.decoder.transformer import TransformerDecoder, sinusoids
from captioning.errors import UserError
from captioning.rows import Packing, log_probs_of, pack_sentences
from captioning.text.tokens import END, START


def whole(decoder, memory, tokens=None):
    """Logits, weights and the packing of toy captions."""
    packing = Packing.of(STEPS, "cpu")
    return *decoder(memory, captions() if tokens is None else tokens, packing, ROW_IMAGE), packing


# ---- independent sources ----


def soft(x):
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


class Equations:
    """Vaswani et al. 2017 with the norms in front (Xiong et al. 2020), one image and one head at a time."""

    def __init__(self, decoder, settings):
        self.w = {name: value.double().numpy() for name, value in decoder.state_dict().items()}
        self.settings = settings

    def linear(self, name, x):
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def norm(self, name, x):
        normal = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return normal * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def attend(self, q, k, v, causal=False):
        contexts, every, d = [], [], WIDTH // HEADS
        for head in range(HEADS):
            part = slice(head * d, (head + 1) * d)
            scores = q[:, part] @ k[:, part].T / math.sqrt(d)
            if causal:
                scores = np.where(np.tril(np.ones_like(scores)) > 0, scores, -np.inf)
            every.append(soft(scores))
            contexts.append(every[-1] @ v[:, part])
        return np.concatenate(contexts, 1), np.mean(every, 0)

    def feed_forward(self, name, x):
        hidden = np.maximum(self.linear(f"{name}.feed_forward.linear1", x), 0)
        return self.linear(f"{name}.feed_forward.linear2", hidden)

    def memory(self, regions, image, persist):
        given = {"regions": regions, "image": image, "persist": persist}
        rows = [self.linear(f"inputs.{name}", np.atleast_2d(x)) for name, x in given.items() if x is not None]
        x = np.concatenate(rows)
        for number in range(self.settings.region_layers):
            name = f"region_layers.{number}"
            q, k, v = np.split(self.linear(f"{name}.input", self.norm(f"{name}.norm1", x)), 3, 1)
            x = x + self.linear(f"{name}.output", self.attend(q, k, v)[0])
            x = x + self.feed_forward(name, self.norm(f"{name}.norm2", x))
        return self.norm("region_norm", x)

    def place(self, t):
        if self.settings.positions == "learned":
            return self.w["positions.weight"][min(t, self.settings.max_positions - 1)]
        rates = 10_000.0 ** (-2 * np.arange(WIDTH // 2) / WIDTH)
        return np.concatenate([np.sin(t * rates), np.cos(t * rates)])

    def sentence(self, tokens, **features):
        """Logits (T, V) and attention weights (T, regions and others)."""
        memory = self.memory(**features)
        x = np.array(
            [self.w["embed.weight"][token] * math.sqrt(WIDTH) + self.place(t) for t, token in enumerate(tokens)]
        )
        for number in range(self.settings.num_layers):
            name = f"layers.{number}"
            q, k, v = np.split(self.linear(f"{name}.input", self.norm(f"{name}.norm1", x)), 3, 1)
            x = x + self.linear(f"{name}.output", self.attend(q, k, v, causal=True)[0])
            k, v = np.split(self.linear(f"{name}.key_value", memory), 2, 1)
            context, weights = self.attend(self.linear(f"{name}.query", self.norm(f"{name}.norm2", x)), k, v)
            x = x + self.linear(f"{name}.context_output", context)
            x = x + self.feed_forward(name, self.norm(f"{name}.norm3", x))
        return self.linear("linear", self.norm("norm", x)), weights


@every_transformer
def test_whole_sentences_have_the_numbers_of_the_equations(kind):
    decoder, config = build_transformer(kind, torch.float64), transformer_config(kind)
    inputs = transformer_inputs(decoder, torch.float64)
    with torch.no_grad():
        logits, weights, packing = whole(decoder, decoder.prepare(**inputs))
    for n, (row, length, index) in enumerate(zip(captions(), STEPS, ROW_IMAGE)):
        mine = {name: None if x is None else x[index].numpy() for name, x in inputs.items()}
        expected, attended = Equations(decoder, config).sentence(row[:length].tolist(), **mine)
        np.testing.assert_allclose(logits[packing.row == n].numpy(), expected, rtol=0, atol=1e-10)
        if weights is not None:
            np.testing.assert_allclose(weights[packing.row == n].numpy(), attended[:, :R], rtol=0, atol=1e-12)
    assert (weights is None) == ("region" not in TRANSFORMERS[kind])


def test_layers_have_the_numbers_of_those_of_torch():
    decoder = build_transformer("map_refined", torch.float64, num_layers=2)
    options = {"batch_first": True, "norm_first": True, "dropout": 0.0, "dtype": torch.float64}
    regions = torch.randn(B, R, WIDTH, dtype=torch.float64)
    x = torch.randn(B, 6, WIDTH, dtype=torch.float64)

    def given(theirs, ours, pairs):
        with torch.no_grad():
            for name, tensor in pairs.items():
                theirs.get_parameter(name).copy_(tensor)
            for name in [n for n in theirs.state_dict() if n.startswith(("norm", "linear"))]:
                theirs.get_parameter(name).copy_(ours.get_parameter(name.replace("linear", "feed_forward.linear")))
        return theirs.eval()

    def attention(name, layer, output):
        weights, biases = ([getattr(one, kind) for one in layer] for kind in ("weight", "bias"))
        pairs = {"in_proj_weight": torch.cat(weights), "in_proj_bias": torch.cat(biases)}
        pairs |= {"out_proj.weight": output.weight, "out_proj.bias": output.bias}
        return {f"{name}.{key}": value for key, value in pairs.items()}

    encoder, ours = nn.TransformerEncoderLayer(WIDTH, HEADS, 4 * WIDTH, **options), decoder.region_layers[0]
    theirs = given(encoder, ours, attention("self_attn", [ours.input], ours.output))
    torch.testing.assert_close(ours(regions, None), theirs(regions), rtol=0, atol=1e-12)

    expected, memory = x, decoder.region_norm(regions)
    for layer in decoder.layers:
        pairs = attention("self_attn", [layer.input], layer.output)
        pairs |= attention("multihead_attn", [layer.query, layer.key_value], layer.context_output)
        theirs = given(nn.TransformerDecoderLayer(WIDTH, HEADS, 4 * WIDTH, **options), layer, pairs)
        causal = nn.Transformer.generate_square_subsequent_mask(6, dtype=torch.float64)
        expected = theirs(expected, memory, tgt_mask=causal, tgt_is_causal=True)
    # ours from embeddings: take away what is added to them
    plain = (x - sinusoids(torch.arange(6.0), WIDTH)) / math.sqrt(WIDTH)
    packing, images = Packing.of(torch.tensor([6] * B), "cpu"), torch.arange(B)
    decoder.region_layers = nn.ModuleList()
    decoder.inputs["regions"] = nn.Identity()
    kept = decoder.prepare(None, None, regions)
    found, _ = decoder.read_embedded(kept, plain[packing.row, packing.time], packing, images)
    torch.testing.assert_close(found, decoder.norm(expected)[packing.row, packing.time], rtol=0, atol=1e-6)


def test_sinusoids_are_those_of_the_paper():
    found = sinusoids(torch.arange(50.0), 10)
    for t, i in itertools.product(range(50), range(5)):
        angle = t / 10_000 ** (2 * i / 10)
        assert found[t, i] == pytest.approx(math.sin(angle), abs=1e-5)
        assert found[t, 5 + i] == pytest.approx(math.cos(angle), abs=1e-5)


# ---- whole sentences and steps ----


@every_transformer
@pytest.mark.parametrize("masked", [False, True])
def test_step_and_whole_sentences_agree(kind, masked):
    decoder = build_transformer(kind)
    mask = SOME_REGIONS if masked and decoder.has_regions else None
    with torch.no_grad():
        memory = decoder.prepare(**transformer_inputs(decoder), mask=mask)
        logits, weights, packing = whole(decoder, memory)
        each, attended = loop(decoder, memory, captions(), STEPS, ROW_IMAGE)
    torch.testing.assert_close(logits, packed(each, packing), rtol=0, atol=1e-5)
    if weights is not None:
        torch.testing.assert_close(weights, packed(attended, packing), rtol=0, atol=1e-6)
        assert mask is None or not weights[~mask[ROW_IMAGE[packing.row]]].any()


@pytest.mark.parametrize("kind", ["everything", "map_learned_shared"])
def test_both_have_the_same_gradients(kind):
    decoder = build_transformer(kind, torch.float64)
    found = []
    for slowly in (False, True):
        decoder.zero_grad()
        inputs = {k: x and x.requires_grad_() if x is None else x for k, x in transformer_inputs(decoder).items()}
        memory = decoder.prepare(**{k: None if x is None else x.double() for k, x in inputs.items()})
        logits, weights, packing = whole(decoder, memory)
        if slowly:
            logits, weights = (packed(x, packing) for x in loop(decoder, memory, captions(), STEPS, ROW_IMAGE))
        torch.manual_seed(10)
        ((logits * torch.randn_like(logits)).sum() + (weights * torch.randn_like(weights)).sum()).backward()
        found.append({name: p.grad.clone() for name, p in decoder.named_parameters()})
    for name, expected in found[1].items():
        torch.testing.assert_close(found[0][name], expected, rtol=1e-8, atol=1e-8, msg=lambda m, n=name: f"{n}: {m}")
        assert expected.abs().max() > 0, name


@every_transformer
def test_rows_of_an_image_stand_together(kind):
    """A step over K rows of each image is a step over the image repeated for each row."""
    decoder = build_transformer(kind)
    memory = decoder.prepare(**transformer_inputs(decoder))
    tokens = captions(torch.tensor([4] * 3 * B))
    together = tuple(x.repeat_interleave(3, 1) for x in decoder.start(memory))
    apart, repeated = together, memory.select(torch.arange(B).repeat_interleave(3))
    for t in range(4):
        logits, together, weights = decoder.step(tokens[:, t], together, memory)
        expected, apart, others = decoder.step(tokens[:, t], apart, repeated)
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
        assert weights is others is None or torch.allclose(weights, others, atol=1e-6)


def test_words_after_a_rows_end_and_the_order_of_rows_do_not_matter():
    decoder = build_transformer("everything")
    memory = decoder.prepare(**transformer_inputs(decoder))
    expected, weights, packing = whole(decoder, memory)
    other = captions()
    other[torch.arange(other.shape[1]) >= STEPS.unsqueeze(1)] = 0
    assert torch.equal(whole(decoder, memory, other)[0], expected)
    shuffled = torch.tensor([3, 0, 4, 2, 1])
    two = Packing.of(STEPS[shuffled], "cpu")
    moved, _ = decoder(memory, captions()[shuffled], two, ROW_IMAGE[shuffled])
    for place, n in enumerate(shuffled):
        torch.testing.assert_close(moved[two.row == place], expected[packing.row == n], rtol=0, atol=1e-5)


def test_attention_weights_share_with_other_features():
    for kind, alone in (("map", True), ("everything", False)):
        decoder = build_transformer(kind)
        _, weights, _ = whole(decoder, decoder.prepare(**transformer_inputs(decoder)))
        sums = weights.sum(1)
        assert torch.allclose(sums, torch.ones_like(sums)) if alone else (sums < 0.999).all()


def test_places_of_tokens():
    group = torch.tensor([2, 0, 2, 2, 0, 3])
    places = Places.of(group, 5)
    x = torch.arange(12.0).view(6, 2).requires_grad_()
    spread = places.spread(x)
    assert spread.shape == (5, 3, 2)
    assert spread[2].tolist() == x[[0, 2, 3]].tolist() and spread[0, :2].tolist() == x[[1, 4]].tolist()
    assert spread[[1, 4]].abs().sum() == 0 and spread[0, 2].abs().sum() == 0
    assert torch.equal(places.gather(spread), x)
    factor = torch.randn(5, 3, 2)
    (places.spread(x) * factor).sum().backward()
    assert torch.equal(x.grad, places.gather(factor))
    torch.autograd.gradcheck(
        lambda y: places.gather(places.spread(y) ** 2), torch.randn(6, 2).double().requires_grad_()
    )


# ---- search ----


@every_transformer
def test_beam_search_is_brute_force(kind):
    decoder = build_transformer(kind)
    with torch.no_grad():
        memory = decoder.prepare(**transformer_inputs(decoder))
        check_beams_against_brute_force(decoder, memory)


def test_greedy_captions_and_samples_have_the_probabilities_of_whole_sentences():
    decoder = build_transformer("everything")
    with torch.no_grad():
        memory = decoder.prepare(**transformer_inputs(decoder))
        for search in (Search(max_length=7), Search(max_length=7, sample=True, n_best=3)):
            found = generate(decoder, memory, search)
            for image in range(B):
                for tokens, log_prob in zip(found.tokens[image].tolist(), found.log_prob[image].tolist()):
                    rows, packing = pack_sentences([tokens[: tokens.index(END)]], "cpu")
                    logits, _ = decoder(memory.select(torch.tensor([image])), rows, packing, torch.zeros(1).long())
                    assert log_prob == pytest.approx(float(log_probs_of(logits, packing.targets(rows)).sum()), abs=1e-4)


def test_gradients_flow_through_a_greedy_caption():
    decoder = build_transformer("map")
    generate_rows(
        decoder, decoder.prepare(**transformer_inputs(decoder)), Search(max_length=4)
    ).log_prob.sum().backward()
    assert all(p.grad is not None for p in decoder.parameters())


# ---- scheduled sampling ----


@pytest.mark.parametrize("mode", ["sampled", "additive", "additive_sampled"])
@pytest.mark.parametrize("p", [0.0, 0.4, 1.0])
def test_two_passes_are_what_their_definition_says(mode, p):
    """Every caption by itself; the coin of a time step is the same for all."""
    decoder = build_transformer("map_learned_shared")
    memory, packing = decoder.prepare(**transformer_inputs(decoder)), Packing.of(STEPS, "cpu")
    forcing = mode, p, torch.Generator().manual_seed(3)
    logits, weights = two_pass_read(decoder, memory, captions(), packing, ROW_IMAGE, forcing)
    coins = torch.Generator().manual_seed(3)
    truthful = [True] + [torch.rand((), generator=coins).item() < p for _ in range(int(STEPS.max()) - 1)]
    assert p in (0.0, 1.0) or len(set(truthful)) == 2
    first, _, _ = whole(decoder, memory)
    for n, (row, length, image) in enumerate(zip(captions(), STEPS, ROW_IMAGE)):
        own = first[packing.row == n].argmax(1)
        read = decoder.embed.weight[row[:length]].clone()
        for t in range(1, length):
            if mode == "sampled" and not truthful[t]:
                read[t] = decoder.embed.weight[own[t - 1]]
            elif mode == "additive" or (mode != "sampled" and not truthful[t]):
                read[t] = p * read[t] + (1 - p) * decoder.embed.weight[own[t - 1]]
        alone = Packing.of(length.view(1), "cpu")
        outputs, _ = decoder.read_embedded(memory, read, alone, image.view(1))
        torch.testing.assert_close(logits[packing.row == n], decoder.linear(outputs), rtol=0, atol=1e-5)
    (logits.square().mean() + weights.square().mean()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in decoder.parameters())


# ---- settings ----


def test_dropout_is_for_training_and_can_change():
    built, changed = (build_transformer("everything", **extra).train() for extra in ({"dropout": 0.4}, {}))
    inputs = transformer_inputs(built)

    def outputs(decoder):
        torch.manual_seed(5)
        return whole(decoder, decoder.prepare(**inputs))[0]

    plain = outputs(changed)
    assert torch.equal(plain, outputs(changed.eval())) and torch.equal(plain, outputs(built.eval()))
    changed.train().set_dropout(0.4)
    assert torch.equal(outputs(changed), outputs(built.train())) and not torch.equal(outputs(changed), plain)
    changed.set_dropout(0.0)
    changed.set_encoder_dropout(0.5)
    assert not torch.equal(outputs(changed), plain)


@pytest.mark.parametrize("mask", [None, torch.tensor([[True, True, True, False], [True, True, True, True]])])
def test_dropout_of_attention_weights_has_the_mean_and_the_variance_of_its_definition(mask):
    """Each weight is dropped with probability p, and divided by 1 - p otherwise."""
    torch.manual_seed(0)
    queries, keys, values = torch.randn(2, 1, 3, 5), torch.randn(2, 1, 4, 5), torch.randn(2, 1, 4, 5)
    weights, p, draws = attention_weights(queries, keys, mask), 0.25, 4000
    many = (x.repeat_interleave(draws, 0) for x in (queries, keys, values))
    drawn = attend(*many, None if mask is None else mask.repeat_interleave(draws, 0), dropout=p)
    drawn = drawn.view(2, draws, 1, 3, 5)
    variance = weights.square() @ values.square() * p / (1 - p)
    torch.testing.assert_close(drawn.mean(1), weights @ values, rtol=0, atol=0.06)
    torch.testing.assert_close(drawn.var(1), variance, rtol=0.15, atol=0.01)


@pytest.mark.parametrize("kind", ["map", "map_refined", "pooled"])
def test_dropout_of_attention_weights_is_for_training_and_can_change(kind):
    torch.manual_seed(1)
    decoder = build_transformer(kind, attention_dropout=0.5)
    inputs, tokens = transformer_inputs(decoder), captions()
    plain = whole(decoder, decoder.prepare(**inputs), tokens)[0]
    decoder.train()
    once, again = (whole(decoder, decoder.prepare(**inputs), tokens)[0] for _ in range(2))
    assert not torch.equal(once, plain) and not torch.equal(once, again)
    memory = decoder.prepare(**inputs)
    once, again = (decoder.step(torch.full((B,), START), decoder.start(memory), memory)[0] for _ in range(2))
    assert not torch.equal(once, again)
    decoder.set_attention_dropout(0.0)
    torch.testing.assert_close(whole(decoder, decoder.prepare(**inputs), tokens)[0], plain)


def test_defaults_depend_on_the_decoder():
    of_rnn, of_transformer = ModelConfig(), ModelConfig(decoder="transformer")
    assert (of_rnn.num_layers, of_rnn.dropout, of_rnn.feed_forward_size) == (1, 0.0, None)
    assert (of_transformer.num_layers, of_transformer.dropout, of_transformer.feed_forward_size) == (3, 0.1, 2048)
    assert ModelConfig.from_dict(of_transformer.to_dict()) == of_transformer
    old = {name: value for name, value in of_rnn.to_dict().items() if name not in of_transformer.idle() | {"decoder"}}
    assert ModelConfig.from_dict({**old, "embed_size": 5}).decoder == "lstm"
    assert "heads" in of_rnn.idle() and "rnn_arch" in of_transformer.idle() and "hidden_size" not in of_rnn.idle()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"heads": 5}, "--heads 5: it must divide --hidden_size 12"),
        ({"attention": "soft"}, "--attention is of --decoder lstm"),
    ],
)
def test_settings_that_do_not_go_together(changes, told):
    with pytest.raises(UserError, match=told):
        build_transformer("map", **changes)


def test_the_first_of_the_persistent_maps_is_attended_to_and_others_are_averaged():
    specs = [FeatureSpec(name, (4, 2, 2), True) for name in "ab"]
    assert ModelConfig(specs[:1], specs[1:], decoder="transformer").attended() == 1
    decoder = TransformerDecoder(V, ModelConfig(specs, [], decoder="transformer", hidden_size=16))
    assert {name: layer.in_features for name, layer in decoder.inputs.items()} == {"regions": 4, "image": 4}


def test_shared_embeddings_are_one_matrix():
    decoder = build_transformer("map_learned_shared")
    assert decoder.linear.weight is decoder.embed.weight


def test_the_first_word_depends_on_the_image():
    for kind in TRANSFORMERS:
        decoder = build_transformer(kind)
        memory = decoder.prepare(**transformer_inputs(decoder))
        logits, _, _ = decoder.step(torch.full((B,), START), decoder.start(memory), memory)
        assert (logits[0] - logits[1]).abs().max() > 1e-3

"""The paragraph decoder against the papers' equations written out in numpy, and whole paragraphs against its steps."""

from functools import partial

import numpy as np
import pytest
import torch

from captioning.config import FeatureSpec, ModelConfig, ParagraphConfig
from captioning.decoder.paragraph import STOP, HierarchicalDecoder, ParagraphMemory, global_topics, places
from captioning.decoder.paragraph_search import (
    Draft,
    Paragraph,
    choose,
    explain_paragraphs,
    write_paragraphs,
)
from captioning.decoder.search import Search
from captioning.decoder.sentence import SentenceDecoder
from captioning.decoder.teacher_forcing import mixed_read
from captioning.errors import UserError
from captioning.rows import Packing
from captioning.text.tokens import END, START
from model import as_text, tidy_caption
from training.build import start_word_decoder
from training.paragraph_losses import paragraph_loss
from vocabulary import Vocabulary

V, B, R, D, REGION, PERSIST = 12, 3, 4, 5, 6, 3
KINDS = {
    "plain": {},
    "persist_shared": {"persist": True, "share_embedding_weights": True},
    "skip_start": {"skip_start_token": True},
    "soft": {"attention": "soft"},
    "spatial_two_layers": {"attention": "spatial", "num_layers": 2},
}
every_kind = pytest.mark.parametrize("kind", KINDS)
coherence = pytest.mark.parametrize("coherent", [False, True], ids=["plain", "coherent"])
rnns = pytest.mark.parametrize("arch", ["LSTM", "GRU"])

SENTENCES = torch.tensor([2, 1, 3, 2])  # of four paragraphs
LENGTHS = torch.tensor([5, 3, 4, 6, 2, 4, 3, 5])  # of their sentences, with <start> and <end>
ROW_IMAGE = torch.tensor([2, 2, 0, 1, 1, 1, 0, 0])


def config_of(persist=False, attention=None, paragraphs=None, **settings) -> ModelConfig:
    """Paragraphs read a map and a vector, D numbers in all; words attend to another map."""
    features = [FeatureSpec("grid", (D - 2, 1, R), True), FeatureSpec("vector", (2,), True)]
    persistent = [FeatureSpec("persist", (PERSIST,), True)] if persist else []
    if attention:
        persistent.append(FeatureSpec("map", (REGION, 1, R), True))
    sizes = {"embed_size": 5, "hidden_size": 6, "value_size": 7, "attention_size": 4}
    return ModelConfig(features, persistent, attention=attention, paragraphs=paragraphs, **sizes, **settings)


def build(kind="plain", coherent=False, arch="LSTM", dtype=torch.float64, scale=0.6, **changes) -> HierarchicalDecoder:
    torch.manual_seed(3)
    paragraphs = {"pooling_size": 8, "fc_size": 9, "max_sentences": 4, "coupling_beta": 1.2, **changes}
    paragraphs = ParagraphConfig(coherent_sentences=coherent, **paragraphs)
    config = config_of(**KINDS[kind], rnn_arch=arch, paragraphs=paragraphs)
    decoder = HierarchicalDecoder(SentenceDecoder(V, config), config)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.normal_(0, scale)
        decoder.pooling.bn.running_mean.normal_()
        decoder.pooling.bn.running_var.uniform_(0.5, 2)
    return decoder.to(dtype).eval()


def remember(decoder, images=B) -> ParagraphMemory:
    torch.manual_seed(4)
    parts = [torch.randn(images, R, D - 2).double(), torch.randn(images, 2).double()]
    words = decoder.word_decoder
    persist = torch.randn(images, PERSIST).double() if words.persist_size else None
    regions = torch.randn(images, R, REGION).double() if words.attention_kind else None
    return decoder.prepare(parts, persist, regions)


def captions() -> torch.Tensor:
    torch.manual_seed(5)
    tokens = torch.randint(END + 1, V, (len(LENGTHS), int(LENGTHS.max())))
    tokens[:, 0] = START
    tokens[torch.arange(len(LENGTHS)), LENGTHS - 1] = END
    return tokens


# ---- an independent write-up, one paragraph at a time ----


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def lstm(w, name, x, h, c):
    z = (
        w[f"{name}.weight_ih_l0"] @ x
        + w[f"{name}.bias_ih_l0"]
        + w[f"{name}.weight_hh_l0"] @ h
        + w[f"{name}.bias_hh_l0"]
    )
    i, f, g, o = np.split(z, 4)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def gru(w, name, x, h):
    a = w[f"{name}.weight_ih_l0"] @ x + w[f"{name}.bias_ih_l0"]
    b = w[f"{name}.weight_hh_l0"] @ h + w[f"{name}.bias_hh_l0"]
    (ar, az, an), (br, bz, bn) = np.split(a, 3), np.split(b, 3)
    z = sigmoid(az + bz)
    return (1 - z) * np.tanh(an + sigmoid(ar + br) * bn) + z * h


def linear(w, name, x):
    return w[f"{name}.weight"] @ x + w[f"{name}.bias"]


def paragraph_by_hand(w, regions, sentences, coherent, alpha=1.0, beta=1.2):
    """Logits of every word and of stopping, of one paragraph: Krause et al. section 4, Chatterjee and Schwing 3."""
    v = np.max([linear(w, "pooling.linear", region) for region in regions], axis=0)
    v = (v - w["pooling.bn.running_mean"]) / np.sqrt(w["pooling.bn.running_var"] + 1e-5)
    v = v * w["pooling.bn.weight"] + w["pooling.bn.bias"]
    h = c = np.zeros(6)
    topics, stops = [], []
    for _ in sentences:
        h, c = lstm(w, "sentence_rnn", v, h, c)
        topics.append(linear(w, "linear2", np.maximum(0, linear(w, "linear1", h))))
        stops.append(linear(w, "linear_stopping", h))
    lengths = [np.sqrt((t**2).sum()) for t in topics]
    overall = sum(n * t for n, t in zip(lengths, topics)) / sum(lengths)
    logits, before = [], None
    for topic, words in zip(topics, sentences):
        if coherent:
            coherence = np.zeros(5)
            if before is not None:
                hidden = np.maximum(0, linear(w, "coupling_unit.linear1", before))
                coherence = linear(w, "coupling_unit.linear2", hidden)
            topic = gru(w, "coupling_unit.gate", (alpha * topic + beta * coherence) / (alpha + beta), overall)
        h, c = lstm(w, "word_decoder.rnn", topic, np.zeros(6), np.zeros(6))
        for word in words:
            h, c = lstm(w, "word_decoder.rnn", w["word_decoder.embed.weight"][word], h, c)
            logits.append(linear(w, "word_decoder.linear", h))
        before = h
    return np.array(logits), np.array(stops)


@coherence
def test_paragraphs_follow_the_published_equations(coherent):
    decoder = build(coherent=coherent)
    w = {name: value.numpy() for name, value in decoder.state_dict().items()}
    torch.manual_seed(4)
    maps, vectors = torch.randn(B, R, D - 2).double().numpy(), torch.randn(B, 2).double().numpy()
    tokens = captions()
    done = decoder(remember(decoder), tokens, LENGTHS, ROW_IMAGE, SENTENCES)
    paragraph, position = places(SENTENCES)
    for q in range(len(SENTENCES)):
        rows = (paragraph == q).nonzero().squeeze(1)
        image = ROW_IMAGE[rows[0]]
        regions = [np.concatenate([region, vectors[image]]) for region in maps[image]]
        sentences = [tokens[row, : LENGTHS[row] - 1].tolist() for row in rows]
        logits, stops = paragraph_by_hand(w, regions, sentences, coherent)
        found = torch.cat([done.logits[done.row == row] for row in rows])
        np.testing.assert_allclose(found.detach(), logits, atol=1e-10)
        np.testing.assert_allclose(done.stops[rows].detach(), stops, atol=1e-10)
        assert torch.cat([done.targets[done.row == row] for row in rows]).tolist() == [
            int(word) for row in rows for word in tokens[row, 1 : LENGTHS[row]]
        ]
    assert done.last.tolist() == [0, 1, 1, 0, 0, 1, 0, 1]


def test_the_objective_is_krauses():
    """Equation 2 over two paragraphs, with weights 5 and 1, divided by the words' number."""
    torch.manual_seed(0)
    logits, stops = torch.randn(7, V).double(), torch.randn(3, 2).double()
    targets, last = torch.randint(0, V, (7,)), torch.tensor([0, 1, 1])
    total, word, stop = paragraph_loss(logits, targets, stops, last, ParagraphConfig())
    p = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(1, keepdims=True)
    p_stop = 1 / (1 + np.exp(stops[:, 0] - stops[:, 1]).numpy())  # a logistic classifier of the difference
    words = -np.log(p[np.arange(7), targets]).sum()
    ends = -(last.numpy() * np.log(p_stop) + (1 - last.numpy()) * np.log(1 - p_stop)).sum()
    assert total.item() == pytest.approx((5 * ends + words) / 7, rel=1e-5)  # losses are computed in float32
    assert word.item() == pytest.approx(words / 7, rel=1e-5) and stop.item() == pytest.approx(ends / 3, rel=1e-5)


# ---- whole paragraphs against the steps ----


def step_by_step(decoder, memory, tokens):
    """Logits (T_n, V) and attention (T_n, R) of every sentence, by start() and step() alone."""
    paragraph, position = places(SENTENCES)
    rows = []
    for q, count in enumerate(SENTENCES.tolist()):
        mine = [row for row in range(len(LENGTHS)) if paragraph[row] == q]
        one = memory.select(ROW_IMAGE[mine[:1]])
        state, topics = decoder.start(one), []
        for _ in range(count):
            topic, _, state = decoder.step(state, one)
            topics.append(topic)
        overall = global_topics(torch.stack(topics, 1), torch.tensor([count]))
        before, first = torch.zeros(1, decoder.word_decoder.hidden_size).double(), torch.tensor([True])
        for row, topic in zip(mine, topics):
            words = decoder.words_memory(one, torch.tensor([0]), topic, overall, before, first)
            inner, outputs = decoder.word_decoder.start(words), []
            for token in tokens[row, : LENGTHS[row] - 1]:
                logits, inner, weights = decoder.word_decoder.step(token.view(1), inner, words)
                outputs.append((logits, weights))
            before, first = inner[0][-1], torch.tensor([False])
            rows.append((torch.cat([x for x, _ in outputs]), [w for _, w in outputs]))
    return rows


@every_kind
@coherence
@rnns
def test_whole_paragraphs_equal_their_steps(kind, coherent, arch):
    decoder = build(kind, coherent, arch)
    memory, tokens = remember(decoder), captions()
    done = decoder(memory, tokens, LENGTHS, ROW_IMAGE, SENTENCES)
    coins = torch.Generator().manual_seed(1)
    mixed = partial(mixed_read, forcing=("sampled", 1.0, coins))
    forced = decoder(memory, tokens, LENGTHS, ROW_IMAGE, SENTENCES, mixed)
    for row, (logits, weights) in enumerate(step_by_step(decoder, memory, tokens)):
        torch.testing.assert_close(done.logits[done.row == row], logits)
        torch.testing.assert_close(forced.logits[forced.row == row], logits)
        if weights[0] is not None:
            torch.testing.assert_close(done.weights[done.row == row], torch.cat(weights))
    state = decoder.start(memory)
    topics, stops = decoder.plan(memory, 4)
    for s in range(4):
        topic, stop, state = decoder.step(state, memory)
        torch.testing.assert_close(topic, topics[:, s])
        torch.testing.assert_close(stop, stops[:, s])


@coherence
def test_only_coherent_sentences_look_back(coherent):
    decoder, tokens = build(coherent=coherent), captions()
    memory, other = remember(decoder), tokens.clone()
    other[3, 1] = (tokens[3, 1] - 2) % (V - 3) + 3  # another word in the first sentence of the third paragraph
    a, b = (decoder(memory, t, LENGTHS, ROW_IMAGE, SENTENCES) for t in (tokens, other))
    changed = {row for row in range(8) if not torch.equal(a.logits[a.row == row], b.logits[b.row == row])}
    assert changed == ({3, 4, 5} if coherent else {3})
    assert torch.equal(a.stops, b.stops)


def test_every_weight_is_trained():
    decoder = build("soft", coherent=True).train()
    done = decoder(remember(decoder), captions(), LENGTHS, ROW_IMAGE, SENTENCES)
    paragraph_loss(done.logits, done.targets, done.stops, done.last, ParagraphConfig())[0].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in decoder.parameters())


def test_the_last_token_of_each_row_in_the_packed_order():
    packing = Packing.of(LENGTHS - 1, "cpu")
    assert packing.row[packing.ends()].tolist() == packing.order.tolist()
    assert packing.time[packing.ends()].tolist() == (LENGTHS[packing.order] - 2).tolist()


# ---- writing ----


def never_stopping(decoder):
    """Bias the classifier so that paragraphs have all sentences."""
    with torch.no_grad():
        decoder.linear_stopping.weight.zero_()
        decoder.linear_stopping.bias.copy_(torch.tensor([1.0, 0.0]))
    return decoder


def ending(decoder, bias=2.0):
    with torch.no_grad():
        decoder.word_decoder.linear.bias[END] += bias
    return decoder


@coherence
@pytest.mark.parametrize("kind", ["plain", "soft"])
def test_greedy_paragraphs_follow_the_definition(kind, coherent):
    """A paragraph at a time, a sentence at a time, the argmax each, against all at once; explained as written."""
    decoder = ending(build(kind, coherent))
    memory = remember(decoder)
    written = write_paragraphs(decoder, memory, Search(max_length=7))
    draft = Draft(decoder, memory)
    for i, (paragraph,) in enumerate(written):
        one = memory.select(torch.tensor([i]))
        count = int(draft.counts[i])
        topics, stops = decoder.plan(one, count)
        going = stops[0, :, STOP] < stops[0, :, 1 - STOP]
        assert going[:-1].all() and (not going[-1] or count == decoder.max_sentences)
        overall = global_topics(topics, torch.tensor([count]))
        before, first, expected = torch.zeros(1, 6).double(), torch.tensor([True]), []
        for s in range(count):
            words = decoder.words_memory(one, torch.tensor([0]), topics[:, s], overall, before, first)
            state, sentence, token = decoder.word_decoder.start(words), [], START
            while token != END:
                logits, state, _ = decoder.word_decoder.step(torch.tensor([token]), state, words)
                logits[:, [0, 1, 3]] = -torch.inf
                token = END if len(sentence) == 7 else int(logits.argmax())
                sentence.append(token)
            if len(sentence) > 1:
                expected.append(sentence[:-1])
                before, first = state[0][-1], torch.tensor([False])
        assert paragraph.sentences == expected
    explained = explain_paragraphs(decoder, memory, [paragraph for (paragraph,) in written])
    for (paragraph,), (weights, log_probs) in zip(written, explained):
        assert log_probs.sum().item() == pytest.approx(paragraph.log_prob, abs=1e-4)
        assert len(log_probs) == sum(len(sentence) + 1 for sentence in paragraph.sentences)
        assert (weights is None) == (kind == "plain")
        if weights is not None:
            torch.testing.assert_close(weights.sum(1), torch.ones(len(weights)))


@coherence
def test_beams_and_samples_of_paragraphs(coherent):
    decoder = never_stopping(ending(build(coherent=coherent)))
    memory = remember(decoder)
    greedy = write_paragraphs(decoder, memory, Search(max_length=6))
    assert write_paragraphs(decoder, memory, Search(max_length=6, beam_size=1)) == greedy
    beams = write_paragraphs(decoder, memory, Search(max_length=6, beam_size=4))
    if not coherent:  # each sentence is searched for by itself
        assert all(b[0].log_prob >= g[0].log_prob - 1e-6 for b, g in zip(beams, greedy))
    torch.manual_seed(0)
    samples = write_paragraphs(decoder, memory, Search(max_length=6, sample=True, n_best=3))
    assert [len(several) for several in samples] == [3] * B
    assert all(a.log_prob >= b.log_prob for several in samples for a, b in zip(several, several[1:]))
    for several in samples:
        explained = explain_paragraphs(decoder, memory.select(torch.tensor([samples.index(several)] * 3)), several)
        for paragraph, (_, log_probs) in zip(several, explained):
            assert log_probs.sum().item() == pytest.approx(paragraph.log_prob, abs=1e-4)
    with pytest.raises(UserError, match="--n_best 2"):
        write_paragraphs(decoder, memory, Search(beam_size=2, n_best=2))


@coherence
def test_no_sentence_is_repeated_and_none_cut_off(coherent):
    decoder = never_stopping(ending(build(coherent=coherent, scale=0.4), -1.0))
    with torch.no_grad():  # topics hardly differ, and neither do greedy sentences
        decoder.linear2.weight.mul_(1e-3)
    memory = remember(decoder)
    loose = write_paragraphs(decoder, memory, Search(max_length=4, beam_size=5))
    assert any(len(p.sentences) != len(set(map(tuple, p.sentences))) for (p,) in loose)
    strict = write_paragraphs(decoder, memory, Search(max_length=4, beam_size=5, no_repeat_sentences=True))
    for (paragraph,), (before,) in zip(strict, loose):
        assert len(paragraph.sentences) == len(set(map(tuple, paragraph.sentences))) > 1
        assert paragraph.sentences[0] == before.sentences[0]
    whole = write_paragraphs(decoder, memory, Search(max_length=4, beam_size=5, only_complete_sentences=True))
    assert all(len(sentence) < 4 for (p,) in whole for sentence in p.sentences)
    for results in (strict, whole):  # also where sentences were left out
        explained = explain_paragraphs(decoder, memory, [p for (p,) in results])
        for (paragraph,), (_, log_probs) in zip(results, explained):
            assert log_probs.sum().item() == pytest.approx(paragraph.log_prob, abs=1e-4)


def test_which_candidate_is_chosen():
    search = Search(max_length=3, no_repeat_sentences=True, only_complete_sentences=True)
    have, candidates = Paragraph([[5, 6]], [0], -1.0), [[5, 6, END], [7, 8, 9, END], [END], [8, END], [9, END]]
    assert choose(candidates, [-1.0, -2.0, -3.0, -4.0, -5.0], have, search) == ([8], -4.0)
    assert choose(candidates[:3], [-1.0, -2.0, -3.0], have, search) is None
    assert choose(candidates, [-1.0] * 5, have, Search()) == ([5, 6], -1.0)
    assert choose([[4, END], [5, END]], [-float("inf"), -2.0], Paragraph(), search) == ([5], -2.0)


WORDS = Vocabulary(["<pad>", "<start>", "<end>", "<unk>", ".", "a", "dog", "runs"])


@pytest.mark.parametrize(
    ("text", "rules", "expected"),
    [
        ("a dog . runs . a dog .", {"no_repeat_sentences": True}, "a dog . runs ."),
        ("a dog . runs . a dog", {"no_repeat_sentences": True}, "a dog . runs ."),
        ("a dog . runs a", {"only_complete_sentences": True, "max_length": 5}, "a dog ."),
        ("a dog . runs a", {"only_complete_sentences": True, "max_length": 6}, "a dog . runs a"),
        ("a dog .", {"only_complete_sentences": True, "max_length": 3}, "a dog ."),
        ("a . a .", {}, "a . a ."),
    ],
)
def test_rules_for_captions_in_one_piece(text, rules, expected):
    assert WORDS.decode(tidy_caption(WORDS.encode(text), WORDS, Search(**rules))) == expected


def test_paragraphs_as_text():
    sentences = [WORDS.encode("a dog"), [], WORDS.encode("runs .")]
    assert as_text(sentences, WORDS) == "A dog. Runs."
    assert as_text(sentences, WORDS, capitalize=False) == "a dog. runs."


def test_a_flat_decoder_becomes_the_word_decoder():
    for init in (None, "from_features"):
        torch.manual_seed(1)
        flat = SentenceDecoder(V, config_of(rnn_hidden_init=init))
        decoder = build(dtype=torch.float32)
        start_word_decoder(decoder, flat, "flat.model")
        own, theirs = decoder.word_decoder.state_dict(), flat.state_dict()
        assert own and all(torch.equal(value, theirs[name]) for name, value in own.items())
    with pytest.raises(UserError, match=r"flat.model does not fit as word decoder: rnn.weight_ih_l0 is \(24, 5\)"):
        flat = SentenceDecoder(V, config_of(share_embedding_weights=True))
        start_word_decoder(build("persist_shared").float(), flat, "flat.model")

"""Greedy, sampled and beam decoding against slow references in plain Python, and on the real decoders."""

import itertools
import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from toy_decoders import CASES, IDS, Keys, TableDecoder, build, image_inputs

from captioning.decoder.search import Search, beam_search, generate, generate_rows
from captioning.errors import UserError
from captioning.rows import Packing
from captioning.text.tokens import END, PAD, START, UNK


def repeats(words: list[int], word: int) -> bool:
    trigrams = [tuple(words[i : i + 3]) for i in range(len(words) - 2)]
    return tuple([*words, word][-3:]) in trigrams


def may_follow(decoder, words: list[int], search: Search) -> list[int]:
    if len(words) == search.max_length:
        return [END]
    allowed = [END, *range(4, decoder.table.shape[1])] + ([UNK] if search.allow_unk else [])
    allowed = [w for w in allowed if not (search.block_trigrams and repeats(words, w))]
    allowed = [w for w in allowed if not (w in search.once and w in words)]
    early = [END] if len(words) < search.min_length else []
    early += search.closing if len(words) < search.min_length - 1 else ()
    return [w for w in allowed if w not in early] or [w for w in allowed if w in early] or [END]


def slow_beam(decoder, key: int, search: Search) -> list[tuple[list[int], float]]:
    """The same rules for one image with lists."""
    K, a = search.beam_size, search.length_penalty
    beams, ended = [([], 0.0)], []
    for t in range(1, search.max_length + 2):
        candidates = []
        for words, score in beams:
            log_probs = decoder.after(key, words)
            candidates += [([*words, w], score + log_probs[w]) for w in may_follow(decoder, words, search)]
        candidates = sorted(candidates, key=lambda c: -c[1])[: 2 * K]
        for place, (words, score) in enumerate(candidates):
            if words[-1] == END and (place < K or t == search.max_length + 1):
                ended.append((words, score, score / t**a))
        ended = sorted(ended, key=lambda e: -e[2])[:K]
        beams = [c for c in candidates if c[0][-1] != END][:K]
        if not beams or (len(ended) == K and beams[0][1] / t**a <= ended[-1][2]):
            break
    return [(words, score) for words, score, _ in ended[: search.n_best]]


def found(sentences, image: int) -> list[tuple[list[int], float]]:
    """The sentences of an image as lists up to <end>, without the places that no sentence filled."""
    pairs = zip(sentences.tokens[image].tolist(), sentences.log_prob[image].tolist())
    return [(tokens[: tokens.index(END) + 1], score) for tokens, score in pairs if score > -math.inf]


def assert_same(got, expected):
    assert [words for words, _ in got] == [words for words, _ in expected]
    assert [score for _, score in got] == pytest.approx([score for _, score in expected], abs=1e-4)


SEARCHES = [
    Search(beam_size=K, n_best=K, max_length=length, length_penalty=a, block_trigrams=block)
    for K, length, a, block in itertools.product((2, 3, 7), (1, 12), (0.0, 0.7, 1.5), (False, True))
] + [
    Search(beam_size=5, n_best=2, max_length=6),
    Search(beam_size=4, n_best=4, max_length=6, allow_unk=True, length_penalty=1.0),
    Search(beam_size=3, n_best=3, max_length=6, min_length=4),
    Search(beam_size=4, n_best=4, max_length=8, min_length=8, length_penalty=0.7),
    Search(beam_size=4, n_best=4, max_length=9, min_length=6, closing=(4, 5)),
    Search(beam_size=4, n_best=4, max_length=9, once=(4, 5, 7, 9)),
    Search(beam_size=5, n_best=5, max_length=7, min_length=5, once=tuple(range(4, 13)), block_trigrams=True),
]


@pytest.mark.parametrize(
    "search",
    SEARCHES,
    ids=lambda s: f"{s.beam_size}-{s.min_length}-{s.max_length}-{s.length_penalty}-{s.block_trigrams}-{len(s.once)}",
)
@pytest.mark.parametrize(("words", "end_bias"), [(2, -1.5), (9, 0.5)])
def test_beam_search_is_that_of_the_slow_reference(search, words, end_bias):
    decoder = TableDecoder(words, end_bias=end_bias)
    keys = list(range(100, 116))
    sentences = generate(decoder, Keys(torch.tensor(keys)), search)
    for image, key in enumerate(keys):
        assert_same(found(sentences, image), slow_beam(decoder, key, search))


def all_sentences(decoder, key: int, search: Search) -> list[tuple[list[int], float]]:
    complete, unfinished = [], [([], 0.0)]
    while unfinished:
        words, score = unfinished.pop()
        for w in may_follow(decoder, words, search):
            entry = ([*words, w], score + decoder.after(key, words)[w])
            (complete if w == END else unfinished).append(entry)
    return sorted(complete, key=lambda c: -c[1] / len(c[0]) ** search.length_penalty)


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_a_wide_beam_finds_all_sentences_in_order(penalty):
    search = Search(beam_size=40, n_best=40, max_length=3, length_penalty=penalty)  # 1 + 3 + 9 + 27 sentences
    decoder = TableDecoder(3)
    sentences = generate(decoder, Keys(torch.arange(6)), search)
    for image in range(6):
        expected = all_sentences(decoder, image, search)
        assert len(expected) == 40
        assert_same(found(sentences, image), expected)


@pytest.mark.parametrize(
    ("rules", "count"),
    [
        ({"min_length": 2}, 9 + 27),
        ({"once": (4, 5)}, 1 + 3 + 7 + 13),  # of 27 words of three letters, those with two of a kind are left out
        ({"once": (4, 5, 6), "min_length": 2}, 6 + 6),
        ({"once": (4, 5, 6), "min_length": 3}, 6),
    ],
)
def test_a_wide_beam_finds_all_sentences_that_the_rules_allow(rules, count):
    search = Search(beam_size=40, n_best=40, max_length=3, **rules)
    decoder = TableDecoder(3, seed=2)
    sentences = generate(decoder, Keys(torch.arange(6)), search)
    for image in range(6):
        expected = all_sentences(decoder, image, search)
        assert len(expected) == count
        assert_same(found(sentences, image), expected)


def test_a_beam_of_half_the_sentences_still_finds_the_best():
    search = Search(beam_size=27, max_length=3)
    decoder = TableDecoder(3, seed=1)
    sentences = generate(decoder, Keys(torch.arange(30)), search)
    for image in range(30):
        assert_same(found(sentences, image), all_sentences(decoder, image, search)[:1])


@pytest.mark.parametrize("rules", [{}, {"block_trigrams": True}, {"min_length": 9}, {"once": (5,), "min_length": 3}])
def test_greedy_takes_the_best_word_each_time_and_so_does_a_beam_of_one(rules):
    decoder = TableDecoder(2, end_bias=-1.0)
    search = Search(max_length=15, **rules)
    keys = list(range(30))
    greedy = generate(decoder, Keys(torch.tensor(keys)), search)
    beam = beam_search(decoder, Keys(torch.tensor(keys)), search)
    for image, key in enumerate(keys):
        words, total = [], 0.0
        while not words or words[-1] != END:
            log_probs = decoder.after(key, words)
            best = max(may_follow(decoder, words, search), key=lambda w: log_probs[w])
            words, total = [*words, best], total + log_probs[best]
        assert_same(found(greedy, image), [(words, total)])
        assert_same(found(beam, image), [(words, total)])


def test_finished_rows_leave_the_batch():
    decoder = TableDecoder(5)
    memory = Keys(torch.arange(40))
    greedy = generate(decoder, memory, Search(max_length=30))
    lengths = [len(found(greedy, image)[0][0]) for image in range(40)]
    assert decoder.calls == [sum(n > t for n in lengths) for t in range(max(lengths))]
    assert len(set(decoder.calls)) > 3
    decoder.calls.clear()
    generate(decoder, memory, Search(beam_size=3, max_length=30))
    first, *calls = decoder.calls
    assert first == 40 and calls[0] == 120, "all beams start alike: one is enough at first"
    assert calls == sorted(calls, reverse=True) and len(set(calls)) > 3


@pytest.mark.parametrize(
    "search", [Search(max_length=9), Search(beam_size=4, n_best=3, max_length=9, length_penalty=0.7)]
)
def test_a_batch_gives_what_single_images_give(search):
    decoder = TableDecoder(6)
    together = generate(decoder, Keys(torch.arange(50)), search)
    for image in range(50):
        alone = generate(decoder, Keys(torch.tensor([image])), search)
        assert found(together, image) == found(alone, 0)


# ---- the real decoders ----

EVERY = pytest.mark.parametrize(("kind", "arch", "layers"), CASES, ids=IDS)


def rescored(decoder, memory, rows: list[tuple[int, list[int]]]) -> list[float]:
    """Log-probability of sentences of images by the fast teacher-forced pass."""
    lengths = torch.tensor([len(words) for _, words in rows])
    tokens = torch.full((len(rows), int(lengths.max()) + 1), PAD)
    for n, (_, words) in enumerate(rows):
        tokens[n, : len(words) + 1] = torch.tensor([START, *words])
    packing = Packing.of(lengths, "cpu")
    logits, _ = decoder(memory, tokens, packing, torch.tensor([image for image, _ in rows]))
    each = logits.log_softmax(1).gather(1, tokens[packing.row, packing.time + 1].unsqueeze(1)).squeeze(1)
    return torch.zeros(len(rows)).index_add(0, packing.row, each).tolist()


@EVERY
def test_real_decoders(kind, arch, layers):
    """A beam of one is greedy, log-probabilities are those of a re-scoring, a batch gives what single images give."""
    decoder = build(kind, arch, layers)
    search = Search(beam_size=3, n_best=3, max_length=7)
    with torch.inference_mode():
        memory = decoder.prepare(**image_inputs(decoder, images=6))
        one = beam_search(decoder, memory, Search(max_length=7))
        greedy = generate(decoder, memory, Search(max_length=7))
        beam = generate(decoder, memory, search)
        rows, scores = [], []
        for image in range(6):
            assert_same(found(one, image), found(greedy, image))
            alone = generate(decoder, memory.select(torch.tensor([image])), search)
            assert_same(found(beam, image), found(alone, 0))
            for words, score in found(greedy, image) + found(beam, image):
                rows.append((image, words))
                scores.append(score)
        assert len(rows) == 24
        assert rescored(decoder, memory, rows) == pytest.approx(scores, abs=1e-4)


# ---- what may be written ----


@pytest.mark.parametrize(
    "search", [Search(), Search(beam_size=4, n_best=4), Search(sample=True), Search(sample=True, n_best=3)]
)
@pytest.mark.parametrize("length", [1, 2, 5])
def test_max_length_and_forbidden_words(search, length):
    torch.manual_seed(0)
    decoder = TableDecoder(3, end_bias=-3.0)
    sentences = generate(decoder, Keys(torch.arange(40)), replace(search, max_length=length))
    longest = 0
    for image in range(40):
        for words, _ in found(sentences, image):
            assert not {PAD, START, UNK} & set(words)
            assert words.count(END) == 1 and len(words) <= length + 1
            longest = max(longest, len(words))
    assert longest == length + 1
    tokens = sentences.tokens[sentences.log_prob > -math.inf]  # after <end> there is nothing but <pad>
    ended = (tokens == END).cumsum(1).cumsum(1) > 1
    assert tokens[ended].eq(PAD).all() and not tokens[~ended].eq(PAD).any()


@pytest.mark.parametrize("search", [Search(), Search(beam_size=3), Search(sample=True)])
def test_unk_is_written_where_allowed_only(search):
    torch.manual_seed(0)
    decoder, memory = TableDecoder(3), Keys(torch.arange(30))
    assert not (generate(decoder, memory, search).tokens == UNK).any()
    assert (generate(decoder, memory, replace(search, allow_unk=True)).tokens == UNK).any()


@pytest.mark.parametrize("search", [Search(), Search(beam_size=4, n_best=4), Search(sample=True)])
def test_blocked_trigrams_never_come_twice(search):
    torch.manual_seed(0)
    decoder, memory = TableDecoder(2, end_bias=-6.0), Keys(torch.arange(20))

    def most(blocked):
        sentences = generate(decoder, memory, replace(search, max_length=25, block_trigrams=blocked))
        return max(
            max(Counter(zip(words, words[1:], words[2:])).values(), default=0)
            for image in range(20)
            for words, _ in found(sentences, image)
        )

    assert most(blocked=False) > 1
    assert most(blocked=True) == 1


@pytest.mark.parametrize("search", [Search(), Search(beam_size=3, n_best=3), Search(sample=True, n_best=2, top_k=2)])
def test_fewest_words_and_words_that_come_once(search):
    torch.manual_seed(0)
    decoder, memory = TableDecoder(9, end_bias=2.0), Keys(torch.arange(30))
    once = (4, 5, 6, 7, 8, 9)
    search = replace(search, min_length=5, max_length=12, once=once)
    found_all = [pair for image in range(30) for pair in found(generate(decoder, memory, search), image)]
    assert min(len(words) for words, _ in found_all) == 6  # with <end>
    assert all(words.count(word) <= 1 for words, _ in found_all for word in once)
    assert any(words.count(word) > 1 for words, _ in found_all for word in (10, 11, 12))


def test_where_no_word_is_left_a_sentence_may_be_shorter():
    search = Search(min_length=5, max_length=12, once=(4, 5))
    for beams in (1, 3):
        sentences = generate(TableDecoder(2), Keys(torch.arange(8)), replace(search, beam_size=beams))
        assert all(len(found(sentences, image)[0][0]) == 3 for image in range(8))


def test_gradients_flow_with_the_rules():
    decoder = build("soft_everything").train()
    memory = decoder.prepare(**image_inputs(decoder))
    rules = Search(sample=True, max_length=6, min_length=3, once=(4, 5, 6))
    generate_rows(decoder, memory, rules).log_prob.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in decoder.parameters() if p.grad is not None)


def test_contradicting_lengths_are_refused():
    with pytest.raises(UserError, match="at least 9 and at most 8 words"):
        Search(min_length=9, max_length=8)


# ---- sampling ----


class Constant(TableDecoder):
    """The same distribution at every step, whatever the image."""

    def __init__(self, logits):
        super().__init__(len(logits) - 4)
        self.table = torch.tensor([logits])
        self.log_probs = self.table.log_softmax(1)


LOGITS = [9.0, 9.0, 0.2, 9.0, 1.0, 0.1, -0.5, 0.6, -1.5]  # <pad>, <start> and <unk> would win
WORDS = [END, 4, 5, 6, 7, 8]
DRAWS = 20_000


def first_words(**settings) -> Counter:
    torch.manual_seed(3)
    sentences = generate(
        Constant(LOGITS), Keys(torch.zeros(DRAWS, dtype=torch.long)), Search(sample=True, max_length=1, **settings)
    )
    return Counter(sentences.tokens[:, 0, 0].tolist())


def softmax(words, temperature=1.0) -> dict[int, float]:
    weights = {w: math.exp(LOGITS[w] / temperature) for w in words}
    return {w: weight / sum(weights.values()) for w, weight in weights.items()}


def assert_distribution(counts: Counter, expected: dict[int, float]):
    """Pearson's chi-square below its 1 in 10,000 quantile."""
    assert set(counts) == set(expected)
    chi_square = sum((counts[w] - DRAWS * p) ** 2 / (DRAWS * p) for w, p in expected.items())
    assert chi_square < {1: 15.2, 2: 18.5, 3: 21.2, 4: 23.6, 5: 25.8}[len(expected) - 1]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_samples_follow_the_softmax(temperature):
    assert_distribution(first_words(temperature=temperature), softmax(WORDS, temperature))


def test_top_k_keeps_the_k_likeliest():
    assert_distribution(first_words(top_k=3), softmax([4, 7, END]))
    assert_distribution(first_words(top_k=2, temperature=3.0), softmax([4, 7], 3.0))
    assert_distribution(first_words(top_k=50), softmax(WORDS))
    assert set(first_words(top_k=1)) == {4}


def test_top_p_keeps_the_smallest_nucleus():
    p = softmax(WORDS)
    assert p[4] + p[7] < 0.65 < p[4] + p[7] + p[END]
    assert_distribution(first_words(top_p=0.65), softmax([4, 7, END]))  # the word that crosses the line belongs to it
    assert set(first_words(top_p=p[4] - 0.01)) == {4}
    assert set(first_words(top_p=1e-6)) == {4}
    assert_distribution(first_words(top_p=1.0), p)


def test_log_probabilities_of_samples_are_the_models():
    """Not those of the sharpened or cut distribution."""
    decoder, memory = TableDecoder(5), Keys(torch.arange(30))
    sentences = generate(decoder, memory, Search(sample=True, temperature=0.7, top_k=3, max_length=8))
    for image in range(30):
        words, score = found(sentences, image)[0]
        assert score == pytest.approx(sum(decoder.after(image, words[:t])[w] for t, w in enumerate(words)), abs=1e-4)


def test_several_samples_an_image():
    torch.manual_seed(5)
    decoder, memory = TableDecoder(5), Keys(torch.arange(12))
    sentences = generate(decoder, memory, Search(sample=True, n_best=6, max_length=8))
    assert sentences.tokens.shape[:2] == sentences.log_prob.shape == (12, 6)
    for image in range(12):
        several = found(sentences, image)
        assert [score for _, score in several] == sorted((score for _, score in several), reverse=True)
        assert len({tuple(words) for words, _ in several}) > 1
        for words, score in several:
            expected = sum(decoder.after(image, words[:t])[w] for t, w in enumerate(words))
            assert score == pytest.approx(expected, abs=1e-4)


def test_samples_repeat_with_the_seed():
    decoder, memory = TableDecoder(5), Keys(torch.arange(30))

    def draw(seed):
        torch.manual_seed(seed)
        return generate(decoder, memory, Search(sample=True)).tokens

    assert torch.equal(draw(1), draw(1))
    assert draw(1).shape != draw(2).shape or not torch.equal(draw(1), draw(2))


def test_gradients_reach_the_weights_through_a_samples_log_probability():
    """As self-critical training needs: the same gradients as from a re-scoring."""
    decoder = build("soft_everything").train()
    inputs = image_inputs(decoder)
    memory = decoder.prepare(**inputs)
    torch.manual_seed(0)
    sentences = generate_rows(decoder, memory, Search(sample=True, max_length=6))
    expected_rows = [(image, found(sentences, image)[0][0]) for image in range(3)]
    sentences.log_prob.sum().backward()
    sampled = {name: p.grad.clone() for name, p in decoder.named_parameters()}
    decoder.zero_grad()
    memory = decoder.prepare(**inputs)
    lengths = torch.tensor([len(words) for _, words in expected_rows])
    tokens = torch.nn.utils.rnn.pad_sequence([torch.tensor([START, *w]) for _, w in expected_rows], batch_first=True)
    packing = Packing.of(lengths, "cpu")
    logits, _ = decoder(memory, tokens, packing, torch.arange(3))
    logits.log_softmax(1).gather(1, tokens[packing.row, packing.time + 1].unsqueeze(1)).sum().backward()
    for name, p in decoder.named_parameters():
        torch.testing.assert_close(sampled[name], p.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("penalty", [51.0, -1e308, float("nan")])
def test_a_penalty_by_which_lengths_cannot_be_computed_is_refused(penalty):
    with pytest.raises(UserError, match="length penalty .* must be from -50 to 50"):
        Search(length_penalty=penalty)

"""Constrained beam search against brute force over all sentences of a toy, and against the plain search."""

import itertools

import pytest
import torch
from toy_decoders import Keys, TableDecoder

from captioning.decoder.constrained import constrained_search
from captioning.decoder.search import Search, beam_search
from captioning.text.tokens import END

WORDS = range(4, 8)


def toy(seed: int, images: int = 2) -> tuple:
    return TableDecoder(4, seed), Keys(torch.arange(images))


def all_sentences(decoder, key: int, length: int) -> list[tuple[list[int], float]]:
    """Every sentence of up to `length` words with its log-probability."""
    found = []
    for words in itertools.chain.from_iterable(itertools.product(WORDS, repeat=n) for n in range(length + 1)):
        steps = [decoder.after(key, list(words[:t]))[w] for t, w in enumerate((*words, END))]
        found.append(([*words, END], float(sum(steps))))
    return found


@pytest.mark.parametrize("penalty", [0.0, 0.8])
@pytest.mark.parametrize("demands", [[], [[6]], [[4, 5], [7]], [[4], [5], [6]]])
def test_it_finds_the_best_sentence_with_the_words(demands, penalty):
    decoder, memory = toy(len(demands))
    search = Search(beam_size=400, max_length=4, length_penalty=penalty, n_best=3)
    found = constrained_search(decoder, memory, search, [demands] * 2)
    for image in range(2):
        every = all_sentences(decoder, image, 4)
        fitting = [s for s in every if all(set(words) & set(s[0]) for words in demands)]
        expected = sorted(fitting, key=lambda s: -s[1] / len(s[0]) ** penalty)[:3]
        tokens = [row[: row.index(END) + 1] for row in found.tokens[image].tolist()]
        assert tokens == [words for words, _ in expected]
        assert found.log_prob[image].tolist() == pytest.approx([score for _, score in expected], abs=1e-4)


@pytest.mark.parametrize("beams", [1, 2, 3])
def test_without_demands_it_is_the_plain_search(beams):
    decoder, memory = toy(9, 5)
    search = Search(beam_size=beams, max_length=6, length_penalty=0.5, n_best=beams)
    plain, found = beam_search(decoder, memory, search), constrained_search(decoder, memory, search, [[]] * 5)
    assert torch.equal(plain.tokens, found.tokens)
    torch.testing.assert_close(plain.log_prob, found.log_prob)


def test_few_beams_meet_the_demands_of_each_image():
    decoder, memory = toy(3, 3)
    demands = [[[4]], [[5, 6], [7]], []]
    found = constrained_search(decoder, memory, Search(beam_size=2, max_length=5), demands)
    for image, of_image in enumerate(demands):
        words = found.tokens[image, 0].tolist()
        assert all(set(several) & set(words) for several in of_image) and END in words


def test_as_many_demands_are_met_as_there_is_room_for():
    decoder, memory = toy(4, 1)
    found = constrained_search(decoder, memory, Search(beam_size=3, max_length=2), [[[4], [5], [6]]])
    words = set(found.tokens[0, 0].tolist())
    assert len(words & {4, 5, 6}) == 2

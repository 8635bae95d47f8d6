"""Statistics beside the scores, each against a count by hand."""

import math

import pytest

from captioning.scoring.statistics import caption_statistics, diversity, novel_share, vocabulary_used


def test_caption_statistics():
    found = caption_statistics(["a dog", "a dog", "a <unk> cat runs", "A <unk>."])
    assert found == {"distinct": 3 / 4, "mean_length": 10 / 4, "unk_share": 2 / 10}
    assert caption_statistics([]) == {"distinct": 0, "mean_length": 0, "unk_share": 0}


def test_vocabulary_and_novel_captions():
    captions = ["a dog runs", "a cat", "a dog", ""]
    assert vocabulary_used(captions) == 4
    assert novel_share(captions, ["a dog", "a cat sits"]) == 3 / 4
    assert novel_share(captions, []) == 1 and novel_share([], ["a"]) == 0


def test_diversity():
    first = ["a dog runs", "a dog sits", "a cat"]  # a dog runs sits cat; a-dog dog-runs dog-sits a-cat; 8 words
    second = ["b b", "b b"]  # b; b-b; 4 words
    found = diversity([first, second, ["alone"]])
    assert found["div_1"] == pytest.approx((5 / 8 + 1 / 4) / 2)
    assert found["div_2"] == pytest.approx((4 / 8 + 1 / 4) / 2)
    assert diversity([["alone"], []]) == {} and diversity([]) == {}
    assert diversity([["", ""]]) == {"div_1": 0, "div_2": 0, "mbleu_4": 0}


def test_mutual_bleu():
    same = diversity([["a dog runs on grass"] * 3, ["two cats sit on a mat"] * 3])
    assert same["mbleu_4"] == pytest.approx(1)
    # each against the other: 5 of 6 words, 4 of 5, 3 of 4, 2 of 3 runs of words are the same; equal lengths
    found = diversity([["a dog runs on the grass", "a dog runs on the beach"]])
    assert found["mbleu_4"] == pytest.approx((5 / 6 * 4 / 5 * 3 / 4 * 2 / 3) ** 0.25)
    # first captions as one set, then second ones: the counts of both images are added
    found = diversity([["a b c d e", "a b c d e"], ["v w x y z", "a b c d e"]])
    assert found["mbleu_4"] == pytest.approx((5 * 4 * 3 * 2 / (10 * 8 * 6 * 4)) ** 0.25, abs=1e-6)
    # images with fewer captions are in fewer sets
    found = diversity([["a b c d", "a b c d", "k l m n"], ["a b c d", "a b c d"]])
    assert found["mbleu_4"] == pytest.approx((1 + 1 + 0) / 3, abs=1e-3)
    assert math.isclose(found["div_1"], (8 / 12 + 4 / 8) / 2)

"""Tokenizers: the Treebank's against nltk, the others by hand."""

import random

import pytest
from nltk.tokenize.treebank import TreebankWordTokenizer

from captioning.errors import UserError
from captioning.text import tokenizers
from captioning.text.tokenizers import tokenize


def test_treebank_equals_nltk_also_where_nltk_is_spared(monkeypatch):
    pieces = ["a", "dog", "b-c", "--", ".", ", ", ",", "'s", "n't", "cannot", "gonna", "1,000", " ", "  "]
    pieces += ['"', "(", "?", "end. ", "'tis", "wanna", "A", "\t", "..", "é", "\u212a", "\u0131"]
    reference, chance, asked = TreebankWordTokenizer(), random.Random(0), []
    monkeypatch.setattr(tokenizers, "load_treebank", lambda: asked.append(1) or reference)
    for _ in range(5000):
        text = "".join(chance.choice(pieces) + chance.choice(["", " "]) for _ in range(chance.randint(0, 7)))
        for lowercase in (True, False):
            expected = reference.tokenize(text.lower() if lowercase else text)
            assert tokenize(text, "treebank", lowercase) == expected, text
    assert len(asked) < 9500  # of 10,000 calls


def test_other_tokenizers():
    assert tokenize("A dog's  ball.", "whitespace") == ["a", "dog's", "ball."]
    assert tokenize("A  b", "char", lowercase=False) == ["A", " ", "b"]
    assert tokenize("A dog's well-known ball, red!", "regex") == ["a", "dog's", "well-known", "ball", ",", "red", "!"]
    with pytest.raises(UserError, match="unknown tokenizer 'ptb'.*treebank"):
        tokenize("a", "ptb")

"""Tokenizers: the Treebank's against nltk, the others by hand."""

import random

import pytest
from nltk.tokenize.treebank import TreebankWordTokenizer

from captioning.errors import UserError
from captioning.text import tokenizers
from captioning.text.tokenizers import one_token_advice, tokenize


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


WORDS = {  # by the rules of UAX #29, but for hyphens within words; scripts without blanks by grapheme cluster
    "A dog's well-known ball, red!": ["a", "dog's", "well-known", "ball", ",", "red", "!"],
    "l’été à 3.5 m, 1,000 €": ["l’été", "à", "3.5", "m", ",", "1,000", "€"],
    "Собака бежит по траве.": ["собака", "бежит", "по", "траве", "."],
    "हिन्दी में एक कुत्ता है।": ["हिन्दी", "में", "एक", "कुत्ता", "है", "।"],
    "كِتاب، كلب يركض؟": ["كِتاب", "،", "كلب", "يركض", "؟"],
    "می‌خواهم": ["می‌خواهم"],
    "שלום עולם": ["שלום", "עולם"],
    "개가 잔디 위를 달린다.": ["개가", "잔디", "위를", "달린다", "."],
    "一只狗在跑。": ["一", "只", "狗", "在", "跑", "。"],
    "カメラを持つ人": ["カ", "メ", "ラ", "を", "持", "つ", "人"],
    "สุนัขวิ่ง": ["สุ", "นั", "ข", "วิ่", "ง"],
    "红色T恤2个": ["红", "色", "t", "恤", "2", "个"],
    "👨‍👩‍👧 at 5:30... e\u0301te\u0301": ["👨‍👩‍👧", "at", "5:30", "...", "e\u0301te\u0301"],
}


@pytest.mark.parametrize("text", WORDS)
def test_words_of_any_language(text):
    assert tokenize(text, "words") == WORDS[text]


def test_advice_where_a_caption_is_one_token():
    assert "1.2 tokens on average by --tokenizer treebank" in one_token_advice(12, 10, "treebank")
    assert one_token_advice(15, 10, "treebank") is one_token_advice(10, 10, "words") is None
    assert one_token_advice(0, 0, "treebank") is None

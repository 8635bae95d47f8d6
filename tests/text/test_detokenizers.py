"""Words back to text: what each tokenizer splits comes back as it was written."""

import importlib
import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from running import ROOT, run_here

from captioning.text.detokenizers import as_sentence, detokenize
from captioning.text.paragraphs import join_sentences, spaced_paragraph, split_sentences
from captioning.text.ptb import ptb_tokens
from captioning.text.tokenizers import TOKENIZERS, tokenize

WRITTEN = [
    "a ball, painted red.",
    "a man who doesn't look, and can't see!",
    "it's a dog's life; they're here, we've seen, i'm sure she'd say he'll stay",
    "a dog (left) and a cat (right)",
    "(left) a dog",
    "50% of the cake, 90 percent [sic]",
    'a sign that says "stop"',
    'a shirt reads, "boys will do," and "go!"',
    '"stop" is written on it.',
    "two boys' teams and the girls' team",
    "a sign that reads 'go home' in red",
    "is it one? no: two...",
    "a clock at 5:50, a price of $3.50 and #8",
    "1,000 people; one waves",
    "a well-known half-eaten t-shirt",
    "black & white -- nearly",
    "she is gonna cook, he cannot wait, 'tis well",
    "mr. smith & sons",
    "a {small} <red> ball",
    "",
]


@pytest.mark.parametrize("text", WRITTEN)
def test_treebank_comes_back(text):
    assert detokenize(tokenize(text)) == text


@pytest.mark.parametrize("text", [t for t in WRITTEN if not any(s in t for s in ("--", "mr.", "'go", "'tis"))])
def test_regex_comes_back(text):
    assert detokenize(tokenize(text, "regex"), "regex") == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a dog 's ball , painted red .", "a dog's ball, painted red."),
        ('it says " free hugs " .', 'it says "free hugs".'),  # both marks are opening ones for the tokenizer
        ('it says " go " and " stop ! "', 'it says "go" and "stop!"'),
        ("offering ' free hugs ' .", "offering 'free hugs'."),
        ("it says ' go ' here", "it says 'go' here"),
        ("boys ' and girls ' teams", "boys' and girls' teams"),
        ("player # 8 of ( maybe ) ten", "player #8 of (maybe) ten"),
        ("something that ca n't be seen", "something that can't be seen"),
        ('a 5" pipe', 'a 5" pipe'),
    ],
)
def test_captions_that_were_split_before_they_were_published(text, expected):
    assert detokenize(tokenize(text)) == expected
    assert ptb_tokens(expected) == ptb_tokens(text)


def test_capitals_of_a_tokenizer_that_keeps_them():
    text = "It's a man who CAN'T (or WON'T) say \"No\"."
    assert detokenize(tokenize(text, lowercase=False)) == "It's a man who CAN'T (or WON'T) say \"No\"."


def test_whitespace_and_char():
    text = "it 's \"so\" ( left ) , isn't it ?"
    assert detokenize(tokenize(text, "whitespace"), "whitespace") == "it 's \"so\" ( left ), isn't it?"
    assert detokenize(tokenize("a dog's ball .", "char"), "char") == "a dog's ball ."
    assert [detokenize([], tokenizer) for tokenizer in TOKENIZERS] == [""] * len(TOKENIZERS)


WORDS = ["a", "dogs", "ball", "12", "don't", "it's", "t-shirt", "we'll", "<unk>"]
MARKS = [" ", ", ", " (", ") ", "; ", '" ', ' "', "! ", "% ", " #", " $", " & ", "' ", "... ", "? "]


@given(st.lists(st.tuples(st.sampled_from(WORDS), st.sampled_from(MARKS)), max_size=8), st.sampled_from(TOKENIZERS))
def test_nothing_but_blanks_is_added_or_lost(pairs, tokenizer):
    words = tokenize("".join(map("".join, pairs)), tokenizer)
    text = detokenize(words, tokenizer)
    assert text.replace(" ", "") == "".join(words).replace("``", '"').replace("''", '"').replace(" ", "")


@pytest.mark.parametrize("text", WRITTEN)
def test_scores_find_the_same_words(text):
    """They split a caption by their own rules: also what has been put together."""
    assert ptb_tokens(detokenize(tokenize(text))) == ptb_tokens(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a dog", "A dog."),
        ("a dog!", "A dog!"),
        ('"stop" says a sign', '"Stop" says a sign.'),
        ('a sign says "stop."', 'A sign says "stop."'),
        ('a sign says "stop"', 'A sign says "stop".'),
        ("(left) a dog", "(Left) a dog."),
        ("50% off", "50% off."),
        ("", ""),
        ('"', '".'),
    ],
)
def test_sentences(text, expected):
    assert as_sentence(text) == expected


def test_a_paragraph_joins_sentences_that_end_with_a_quotation():
    assert join_sentences(['A sign says "stop."', "a dog"]) == 'A sign says "stop." a dog.'


def test_the_script_that_counts_round_trips(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    importlib.import_module("round_trips")
    texts = ["It's red.", "a dog , running .", "no,never"]
    (tmp_path / "c.json").write_text(json.dumps({"annotations": [{"caption": text} for text in texts]}))
    (tmp_path / "c.txt").write_text("A dog (left).\n\n")
    done = run_here("round_trips.py", tmp_path / "c.json", tmp_path / "c.txt", "--show", 1)
    assert done.status == 0, done.err
    lines = done.out.splitlines()
    assert lines[0].endswith("c.json: 3 captions, tokenizer treebank")
    assert [line.split()[-1] for line in lines[1:4]] == ["33.333%", "100.000%", "100.000%"]
    assert lines[5:] == ["  as written       100.000%", "  but for blanks   100.000%", "  same PTB tokens  100.000%"]
    (tmp_path / "c.json").write_text("[]")
    done = run_here("round_trips.py", tmp_path / "c.json")
    assert done.status == 2 and "no COCO caption file" in done.err


OTHER_LANGUAGES = {  # what is written -> as a sentence, with the mark of its language
    "一只狗在草地上跑": "一只狗在草地上跑。",
    "穿红色t恤的2个人，在跑步！": "穿红色t恤的2个人，在跑步！",
    "犬が「外」で走る": "犬が「外」で走る。",
    "他说“你好。”": "他说“你好。”",
    "สุนัขวิ่งบนหญ้า": "สุนัขวิ่งบนหญ้า",
    "एक कुत्ता दौड़ता है": "एक कुत्ता दौड़ता है।",
    "كلب، قطة": "كلب، قطة.",
    "هل هذا كلب؟": "هل هذا كلب؟",
    "¿qué hace el perro?": "¿Qué hace el perro?",
    "l'été, «bien» l’homme": "L'été, «bien» l’homme.",
    "შავი ძაღლი": "შავი ძაღლი.",
    "շունը վազում է": "Շունը վազում է։",
}


@pytest.mark.parametrize("text", OTHER_LANGUAGES)
def test_words_of_other_languages_come_back(text):
    again = detokenize(tokenize(text, "words"), "words")
    assert again == text and as_sentence(again) == OTHER_LANGUAGES[text]


def test_paragraphs_of_other_languages():
    assert split_sentences("一只狗。一只猫。") == ["一只狗", "一只猫"]
    assert split_sentences("कुत्ता है। बिल्ली है।") == ["कुत्ता है", "बिल्ली है"]
    assert join_sentences(["一只狗", "一只猫！"]) == "一只狗。 一只猫！"
    assert spaced_paragraph("一只狗。一只猫") == "一只狗 。 一只猫 ."
    assert spaced_paragraph("A dog.A cat. 3.5 m") == "A dog . A cat . 3.5 m ."

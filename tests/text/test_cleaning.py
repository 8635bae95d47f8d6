"""Captions, names and ids from files: what is no text, and marks of other programs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioning.text.cleaning import can_be_a_name, clean_caption, clean_text, id_text, printable
from captioning.text.tokenizers import TOKENIZERS, tokenize
from captioning.text.tokens import MARKS

ANY = st.text(st.characters(codec=None, categories=None) | st.sampled_from("\ud83d\ude00\ufeff\0 <>"), max_size=40)
TYPED = st.lists(ANY | st.sampled_from([*MARKS, "<unk>", "<START>", " "]), max_size=6).map("".join)


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("A dog's bone.", "A dog's bone."),
        ("a wall \ud83d", "a wall"),
        ("\ude00 a wall", "a wall"),
        ("a \ud83d\ude00 smile", "a \U0001f600 smile"),
        ("\ufeffA dog\0 runs\x1b.", "A dog  runs ."),
        ("one\u2028two\x85three\tfour\r\n", "one\u2028two\x85three\tfour\r\n"),  # blanks for every tokenizer
        ("<start> a dog <end> <pad> <pad>", "a dog"),
        ("<START>a dog<End>", "a dog"),
        ("an <unk> dog <3", "an <unk> dog <3"),
    ],
)
def test_clean_caption(text, cleaned):
    assert clean_caption(text) == cleaned


@given(TYPED)
def test_a_cleaned_caption_is_text_and_stays_as_it_is(text):
    cleaned = clean_caption(text)
    assert cleaned.encode().decode() == cleaned
    assert clean_caption(cleaned) == cleaned
    assert "\0" not in cleaned
    for tokenizer in TOKENIZERS:
        tokens = tokenize(cleaned, tokenizer)
        assert not set(tokens) & set(MARKS)
        assert all(token and (token == " " or token.split() == [token]) for token in tokens)


@given(TYPED)
def test_marks_are_never_tokens(text):
    """Whatever the caller passes: <end> as a token would be the end of the caption."""
    for tokenizer in TOKENIZERS:
        for lowercase in (True, False):
            assert not set(tokenize(text, tokenizer, lowercase)) & set(MARKS)


@given(st.text(max_size=30))
def test_good_text_is_kept(text):
    if text.isprintable():
        assert clean_text(text) == text


@given(ANY)
def test_names_and_ids(text):
    assert printable(text).encode().decode() == printable(text)
    assert id_text(text) == printable(text)
    if can_be_a_name(text):
        assert text.encode(errors="surrogateescape") is not None and "\0" not in text


def test_ids_of_texts_and_numbers():
    assert id_text(42) == id_text("42") == "42"
    assert printable("caf\udce9.jpg") == "caf\\udce9.jpg"
    assert printable(7) == 7

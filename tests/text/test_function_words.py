"""captioning/text/function_words.py: which words a caption may repeat."""

from captioning.text.function_words import content_words

WORDS = ["<pad>", "<start>", "<end>", "<unk>", "a", "Dog", "IN", ",", "two", "red", "'s", "50", "犬", "t-shirt", "hund"]


def words_of(ids) -> list[str]:
    return [WORDS[i] for i in ids]


def test_content_words_are_neither_function_words_nor_marks():
    assert words_of(content_words(WORDS)) == ["Dog", "red", "犬", "t-shirt", "hund"]


def test_more_words_may_be_named():
    assert words_of(content_words(WORDS, ["RED", "dog", "unknown", ""])) == ["犬", "t-shirt", "hund"]

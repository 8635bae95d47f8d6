"""Which tokens scores compare: PTB's for European languages and Korean, those of `words` for the others."""

import pytest

from captioning.scoring.metrics import score_captions
from captioning.text.ptb import ptb_tokens
from captioning.text.score_tokens import score_tokenizer, score_tokens
from training.cider_reward import CiderReward
from vocabulary import build_vocabulary

PTB = ["A dog's run.", "Die Straße, größer!", "Собака бежит", "Ένας σκύλος", "개가 달린다.", "a dog 狗", "", "123"]
WORDS = ["一只狗", "犬が走る。", "หมา", "एक कुत्ता", "كلب يركض", "שלום", "一只狗 a dog b"]


@pytest.mark.parametrize("text", PTB)
def test_ptb(text):
    assert score_tokenizer([text]) == "python"
    assert score_tokens("python")(text) == ptb_tokens(text)


@pytest.mark.parametrize("text", WORDS[:-1])
def test_words(text):
    assert score_tokenizer([text, "a"]) == "words"


def test_most_letters_decide():
    assert score_tokenizer(["一只狗", "a dog on grass"]) == "python"
    assert score_tokens("words")("一只「狗」，T恤！ ok") == ["一", "只", "狗", "t", "恤", "ok"]


REFERENCES = {1: ["一只狗在草地上跑。", "草地上的狗"], 2: ["一只猫在睡觉。"], 3: ["红色的球"]}


def test_scores_are_those_of_the_characters(capsys):
    """BLEU-1 of one character of four that is wrong: three quarters."""
    scores = score_captions({1: "红色的狗", 2: "红"}, {1: ["红色的球"], 2: ["红"]}, ("bleu",), "auto")
    assert scores.tokenizer == "words" and scores.tokens == ["红 色 的 狗", "红"]
    assert scores.values["bleu_1"] == pytest.approx(4 / 5)
    plain = score_captions({1: "红色的狗", 2: "红"}, {1: ["红色的球"], 2: ["红"]}, ("bleu",), "python")
    assert plain.values["bleu_1"] == pytest.approx(1 / 2)


def test_the_reward_is_the_score():
    vocabulary = build_vocabulary([text for texts in REFERENCES.values() for text in texts], 1, "words")
    written = {1: "草地上的狗在跑。", 2: "一只猫", 3: "红色的球"}
    reward = CiderReward(REFERENCES, vocabulary, end_token=False)
    expected = score_captions(written, REFERENCES, ("cider",)).per_image["cider"]
    found = [reward.score_ids(key, vocabulary.encode(text)) for key, text in written.items()]
    assert found == pytest.approx(expected)

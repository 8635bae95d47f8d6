"""A captioner that begins with the weights of one with fewer words and features writes what that one writes."""

import pytest
import torch

from captioning.config import FeatureSpec, ModelConfig
from captioning.decoder.search import Search
from captioning.decoder.transfer import Source, begin_with
from captioning.errors import UserError
from captioning.text.tokens import UNK
from model import Captioner, CaptionModel
from vocabulary import Vocabulary

SPECIAL = ["<pad>", "<start>", "<end>", "<unk>"]


def captioner(words: str, persist: tuple[int, ...] = (), grid: tuple[int, int] = (2, 2), **settings) -> Captioner:
    torch.manual_seed(len(words))
    specs = [FeatureSpec(f"p{size}", (size,), True) for size in persist]
    settings = {"embed_size": 5, "hidden_size": 6, "attention": "soft", "attention_size": 3, "value_size": 4} | settings
    config = ModelConfig([FeatureSpec("map", (7, *grid), True)], specs, **settings)
    vocabulary = Vocabulary([*SPECIAL, *words.split()])
    return Captioner(CaptionModel(config, len(vocabulary), [None] * len(config.specs)).eval(), vocabulary)


def begun_with(new: Captioner, old: Captioner) -> int:
    source = Source(old.model.decoder.state_dict(), old.vocabulary.words, old.config, "old.model")
    return begin_with(new.model.decoder, new.vocabulary.words, new.config, source)


TRANSFORMER = {"decoder": "transformer", "attention": None, "heads": 2}
WIDER = [((), (9,)), ((3,), (3, 9)), ((3,), (3,))]
CASES = [({}, *pair) for pair in WIDER] + [({"attention": "updown"}, *pair) for pair in WIDER]


@torch.inference_mode()
@pytest.mark.parametrize(("settings", "before", "after"), [*CASES, *((TRANSFORMER, *pair) for pair in WIDER[1:])])
def test_it_writes_what_the_other_one_wrote(settings, before, after):
    persist = before, after
    old = captioner("a dog runs fast", before, **settings)
    new = captioner("the dog a pizza runs", after, **settings)
    for one in (old, new):
        one.model.decoder.linear.bias[UNK] = -4.0
    assert begun_with(new, old) == 2
    shared, more = torch.randn(6, 4, 7), [torch.randn(6, size) for size in persist[1]]
    search = Search(max_length=6, min_length=1)
    theirs = old.encode(None, [shared, *more[: len(persist[0])]])
    ours = new.encode(None, [shared, *more])
    words = torch.tensor([1] * 6)
    log_probs = []
    for one, memory in ((old, theirs), (new, ours)):
        logits, _, _ = one.model.decoder.step(words, one.model.decoder.start(memory), memory)
        log_probs.append({word: logits[:, number] for number, word in enumerate(one.vocabulary.words)})
    of_old, of_new = log_probs
    for word in (*SPECIAL, "a", "dog", "runs"):
        torch.testing.assert_close(of_new[word], of_old[word])
    both = torch.stack([of_new["the"], of_new["pizza"]]).logsumexp(0)
    torch.testing.assert_close(both, of_old["<unk>"])
    assert all(found[0].text for found in new.caption(ours, search))


@torch.inference_mode()
@pytest.mark.parametrize("settings", [{}, {"attention": "updown"}, TRANSFORMER])
def test_a_map_may_have_more_regions(settings):
    old, new = captioner("a dog", (3,), **settings), captioner("a dog", (3,), grid=(3, 3), **settings)
    assert begun_with(new, old) == 0
    regions = torch.randn(2, 9, 7)
    features = [regions, torch.randn(2, 3)]
    log_probs = []
    for one in (old, new):
        memory = one.encode(None, features)
        log_probs.append(one.model.decoder.step(torch.tensor([1, 1]), one.model.decoder.start(memory), memory)[0])
    torch.testing.assert_close(*log_probs)


def test_what_does_not_fit_is_told():
    old = captioner("a dog", (3,))
    for other, message in (
        (captioner("a dog", (9, 3)), "it reads map, p3: name features of the same sizes"),
        (captioner("a dog"), "new ones stand last in --persist_features"),
        (captioner("a dog", (3,), hidden_size=8), r"attention.query.weight is \(.*\) there, \(.*\) here"),
        (captioner("a dog", (3,), rnn_arch="GRU"), "does not fit"),
    ):
        with pytest.raises(UserError, match=message):
            begun_with(other, old)
    with pytest.raises(UserError, match="a Transformer that was trained without persistent features"):
        begun_with(captioner("a dog", (3,), **TRANSFORMER), captioner("a dog", **TRANSFORMER))

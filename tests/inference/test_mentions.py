"""--mention: words from text or from classes, and captions of a toy model that have them."""

import pytest
import torch

from captioning.config import FeatureSpec, ModelConfig
from captioning.decoder.constrained import SURE, demands_of
from captioning.decoder.search import Search
from captioning.errors import UserError
from captioning.text.objects import CLASSES, SYNONYMS
from inference.mentions import demands_of_objects, demands_of_words, with_mentions
from model import Captioner, CaptionModel
from vocabulary import Vocabulary

WORDS = ["<pad>", "<start>", "<end>", "<unk>", "a", "dog", "dogs", "puppy", "pizza", "on", "fire", "hydrant"]


def captioner(**changes) -> Captioner:
    torch.manual_seed(5)
    features = [FeatureSpec("map", (6, 2, 2), True)]
    persist = [FeatureSpec("other", (3,), True), FeatureSpec("x", (1000,), True, {"extractor": "net-classes"})]
    sizes = {"embed_size": 4, "hidden_size": 8, "attention_size": 3, "value_size": 4}
    settings = {"features": features, "persist_features": persist, "attention": "soft", **sizes, **changes}
    config = ModelConfig(**settings)
    vocabulary = Vocabulary(WORDS)
    return Captioner(CaptionModel(config, len(WORDS), [None] * len(config.specs)).eval(), vocabulary)


def photos(*classes: dict[int, float]) -> list[torch.Tensor]:
    """The inputs of photos with these probabilities of classes."""
    roots = torch.zeros(len(classes), 1000)
    for row, of_photo in zip(roots, classes):
        for number, probability in of_photo.items():
            row[number] = probability**0.5
    return [torch.randn(len(classes), 4, 6), torch.randn(len(classes), 3), roots]


def words_of_captions(one: Captioner, search: Search, inputs: list) -> list[set[str]]:
    return [set(found[0].text.lower().rstrip(".").split()) for found in one.caption(one.encode(None, inputs), search)]


def test_words_of_the_text():
    vocabulary = Vocabulary(WORDS)
    found = demands_of_words(" Dog|dogs, fire hydrant ", vocabulary)
    assert [demand.words for demand in found] == [(5, 6), (10,), (11,)]
    for text, message in {
        "dgo": "no such word, so it cannot write it; it knows dog",
        "xyzzy": "--mention xyzzy: the model has no such word",
        ",": "name words separated by commas",
        "|": "name words separated by commas",
        "a,dog,on,pizza,fire": "5 words are too many for one caption: 4 at most",
    }.items():
        with pytest.raises(UserError, match=message):
            demands_of_words(text, vocabulary)


def test_every_caption_has_the_words():
    one = captioner()
    search = with_mentions(Search(beam_size=2, max_length=5), "pizza,dog|puppy", one)
    found = words_of_captions(one, search, photos({}, {}, {}))
    assert all("pizza" in words and words & {"dog", "puppy"} for words in found)


@pytest.mark.parametrize("decoder", [{}, {"attention": "updown"}, {"attention": None, "decoder": "transformer"}])
def test_auto_asks_for_what_the_classes_are_sure_of(decoder):
    """Two breeds of dogs together are sure enough; a photo without a sure class is captioned as ever."""
    one = captioner(**decoder)
    search = with_mentions(Search(beam_size=2, max_length=5), "auto", one)
    inputs = photos({151: 0.3, 207: 0.4}, {963: 0.9, 151: SURE - 0.1}, {963: 0.2}, {963: 0.6, 200: 0.55})
    found = words_of_captions(one, search, inputs)
    assert found[0] & {"dog", "dogs", "puppy"} and "pizza" in found[1]
    assert "pizza" in found[3] and found[3] & {"dog", "dogs", "puppy"}
    plain = words_of_captions(one, Search(beam_size=2, max_length=5), inputs)
    assert found[2] == plain[2]


def test_the_likeliest_objects_go_first():
    demands = demands_of_objects(Vocabulary([*WORDS, "cat", "bus"]))
    probabilities = torch.zeros(1, 1000)
    probabilities[0, [151, 281, 779]] = torch.tensor([0.6, 0.9, 0.7])
    assert demands_of(demands, probabilities, 1) == [[(12,), (13,)]]
    assert set(CLASSES) <= SYNONYMS.keys()
    every = [number for numbers in CLASSES.values() for number in numbers]
    assert len(every) == len(set(every)) and min(every) >= 0 and max(every) < 1000


def test_models_that_cannot():
    without = captioner(persist_features=[FeatureSpec("other", (3,), True)])
    with pytest.raises(UserError, match="--mention auto: the model reads no classes of its photos"):
        with_mentions(Search(), "auto", without)
    assert with_mentions(Search(), None, without) == Search()

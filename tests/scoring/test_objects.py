"""Which objects captions name, and whether they name what the references agree on."""

import pytest

from captioning.scoring.objects import ObjectScore, main_objects, score_objects
from captioning.text.objects import SYNONYMS, broader_words, named_objects, names, words_of

GRASS, VEHICLES = "an animal in the grass", "two vehicles"


@pytest.mark.parametrize(
    ("caption", "objects"),
    [
        ("two kittens on a red couch", {"cat", "couch"}),
        ("a hot dog with mustard", {"hot dog"}),
        ("a teddy bear and dogs", {"teddy bear", "dog"}),
        ("a man at a stop sign near a street", {"person", "sign"}),
        ("a double decker bus", {"bus"}),
        ("a wine glass", {"glass"}),
        ("the sky is blue", set()),
        ("the category of catering", set()),
    ],
)
def test_objects_of_a_caption(caption, objects):
    assert named_objects(caption.split()) == objects


def test_broader_words():
    assert names(GRASS.split(), "cat") and not names(VEHICLES.split(), "cat")
    assert names(VEHICLES.split(), "bus") and broader_words("zebra")[:2] == ("animal", "animals")
    assert words_of("cat")[:3] == ("cat", "cats", "cates") and "kitten" in words_of("cat")
    assert all(named_objects(name.split()) >= {name} for name in SYNONYMS)


def references(*captions: str) -> list[list[str]]:
    return [caption.split() for caption in captions]


def test_the_main_object_is_what_three_of_five_name():
    agreed = references("a cat", "a kitten on a bed", "a bed", "cats", "something")
    assert main_objects(agreed) == {"cat"}
    assert main_objects(references("a cat", "a dog", "a bed", "cats", "something")) == set()
    assert main_objects(references("a cat on a bed", "a cat in bed", "bed and cat", "fur", "fur")) == {"cat", "bed"}
    assert main_objects(references("a cat")) == set()


def test_the_share_of_photos():
    cat = references("a cat", "a kitten", "a cat", "fur", "fur")
    bus = references("a bus", "the bus", "a bus", "a red bus", "street")
    nothing = references("a", "b", "c", "d", "e")
    captions = references("an animal", "a red car", "a dog")
    found = score_objects(captions, [cat, bus, nothing])
    assert found == ObjectScore(1, 2) and found.share == 0.5
    assert score_objects([], []).share == 0.0

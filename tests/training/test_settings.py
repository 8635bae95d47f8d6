"""train.py's flags and the dataclasses that hold their defaults."""

from dataclasses import fields

from captioning.config import ModelConfig
from training.flags import FIRST_USE, SETTINGS, parse_args
from training.settings import DataSettings


def test_what_is_not_typed_has_the_default_of_its_setting():
    args = parse_args("", ["--dataset", "toy:train", "--hidden_size", "512"])
    assert args.typed_flags == {"dataset": "toy:train", "hidden_size": 512}
    for kind in SETTINGS:
        own = {"dataset": "toy:train"} if kind is DataSettings else {}
        others = {"features": [], "persist_features": []} if kind is ModelConfig else {}
        assert kind.of(vars(args), **others) == kind(**own)


def test_every_setting_has_a_flag():
    flags = vars(parse_args("", ["--dataset", "toy:train"]))
    made_of_others = {"projection", "encoder_in_file", "paragraphs"}
    for kind in SETTINGS:
        assert {field.name for field in fields(kind)} - made_of_others <= flags.keys()
    assert set(FIRST_USE) <= flags.keys()

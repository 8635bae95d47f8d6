"""Beginning a new captioner with the weights of another one, whose words and persistent features may be fewer.

A word that only the new one has begins as <unk> did: its chance is that of <unk>, divided among all such words. What
reads a new persistent feature begins at zero. So the new captioner writes what the other one wrote, to begin with.
"""

import math

import torch
from torch import Tensor

from captioning.config import ModelConfig
from captioning.errors import UserError
from captioning.text.tokens import UNK
from model import Captioner

OF_WORDS = ("embed.weight", "linear.weight", "linear.bias")  # a row for each word


def begin_with(captioner: Captioner, other: Captioner, source) -> int:
    """Give the decoder of `captioner` the weights of that of `other`; returns how many words are new.

    source: names `other` in errors. Raises UserError where other weights than those of words and of persistent features
    differ in shape.
    """
    check_features(captioner.config, other.config, source)
    own, theirs = (one.model.decoder.state_dict() for one in (captioner, other))
    ids = {word: number for number, word in enumerate(other.vocabulary.words)}
    known = [(number, ids[word]) for number, word in enumerate(captioner.vocabulary.words) if word in ids]
    for name in dict.fromkeys([*own, *theirs]):
        if name not in own or name not in theirs:
            raise UserError(f"--init_model {source} does not fit: {name} is in one of the models alone")
        if name in OF_WORDS:
            own[name] = rows_of_words(own[name], theirs[name], known, divided=name == "linear.bias")
        elif name == "rnn.weight_ih_l0" and own[name].shape[1] > theirs[name].shape[1]:  # persistent features are last
            own[name] = torch.zeros_like(own[name])
            own[name][:, : theirs[name].shape[1]] = theirs[name]
        elif own[name].shape != theirs[name].shape:
            shapes = f"{tuple(theirs[name].shape)} there, {tuple(own[name].shape)} here"
            raise UserError(f"--init_model {source} does not fit: {name} is {shapes}")
        else:
            own[name] = theirs[name]
    captioner.model.decoder.load_state_dict(own)
    return len(captioner.vocabulary) - len(known)


def rows_of_words(own: Tensor, theirs: Tensor, known: list[tuple[int, int]], divided: bool) -> Tensor:
    """`own` (V, ...) with the rows of `theirs` of the words that both know, and that of <unk> for all others.

    divided: of biases, whose new ones share the probability of <unk>.
    """
    here, there = (torch.tensor(numbers) for numbers in zip(*known))
    rows = theirs[UNK].expand_as(own).clone()
    if divided:
        rows -= math.log(max(1, len(own) - len(known)))
    rows[here] = theirs[there]
    return rows


def check_features(config: ModelConfig, other: ModelConfig, source) -> None:
    """Raises UserError unless `config` has the features of `other`, and perhaps more persistent ones after them."""
    shapes = [[spec.shape for spec in specs] for specs in (config.features, other.features)]
    more, fewer = ([spec.shape for spec in one.persist_features] for one in (config, other))
    if shapes[0] != shapes[1] or more[: len(fewer)] != fewer:
        names = ", ".join(spec.name for spec in other.specs)
        advice = "name features of the same sizes; new ones stand last in --persist_features"
        raise UserError(f"--init_model {source}: it reads {names}: {advice}")

"""Beginning a new decoder with the weights of another one, whose words and persistent features may be fewer.

A word that only the new one has begins as <unk> did: its chance is that of <unk>, divided among all such words. What
reads a new persistent feature begins at zero. So the new decoder writes what the other one wrote, to begin with.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from captioning.config import FeatureSpec, ModelConfig
from captioning.errors import UserError
from captioning.text.tokens import UNK

OF_WORDS = ("embed.weight", "linear.weight", "linear.bias")  # a row for each word
OF_UPDOWN = "attention_lstm.weight_ih"
READ_PERSIST = ("rnn.weight_ih_l0", "inputs.persist.weight", OF_UPDOWN)  # columns for persistent features


@dataclass
class Source:
    """What a decoder may begin with: the weights of a sentence decoder, its words by id, the config of its model."""

    state: dict[str, Tensor]
    words: list[str]
    config: ModelConfig
    name: str  # of the file, for errors


def begin_with(decoder: nn.Module, words: list[str], config: ModelConfig, source: Source) -> int:
    """Give a decoder of `words` and `config` the weights of `source`; returns how many words are new.

    Raises UserError where other weights than those of words and of persistent features differ in shape.
    """
    check_features(config, source)
    own, theirs = decoder.state_dict(), source.state
    ids = {word: number for number, word in enumerate(source.words)}
    known = [(number, ids[word]) for number, word in enumerate(words) if word in ids]
    for name in dict.fromkeys([*own, *theirs]):
        if name == "inputs.persist.weight" and name not in theirs:
            advice = "a Transformer that was trained without persistent features cannot take up any"
            raise UserError(f"--init_model {source.name}: {advice}")
        if name not in own or name not in theirs:
            raise UserError(f"--init_model {source.name} does not fit: {name} is in one of the models alone")
        if name in OF_WORDS:
            own[name] = rows_of_words(own[name], theirs[name], known, divided=name == "linear.bias")
        elif name in READ_PERSIST and own[name].shape[1] > theirs[name].shape[1]:
            behind = config.embed_size if name == OF_UPDOWN else 0  # there the word comes last
            own[name] = with_columns(theirs[name], own[name].shape[1], behind)
        elif own[name].shape != theirs[name].shape:
            shapes = f"{tuple(theirs[name].shape)} there, {tuple(own[name].shape)} here"
            raise UserError(f"--init_model {source.name} does not fit: {name} is {shapes}")
        else:
            own[name] = theirs[name]
    decoder.load_state_dict(own)
    return len(words) - len(known)


def with_columns(weight: Tensor, columns: int, behind: int) -> Tensor:
    """`weight` (H, D) as (H, columns): new columns are zero and stand before the last `behind`."""
    old, new = weight.tensor_split([weight.shape[1] - behind], 1)
    return torch.cat([old, weight.new_zeros(len(weight), columns - weight.shape[1]), new], 1)


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


def check_features(config: ModelConfig, source: Source) -> None:
    """Raises UserError unless `config` has the features of `source`, and perhaps more persistent ones after them.

    The regions of a map may be more or fewer: no weight depends on their number.
    """
    other = source.config
    own, theirs = (sizes(specs) for specs in (config.features, other.features))
    more, fewer = (sizes(one.persist_features) for one in (config, other))
    if own != theirs or more[: len(fewer)] != fewer:
        names = ", ".join(spec.name for spec in other.specs)
        advice = "name features of the same sizes; new ones stand last in --persist_features"
        raise UserError(f"--init_model {source.name}: it reads {names}: {advice}")


def sizes(specs: list[FeatureSpec]) -> list[tuple[bool, int]]:
    """Of each feature whether it is a map, and the size of a region or of the vector."""
    return [(spec.spatial, spec.shape[0]) for spec in specs]

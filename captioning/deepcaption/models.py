"""Model files of DeepCaption, read as they are and turned into this toolkit's.

    if is_deepcaption_file(path):
        contents = load(path)       # config, vocabulary, state, epoch, history: the keys of our own files

A DeepCaption file is a pickle of state dicts, settings and a vocabulary object. torch's weights-only unpickler reads
it, with empty shells for the two classes that it names. A file that names any other class is refused, and nothing in a
file can run.

Shapes: V vocabulary, E embedding, H hidden, D feature size.
"""

import os
import struct
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from captioning import checkpoint
from captioning.config import FeatureSpec, ModelConfig, ParagraphConfig
from captioning.deepcaption.vocabularies import DeepCaptionVocabulary, from_deepcaption
from captioning.encoder.deepcaption_networks import modern_names
from captioning.encoder.encoder import ImageEncoder
from captioning.encoder.factory import build_encoder
from captioning.encoder.provenance import internal_spec
from captioning.encoder.weights import load_weights
from captioning.errors import UserError, warn
from captioning.files import sha256_of
from captioning.pickles import NUMBERS
from captioning.tensor_files import TensorFileError, is_legacy, pickle_of, read_tensors


def _kept(*names: str) -> dict[str, str]:
    return {name: name for name in names}


# Beginnings of tensors' names in DeepCaption's files, and ours.
DECODER_NAMES = _kept("embed.", "rnn.", "linear.", "init_h.", "init_c.", "projection.", "embed_output.", "extractors.")
DECODER_NAMES |= {"lstm.": "rnn.", "hidden_to_embeddings.": "hidden_to_output."}
ENCODER_NAMES = {"linear.": "image.linear.", "bn.": "image.bn.", "resnet.": "extractors.0.extractor."}
ENCODER_NAMES |= _kept("extractors.")
HIERARCHICAL_NAMES = _kept("sentence_rnn.", "linear_stopping.", "linear1.", "linear2.", "coupling_unit.")
HIERARCHICAL_NAMES |= {"sentence_lstm.": "sentence_rnn."}
WORD_DECODER = "word_decoder."
PARAGRAPH_NUMBERS = ("dropout_stopping", "dropout_fc", "coupling_alpha", "coupling_beta")  # settings of both
RESNET_PARTS = {"0.": "conv1.", "1.": "bn1.", **{f"{i + 3}.": f"layer{i}." for i in (1, 2, 3, 4)}}
ATTENTION = (
    "is a DeepCaption model with attention, whose files differ between its versions: train it anew (--attention)"
)


@dataclass(frozen=True)
class OldEncoder:
    """What an encoder of DeepCaption is here."""

    name: str  # our encoder of the same numbers
    parts: dict[str, str] = field(default_factory=lambda: {"": ""})  # beginnings of its tensors' names, and of ours
    last: str = ""  # a linear layer after what our encoder gives, to be folded into the layer that reads the features


ENCODERS = {
    "resnet152": OldEncoder("resnet152", RESNET_PARTS),
    "alexnet": OldEncoder("alexnet-flat"),
    "densenet201": OldEncoder("densenet201-flat"),
    "vgg16": OldEncoder("vgg16", last="classifier.6."),
    "inceptionv3": OldEncoder("inceptionv3", last="fc."),
}


class Features(NamedTuple):
    """Stands in for DeepCaption's class of the same name: lists of feature files and of encoders."""

    external: list
    internal: list


# The class moved between modules over the years; numpy's names are those of its numbers.
STAND_INS = {
    **{f"{module}.Features": Features for module in ("model.encoder_decoder", "model", "__main__")},
    **{f"{module}.Vocabulary": DeepCaptionVocabulary for module in ("vocabulary", "build_vocab", "__main__")},
    **NUMBERS,
}


def is_deepcaption_file(path) -> bool:
    """Whether `path` looks like a model file of DeepCaption. Reads little, and never takes our own files for one."""
    if not os.path.isfile(path):
        return False
    try:
        if is_legacy(path):
            return True
        pickled = pickle_of(path)
    except (OSError, ValueError):  # damaged or of another kind: checkpoint.load says which
        return False
    ours, *theirs = (struct.pack("<cI", b"X", len(key)) + key for key in (b"captioner", b"encoder", b"decoder"))
    return ours not in pickled and all(key in pickled for key in theirs)


def read(path) -> dict:
    """The contents under DeepCaption's own names, tensors on the CPU. Raises UserError where the file is damaged."""
    try:
        old = read_tensors(path, STAND_INS)
    except TensorFileError as error:
        raise UserError(f"model file {path} is damaged or no file of DeepCaption: {error}") from error
    if not isinstance(old, dict) or not all(isinstance(old.get(part), dict) for part in ("encoder", "decoder")):
        raise UserError(f"{path} is not a model file of this toolkit or of DeepCaption")
    return old


def load(path, vocabulary: dict | None = None) -> dict:
    """The contents of a DeepCaption file as `checkpoint.load` gives them of a file of ours.

    `config`, `vocabulary`, `state`, `epoch`, `history` (command lines), `made_by` "DeepCaption", and `converted_from`,
    the name and SHA-256 of the file, which models that are trained on from it keep. vocabulary: for files of 2018 that
    hold none. Warns of a file without checksums. Raises UserError, naming the file, for what cannot be read.
    """
    if os.path.isdir(path):
        raise UserError(f"{path} is a folder, not a model file")
    old = read(path)
    if old.get("vocab") is None and vocabulary is None:
        raise UserError(
            f"model file {path} of DeepCaption holds no vocabulary: name the one it was trained with (--vocab)"
        )
    if is_legacy(path):
        warn(f"model file {path} is of before 2020 and has no checksums: damage to its weights cannot be noticed")
    try:
        return {
            **convert(old, vocabulary),
            "converted_from": {"file": os.path.basename(path), "sha256": sha256_of(path)},
        }
    except UserError as error:
        raise UserError(f"model file {path}: {error}") from error
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, RuntimeError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:120]
        raise UserError(f"model file {path} of DeepCaption cannot be read: {reason}") from error


def convert(old: dict, vocabulary: dict | None) -> dict:
    """`load` from what `read` gave; `vocabulary` counts where `old` has none."""
    if old.get("attention"):
        raise UserError(f"it {ATTENTION}")
    if old.get("vocab") is not None:
        vocabulary = from_deepcaption(old["vocab"])
    words, paragraph_state = old["decoder"], {}
    if old.get("hierarchical_model"):
        paragraph_state = renamed(without(words, WORD_DECODER), HIERARCHICAL_NAMES)
        words = within(words, WORD_DECODER)
    state = renamed(words, DECODER_NAMES)
    image = renamed(old["encoder"], ENCODER_NAMES)
    size, embed_size = state["embed.weight"].shape
    words_known = len(vocabulary["words"])
    if words_known != size:
        raise UserError(f"its vocabulary has {words_known} words, its weights are for {size}")
    total = image["image.linear.weight"].shape[1]
    total_persist = state["rnn.weight_ih_l0"].shape[1] - embed_size
    initial = FeatureGroup.of(old.get("features", "resnet152"), image, total)
    persist = FeatureGroup.of(old.get("persist_features", ""), state, total_persist)
    state = without(state, "extractors.")
    if old.get("rnn_hidden_init"):  # a GRU has no cell, though its file has weights for one
        state = without(state, "init_c.") if rnn_arch(old) == "GRU" else state
        for name in [name for name in state if name.startswith("init_") and name.endswith(".weight")]:
            initial.fold(state, name, name.replace("weight", "bias"))
    else:
        image = without(image, "extractors.")
        initial.fold(image, "image.linear.weight", "image.linear.bias")
        state |= image | {"image.bn.num_batches_tracked": image.get("image.bn.num_batches_tracked", torch.tensor(0))}
    persist.fold(state, "rnn.weight_ih_l0", "rnn.bias_ih_l0", start=embed_size)
    config = config_of(old, state, initial, persist, shared=share_embeddings(state))
    if paragraph_state:
        config.paragraphs = paragraphs_of(old, state, paragraph_state)
        state = {paragraph_name(name): value for name, value in state.items()} | paragraph_state
    state = {f"decoder.{name}": value.contiguous() for name, value in state.items()}
    for index, extractor in enumerate(initial.extractors + persist.extractors):
        if extractor is not None:
            state |= {f"extractors.{index}.{name}": value for name, value in extractor.state_dict().items()}
    return {
        "format": checkpoint.FORMAT,
        "made_by": "DeepCaption",
        "config": config.to_dict(),
        "vocabulary": vocabulary,
        "state": state,
        "epoch": int(old.get("epoch") or 0),
        "history": [str(command) for command in old.get("command_history") or []],
    }


def paragraph_name(name: str) -> str:
    """The name in a hierarchical decoder of a tensor of the word decoder, or of the layer that reads the image."""
    return f"pooling.{name[len('image.') :]}" if name.startswith("image.") else WORD_DECODER + name


def paragraphs_of(old: dict, state: dict[str, Tensor], paragraph_state: dict[str, Tensor]) -> ParagraphConfig:
    """The settings of the paragraph decoder. Sizes that the file does not name are those of its weights."""
    return ParagraphConfig(
        pooling_size=state["image.linear.weight"].shape[0],
        fc_size=paragraph_state["linear1.weight"].shape[0],
        max_sentences=int(old.get("max_sentences") or 6),
        coherent_sentences=any(name.startswith("coupling_unit.") for name in paragraph_state),
        **{name: float(old[name]) for name in PARAGRAPH_NUMBERS if old.get(name) is not None},
    )


def config_of(
    old: dict, state: dict[str, Tensor], initial: "FeatureGroup", persist: "FeatureGroup", shared: bool
) -> ModelConfig:
    """The config of the model: sizes from the weights, the rest from the file. The oldest files hold few settings."""
    return ModelConfig(
        features=initial.specs,
        persist_features=persist.specs,
        embed_size=state["embed.weight"].shape[1],
        hidden_size=state["rnn.weight_hh_l0"].shape[1],
        num_layers=sum(name.startswith("rnn.weight_hh_l") for name in state),
        rnn_arch=rnn_arch(old),
        rnn_hidden_init=old.get("rnn_hidden_init") or None,
        dropout=float(old.get("dropout") or 0),
        encoder_dropout=float(old.get("encoder_dropout") or 0),
        encoder_non_lin=bool(old.get("encoder_non_lin")),
        share_embedding_weights=shared,
        projection=shared,
        skip_start_token=bool(old.get("skip_start_token")),
        encoder_in_file=any(initial.extractors + persist.extractors),
    )


def rnn_arch(old: dict) -> str:
    return (old.get("rnn_arch") or "LSTM").upper()


def renamed(tensors: dict, names: dict[str, str]) -> dict[str, Tensor]:
    """Tensors under our names. Raises UserError for one whose beginning `names` does not have."""
    new = {}
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            raise UserError(f"{name} is no tensor")
        begin = next((begin for begin in names if name.startswith(begin)), None)
        if begin is None:
            raise UserError(f"it has a tensor {name!r}, which is not known here")
        new[names[begin] + name[len(begin) :]] = value
    return new


def without(tensors: dict[str, Tensor], begin: str) -> dict[str, Tensor]:
    return {name: value for name, value in tensors.items() if not name.startswith(begin)}


def within(tensors: dict[str, Tensor], begin: str) -> dict[str, Tensor]:
    """The tensors whose names begin so, under the rest of their names."""
    return {name.removeprefix(begin): value for name, value in tensors.items() if name.startswith(begin)}


def share_embeddings(state: dict[str, Tensor]) -> bool:
    """Whether the output layer shares the embeddings' weights; `state` gets that layer under our names.

    On a GPU DeepCaption's two matrices came apart, because each was trained by itself. The layers behind the hidden
    state are then linear one after the other, and become a single layer.
    """
    if "embed_output.weight" not in state:
        return False
    output = state.pop("embed_output.weight").t()  # V x E; its bias was never used
    state.pop("embed_output.bias", None)
    if torch.equal(output, state["embed.weight"]):
        state |= {"linear.weight": state["embed.weight"], "linear.bias": output.new_zeros(len(output))}
        return True
    weight, bias = output.double(), output.new_zeros(len(output)).double()
    for layer in ("hidden_to_output", "projection"):
        bias = bias + weight @ state.pop(f"{layer}.bias").double()
        weight = weight @ state.pop(f"{layer}.weight").double()
    state |= {"linear.weight": weight.float(), "linear.bias": bias.float()}
    return False


@dataclass
class FeatureGroup:
    """The features of `--features` or of `--persist_features`, in the order in which they are concatenated."""

    specs: list[FeatureSpec]
    extractors: list[ImageEncoder | None]  # None where it comes from a file
    # the size that DeepCaption's weights expect, and the linear layer (weight, bias) to fold into them, or None
    layers: list[tuple[int, tuple[Tensor, Tensor] | None]]

    @classmethod
    def of(cls, features, tensors: dict[str, Tensor], total: int) -> "FeatureGroup":
        """features: what the file says; tensors: with those of the encoders; total: D of all features together."""
        group = cls([], [], [])
        external, internal = feature_names(features)
        for index, name in enumerate(internal):
            group.add_encoder(name, within(tensors, f"extractors.{index}.extractor."))
        rest = total - sum(size for size, _ in group.layers)
        if rest < 0 or bool(rest) != bool(external):
            names = ", ".join([*internal, *external]) or "nothing"
            raise UserError(f"its features ({names}) do not have the {total} numbers of its weights")
        # of several files only the sum is known: the first stands for all until the files are opened
        for index, name in enumerate(external):
            size = rest if index == 0 else 0
            group.specs.append(FeatureSpec(name, (size,), True))
            group.extractors.append(None)
            group.layers.append((size, None))
        return group

    def add_encoder(self, name: str, tensors: dict[str, Tensor]) -> None:
        if name.endswith("-conv"):
            raise UserError(f"it {ATTENTION}")
        old = ENCODERS.get(name, OldEncoder(name))
        extractor = build_encoder(old.name, pretrained=False)
        size, layer = extractor.dim, None
        if old.last:
            layer = tensors[f"{old.last}weight"].double(), tensors[f"{old.last}bias"].double()
            size = len(layer[1])
        tensors, own = modern_names(tensors), {}
        for theirs, ours in old.parts.items():
            own |= {ours + rest: value for rest, value in within(tensors, theirs).items()}
        load_weights(extractor.network, own, f"of {name}")
        self.specs.append(internal_spec(old.name, extractor))
        self.extractors.append(extractor)
        self.layers.append((size, layer))

    def fold(self, state: dict[str, Tensor], weight: str, bias: str, start: int = 0) -> None:
        """Give the layer `weight` (O, start + D), `bias` (O,) of `state` the linear layers that encoders ended in."""
        if not any(layer for _, layer in self.layers):
            return
        old, new_bias = state[weight].double(), state[bias].double()
        parts = [old[:, :start]]
        for size, layer in self.layers:
            part = old[:, start : start + size]
            if layer is not None:
                new_bias = new_bias + part @ layer[1]
                part = part @ layer[0]
            parts.append(part)
            start += size
        state |= {weight: torch.cat(parts, 1).float(), bias: new_bias.float()}


def feature_names(features) -> tuple[list[str], list[str]]:
    """(files, encoders) of the pair that newer files hold, or of the comma-separated text of the oldest."""
    if isinstance(features, str):
        names = [name.strip() for name in features.split(",") if name.strip()]
        return [n for n in names if os.path.splitext(n)[1]], [n for n in names if not os.path.splitext(n)[1]]
    external, internal = features
    if not all(isinstance(name, str) for name in [*external, *internal]):
        raise ValueError("names of features are no text")
    return list(external), list(internal)

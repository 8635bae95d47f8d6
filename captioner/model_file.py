"""Model files: writing a captioner to one, and making a captioner of what one holds."""

import contextlib

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from captioner.captioner import Captioner
from captioner.network import CaptionModel, build_model
from captioning import checkpoint
from captioning.config import ModelConfig
from captioning.deepcaption import models as deepcaption_files
from captioning.errors import UserError, one_line
from vocabulary import Vocabulary


def save_captioner(captioner: Captioner, path, **info) -> None:
    """Write a model file with all that inference needs, and `info` (epoch, command, optimizer state, ...) beside it."""
    contents = {"kind": "captioner", "config": captioner.config.to_dict()}
    contents |= {"vocabulary": captioner.vocabulary.to_dict(), "state": captioner.model.trained_state()}
    if "converted_from" in captioner.info:
        contents["converted_from"] = captioner.info["converted_from"]
    if captioner.calibration is not None:
        contents["calibration"] = captioner.calibration.to_dict()
    checkpoint.save({**contents, **info}, path)


def read_model_file(path, vocabulary: Vocabulary | None = None) -> dict:
    """The contents of a model file, ours or DeepCaption's; vocabulary: for files of DeepCaption that hold none."""
    if deepcaption_files.is_deepcaption_file(path):
        return deepcaption_files.load(path, None if vocabulary is None else vocabulary.to_dict())
    return checkpoint.load(path, map_location="cpu")


def load_captioner(
    path, device="cpu", weights: str | None = None, photos: bool = True, vocabulary: Vocabulary | None = None
) -> Captioner:
    """The captioner in a model file, ready to caption: eval mode, encoders with the weights it was trained on.

    weights: local file of the encoder's weights where they cannot be downloaded. photos=False spares the encoders that
    feature files stand in for. vocabulary: for files of DeepCaption that hold none. Raises UserError where the file is
    damaged or the encoder's weights are other ones.
    """
    contents = read_model_file(path, vocabulary)
    for name in ("config", "vocabulary", "state"):
        if name not in contents:
            raise UserError(f"model file {path} lacks {name!r}: it was not written by train.py")
    try:
        captioner = captioner_of(contents, device, weights, f"model file {path}")
    except UserError as error:
        if str(path) in str(error):
            raise
        raise UserError(f"model file {path}: {error}") from error
    if photos:
        captioner.prepare_for_photos()
    return captioner


RANDOM = (torch.Tensor.normal_, torch.Tensor.uniform_, nn.init.normal_, nn.init.uniform_)


class NoRandomWeights(TorchFunctionMode):
    """A block in which tensors get no random values, because those of a file take their place.

    On meta, where tensors have no values, torch would import its compiler for it.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in RANDOM:
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)


def captioner_of(contents: dict, device, weights: str | None, source: str) -> Captioner:
    """`load_captioner` from what `read_model_file` gave; `source` names the file in errors."""
    config = ModelConfig.from_dict(contents["config"])
    vocabulary = Vocabulary.from_dict(contents["vocabulary"])
    check_decoder(config, len(vocabulary), contents["state"], source)
    # encoders that travel in the file: no need for the pretrained ones
    with NoRandomWeights() if config.encoders_travel else contextlib.nullcontext():
        model = build_model(config, vocabulary, weights, pretrained=not config.encoders_travel)
    model.load_trained_state(contents["state"], source)
    model.finetune(0)
    info = {name: value for name, value in contents.items() if name not in ("config", "vocabulary", "state")}
    return Captioner(model.to(device).eval(), vocabulary, weights, info)


def check_decoder(config: ModelConfig, words: int, state: dict[str, Tensor], source: str) -> None:
    """Raises UserError, naming `source`, where `state` does not hold the decoder that `config` describes.

    It is found out without the memory that the decoder takes: what a file says of its size need not be true.
    """
    layers = sum(name.startswith("decoder.") for name in state) // 4  # each has four tensors or more
    if max(config.num_layers, config.region_layers) > max(1, layers) or not config.specs:
        raise UserError(f"{source} does not fit its config: it has no {config.num_layers} layers, or no features")
    try:
        with torch.device("meta"), NoRandomWeights():
            decoder = CaptionModel(config, words, [None] * len(config.specs)).decoder.state_dict()
    except (RuntimeError, TypeError) as error:
        raise UserError(f"{source} has a config that no model can have: {one_line(error)}") from error
    given = {name.removeprefix("decoder."): value for name, value in state.items() if name.startswith("decoder.")}
    for name in dict.fromkeys([*decoder, *given]):
        if name not in decoder or name not in given:
            raise UserError(f"{source} does not fit the model: decoder.{name} is missing or unknown")
        if decoder[name].shape != given[name].shape:
            shapes = f"{tuple(given[name].shape)} in the file, {tuple(decoder[name].shape)} in the model"
            raise UserError(f"{source} does not fit the model: decoder.{name} is {shapes}")
    for index, spec in enumerate(config.specs):
        travels = config.encoders_travel and not spec.from_file
        if travels and not any(name.startswith(f"extractors.{index}.") for name in state):
            raise UserError(f"{source} lacks the weights of its encoder {spec.name}")

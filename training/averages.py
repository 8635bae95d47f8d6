"""Averages of trained models: uniform, weighted, or the greedy soup of Wortsman et al. 2022; and half-precision files.

    model = Average(["ep8.model", "ep9.model", "ep10.model"])
    model.write("average.model", half=True)

The mean of weights is a good model only where the models come from one run, or from one starting point.
"""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from captioning import checkpoint
from captioning.config import ModelConfig
from captioning.encoder.encoder import ImageEncoder
from captioning.encoder.factory import build_encoder
from captioning.errors import UserError
from model import Captioner, captioner_of
from vocabulary import Vocabulary

NEEDED = ("config", "vocabulary", "state")
OF_ONE = (
    "epoch",
    "beam_size",
    "length_penalty",
    "no_repeat_words",
    "calibration",
)  # what a file made of a single model keeps of it


class Average:
    """The weighted mean of model files, in float64.

    weights: one for each of `paths` (default: the same for all). contents: the first model's file, whose configuration,
    vocabulary and numbers that cannot be averaged the mean keeps. Raises UserError where the weights are not one
    positive number a model, and, naming it, where a model differs in architecture or vocabulary.
    """

    def __init__(self, paths: Sequence[str], weights: Sequence[float] | None = None):
        self.paths = list(map(str, paths))
        self.weights = [1.0] * len(paths) if weights is None else list(weights)
        if len(self.weights) != len(paths):
            raise UserError(f"--weights: {len(self.weights)} numbers for {len(paths)} models; give one for each")
        if not all(0 <= weight < float("inf") for weight in self.weights) or sum(self.weights) <= 0:
            raise UserError("--weights: they must be 0 or more, and one of them above 0")
        self.contents, self.total, self.settings = read_model(paths[0]), {}, []
        for path, weight in zip(self.paths, self.weights):
            contents = read_model(path) if self.total else self.contents
            check_alike(contents, self.contents, path, self.paths[0])
            self.settings.append(contents.get("settings") or {})
            for name, value in contents["state"].items():
                if value.is_floating_point():
                    self.total[name] = self.total.get(name, 0.0) + value.double() * weight

    def give_images_at(self, size: int) -> None:
        """Have the encoders within the model see images of `size` by `size` pixels from now on.

        Random crops of training show things larger than whole images at the crops' size do; a somewhat larger image
        at test time makes up for it (Touvron et al. 2019, "Fixing the train-test resolution discrepancy"). Raises
        UserError where an encoder cannot take that size, or where features come from files.
        """
        config = copy.deepcopy(self.contents["config"])
        for spec in config["features"] + config["persist_features"]:
            if spec["external"]:
                raise UserError(f"--image_size: {self.paths[0]} reads {spec['name']}; extract it anew at that size")
            provenance = spec["maker"]
            provenance["transform"] = {**provenance["transform"], "size": size}
            extractor = build_encoder(provenance["extractor"], pretrained=False, transform=provenance["transform"])
            spec["shape"] = extractor.shape
        config["crop_size"] = size
        self.contents = {**self.contents, "config": config, "calibration": None}  # captions will be other ones

    def take_encoders(self, weights: str | None = None) -> None:
        """Put the encoders behind feature files, and those that a package holds, into the model with their weights.

        weights: a local file of them. The model then needs neither files nor packages. Raises UserError where a file
        does not say what made it, or was made of ten crops, and where the encoder's weights cannot be had.
        """
        captioner = captioner_of({**self.contents, "state": self.state()}, "cpu", weights, self.paths[0])
        captioner.prepare_for_photos()
        for spec, extractor in zip(captioner.config.specs, captioner.model.extractors):
            if not isinstance(extractor, ImageEncoder):
                raise UserError(f"--with_encoders: {spec.name} was made of ten crops, which a model file cannot hold")
            spec.name, spec.from_file = extractor.name, False
        captioner.config.encoder_in_file = True
        state, whole = captioner.model.trained_state(), sum(self.weights)
        self.contents = {**self.contents, "config": captioner.config.to_dict(), "state": state}
        self.total = {name: value.double() * whole for name, value in state.items() if value.is_floating_point()}

    def state(self) -> dict[str, Tensor]:
        """The mean weights in float32, beside what is no float (counters) from the first model."""
        whole = sum(self.weights)
        means = {name: (value / whole).float() for name, value in self.total.items()}
        return {name: means.get(name, value) for name, value in self.contents["state"].items()}

    def captioner(self, device, weights: str | None = None, half: bool = False) -> Captioner:
        """The captioner that `write` would write, without the encoders behind feature files."""
        state = half_precision(self.state()) if half else self.state()
        return captioner_of({**self.contents, "state": state}, device, weights, "the mean")

    def write(self, path, half: bool = False, **info) -> None:
        """Write a model file that says what it is the mean of; half: float16 on disk, read in float32."""
        contents = {name: self.contents[name] for name in ("kind", "converted_from", *NEEDED) if name in self.contents}
        state = half_precision(self.state()) if half else self.state()
        # one tensor under two names (shared embeddings) is kept once
        contents["state"] = {name: state[first] for name, first in checkpoint.first_names(contents["state"]).items()}
        if len(self.paths) == 1:
            info = {name: self.contents[name] for name in OF_ONE if self.contents.get(name) is not None} | info
        info |= settings_of(self.settings)
        checkpoint.save({**contents, "averaged": list(zip(self.paths, map(float, self.weights))), **info}, path)


def settings_of(parts: list[dict]) -> dict[str, object]:
    """The settings of models as their mean keeps them: those that all share, and of each part those that differ."""
    shared = {name: value for name, value in parts[0].items() if all(p.get(name, ...) == value for p in parts)}
    own = [{name: value for name, value in part.items() if name not in shared} for part in parts]
    return ({"settings": shared} if shared else {}) | ({"parts": own} if any(own) else {})


def read_model(path) -> dict:
    """The contents of a captioner's file. Raises UserError where it is another kind of file."""
    contents = checkpoint.load(path)
    if not all(name in contents for name in NEEDED):
        raise UserError(f"{path} is no captioner of train.py")
    return contents


def check_alike(contents: dict, first: dict, path, first_path) -> None:
    """Raises UserError unless both models have the same architecture, features, vocabulary and tensors."""
    ours, theirs = first["config"], contents["config"]
    defaults = ModelConfig().to_dict()  # an older version may not have written what it had no other value of
    ours, theirs = {**defaults, **ours}, {**defaults, **theirs}
    for name in ours | theirs:
        if ours.get(name) != theirs.get(name):
            values = f"{theirs.get(name)!r}, that of {first_path} {ours.get(name)!r}"
            raise UserError(f"{path} cannot be averaged with the others: its {name} is {values}"[:400])
    if Vocabulary.from_dict(contents["vocabulary"]).words != Vocabulary.from_dict(first["vocabulary"]).words:
        raise UserError(f"{path} cannot be averaged with {first_path}: they have different vocabularies")
    shapes, others = ({k: v.shape for k, v in c["state"].items()} for c in (first, contents))
    if shapes != others:
        name = next(k for k in {**shapes, **others} if shapes.get(k) != others.get(k))
        raise UserError(f"{path} cannot be averaged with {first_path}: {name} differs in shape or is missing")


def half_precision(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """`state` with floating tensors as float16. Raises UserError where a weight is beyond float16's range."""
    halves = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    for name, value in halves.items():
        if not torch.isfinite(value).all():
            raise UserError(f"--half: {name} has weights that float16 cannot hold; leave out --half")
    return halves


def greedy_soup(paths: Sequence[str], score: Callable[[Path | str, "Average"], float], note=print) -> Average:
    """Take models in, the best first, each only if the mean's score rises (Wortsman et al. 2022, recipe 1).

    score(name, average): the validation score of a mean, higher is better.
    """
    alone = {}
    for path in dict.fromkeys(map(str, paths)):
        alone[path] = score(path, Average([path]))
        note(f"{path}: {alone[path]:.4f}")
    first, *others = sorted(alone, key=lambda path: -alone[path])
    soup, best = Average([first]), alone[first]
    for path in others:
        tried = Average([*soup.paths, path])
        value = score(f"the soup with {path}", tried)
        note(f"with {path}: {value:.4f}, {'taken' if value > best else 'left out'}")
        if value > best:
            soup, best = tried, value
    note(f"{len(soup.paths)} of {len(alone)} models, {best:.4f}")
    return soup

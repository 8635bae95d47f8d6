"""Averages of trained models: uniform, weighted, or the greedy soup of Wortsman et al. 2022; and half-precision files.

    model = Average.of(["ep8.model", "ep9.model", "ep10.model"])
    model.write("average.model", half=True)

The mean of weights is a good model only where the models come from one run, or from one starting point.
"""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from captioning import checkpoint
from captioning.encoder.factory import build_encoder
from captioning.errors import UserError
from vocabulary import Vocabulary

KEPT = ("kind", "config", "vocabulary", "state")


class Average:
    """The running weighted mean of model files, in float64.

    contents: the first model's file, whose configuration, vocabulary and numbers that cannot be averaged it keeps.
    """

    def __init__(self, path):
        self.contents = read_model(path)
        self.total = {k: v.double() for k, v in self.contents["state"].items() if v.is_floating_point()}
        self.paths, self.weights, self.first = [str(path)], [1.0], str(path)

    @classmethod
    def of(cls, paths: Sequence[str], weights: Sequence[float] | None = None) -> "Average":
        """The mean of all `paths`, each with its weight (default: the same for all).

        Raises UserError where the weights are not one positive number a model, or models do not fit together.
        """
        weights = [1.0] * len(paths) if weights is None else list(weights)
        if len(weights) != len(paths):
            raise UserError(f"--weights: {len(weights)} numbers for {len(paths)} models; give one for each")
        if not all(0 <= weight < float("inf") for weight in weights) or sum(weights) <= 0:
            raise UserError("--weights: they must be 0 or more, and one of them above 0")
        average = cls(paths[0])
        average.weights = [weights[0]]
        average.total = {name: value * weights[0] for name, value in average.total.items()}
        for path, weight in zip(paths[1:], weights[1:]):
            average.add(path, weight)
        return average

    def add(self, path, weight: float = 1.0) -> None:
        """Take in another model. Raises UserError, naming it, where it differs in architecture or vocabulary."""
        contents = read_model(path)
        check_alike(contents, self.contents, path, self.first)
        for name, value in self.total.items():
            value.add_(contents["state"][name].double(), alpha=weight)
        self.paths.append(str(path))
        self.weights.append(weight)

    def with_model(self, path) -> "Average":
        """A copy that has taken in `path` too."""
        other = Average.__new__(Average)
        other.contents, other.first = self.contents, self.first
        other.total = {name: value.clone() for name, value in self.total.items()}
        other.paths, other.weights = list(self.paths), list(self.weights)
        other.add(path)
        return other

    def give_images_at(self, size: int) -> None:
        """Have the encoders within the model see images of `size` by `size` pixels from now on.

        Random crops of training show things larger than whole images at the crops' size do; a somewhat larger image
        at test time makes up for it (Touvron et al. 2019, "Fixing the train-test resolution discrepancy"). Raises
        UserError where an encoder cannot take that size, or where features come from files.
        """
        config = copy.deepcopy(self.contents["config"])
        for spec in config["features"] + config["persist_features"]:
            if spec["external"]:
                raise UserError(f"--image_size: {self.first} reads {spec['name']}; extract it anew at that size")
            provenance = spec["maker"]
            provenance["transform"] = {**provenance["transform"], "size": size}
            extractor = build_encoder(provenance["extractor"], pretrained=False, transform=provenance["transform"])
            spec["shape"] = extractor.shape
        config["crop_size"] = size
        self.contents = {**self.contents, "config": config}

    def state(self) -> dict[str, Tensor]:
        """The mean weights in float32, beside what is no float (counters) from the first model."""
        whole = sum(self.weights)
        means = {name: (value / whole).float() for name, value in self.total.items()}
        return {name: means.get(name, value) for name, value in self.contents["state"].items()}

    def write(self, path, half: bool = False, **info) -> None:
        """Write a model file that says what it is the mean of; half: float16 on disk, read in float32."""
        contents = {name: self.contents[name] for name in KEPT if name in self.contents}
        contents["state"] = shared_again(self.state(), self.contents["state"])
        if half:
            contents["state"] = half_precision(contents["state"])
        if len(self.paths) == 1 and self.contents.get("epoch") is not None:
            info = {"epoch": self.contents["epoch"], **info}
        checkpoint.save({**contents, "averaged": list(zip(self.paths, map(float, self.weights))), **info}, path)


def read_model(path) -> dict:
    """The contents of a captioner's file. Raises UserError where it is another kind of file."""
    contents = checkpoint.load(path)
    if not all(name in contents for name in ("config", "vocabulary", "state")):
        raise UserError(f"{path} is no captioner of train.py")
    return contents


def check_alike(contents: dict, first: dict, path, first_path) -> None:
    """Raises UserError unless both models have the same architecture, features, vocabulary and tensors."""
    ours, theirs = first["config"], contents["config"]
    for name in dict.fromkeys([*ours, *theirs]):
        if ours.get(name) != theirs.get(name):
            values = f"{theirs.get(name)!r}, that of {first_path} {ours.get(name)!r}"
            raise UserError(f"{path} cannot be averaged with the others: its {name} is {values}"[:400])
    if Vocabulary.from_dict(contents["vocabulary"]).words != Vocabulary.from_dict(first["vocabulary"]).words:
        raise UserError(f"{path} cannot be averaged with {first_path}: they have different vocabularies")
    shapes, others = ({k: v.shape for k, v in c["state"].items()} for c in (first, contents))
    if shapes != others:
        name = next(k for k in {**shapes, **others} if shapes.get(k) != others.get(k))
        raise UserError(f"{path} cannot be averaged with {first_path}: {name} differs in shape or is missing")


def shared_again(state: dict[str, Tensor], original: dict[str, Tensor]) -> dict[str, Tensor]:
    """`state` with one tensor where `original` has one under two names (shared embeddings), so that it is kept once."""
    return {name: state[first] for name, first in checkpoint.first_names(original).items()}


def half_precision(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Floating tensors as float16, tensors under two names still one.

    Raises UserError where a weight is beyond float16's range.
    """
    made: dict[int, Tensor] = {}
    halves = {}
    for name, value in state.items():
        if not value.is_floating_point():
            halves[name] = value
            continue
        if id(value) not in made:
            made[id(value)] = value.half()
            if not torch.isfinite(made[id(value)]).all():
                raise UserError(f"--half: {name} has weights that float16 cannot hold; leave out --half")
        halves[name] = made[id(value)]
    return halves


def greedy_soup(paths: Sequence[str], score: Callable[[Path | str, "Average"], float], note=print) -> Average:
    """Take models in, the best first, each only if the mean's score rises (Wortsman et al. 2022, recipe 1).

    score(name, average): the validation score of a mean, higher is better.
    """
    alone = {}
    for path in dict.fromkeys(map(str, paths)):
        alone[path] = score(path, Average(path))
        note(f"{path}: {alone[path]:.4f}")
    order = sorted(alone, key=lambda path: -alone[path])
    soup, best = Average(order[0]), alone[order[0]]
    for path in order[1:]:
        tried = soup.with_model(path)
        value = score(f"the soup with {path}", tried)
        note(f"with {path}: {value:.4f}, {'taken' if value > best else 'left out'}")
        if value > best:
            soup, best = tried, value
    note(f"{len(soup.paths)} of {len(order)} models, {best:.4f}")
    return soup

"""Where each input of a model comes from in this run: the photos of a batch, feature files, or a cache.

    inputs = plan_inputs(captioner.config, dataset)           # opened and checked
    loader = get_eval_loader(dataset, inputs, transform=captioner.transform)
    batch.inputs[i]                                           # of config.specs[i]; None: made from batch.pixels

A model's file says what an input was at training time (FeatureSpec.from_file); an Input says what it is now.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from captioning.batches.features import CachedFeatures, FeatureFiles
from captioning.config import FeatureSpec, ModelConfig, shape_text
from captioning.datasets.base import CaptionDataset
from captioning.errors import UserError, warn
from captioning.features.factory import is_feature_file
from captioning.features.places import feature_path, is_there, own_place

GROUPS = ("features", "persist_features")  # of a ModelConfig, in the order of its specs


@dataclass(frozen=True)
class Pixels:
    """An encoder makes the input from the photos of the batch."""


@dataclass(frozen=True)
class Input:
    """One input of a model: what the model reads, and where this run takes it from."""

    spec: FeatureSpec
    source: Pixels | FeatureFiles | CachedFeatures

    @property
    def from_pixels(self) -> bool:
        return isinstance(self.source, Pixels)


def plan_inputs(
    config: ModelConfig,
    dataset: CaptionDataset,
    *,
    replaced: Mapping[str, str | None] | None = None,
    sources: Mapping[str, FeatureFiles | CachedFeatures] | None = None,
    photos: str = "never",
    strict: bool = False,
) -> list[Input]:
    """An Input for each of `config.specs`, in their order; feature files are opened, and checked against the specs.

    replaced: {"features": ..., "persist_features": ...}, for each group None, or files, comma separated, that are read
    in place of those that the model names (infer.py's --ext_features and --ext_persist_features).
    sources: what is open already, by the name of the file, or of the encoder that a cache stands in for.
    photos: whether encoders make from photos what the model reads from feature files: "never", "instead" (where a file
    is missing, which a line on stderr says) or "always"; `replaced` files are read in any case.
    strict: refuse a file that another encoder made than the model's; else, and where it was `replaced`, warn.
    Raises UserError where a file is missing or does not fit the model.
    """
    replaced = {group: files for group, files in (replaced or {}).items() if files is not None}
    if photos == "instead" and not replaced and (lost := lost_file(config, dataset)):
        print(f"{lost}: its photos are captioned instead", file=sys.stderr)
        photos = "always"
    if photos == "always" and not replaced:
        return [Input(spec, Pixels()) for spec in config.specs]
    opened, inputs = dict(sources or {}), []
    for group in GROUPS:
        specs = getattr(config, group)
        if group in replaced:
            specs = with_other_files(specs, group, replaced[group], dataset)
        for spec in specs:
            if spec.from_file and spec.name not in opened:
                opened[spec.name] = FeatureFiles(dataset, spec.name, f"--{group}")
        inputs += with_single_sizes([Input(spec, opened.get(spec.name, Pixels())) for spec in specs])
    for one in inputs:
        if isinstance(one.source, FeatureFiles):
            check_file(one.spec, one.source, strict and not replaced)
    return inputs


def file_spec(dataset: CaptionDataset, name: str, flag: str = "--features") -> FeatureSpec:
    """What a new model reads from the feature file `name` of `dataset`; `flag` names it.

    Raises UserError where the file is missing, or its records are of a shape that no model reads.
    """
    files = FeatureFiles(dataset, name, flag)
    return FeatureSpec(name, tuple(files.shape), True, files.provenance)


def keep_sizes(config: ModelConfig, inputs: Sequence[Input]) -> None:
    """Give the specs of `config` the shapes of its `inputs`, where DeepCaption's model file had a joint size only."""
    for spec, one in zip(config.specs, inputs):
        spec.shape = one.spec.shape


def lost_file(config: ModelConfig, dataset: CaptionDataset) -> str | None:
    """Which of the feature files that the model reads is not there, as a line; None where all are.

    Raises UserError where one is not there and its dataset has no photos to stand in for it either.
    """
    names = dict.fromkeys(spec.name for spec in config.specs if spec.from_file)
    for part in dataset.parts:
        for name in names:
            path = Path(feature_path(part, name))
            if is_there(path):
                continue
            if part.items.lack_paths:
                raise UserError(f"--dataset {part.name}: no such feature file: {path}, and image_dir is not set either")
            return f"{part.name} has no feature file {path}"
    return None


def with_other_files(specs: list[FeatureSpec], group: str, files: str, dataset: CaptionDataset) -> list[FeatureSpec]:
    """`specs` that name `files`, comma separated, in place of their feature files, in order.

    A file is looked up in the features_path of the dataset, else taken as a path of its own.
    Raises UserError where they are not as many, or no feature files.
    """
    external = [spec for spec in specs if spec.from_file]
    names = [name.strip() for name in files.split(",")]
    if len(names) != len(external):
        read = f"{len(external)}: {', '.join(spec.name for spec in external)}" if external else "none"
        raise UserError(f"--ext_{group} {files}: name a file for each that the model reads there ({read})")
    for name in names:
        if not is_feature_file(name):
            raise UserError(f"--ext_{group} {files}: {name!r} is no feature file (.lmdb, .npy, .bin, .h5, .txt)")
    found = iter([own_place(dataset.parts, name) for name in names])
    return [replace(spec, name=next(found)) if spec.from_file else spec for spec in specs]


def with_single_sizes(inputs: list[Input]) -> list[Input]:
    """`inputs` of one group whose specs have the sizes of the files, where the model's file has their joint size only.

    Raises UserError where the files have another joint size.
    """
    files = [one for one in inputs if isinstance(one.source, FeatureFiles)]
    if not any(one.spec.shape == (0,) for one in files):
        return inputs
    known, found = sum(one.spec.shape[0] for one in files), sum(one.source.shape[0] for one in files)
    if known != found:
        names = ", ".join(one.spec.name for one in files)
        raise UserError(f"{names} have {found} numbers together, but the model reads {known}")
    return [replace(x, spec=replace(x.spec, shape=tuple(x.source.shape))) if x in files else x for x in inputs]


def check_file(spec: FeatureSpec, files: FeatureFiles, strict: bool) -> None:
    """Raises UserError where a dataset's feature file is not what the model was trained on.

    A file of the right shape that something else made is refused if `strict`, else told in a warning.
    """
    path = files.readers[0].path
    if tuple(files.shape) != tuple(spec.shape):
        has, wants = shape_text(files.shape), shape_text(spec.shape)
        raise UserError(f"{path} has features of shape {has}, but the model reads {wants}")
    for key in ("extractor", "weights_sha256", "feature_type"):
        has, wants = ((provenance or {}).get(key) for provenance in (files.provenance, spec.provenance))
        if has and wants and has != wants:
            message = f"{path} was made with {key} {has}, but the model was trained with {key} {wants}"
            if strict:
                raise UserError(message)
            warn(message)

"""Where the inputs of a model come from: whether feature files are there, others in their place, whether they fit."""

from pathlib import Path

from captioning.batches.features import FeatureSource, feature_path
from captioning.config import FeatureSpec, ModelConfig
from captioning.datasets.base import CaptionDataset
from captioning.errors import UserError
from captioning.features.factory import is_feature_file


def missing_features(config: ModelConfig, dataset: CaptionDataset) -> str | None:
    """Which of the feature files that the model reads is not there, as a line; None where all are.

    Raises UserError where one is not there and its dataset has no photos to stand in for it either.
    """
    names = dict.fromkeys(spec.name for spec in config.specs if spec.from_file)
    for part in dataset.parts:
        for name in names:
            path = Path(feature_path(part, name))
            if _there(path):
                continue
            if any(item.path is None for item in part.items):
                raise UserError(f"--dataset {part.name}: no such feature file: {path}, and image_dir is not set either")
            return f"{part.name} has no feature file {path}"
    return None


def replace_files(flag: str, files: str | None, specs: list[FeatureSpec], dataset: CaptionDataset) -> None:
    """Have `files`, comma separated, read in place of the feature files among `specs`, in their order.

    A file is looked up in the features_path of the dataset, else taken as a path of its own. flag: the flag's name.
    Raises UserError where they are not as many, or no feature files.
    """
    if files is None:
        return
    external = [spec for spec in specs if spec.from_file]
    names = [name.strip() for name in files.split(",")]
    if len(names) != len(external):
        read = f"{len(external)}: {', '.join(spec.name for spec in external)}" if external else "none"
        raise UserError(f"--{flag} {files}: name a file for each that the model reads there ({read})")
    for name, spec in zip(names, external):
        if not is_feature_file(name):
            raise UserError(f"--{flag} {files}: {name!r} is no feature file (.lmdb, .npy, .bin, .h5, .txt)")
        in_folder = any(_there(Path(feature_path(part, name))) for part in dataset.parts)
        spec.name = name if in_folder or not _there(Path(name)) else str(Path(name).absolute())


def _there(path: Path) -> bool:
    return path.exists() or path.with_name(f"{path.stem}-mean{path.suffix}").exists()


def check_features(spec: FeatureSpec, source: FeatureSource, by_hand: bool = False) -> list[str]:
    """Raises UserError where a dataset's feature file is not what the model was trained on.

    A file named by hand is read although it says that something else made it; that is told in the lines returned.
    """
    path = source.readers[0].path
    if tuple(source.shape) != tuple(spec.shape):
        raise UserError(f"{path} has features of shape {tuple(source.shape)}, but the model reads {tuple(spec.shape)}")
    warnings = []
    for key in ("extractor", "weights_sha256", "feature_type"):
        has, wants = ((provenance or {}).get(key) for provenance in (source.provenance, spec.provenance))
        if has and wants and has != wants:
            message = f"{path} was made with {key} {has}, but the model was trained with {key} {wants}"
            if not by_hand:
                raise UserError(message)
            warnings.append(message)
    return warnings


def settle_joint_sizes(specs: list[FeatureSpec], shapes: list[tuple[int, ...]]) -> None:
    """Give specs whose joint size alone is known the `shapes` of their files. Raises UserError for a wrong sum."""
    if not any(spec.shape == (0,) for spec in specs):
        return
    known, found = sum(spec.shape[0] for spec in specs), sum(shape[0] for shape in shapes)
    if known != found:
        names = ", ".join(spec.name for spec in specs)
        raise UserError(f"{names} have {found} numbers together, but the model reads {known}")
    for spec, shape in zip(specs, shapes):
        spec.shape = shape


def check_feature_files(config: ModelConfig, loader) -> None:
    """Raise UserError unless the files that `loader` (data_loader.Loader) opened have what the model reads."""
    groups = ((config.features, loader.features), (config.persist_features, loader.persist_features))
    for specs, sources in groups:
        files = (source for source in sources if is_feature_file(source.name))  # the others are caches of encoders
        pairs = list(zip((spec for spec in specs if spec.from_file), files))
        settle_joint_sizes([spec for spec, _ in pairs], [tuple(source.shape) for _, source in pairs])
        for spec, source in pairs:
            if tuple(source.shape) != tuple(spec.shape):
                shapes = f"of shape {tuple(source.shape)}, but the model reads {tuple(spec.shape)}"
                raise UserError(f"{source.readers[0].path} has features {shapes}")

"""The feature files behind a trained model: whether they are there, others in their place, whether they fit."""

from pathlib import Path

from caption_datasets import CaptionDataset
from common import UserError
from data_loader import FeatureSource, feature_path
from features import is_feature_file
from model_config import FeatureSpec, ModelConfig


def missing_features(config: ModelConfig, dataset: CaptionDataset) -> str | None:
    """Which of the feature files that the model reads is not there, as a line; None where all are.

    Raises UserError where one is not there and its dataset has no photos to stand in for it either.
    """
    names = dict.fromkeys(spec.name for spec in config.specs if spec.external)
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
    external = [spec for spec in specs if spec.external]
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
        has, wants = ((maker or {}).get(key) for maker in (source.maker, spec.maker))
        if has and wants and has != wants:
            message = f"{path} was made with {key} {has}, but the model was trained with {key} {wants}"
            if not by_hand:
                raise UserError(message)
            warnings.append(message)
    return warnings

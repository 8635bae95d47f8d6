"""--validate_only: loss and scores of model files, kept beside them.

models/NAME/train_stats-DATASET.json    {"3": {"validation_loss": ..., "validation_cider": ...}, ...}: of epN.model and
                                        best.model, by epoch, as plot_stats.py draws
models/NAME/train_stats-DATASET-STEM.json    of another file, STEM.model
"""

import json
import math
import re
from contextlib import closing
from functools import partial
from pathlib import Path

import torch

from captioning.datasets.names import short_names
from captioning.devices import from_main, is_main
from captioning.errors import UserError
from captioning.files import atomic_write
from captioning.locks import FileLock
from model import load_captioner
from training.run_folder import read_stats
from training.settings import DataSettings, ModelSettings
from training.validation.data import validation_loader
from training.validation.measuring import Validation
from vocabulary import Vocabulary

ITS_EPOCH = re.compile(r"ep(\d+)|best")


def stats_file(model_path, dataset: str) -> Path:
    """Where the figures of a model on `dataset` are kept: in the model's folder."""
    path = Path(model_path)
    name = re.sub(r"[^\w.+-]", "-", short_names(dataset))
    other = "" if ITS_EPOCH.fullmatch(path.stem) else f"-{path.stem}"
    return path.with_name(f"train_stats-{name}{other}.json")


def known_figures(path: Path) -> dict[int, dict]:
    """The figures kept so far by epoch, none where there is no file. Raises UserError where it is no table of them."""
    return read_stats(path, "--validate_only") if path.exists() else {}


def validate_models(
    wanted: ModelSettings, data: DataSettings, validation: Validation, device: torch.device, skip_existing: bool = False
) -> int:
    """Measure each of `wanted.load_model` on `data.validate`, print its figures and keep them beside it.

    A model that fails is named and passed over, unless it is the only one. skip_existing: pass over models that have
    their figures; those whose name says their epoch (ep3.model) are not even read then. Returns the exit status.
    """
    failed = 0
    for path in wanted.load_model:
        try:
            validate_model(path, wanted, data, validation, device, skip_existing)
        except UserError as error:
            if len(wanted.load_model) == 1:
                raise
            failed += 1
            tell(f"{path}: left out: {error}")
    if failed:
        tell(f"{failed} of {len(wanted.load_model)} models could not be validated")
    return 1 if failed else 0


def tell(line: str) -> None:
    """Print a line in the first process."""
    if is_main():
        print(line)


def validate_model(
    path, wanted: ModelSettings, data: DataSettings, validation: Validation, device: torch.device, skip_existing: bool
) -> None:
    """Measure the model of the file `path`, print its figures and write them to its `stats_file`."""
    vocabulary = data.vocabulary_file and Vocabulary.load(data.vocabulary_file)
    load = partial(load_captioner, path, device, wanted.weights, photos=False, vocabulary=vocabulary)
    file = stats_file(path, data.validate)
    known = from_main(lambda: known_figures(file))
    named = re.fullmatch(r"ep(\d+)", Path(path).stem)
    epoch = named and int(named.group(1))
    captioner = None
    if epoch is None or not skip_existing:
        captioner = load()
        epoch = epoch or int(captioner.info.get("epoch") or 0)
    if skip_existing and all(name in known.get(epoch, {}) for name in validation.wanted):
        tell(f"{path}: validated already (epoch {epoch} of {file}), passed over")
        return
    captioner = captioner or load()
    with closing(validation_loader(captioner, data)) as loader:
        row = validation.measure(captioner, loader)
    tell(f"{path}: " + ", ".join(f"{k.removeprefix('validation_')} {v:.4f}" for k, v in row.items()))
    from_main(lambda: add_row(file, epoch, row))
    tell(f"statistics: {file}")


def add_row(file: Path, epoch: int, row: dict[str, float]) -> None:
    """Write the figures of an epoch into `file`, beside those that are there; another process may do so too."""
    lock = FileLock(file.with_name(f".{file.name}.lock"), str(file), wait=60)
    try:
        stats = known_figures(file) | {epoch: {k: v if math.isfinite(v) else None for k, v in row.items()}}
        with atomic_write(file) as out:
            json.dump(dict(sorted(stats.items())), out, indent=2)
    finally:
        lock.release(remove=True)

"""Statistics files: the losses and scores of each epoch, as train.py and DeepCaption write them.

read_stats(Path("models/a/train_stats.json"))            # {1.0: {"training_loss": 3.2, "cider": 0.31}, ...}
"""

import math
import re
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from captioning.errors import UserError
from captioning.files import read_json

OTHER_NAMES = {"rouge": "rouge_l", "cider_d": "ciderd", "val_loss": "validation_loss", "train_loss": "training_loss"}
OTHER_NAMES |= {"val_loss_word": "validation_word_loss", "val_loss_sentence": "validation_stop_loss"}
DEEPEST, MOST_QUANTITIES = 5, 200  # of the figures of an epoch
LARGEST = 1e100  # of figures and epochs: matplotlib cannot lay out axes of larger ones


@dataclass(frozen=True)
class History:
    """One statistics file: `epochs[epoch][quantity]`, finite numbers only."""

    label: str
    position: int  # among the files of the command line; decides the colour
    epochs: dict[float, dict[str, float]]

    def curve(self, quantity: str) -> tuple[list[float], list[float]]:
        """Epochs that have `quantity`, and its values.

        The training loss of epochs with a reward is left out: self-critical training has a loss about 0 that cannot be
        compared with cross-entropy.
        """
        other = "training_reward" if quantity == "training_loss" else None
        rows = self.epochs.items()
        points = [(epoch, row[quantity]) for epoch, row in rows if quantity in row and other not in row]
        return [epoch for epoch, _ in points], [value for _, value in points]


def stats_file(name: str) -> Path:
    path = Path(name)
    return path / "train_stats.json" if path.is_dir() else path


def labels_of(files: list[str], typed: str | None) -> list[str]:
    """A label for each file: those of --labels, then names of folders or files. Raises UserError for too many."""
    labels = [] if typed is None else [label.strip() for label in typed.split(",")]
    if len(labels) > len(files):
        raise UserError(f"--labels: {len(labels)} labels for {len(files)} files; give at most one for each")
    for path in map(stats_file, files[len(labels) :]):
        name = path.resolve().parent.name if path.name == "train_stats.json" else path.name.split(".")[0] or path.name
        labels.append(name)
    return labels


def read_stats(path: Path) -> dict[float, dict[str, float]]:
    """The epochs of a statistics file, in order. Raises UserError for a file that holds something else, or nothing."""
    content = read_json(path, "FILE")
    if not isinstance(content, dict):
        raise UserError(f'FILE: {path} holds no statistics; they look like {{"1": {{"training_loss": 3.2}}, ...}}')
    epochs = {}
    for key, values in content.items():
        try:
            epoch = float(key)
        except ValueError:
            epoch = math.nan
        if not abs(epoch) < LARGEST or not isinstance(values, dict):
            raise UserError(
                f'FILE: {path} holds no statistics: "{key[:60]}" is not an epoch with its losses and scores'
            )
        if epoch in epochs:
            raise UserError(f'FILE: {path} has the epoch {epoch:g} twice, the second time as "{key[:60]}"')
        epochs[epoch] = dict(numbers("", values))
        if len(epochs[epoch]) > MOST_QUANTITIES:
            raise UserError(f'FILE: {path}: epoch "{key[:60]}" has more than {MOST_QUANTITIES} numbers')
    if not any(epochs.values()):
        raise UserError(f"FILE: {path} holds no numbers yet; give it an epoch, or wait for one with --watch")
    return dict(sorted(epochs.items()))


def numbers(prefix: str, value, depth: int = 0):
    """Yield (quantity, number) for every number in `value` that can be drawn.

    Nested names are joined, lists count from 1. What is nested deeper than DEEPEST is passed over.
    """
    if isinstance(value, dict | list) and depth < DEEPEST:
        items = value.items() if isinstance(value, dict) else enumerate(value, start=1)
        for key, part in items:
            yield from numbers(f"{prefix}_{key}" if prefix else str(key), part, depth + 1)
    elif isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST:
        yield quantity_name(prefix), float(value)


@cache
def quantity_name(key: str) -> str:
    """One name for what files call validation_Bleu_4, validation_bleu4, bleu_4...; losses keep their prefix."""
    name = re.sub(r"\W+", "_", key.strip().lower())
    if not is_loss(name):
        name = re.sub(r"^(validation|val)_(scores_)?", "", name)
    name = re.sub(r"^bleu_?(\d)$", r"bleu_\1", name)
    return OTHER_NAMES.get(name, name)


def is_loss(quantity: str) -> bool:
    return "loss" in quantity


def watched(files: list[str], labels: list[str], pause):
    """Yield the histories at first and whenever a file changes, until `pause()` (which waits) returns False.

    A file that is missing or half written is named once and looked at again; what it held before stays.
    """
    histories, seen, problems = {}, {}, {}
    while True:
        changed = False
        for i, (name, label) in enumerate(zip(files, labels)):
            try:
                path = stats_file(name)
                status = path.stat() if path.exists() else None
                mark = status and (status.st_ino, status.st_mtime_ns, status.st_size)
                if mark and mark == seen.get(i):
                    continue
                histories[i] = History(label, i, read_stats(path))
                seen[i], changed = mark, True
                problems.pop(i, None)
            except (UserError, OSError) as error:
                seen.pop(i, None)
                if problems.get(i) != str(error):
                    print(f"waiting: {error}", file=sys.stderr)
                problems[i] = str(error)
        if changed:
            yield [histories[i] for i in sorted(histories)]
        if not pause():
            return

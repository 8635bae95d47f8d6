"""The folder of a training run: its models, its statistics, which epoch was best, and exact resuming.

models/NAME/ep1.model ...   the captioner after each epoch, for inference
models/NAME/best.model      the one that validation liked best
models/NAME/last.model      weights, optimizer and position, for --resume
models/NAME/train_stats.json
"""

import json
import math
from pathlib import Path

from captioning import checkpoint
from captioning.config import ModelConfig
from captioning.errors import UserError
from captioning.features.factory import is_feature_file
from captioning.files import atomic_write, check_writable, read_json, remove_leftovers
from model import Captioner, save_captioner
from training.settings import ModelSettings
from training.trainer import Trainer

# What decides which epoch is best: the first of these that was measured, and whether higher is better.
CRITERIA = {
    "validation_cider": True,
    "validation_ciderd": True,
    "validation_spice": True,
    "validation_meteor": True,
    "validation_bleu_4": True,
    "validation_rouge_l": True,
    "validation_loss": False,
    "training_loss": False,
}


def run_name(basename: str, model: ModelSettings, config: ModelConfig) -> str:
    """A name for a run's folder, made of the settings that people vary."""
    features = "-".join(Path(name).stem if is_feature_file(name) else name for name in model.features.split(","))
    parts = [basename, features.replace(":", "-"), config.attention, config.rnn_arch.lower(), str(config.hidden_size)]
    if config.paragraphs is not None:
        parts.append("coherent" if config.paragraphs.coherent_sentences else "hierarchical")
    return "-".join(part for part in parts if part)


class RunFolder:
    """path: the folder; stats: {epoch: {name: value}} as in train_stats.json.

    command: what was typed, kept in the models.
    """

    def __init__(self, path, command: list[str]):
        self.path, self.command = Path(path), command
        self.stats: dict[int, dict[str, float]] = {}
        self.history: list[str] = []  # the commands that made the model of --load_model

    def file(self, name: str) -> Path:
        return self.path / name

    def prepare(self, resume: bool, replace: bool, writes: bool = True) -> dict | None:
        """Make the folder, or empty it with `replace`; with `resume` return the contents of last.model if there is one.

        writes False: only read, as the other processes of a run do. Raises UserError where a run of
        this name exists and neither was asked for.
        """
        if writes:
            remove_leftovers(self.path)
        last = self.file("last.model")
        if resume and last.exists():
            contents = checkpoint.load(last)
            if "training" not in contents:
                raise UserError(f"--resume: {last} has no training state")
            self._read_stats(contents["training"]["epoch"])
            return contents
        if not writes:
            return None
        old = [*self.path.glob("*.model"), *self.path.glob("train_stats*.json")] if self.path.exists() else []
        if old and not (replace or resume):
            raise UserError(
                f"{self.path} holds a run already ({old[0].name}): "
                "give another --model_name, --resume to go on, or --replace"
            )
        for file in old:
            file.unlink()
        check_writable("--model_path", last)  # makes the folder
        return None

    def load_last(self, contents: dict, captioner: Captioner) -> None:
        """Give `captioner` the weights of last.model, whose `contents` `prepare` returned.

        Raises UserError where the run was started with another architecture or vocabulary.
        """
        saved, own = ModelConfig.from_dict(contents["config"]).to_dict(), captioner.config.to_dict()
        for name in own:
            if saved.get(name) != own[name]:
                was = f"the run was started with {name} {saved.get(name)!r}"
                raise UserError(f"--resume: {was}, now it is {own[name]!r}")
        if contents["vocabulary"] != captioner.vocabulary.to_dict():
            raise UserError("--resume: the run was started with another vocabulary")
        captioner.model.load_trained_state(contents["state"], self.file("last.model"))

    def load_best(self, captioner: Captioner, epoch: int) -> str:
        """Give `captioner` the weights of the best epoch before `epoch`; a line about what it has now."""
        best = self.best_epoch()
        file = best and self.file(f"ep{best}.model")
        if self.criterion() == "training_loss" or not file:
            return f"epoch {epoch - 1}: nothing was validated, so no epoch is known to be the best"
        if not file.exists():
            return f"epoch {epoch - 1}: {file} of the best epoch is gone"
        captioner.model.load_trained_state(checkpoint.load(file)["state"], file)
        return f"epoch {best}, the best so far"

    def _read_stats(self, unfinished_epoch: int) -> None:
        """The statistics of the epochs before `unfinished_epoch`."""
        if self.file("train_stats.json").exists():
            stats = read_json(self.file("train_stats.json"), "--resume")
            self.stats = {int(epoch): row for epoch, row in stats.items() if int(epoch) < unfinished_epoch}

    def add_epoch(self, epoch: int, row: dict[str, float], write: bool = True) -> None:
        """Note an epoch's figures and write train_stats.json. Numbers that are not finite become null."""
        self.stats[epoch] = {k: v if math.isfinite(v) else None for k, v in row.items()}
        if not write:
            return
        with atomic_write(self.file("train_stats.json")) as file:
            json.dump({str(epoch): row for epoch, row in self.stats.items()}, file, indent=2)

    def criterion(self) -> str:
        """The name of the figure that decides which epoch is best."""
        measured = {name for row in self.stats.values() for name in row}
        return next((name for name in CRITERIA if name in measured), "training_loss")

    def best_epoch(self) -> int | None:
        name = self.criterion()
        sign = 1 if CRITERIA[name] else -1
        rows = {epoch: row[name] for epoch, row in self.stats.items() if row.get(name) is not None}
        return max(rows, key=lambda epoch: (sign * rows[epoch], -epoch)) if rows else None

    def save_epoch(self, captioner: Captioner, epoch: int) -> list[Path]:
        """Write epN.model, and best.model where this epoch is the best so far; the model holds what shall be saved."""
        files = [self.file(f"ep{epoch}.model")]
        if self.best_epoch() == epoch:
            files.append(self.file("best.model"))
        for file in files:
            save_captioner(captioner, file, epoch=epoch, stats=self.stats.get(epoch, {}), **self._commands())
        return files

    def save_last(self, captioner: Captioner, trainer: Trainer, epoch: int, batch: int, progress: dict | None) -> None:
        """Write last.model: training goes on at batch `batch` of `epoch`, with the epoch's sums so far."""
        position = {"epoch": epoch, "batch": batch, "progress": progress, "trainer": trainer.state_dict()}
        save_captioner(captioner, self.file("last.model"), epoch=epoch, training=position, **self._commands())

    def _commands(self) -> dict:
        return {"command": self.command, "history": self.history}

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
from captioning.files import atomic_write, check_writable, expect, read_json, remove_leftovers
from model import Captioner, save_captioner
from training.settings import ModelSettings
from training.trainer import Trainer

# The first of these that was measured decides which epoch is best; losses are better when lower.
CRITERIA = ("cider", "ciderd", "spice", "meteor", "bleu_4", "rouge_l", "loss")
NOISE = 0.01  # a score below it says nothing about captions: chance decides which epoch has the highest


def run_name(basename: str, wanted: ModelSettings, config: ModelConfig) -> str:
    """A name for a run's folder, made of the settings that people vary."""
    features = "-".join(Path(name).stem if is_feature_file(name) else name for name in wanted.features.split(","))
    parts = [basename, features.replace(":", "-"), config.attention, config.rnn_arch.lower(), str(config.hidden_size)]
    if config.paragraphs is not None:
        parts.append("coherent" if config.paragraphs.coherent_sentences else "hierarchical")
    return "-".join(part for part in parts if part)


def read_stats(path: Path, what: str) -> dict[int, dict[str, float | None]]:
    """{epoch: {name: value}} of a file of statistics; `what` names its role in errors. Raises UserError for another."""
    table = expect(read_json(path, what), dict, f"{what}: {path}")
    for epoch, row in table.items():
        if not (epoch.isascii() and epoch.isdigit() and len(epoch) < 10):
            raise UserError(f"{what}: {path} holds no statistics: {epoch[:60]!r} is not the number of an epoch")
        for name, value in expect(row, dict, f"{what}: {path}", f"epoch {epoch}").items():
            expect(value, (float, type(None)), f"{what}: {path}", f"epoch {epoch}.{name[:60]}")
    return {int(epoch): row for epoch, row in table.items()}


class RunFolder:
    """path: the folder; stats: {epoch: {name: value}} as in train_stats.json.

    command: what was typed, kept in the models.
    """

    def __init__(self, path, command: list[str]):
        self.path, self.command = Path(path), command
        self.stats: dict[int, dict[str, float]] = {}
        self.older: list[Path] = []  # files of a run that this one replaces
        self.history: list[str] = []  # the commands that made the model of --load_model

    def prepare(self, resume: bool, replace: bool, writes: bool = True) -> dict | None:
        """Make the folder; with `resume` return the contents of last.model if there is one.

        An older run stays until `remove_older`. writes False: only read, as the other processes of a run do.
        Raises UserError where a run of this name exists and neither was asked for, and where there are models but no
        last.model to resume.
        """
        if writes:
            remove_leftovers(self.path)
        last = self.path / "last.model"
        if resume and last.exists():
            contents = checkpoint.load(last)
            if "training" not in contents:
                raise UserError(f"--resume: {last} has no training state")
            if (file := self.path / "train_stats.json").exists():
                rows = read_stats(file, "--resume")
                self.stats = {epoch: row for epoch, row in rows.items() if epoch < contents["training"]["epoch"]}
            return contents
        if not writes:
            return None
        models = sorted(self.path.glob("*.model"), key=lambda file: file.stat().st_mtime)
        if models and resume and not replace:
            raise UserError(
                f"--resume: there is no {last}, but there are other models: go on from one with "
                f"--load_model {models[-1]} and another --model_name, or begin anew with --replace"
            )
        self.older = [*models, *self.path.glob("train_stats*.json")]
        if self.older and not (replace or resume):
            raise UserError(
                f"{self.path} holds a run already ({self.older[0].name}): "
                "give another --model_name, --resume to go on, or --replace"
            )
        check_writable("--model_path", last)  # makes the folder
        return None

    def remove_older(self) -> None:
        """Remove the run that --replace writes over: the new one stands."""
        for file in self.older:
            file.unlink(missing_ok=True)

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
        captioner.model.load_trained_state(contents["state"], self.path / "last.model")

    def load_best(self, captioner: Captioner, epoch: int) -> str:
        """Give `captioner` the weights of the best epoch before `epoch`; a line about what it has now."""
        best = self.best_epoch()
        file = best and self.path / f"ep{best}.model"
        if self.criterion() == "training_loss" or not file:
            return f"epoch {epoch - 1}: nothing was validated, so no epoch is known to be the best"
        if not file.exists():
            return f"epoch {epoch - 1}: {file} of the best epoch is gone"
        captioner.model.load_trained_state(checkpoint.load(file)["state"], file)
        return f"epoch {best}, the best so far"

    def add_epoch(self, epoch: int, row: dict[str, float], write: bool = True) -> None:
        """Note an epoch's figures and write train_stats.json. Numbers that are not finite become null."""
        self.stats[epoch] = {k: v if math.isfinite(v) else None for k, v in row.items()}
        if not write:
            return
        with atomic_write(self.path / "train_stats.json") as file:
            json.dump({str(epoch): row for epoch, row in self.stats.items()}, file, indent=2)

    def criterion(self) -> str:
        """The name of the figure that decides which epoch is best: the loss where the scores are noise."""
        score = self.score()
        return "validation_loss" if score and self.noisy(score) else score or "training_loss"

    def score(self) -> str | None:
        """The first of CRITERIA that was measured; None where nothing was validated."""
        measured = {name for row in self.stats.values() for name in row}
        return next((f"validation_{name}" for name in CRITERIA if f"validation_{name}" in measured), None)

    def noisy(self, score: str) -> bool:
        """Whether no epoch reached NOISE in `score`."""
        values = [row[score] for row in self.stats.values() if row.get(score) is not None]
        return not score.endswith("_loss") and max(values, default=0.0) < NOISE

    def criterion_text(self) -> str:
        """The criterion by its name, and why a score that was measured is not it."""
        name, score = self.criterion(), self.score()
        return name if score in (name, None) else f"{name}, as {score} is under {NOISE:g}"

    def best_epoch(self) -> int | None:
        name = self.criterion()
        sign = -1 if name.endswith("_loss") else 1
        rows = {epoch: row[name] for epoch, row in self.stats.items() if row.get(name) is not None}
        return max(rows, key=lambda epoch: (sign * rows[epoch], -epoch)) if rows else None

    def save_epoch(self, captioner: Captioner, epoch: int) -> None:
        """Write epN.model, and best.model where this epoch is the best so far; the model holds what shall be saved."""
        for name in (f"ep{epoch}", "best") if self.best_epoch() == epoch else (f"ep{epoch}",):
            self._save(captioner, f"{name}.model", epoch, stats=self.stats.get(epoch, {}))

    def save_last(self, captioner: Captioner, trainer: Trainer, epoch: int, batch: int, progress: dict | None) -> None:
        """Write last.model: training goes on at batch `batch` of `epoch`, with the epoch's sums so far."""
        position = {"epoch": epoch, "batch": batch, "progress": progress, "trainer": trainer.state_dict()}
        self._save(captioner, "last.model", epoch, training=position)

    def _save(self, captioner: Captioner, name: str, epoch: int, **info) -> None:
        save_captioner(captioner, self.path / name, epoch=epoch, command=self.command, history=self.history, **info)

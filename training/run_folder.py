"""The folder of a training run: its models, its statistics, which epoch was best, and exact resuming.

models/NAME/ep1.model ...   the captioner after each epoch, for inference
models/NAME/best.model      the one that validation liked best
models/NAME/last.model      weights, optimizer and position, for --resume
models/NAME/train_stats.json
models/NAME/config.json     all settings of the run, as --config takes them
models/NAME/.lock           while a process trains there
"""

import json
import math
import re
from pathlib import Path

import torch

from captioning import checkpoint
from captioning.config import ModelConfig
from captioning.devices import is_main
from captioning.errors import UserError
from captioning.features.factory import is_feature_file
from captioning.files import atomic_write, check_writable, expect, read_json, remove_leftovers
from captioning.locks import FileLock
from captioning.scoring.bootstrap import NOISE
from captioning.scoring.calibration import Calibration
from model import Captioner, save_captioner
from training.settings import FIXED, ModelSettings, changes, model_settings
from training.trainer import Trainer
from vocabulary import Vocabulary

# The first of these that was measured decides which epoch is best; losses are better when lower.
CRITERIA = ("cider", "ciderd", "spice", "meteor", "bleu_4", "rouge_l", "loss")


def run_name(basename: str, wanted: ModelSettings, config: ModelConfig) -> str:
    """A name for a run's folder, made of the settings that people vary."""
    features = "-".join(Path(name).stem if is_feature_file(name) else name for name in wanted.features.split(","))
    kind = config.rnn_arch.lower() if config.decoder == "lstm" else config.decoder
    parts = [basename, re.sub("[:/]", "-", features), config.attention, kind, str(config.hidden_size)]
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
    """The folder of a training run, with its models and statistics.

    path: the folder; stats: {epoch: {name: value}} as in train_stats.json. command: what was typed, kept in the models.
    keep: how many epN.model stay, besides that of the best epoch; 0: all. settings: those that must be the same when
    the run goes on; flags: all settings, by the names of their flags. The models keep both. best_by: the figure that
    says which epoch is best; None: the first of CRITERIA.
    """

    def __init__(self, path, command: list[str], keep: int = 0):
        self.path, self.command, self.keep = Path(path), command, keep
        self.last = self.path / "last.model"
        self.stats: dict[int, dict[str, float]] = {}
        self.settings: dict = {}
        self.flags: dict = {}
        self.best_by: str | None = None
        self.older: list[Path] = []  # files of a run that this one replaces
        self.history: list[str] = []  # the commands that made the model of --load_model
        self.lock: FileLock | None = None

    def prepare(self, resume: int, replace: bool, writes: bool = True) -> dict | None:
        """Make the folder and lock it; with `resume` return the contents of last.model if there is one.

        resume 2: else those of the newest sound epN.model. An older run stays until `remove_older`. writes False: only
        read, as the other processes of a run do. Raises UserError where another process trains there, where a run of
        this name exists and neither was asked for, and where there are models but no sound last.model to resume.
        """
        if writes:
            check_writable("--model_path", self.last)  # makes the folder
            advice = "wait until it has ended, or give another --model_name"
            self.lock = FileLock(self.path / ".lock", f"the run in {self.path}", advice)
            remove_leftovers(self.path)
        models = sorted(self.path.glob("*.model"), key=lambda file: file.stat().st_mtime)
        if resume and models and (self.last.exists() or not replace):
            contents = self._read_last(resume)
            self._read_stats(contents["training"]["epoch"])
            return contents
        if not writes:
            return None
        self.older = [*models, *self.path.glob("train_stats*.json")]
        if self.older and not (replace or resume):
            raise UserError(
                f"{self.path} holds a run already ({self.older[0].name}): "
                "give another --model_name, --resume to go on, or --replace"
            )
        return None

    def close(self) -> None:
        """Let other processes in."""
        if self.lock is not None:
            self.lock.release(remove=True)

    def remove_older(self) -> None:
        """Remove the run that --replace writes over: the new one stands."""
        for file in self.older:
            file.unlink(missing_ok=True)

    def write_config(self) -> None:
        with atomic_write(self.path / "config.json") as file:
            file.write(json.dumps(self.flags, indent=2) + "\n")

    # ---- going on ----

    def _read_last(self, resume: int) -> dict:
        """What training goes on from: last.model, or with `resume` 2 the newest sound epN.model in its place."""
        try:
            if not self.last.exists():
                raise UserError(f"there is no {self.last}, but there are other models")
            contents = checkpoint.load(self.last)
            if "training" not in contents:
                raise UserError(f"{self.last} has no training state")
            return contents
        except UserError as error:
            problem = f"--resume: {error}"
        epoch, contents = self._newest_sound_epoch()
        anew = "another --model_name, or begin anew with --replace"
        if contents is None:
            raise UserError(
                f"{problem}; no epN.model there is sound either: start from a model with --load_model and {anew}"
            )
        if resume < 2:
            file = self.path / f"ep{epoch}.model"
            way = f"give --resume twice (--resume --resume) to go on from {file}, the newest sound epoch"
            raise UserError(f"{problem}; {way}; or start from it with --load_model {file} and {anew}")
        if is_main():
            print(f"{problem}; the run goes on after epoch {epoch}, whose model is sound; the optimizer begins anew")
        position = {"epoch": epoch + 1, "batch": 0, "progress": None, "trainer": contents.get("counters")}
        return {**contents, "training": {**position, "settings": contents.get("settings")}}

    def _newest_sound_epoch(self) -> tuple[int, dict | None]:
        """The number and the contents of the newest epN.model that can be read; 0 and None where none can."""
        for epoch in sorted(self.epochs(), reverse=True):
            try:
                contents = checkpoint.load(self.path / f"ep{epoch}.model")
            except UserError:
                continue
            if contents.get("epoch") == epoch and {"state", "config", "vocabulary"} <= contents.keys():
                return epoch, contents
        return 0, None

    def _read_stats(self, before: int) -> None:
        """The figures of the epochs before `before`; later ones will be measured again."""
        if (file := self.path / "train_stats.json").exists():
            self.stats = {epoch: row for epoch, row in read_stats(file, "--resume").items() if epoch < before}

    def check_settings(self, contents: dict, captioner: Captioner, changed: bool) -> dict[str, str]:
        """What differs between the run whose model `prepare` returned and this one, {flag: "--seed was 42, now 5"}.

        Raises UserError where that makes other numbers and `changed` does not allow it, and where no run can go on so.
        """
        position = contents["training"]
        begun = position["epoch"] - (0 if position["batch"] else 1)
        now, kept = model_settings(captioner.config) | self.settings, position.get("settings")
        was = model_settings(ModelConfig.from_dict(contents["config"]))  # of an epN.model `kept` has all flags as typed
        was |= {name: value for name, value in (kept or {}).items() if name in self.settings}
        counters = position["trainer"] or {}
        found = changes(was, now, begun, bool(counters.get("self_critical")))
        words, own = Vocabulary.from_dict(contents["vocabulary"]), captioner.vocabulary
        if (words.words, words.tokenizer, words.lowercase) != (own.words, own.tokenizer, own.lowercase):
            found["--vocab"] = "--vocab gives another vocabulary than before"
        if kept is None:
            print(f"note: {self.last} was written by an older version, which kept no settings: none are compared")
        if not found:
            return {}
        told = f"--resume: {'; '.join(found.values())}"
        if fixed := sorted(FIXED & found.keys()):
            raise UserError(f"{told}: {', '.join(fixed)} cannot change in a run: train another one (--model_name)")
        if not changed:
            raise UserError(f"{told}: the numbers would not be those of one run: give the same, or --resume_changed")
        print(told.replace("--resume:", "--resume_changed:"))
        return found

    def load_last(self, contents: dict, captioner: Captioner) -> None:
        """Give `captioner` the weights and the calibration of the model whose `contents` `prepare` returned."""
        captioner.model.load_trained_state(contents["state"], self.last)
        if (kept := contents.get("calibration")) is not None:
            captioner.calibration = Calibration.from_dict(kept, str(self.last))

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
        """The name of the figure that decides which epoch is best: `best_by`, or the loss where scores are noise."""
        if self.best_by and any(row.get(f"validation_{self.best_by}") is not None for row in self.stats.values()):
            return f"validation_{self.best_by}"
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
        chosen = score in (name, None) or name == f"validation_{self.best_by}"
        return name if chosen else f"{name}, as {score} is under {NOISE:g}"

    def best_epoch(self) -> int | None:
        name = self.criterion()
        sign = -1 if name.endswith("_loss") else 1
        rows = {epoch: row[name] for epoch, row in self.stats.items() if row.get(name) is not None}
        return max(rows, key=lambda epoch: (sign * rows[epoch], -epoch)) if rows else None

    def save_epoch(self, captioner: Captioner, trainer: Trainer, epoch: int) -> None:
        """Write epN.model, and best.model where this epoch is the best so far; the model holds what shall be saved."""
        info = {"stats": self.stats.get(epoch, {}), "counters": trainer.counters()}
        for name in (f"ep{epoch}", "best") if self.best_epoch() == epoch else (f"ep{epoch}",):
            self._save(captioner, f"{name}.model", epoch, **info)

    def save_last(self, captioner: Captioner, trainer: Trainer, epoch: int, batch: int, progress: dict | None) -> None:
        """Write last.model: training goes on at batch `batch` of `epoch`, with the epoch's sums so far."""
        for average in trainer.average or ():
            require_finite("the average of weights", average)
        position = {"epoch": epoch, "batch": batch, "progress": progress, "trainer": trainer.state_dict()}
        self._save(captioner, "last.model", epoch, training={**position, "settings": self.settings})

    def _save(self, captioner: Captioner, name: str, epoch: int, **info) -> None:
        for part, value in captioner.model.trained_state().items():
            require_finite(part, value)
        info["settings"] = {f"--{name}": value for name, value in self.flags.items()} | self.settings
        save_captioner(captioner, self.path / name, epoch=epoch, command=self.command, history=self.history, **info)

    def epochs(self) -> list[int]:
        """The numbers of the epN.model that are there."""
        found = (re.fullmatch(r"ep(\d+)\.model", path.name) for path in self.path.glob("ep*.model"))
        return [int(match[1]) for match in found if match]

    def renew_best(self) -> None:
        """Make best.model that of the best epoch, where --best_by has changed."""
        best = self.best_epoch()
        file = self.path / f"ep{best}.model"
        if best is not None and file.exists():
            with atomic_write(self.path / "best.model", "wb") as out:
                out.write(file.read_bytes())

    def remove_epochs(self, newest: int) -> None:
        """Remove each epN.model up to epoch `newest` but the `keep` last ones and that of the best epoch."""
        for epoch in self.epochs() if self.keep else ():
            if epoch <= newest - self.keep and epoch != self.best_epoch():
                (self.path / f"ep{epoch}.model").unlink(missing_ok=True)


def require_finite(name: str, value: torch.Tensor) -> None:
    """Raises UserError where `value`, the part `name` of a model, has a number that is not finite."""
    if value.is_floating_point() and not torch.isfinite(value).all():
        advice = "what was saved before stays; lower --learning_rate or set --grad_clip"
        raise UserError(f"the model has numbers that are not finite ({name}) and is not saved: {advice}")

#!/usr/bin/env python3
"""Train a captioner, validate it, save it, resume it.

    ./train.py --dataset coco:train2014 --vocab vocab.pkl --model_name mymodel
    ./train.py --dataset coco:train2014 --validate coco:val2014 --validation_scoring cider --model_name mymodel
    ./train.py --images photos/ --captions captions.csv --val_fraction 0.1 --model_name own      # no configuration
    ./train.py --dataset coco:train2014 --features conv.lmdb --attention soft --dropout 0.5 --model_name attentive
    ./train.py --dataset visualgenome:im2p:train --hierarchical_model --features conv.lmdb --model_name paragraphs
    ./train.py --dataset coco:train2014 --model_name mymodel --resume            # after an interruption, exactly
    ./train.py --dataset coco:train2014 --model_name mymodel --resume --resume   # also where last.model is damaged
    ./train.py --dataset flickr8k:train --load_model models/a/best.model models/b/best.model --model_name on   # in turn
    ./train.py --validate coco:val2014 --validate_only --load_model models/mymodel/ep*.model
    torchrun --nproc_per_node 4 train.py ...                                     # several GPUs or machines

Writes models/NAME/epN.model and best.model, which infer.py takes, last.model, which --resume takes, and
train_stats.json, which plot_stats.py draws.
"""

import math
import re
import sys
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from captioning.errors import UserError, run, warn
from training import flags as train_flags

BEGAN = time.monotonic()  # before the heavy imports, whose time --verbose tells


def parse_args(argv=None):
    return train_flags.parse_args(__doc__, argv)


if __name__ == "__main__":
    ARGS = parse_args()  # before the heavy imports, so that --help and mistakes answer at once
    if status := run(train_flags.check_paths, ARGS):
        sys.exit(status)

import torch

from captioning.batches.features import CachedFeatures, FeatureFiles
from captioning.batches.inputs import Input, keep_sizes, plan_inputs
from captioning.checkpoint import command_history
from captioning.config import ModelConfig, ParagraphConfig
from captioning.cores import first_speaks, process_count
from captioning.datasets.base import CaptionDataset, image_key
from captioning.datasets.names import short_names
from captioning.decoder.search import Search
from captioning.decoder.teacher_forcing import truth_probability
from captioning.devices import (
    choose_device,
    ended_processes,
    from_main,
    is_main,
    largest,
    partners_may_fail,
    process,
    share,
    start_processes,
    wait_for_all,
)
from captioning.encoder.transforms import ImageTransform
from captioning.next_steps import config_words
from captioning.progress import Bar
from captioning.scoring.document_frequencies import CachedWords, kept_words
from captioning.scoring.metrics import parse_metrics
from captioning.signals import Interrupted, Stop, interrupting
from data_loader import Loader, LoaderSettings, get_loader
from training.build import CaptionerBuilder, checkpoint_activations, compile_encoders
from training.cider_reward import CiderReward
from training.distillation import Distillation, Teachers
from training.feature_cache import cache_features, readable
from training.log import TrainingLog
from training.loggers import require_packages
from training.losses import CrossEntropy, Objective
from training.optimizers import self_critical_settings
from training.paragraph_losses import ParagraphObjective
from training.report import EpochTimes, StartTimes, describe, epoch_line, report_end, show_tokens
from training.run_folder import RunFolder, run_name
from training.self_critical import SelfCritical
from training.settings import (
    DataSettings,
    ModelSettings,
    RunSettings,
    TrainSettings,
    all_settings,
    data_checksum,
    file_checksum,
    lasting_settings,
)
from training.trainer import Progress, Trainer
from training.validation.data import open_images, validation_loader
from training.validation.measuring import Validation, criterion_of
from training.validation.validate_only import validate_models
from vocabulary import MOST_UNKNOWN


@dataclass
class TrainRun:
    """A run of training: `prepare()` opens all that it needs, `run()` trains, `close()` ends it."""

    settings: RunSettings  # how the run goes
    data: DataSettings
    training: TrainSettings
    builder: CaptionerBuilder  # makes the captioner
    validation: Validation  # what is measured after an epoch
    flags: dict  # all settings by the names of their flags
    folder = log = loader = validation_loader = start_times = None

    # ---- before the first step ----

    def prepare(self) -> None:
        """Open data and model, and take over the state of the run, or of the model, that training goes on from."""
        s = self.settings
        self.start_times = StartTimes(s.verbose)
        require_packages(s.loggers)  # before a run of that name is replaced
        device = start_processes(choose_device(s.device, s.cpu))
        torch.manual_seed(self.training.seed)
        torch.use_deterministic_algorithms(s.deterministic)
        with first_speaks():
            dataset = open_images(self.data)
        dataset.require_captions()
        self.start_times.done("images and captions")
        name = s.model_name or run_name(s.model_basename, self.builder.wanted, self.builder.config)
        self.folder = RunFolder(Path(s.output_root) / s.model_path / name, sys.argv, s.keep)
        self.folder.flags, self.folder.best_by = self.flags, self.validation.best_by
        saved = self.folder.prepare(int(s.resume or s.resume_changed), s.replace, is_main())
        loggers = s.loggers if is_main() else ()
        self.log = TrainingLog(self.folder.path, loggers, s.profiler and is_main(), resumed=saved is not None)
        with first_speaks():
            self.captioner = self.builder.build(dataset)
            self.captioner.calibration = None  # that of --load_model is of other weights
            if s.show_tokens:
                show_tokens(dataset, self.captioner.vocabulary)
        self.captioner.model.to(device)
        self.start_times.done("vocabulary and model")
        self.training = self.training.for_decoder(self.captioner.config.decoder, self.builder.typed_flags)
        self.folder.history = saved.get("history", []) if saved else command_history(self.captioner.info)
        objective = self.open_data(dataset)
        self.start(saved, objective)
        self.start_times.done("trainer, and the checksum of the data")
        self.folder.remove_older()  # all that the new run needs is open

    def open_data(self, dataset: CaptionDataset) -> Objective:
        """Open the batches for training and for validation. Returns the objective, before self-critical training."""
        self.dataset = dataset
        cached, bad = self.cache(dataset) if self.data.cache_features else ({}, [])
        with first_speaks():
            objective = self.open_loaders(readable(dataset, cached), cached)
        self.loader.bad_items += bad
        return objective

    def open_loaders(self, dataset: CaptionDataset, cached: dict[str, CachedFeatures]) -> Objective:
        """`open_data` with what `cache` gave."""
        data, captioner, config = self.data, self.captioner, self.captioner.config
        inputs = plan_inputs(config, dataset, sources=cached)
        keep_sizes(config, inputs)
        self.start_times.done("feature files")
        models, weights = self.settings.distill, self.builder.wanted.weights
        teachers = Teachers(models, captioner, inputs, dataset, weights) if models else None
        self.loader = self.open_loader(dataset, inputs + (teachers.inputs if teachers else []))
        self.start_times.done("word ids of the captions, and a look for each image")
        if (share := self.loader.unknown_share) > MOST_UNKNOWN:
            loaded = self.builder.wanted.load_model
            what = f"lacks {share:.0%} of the words of --dataset {data.dataset}"
            if not loaded:
                raise UserError(f"--vocab {data.vocab}: it {what}: --vocab AUTO makes one of its captions")
            warn(f"{loaded[0]}: its vocabulary {what}")
        if data.validates:
            self.validation_loader = validation_loader(captioner, data, cached)
            self.start_times.done("validation data")
        if config.paragraphs is not None:
            return ParagraphObjective(self.training)
        return Distillation(self.training, teachers) if teachers else CrossEntropy(self.training)

    def cache(self, dataset: CaptionDataset) -> tuple[dict[str, CachedFeatures], list[str]]:
        """--cache_features: the encoders run over all images now, or did before. As `cache_features` returns it."""
        datasets = [dataset]
        if self.data.validates:
            with first_speaks():
                datasets.append(open_images(self.data, validation=True))
        tell = print if is_main() else lambda line: None
        folder, workers = self.data.cache_features, self.data.num_workers
        found = cache_features(folder, self.captioner, datasets, num_workers=workers, tell=tell)
        if not self.data.no_augment:
            tell("the cache holds whole images: random crops and mirror images are off")
        return found

    def open_loader(self, dataset: CaptionDataset, inputs: list[Input]) -> Loader:
        """Batches for training, with random crops and mirror images where photos are read and nothing forbids it."""
        transform, paragraphs = self.captioner.transform, self.captioner.config.paragraphs
        if transform is not None and not self.data.no_augment:
            transform = ImageTransform(transform.size, transform.interpolation, train=True)
        rank, world = process()
        settings = LoaderSettings(
            batch_size=self.data.batch_size,
            captions_per_image=self.data.captions_per_image,
            seed=self.training.seed,
            num_workers=self.data.num_workers,
            max_sentences=paragraphs and paragraphs.max_sentences,
            ids_folder=self.data.ids_folder,
            shuffle_buffer=self.data.shuffle_buffer,
            mix=self.data.times,
            rank=rank,
            world_size=world,
        )
        return get_loader(dataset, self.captioner.vocabulary, inputs, settings, transform)

    def start(self, saved: dict | None, objective: Objective) -> None:
        """Make the trainer, with the state of last.model or of --load_model. saved: the contents of last.model."""
        s = self.settings
        self.first, state, self.position, self.over, changed = 1, None, None, None, {}
        self.folder.settings = from_main(self.lasting)
        steps = self.data.num_batches or len(self.loader)
        if saved is not None and (ended := self.ended_schedule(saved["training"])):
            self.over = f"the {self.training.lr_scheduler} schedule of --num_epochs {ended} has come to the rate 0"
            self.over += f"; --resume_changed goes on, over --num_epochs {s.num_epochs}"
            self.first = saved["training"]["epoch"]
            return
        if saved is not None:
            changed = from_main(lambda: self.folder.check_settings(saved, self.captioner, s.resume_changed))
            self.folder.load_last(saved, self.captioner)
            if "--best_by" in changed and is_main():
                self.folder.renew_best()
            position = saved["training"]
            self.first, state = position["epoch"], self.resumed_state(position, steps, changed)
            self.position = position if position["batch"] else None
            if is_main():
                print(f"resumed at epoch {self.first}, batch {position['batch']}")
        elif self.builder.wanted.load_model:
            self.first = int(self.captioner.info.get("epoch", 0)) + 1
            position = self.captioner.info.get("training")
            if position and not s.optimizer_reset:
                self.first, state = position["epoch"], {**position["trainer"], "step": 0, "began": 0, "turned": 0}
        if s.force_epoch and saved is None:
            self.first = s.force_epoch
        epochs = s.num_epochs - self.first + 1
        if state is not None and saved is None:
            state["num_epochs"] = epochs  # the schedules begin anew
        goes_on = not self.folder.stats if state is None else state.get("self_critical", True) or not self.folder.stats
        training = self.training
        if self.is_self_critical(self.first) and goes_on:
            objective = self.self_critical()
            if saved is None and state is not None and not state.get("self_critical"):
                state = None  # an optimizer's state of another objective
            if state is None or not state["turned"]:
                training = self_critical_settings(training, self.builder.typed_flags)
        self.trainer = Trainer(self.captioner, training, objective, steps, epochs)
        if state is not None:
            self.trainer.load_state_dict(state, bool(changed))

    def lasting(self) -> dict:
        """What must be the same when the run goes on: settings by flag, and checksums of what they name."""
        s, words = self.settings, self.settings.cached_words
        kept = lasting_settings(self.data, self.training, s)
        kept["number of processes"] = process()[1]
        loaders = {"--dataset": self.loader, "--validate": self.validation_loader}
        for flag, loader in loaders.items():
            sources = () if loader is None else (one.source for one in loader.inputs)
            files = [source for source in sources if isinstance(source, FeatureFiles)]
            checksum = None if loader is None else data_checksum(loader.items, files, loader.shards)
            kept[f"{flag} (a checksum of images, captions and features)"] = checksum
        kept["--distill (a checksum)"] = " ".join(file_checksum(path) for path in s.distill or ())
        kept["--cached_words (a checksum)"] = file_checksum(words) if words and Path(words).is_file() else words
        return kept

    def ended_schedule(self, position: dict) -> int | None:
        """The --num_epochs after which the learning rate was 0, where training at `position` would go on with that."""
        epochs = (position.get("settings") or {}).get("--num_epochs")
        over = self.training.lr_scheduler == "cosine" and epochs is not None and position["epoch"] > epochs
        return epochs if over and not self.settings.resume_changed else None

    def resumed_state(self, position: dict, steps: int, changed: dict) -> dict:
        """The trainer's state at `position`, which is moved where a batch, or an epoch, has another size than before.

        steps: of an epoch now; changed: as `RunFolder.check_settings` returns it.
        """
        done = {"step": (position["epoch"] - 1) * steps, "num_epochs": self.settings.num_epochs, "turned": 0}
        state = dict(position["trainer"] or done)  # an epN.model of an older version has none
        was = position.get("settings") or {}
        if changed:
            state["num_epochs"] += self.settings.num_epochs - was.get("--num_epochs", self.settings.num_epochs)
        if changed and position["batch"] and (before := state.get("steps_per_epoch", steps)) != steps:
            position["batch"] = position["batch"] * steps // before
            if is_main():
                which = f"batch {position['batch']} of {steps}"
                print(f"the epoch goes on at {which}: some captions come twice, or not at all")
        return state

    # ---- self-critical training ----

    def is_self_critical(self, epoch: int) -> bool:
        return 0 <= self.settings.self_critical_from_epoch <= epoch

    def self_critical(self) -> SelfCritical:
        """The objective with the document frequencies of --cached_words, or of the training captions."""
        references = {image_key(item): item.captions for item in self.loader.items}
        if self.settings.cached_words:
            words = CachedWords.load(self.settings.cached_words)
        else:
            name = re.sub(r"[^\w.+-]", "-", short_names(self.data.dataset))
            file = None if self.builder.wanted.load_model else self.data.vocabulary_file
            folder, name = (Path(file).parent, f"{Path(file).stem}-{name}") if file else (self.data.vocab_root, name)
            words = kept_words(references, folder, name, write=is_main())
        return SelfCritical(self.training, CiderReward(references, self.captioner.vocabulary, words=words))

    def turn_self_critical(self, epoch: int) -> None:
        """Self-critical training from `epoch` on, from the weights of the best epoch so far."""
        objective = self.self_critical()
        wait_for_all()  # until the first process has written the last epoch's model
        start = self.folder.load_best(self.captioner, epoch)
        self.trainer.restart(objective, epoch, self.settings.num_epochs - epoch + 1)
        if is_main():
            print(f"self-critical training goes on from {start}, by {self.trainer.method}")

    # ---- epochs ----

    def run(self) -> int:
        """Train to --num_epochs. Returns the exit status."""
        s = self.settings
        if is_main():
            self.folder.remove_epochs(self.first - 1)  # a run that was killed may not have come to it
        if done := self.nothing_to_do():
            if is_main():
                print(f"nothing to do: {done}")
            return 0
        if is_main():
            self.folder.write_config()
            describe(self.captioner, self.loader, self.validation_loader)
            if self.trainer.objective.has_reward:
                print(f"self-critical training by {self.trainer.method}")
            elif self.training.of_decoder:
                print(f"training:   {self.trainer.method}, which suits a Transformer")
            if s.verbose:
                print(self.captioner.model)
        if s.activation_checkpointing:
            checkpoint_activations(self.captioner)
        if s.compile:
            compile_encoders(self.captioner)
        with Stop() as self.stop:
            status = self.run_epochs()
        if status == 0:
            if is_main():
                what = "images could not be read and were left out"
                bad_line = self.dataset.bad_line(self.loader.bad_items, what)
                report_end(self.folder, bad_line, self.validation_words())
            wait_for_all()  # gloo may abort a process that leaves while another still works
        return status or int(bool(self.loader.bad_items))

    def validation_words(self) -> list[str]:
        """The flags of infer.py that name the images of --validate."""
        data = self.data
        images = ["--images", data.images] if data.images else []
        return ["--dataset", data.validate, *images, *config_words(data.dataset_config_file)] if data.validate else []

    def nothing_to_do(self) -> str | None:
        """Why there is no epoch to train, or None."""
        if self.over:
            return self.over
        s, last = self.settings, self.first - 1
        if last >= s.num_epochs:
            return f"epoch {last} of --num_epochs {s.num_epochs} is done already"
        if self.folder.stats and self.position is None and self.patience_is_over(last):
            return f"epoch {last} was no better than those before: --early_stopping {s.early_stopping} ended the run"
        return None

    def run_epochs(self) -> int:
        """All epochs from the first on. Returns 0, or 128 and the number of the signal that stopped them."""
        s, last = self.settings, self.folder.last
        self.times = EpochTimes(whole=self.position is None)
        for epoch in range(self.first, s.num_epochs + 1):
            if self.is_self_critical(epoch) and not self.trainer.objective.has_reward:
                self.turn_self_critical(epoch)
            if self.position is None and self.trainer.finished:
                print(
                    f"nothing to do in epoch {epoch}: the {self.training.lr_scheduler} schedule has come to the rate 0"
                )
                return 0
            progress = self.train_epoch(epoch)
            if progress is None or not self.end_epoch(epoch, progress):
                print(f"stopped in epoch {epoch}; {last} holds the state: go on with --resume")
                return 128 + self.signalled()
            if self.patience_is_over(epoch):
                if is_main():
                    print(f"no better {self.folder.criterion_text()} for {s.early_stopping} epochs: stopped early")
                return 0
            if number := self.signalled():
                print(f"stopped after epoch {epoch}; go on with --resume")
                return 128 + number
        return 0

    def signalled(self) -> int:
        """The number of the signal that a process of the run was sent, or 0. All processes ask together."""
        return largest(self.stop.signal or 0)

    @property
    def batches(self) -> int:
        """Those of an epoch, of this process."""
        return min(len(self.loader), self.data.num_batches or len(self.loader))

    def train_epoch(self, epoch: int) -> Progress | None:
        """The epoch's Progress, or None where the run was stopped within it; last.model says where."""
        position, self.position = self.position, None
        start, sums = (position["batch"], position["progress"]) if position else (0, None)
        batches = self.batches
        if start >= batches:  # only its validation is missing
            return Progress(self.captioner.device, sums)
        self.loader.set_position(epoch, start)
        bar = Bar(batches, f"epoch {epoch}", "batch", start)
        stopped = False

        def on_step(progress: Progress, index: int) -> bool:
            nonlocal stopped
            if self.start_times is not None:
                self.start_times.done("the first step")
                self.start_times = None
            bar.move_to(index + 1)
            self.log.step()
            asks = self.trainer.waits_for_nothing or self.trainer.step % 8 == 0
            signalled, last = self.signalled() if asks else 0, bar.done >= batches
            if self.trainer.step % self.settings.log_step == 0 or signalled:
                self.show_loss(progress, bar)
            due = self.settings.save_every and self.trainer.step % self.settings.save_every == 0
            stopped = bool(signalled) and not last
            if not last and (due or stopped):
                self.save_position(epoch, bar.done, progress)
            return last or stopped

        progress = self.trainer.train_epoch(self.loader, on_step, sums)
        bar.close()
        return None if stopped else progress

    def save_position(self, epoch: int, batch: int, progress: Progress) -> None:
        """Write last.model after `batch` batches of `epoch`. Raises UserError where the loss was not finite."""
        self.check_loss(progress)  # before it takes the place of a good one
        if is_main():
            self.folder.save_last(self.captioner, self.trainer, epoch, batch, progress.state())

    def check_loss(self, progress: Progress) -> float:
        """The mean loss of the epoch so far. Raises UserError where it, or a gradient, is not a finite number."""
        self.trainer.require_finite()
        if not math.isfinite(loss := progress.loss):
            advice = "lower --learning_rate or set --grad_clip"
            raise UserError(f"the loss is not a finite number at step {self.trainer.step}: {advice}")
        return loss

    def show_loss(self, progress: Progress, bar: Bar) -> None:
        """Show the mean loss of the epoch so far in the bar and in the log."""
        bar.say(f"loss {self.check_loss(progress):.3f}, {progress.speed:.0f} captions/s")
        self.log.scalars("step", self.trainer.step, self.figures(progress))

    def figures(self, progress: Progress) -> dict[str, float]:
        """The row of an epoch, without what validation adds."""
        row = {
            "training_loss": self.check_loss(progress),
            "learning_rate": self.trainer.optimizer.param_groups[0]["lr"],
        }
        row |= progress.other_means
        t = self.training
        if self.trainer.objective.has_reward:
            row["training_reward"] = progress.reward
        elif t.teacher_forcing != "always":
            row["teacher_forcing"] = truth_probability(self.trainer.step, t.teacher_forcing_k, t.teacher_forcing_beta)
        return row

    def end_epoch(self, epoch: int, progress: Progress) -> bool:
        """Validate, save, and print the epoch's line. False where a signal stopped the validation.

        last.model stands before: whatever happens to the validation, the epoch's steps are not lost.
        """
        s = self.settings
        if not int(progress.captions):
            raise UserError(f"no image could be read in epoch {epoch}: nothing was learnt, nothing is saved of it")
        row = self.figures(progress)
        self.save_position(epoch, self.batches, progress)
        with self.trainer.averaged_weights():
            if (measured := self.validate(epoch)) is None:
                return False
            row = share(row | measured)  # all processes decide by the same figures
            self.trainer.epoch_ended(row, validated=self.data.validates)
            self.folder.add_epoch(epoch, row, write=is_main())
            if is_main():
                self.folder.save_epoch(self.captioner, self.trainer, epoch)
                self.log.epoch(epoch, row, self.captioner.model)
        if is_main():
            self.folder.save_last(self.captioner, self.trainer, epoch + 1, 0, None)
            self.folder.remove_epochs(epoch)
            best = self.folder.criterion_text() if self.folder.best_epoch() == epoch else None
            times = self.times.end_epoch(s.num_epochs - epoch, progress.speed)
            print(epoch_line(epoch, s.num_epochs, row, times, best), flush=True)
        return True

    def validate(self, epoch: int) -> dict[str, float] | None:
        """What is measured after `epoch`, in every process: nothing where none is due, None where a signal came."""
        s, self.captioner.calibration = self.settings, None
        if not self.data.validates or (epoch % s.validation_step and epoch != s.num_epochs):
            return {}
        bar = Bar(len(self.validation_loader.items), "validation", "image")
        what = self.captioner, self.validation_loader, bar
        if process()[1] == 1:
            row = self.unless_stopped(lambda: self.validation.measure(*what))
        else:  # what the processes tell each other must not be interrupted
            row = self.validation.measure(*what, self.unless_stopped)
        bar.close()
        if row and not math.isfinite(row["validation_loss"]):
            state = f"{self.folder.last} holds the epoch"
            raise UserError(f"epoch {epoch}: the loss on --validate is not a finite number: look at its data; {state}")
        return row

    def unless_stopped(self, work):
        """work(), or None where a signal came, which is not waited with."""
        try:
            with interrupting():
                return None if self.stop.signal else work()
        except Interrupted as signal:
            self.stop.signal = signal.number
            return None

    def patience_is_over(self, epoch: int) -> bool:
        """Whether --early_stopping ends the run after `epoch`."""
        patience = self.settings.early_stopping
        best = max(self.folder.best_epoch() or epoch, self.trainer.turned - 1)  # a new objective has its own patience
        return patience > 0 and epoch - best >= patience

    def close(self) -> None:
        for part in (self.log, self.loader, self.validation_loader, self.folder):
            if part is not None:
                part.close()


def make_validation(settings: RunSettings, training: TrainSettings) -> Validation:
    """What --validation_scoring names. Raises UserError for an unknown metric, before anything is loaded."""
    text = settings.validation_scoring
    metrics = () if text.lower() in ("", "none") else parse_metrics(text)
    search = Search(settings.validation_beam_size, trigram_penalty_alpha=training.trigram_penalty_alpha)
    words = CachedWords.load(settings.cached_words).to_dict() if "ciderd" in metrics and settings.cached_words else None
    best_by = settings.best_by and criterion_of(settings.best_by, metrics, words is not None)
    return Validation(metrics, search, training.amp, words, best_by)


def main(args) -> int:
    flags = vars(args)
    kinds = DataSettings, ModelSettings, TrainSettings, RunSettings
    data, model, training, settings = (kind.of(flags) for kind in kinds)
    StartTimes(settings.verbose, BEGAN).done("Python and its packages")
    validation = make_validation(settings, training)
    if settings.validate_only:
        with partners_may_fail(), ended_processes():
            device = start_processes(choose_device(settings.device, settings.cpu))
            return validate_models(model, data, validation, device, settings.skip_existing_validations)
    with ended_processes():
        every = train_flags.runs(args)
        return train(args, validation) if len(every) == 1 else train_in_turn(every, validation)


def train(args, validation: Validation) -> int:
    """One run of training. Returns the exit status."""
    flags = vars(args)
    kinds = DataSettings, ModelSettings, TrainSettings, RunSettings
    data, model, training, settings = (kind.of(flags) for kind in kinds)
    paragraphs = ParagraphConfig.of(flags) if model.hierarchical_model else None
    projection = args.share_embedding_weights and training.regularize_projection > 0 and args.decoder == "lstm"
    config = ModelConfig.of(flags, features=[], persist_features=[], paragraphs=paragraphs, projection=projection)
    builder = CaptionerBuilder(config, model, data, args.typed_flags)
    with (
        partners_may_fail(),
        closing(TrainRun(settings, data, training, builder, validation, all_settings(flags))) as run,
    ):
        run.prepare()
        return run.run()


def train_in_turn(every: list, validation: Validation) -> int:
    """One run after the other, those of several models. Returns the exit status.

    A model that cannot be trained is named and left out; with several processes, which could not agree on it, it ends
    all. A signal ends all.
    """
    statuses = []
    for args in every:
        folder = Path(args.output_root) / args.model_path / args.model_name
        with first_speaks():  # the processes have not met yet
            print(f"from {args.load_model[0]}: {folder}", flush=True)
        try:
            statuses.append(train(args, validation))
        except UserError as error:
            if process_count() > 1:
                raise
            print(f"{args.load_model[0]}: left out: {error}")
            statuses.append(2)
        if statuses[-1] > 128:
            return statuses[-1]
    if failed := statuses.count(2):
        print(f"{failed} of {len(every)} models could not be trained on")
    return min(statuses) if min(statuses) == max(statuses) else 1


if __name__ == "__main__":
    sys.exit(run(main, ARGS))

#!/usr/bin/env python3
"""Train a captioner, validate it, save it, resume it.

    ./train.py --dataset coco:train2014 --vocab vocab.pkl --model_name mymodel
    ./train.py --dataset coco:train2014 --validate coco:val2014 --validation_scoring cider --model_name mymodel
    ./train.py --dataset coco:train2014 --features lite0-conv.lmdb --attention soft --dropout 0.5 --model_name attentive
    ./train.py --dataset vg:train --hierarchical_model --features lite0-conv.lmdb --model_name paragraphs
    ./train.py --dataset coco:train2014 --model_name mymodel --resume            # after an interruption, exactly
    ./train.py --validate coco:val2014 --validate_only --load_model models/mymodel/ep*.model
    torchrun --nproc_per_node 4 train.py ...                                     # several GPUs or machines

Writes models/NAME/epN.model and best.model, which infer.py takes, last.model, which --resume takes, and
train_stats.json, which plot_stats.py draws.
"""

import re
import signal
import sys
from dataclasses import replace
from pathlib import Path

from captioning.errors import UserError, run
from training import flags as train_flags


def parse_args(argv=None):
    return train_flags.parse_args(__doc__, argv)


if __name__ == "__main__":
    ARGS = parse_args()  # before the heavy imports, so that --help and mistakes answer at once

import torch

from captioning import checkpoint
from captioning.batches.features import CachedFeatures
from captioning.batches.inputs import Input, file_spec, keep_sizes, plan_inputs
from captioning.checkpoint import command_history
from captioning.config import FeatureSpec, ModelConfig, ParagraphConfig
from captioning.datasets.base import CaptionDataset, image_key
from captioning.datasets.factory import open_dataset
from captioning.decoder.search import Search
from captioning.devices import choose_device, end_processes, from_main, is_main, process, start_processes, wait_for_all
from captioning.encoder.factory import build_encoder
from captioning.encoder.provenance import internal_spec
from captioning.encoder.transforms import image_transform
from captioning.features.factory import is_feature_file
from captioning.progress import Bar
from captioning.scoring.document_frequencies import CachedWords, kept_words
from captioning.scoring.metrics import parse_metrics
from data_loader import Loader, LoaderSettings, get_loader
from model import Captioner, build_model, load_captioner
from training.build import adapt, check_word_decoder, compile_captioner, start_word_decoder
from training.cider_reward import CiderReward
from training.distillation import Teachers
from training.feature_cache import cache_features, readable
from training.log import TrainingLog, require_tensorboard
from training.report import describe, epoch_line, report_end, show_tokens
from training.run_folder import RunFolder
from training.self_critical import SelfCritical
from training.settings import Settings
from training.trainer import Trainer
from training.validation import validate, validate_models, validation_loader
from vocabulary import Vocabulary, build_vocabulary

# ---- data, vocabulary, model ----


def get_vocabulary(args, dataset) -> Vocabulary:
    """The vocabulary file that --vocab names, or one made from the training captions and kept under --vocab_root."""
    if args.vocab not in ("AUTO", "REGEN"):
        return Vocabulary.load(args.vocab)
    tokenizer = "whitespace" if args.no_tokenize else "treebank"
    name = args.dataset.replace(":", "-").replace("+", "_").replace("/", "-")
    path = Path(args.vocab_root) / f"{name}-{tokenizer}-{args.vocab_threshold}.json"
    if args.vocab == "AUTO" and path.exists():
        print(f"vocabulary from {path} (--vocab REGEN makes it anew)")
        return Vocabulary.load(path)
    captions = (caption for item in dataset.items for caption in item.captions)
    vocabulary = build_vocabulary(captions, args.vocab_threshold, tokenizer, dataset=args.dataset)
    if is_main():
        vocabulary.save(path)
        print(f"vocabulary written to {path}")
    return vocabulary


def given_vocabulary(args) -> Vocabulary | None:
    """The vocabulary file of --vocab, for a loaded model that has none."""
    return None if args.vocab in ("AUTO", "REGEN") else Vocabulary.load(args.vocab)


def feature_specs(names: str, dataset, args, extractors: dict) -> list[FeatureSpec]:
    """What --features or --persist_features name; internal encoders are built and put into `extractors`."""
    transform = {"size": args.crop_size} if args.crop_size else None
    specs = []
    for name in [name.strip() for name in names.split(",") if name.strip()]:
        if is_feature_file(name):
            specs.append(file_spec(dataset, name))
        else:
            if name not in extractors:
                extractors[name] = build_encoder(name, weights=args.weights, transform=transform)
            specs.append(internal_spec(name, extractors[name]))
    return specs


def make_captioner(args, dataset) -> Captioner:
    """A fresh captioner with the architecture of the flags, or the one of --load_model."""
    if args.load_model:
        vocabulary = given_vocabulary(args)
        captioner = load_captioner(args.load_model[0], weights=args.weights, photos=False, vocabulary=vocabulary)
        if args.hierarchical_model and captioner.config.paragraphs is None:
            return make_hierarchical(args, dataset, captioner)
        captioner.model.finetune(args.finetune_encoder)
        print(f"architecture and vocabulary from {args.load_model[0]}")
        if vocabulary is not None and vocabulary.words != captioner.vocabulary.words:
            print(f"--vocab {args.vocab}: not used, the loaded model has a vocabulary of its own")
        adapt(captioner, args.typed_flags)
        return captioner
    vocabulary = get_vocabulary(args, dataset)
    extractors: dict = {}
    same = ("embed_size", "hidden_size", "num_layers", "rnn_arch", "rnn_hidden_init", "dropout", "encoder_dropout")
    same += ("encoder_non_lin", "attention", "attention_size", "value_size", "share_embedding_weights")
    same += ("skip_start_token", "finetune_encoder", "crop_size")
    config = ModelConfig(
        features=feature_specs(args.features, dataset, args, extractors),
        persist_features=feature_specs(args.persist_features, dataset, args, extractors),
        paragraphs=ParagraphConfig.of(vars(args)) if args.hierarchical_model else None,
        projection=args.share_embedding_weights and args.regularize_projection > 0,
        **{name: getattr(args, name) for name in same},
    )
    if not config.specs:
        raise UserError("--features names nothing: the decoder would see no image")
    return Captioner(build_model(config, vocabulary, args.weights, extractors=extractors), vocabulary, args.weights)


def make_hierarchical(args, dataset, flat: Captioner) -> Captioner:
    """A paragraph captioner whose word decoder begins with the weights of `flat`.

    Sizes and vocabulary are those of `flat`; its features too where none are asked for.
    """
    check_word_decoder(flat.config, args.typed_flags)
    changes, extractors = {"paragraphs": ParagraphConfig.of(vars(args)), "rnn_hidden_init": None}, {}
    for name in ("features", "persist_features"):
        asked = args.typed_flags.get(name)
        names = ",".join(spec.name for spec in getattr(flat.config, name)) if asked is None else asked
        changes[name] = feature_specs(names, dataset, args, extractors)
    for name in ("dropout", "encoder_dropout", "encoder_non_lin", "crop_size"):
        changes[name] = args.typed_flags.get(name, getattr(flat.config, name))
    changes |= {"finetune_encoder": args.finetune_encoder, "encoder_in_file": False}
    model = build_model(replace(flat.config, **changes), flat.vocabulary, args.weights, extractors=extractors)
    start_word_decoder(model.decoder, flat.model.decoder, args.load_model[0])
    print(f"the word decoder begins with the weights of {args.load_model[0]}, whose vocabulary it has")
    return Captioner(model, flat.vocabulary, args.weights)


def open_loader(args, captioner: Captioner, dataset: CaptionDataset, inputs: list[Input]) -> Loader:
    """Batches for training, with random crops and mirror images where photos are read and nothing forbids it."""
    transform, paragraphs = captioner.transform, captioner.config.paragraphs
    if transform is not None and not args.no_augment:
        transform = image_transform(transform.size, transform.interpolation, train=True)
    rank, world = process()
    settings = LoaderSettings(
        batch_size=args.batch_size,
        captions_per_image=args.captions_per_image,
        seed=args.seed,
        num_workers=args.num_workers,
        max_sentences=None if paragraphs is None else paragraphs.max_sentences,
        rank=rank,
        world_size=world,
    )
    return get_loader(dataset, captioner.vocabulary, inputs, settings, transform)


def use_cache(args, captioner: Captioner, dataset: CaptionDataset) -> tuple[dict[str, CachedFeatures], list[str]]:
    """--cache_features: the encoders run over all images now, or did before. As `cache_features` returns it."""
    datasets = [dataset]
    if args.validate:
        datasets.append(open_dataset(args.validate, args.dataset_config_file))
    tell = print if is_main() else lambda line: None
    cached, bad = cache_features(args.cache_features, captioner, datasets, num_workers=args.num_workers, tell=tell)
    if not args.no_augment:
        tell("the cache holds whole images: random crops and mirror images are off")
    return cached, bad


def model_name(args) -> str:
    """The run's name: --model_name, or one made of the settings that people vary."""
    if args.model_name:
        return args.model_name
    features = "-".join(Path(name).stem if is_feature_file(name) else name for name in args.features.split(","))
    parts = [args.model_basename, features.replace(":", "-"), args.attention, args.rnn_arch.lower()]
    parts.append(str(args.hidden_size))
    if args.hierarchical_model:
        parts.append("coherent" if args.coherent_sentences else "hierarchical")
    return "-".join(part for part in parts if part)


# ---- training ----


class Stop:
    """SIGTERM (a cluster's queue) and a first Ctrl-C end the run after the step at hand, with last.model written."""

    def __init__(self):
        self.signal = None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.note)

    def note(self, number, frame) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number


def train_one_epoch(trainer: Trainer, loader, folder: RunFolder, args, epoch: int, resumed, stop: Stop, log):
    """-> the epoch's Progress, or None where the run was stopped (last.model then says where)."""
    start = resumed["batch"] if resumed else 0
    n_batches = min(len(loader), args.num_batches) if args.num_batches else len(loader)
    loader.set_position(epoch, start)
    bar = Bar(n_batches, f"epoch {epoch}", "batch", start)

    def on_step(progress, index: int) -> bool:
        bar.move_to(index + 1)
        log.step()
        if trainer.step % args.log_step == 0 or stop.signal:
            loss = progress.loss
            if loss != loss:
                advice = "lower --learning_rate or set --grad_clip"
                raise UserError(f"the loss is not a number at step {trainer.step}: {advice}")
            bar.say(f"loss {loss:.3f}, {progress.speed:.0f} captions/s")
            log.figures(trainer.step, {"training_loss": loss, **epoch_figures(trainer, progress)})
        last = bar.done >= n_batches
        due = args.save_every and trainer.step % args.save_every == 0
        if is_main() and not last and (due or stop.signal):
            folder.save_last(trainer.captioner, trainer, epoch, bar.done, progress.state())
        return last or stop.signal is not None

    progress = trainer.train_epoch(loader, on_step, resumed and resumed["progress"])
    bar.close()
    return progress if stop.signal is None or bar.done >= n_batches else None


def epoch_figures(trainer: Trainer, progress) -> dict[str, float]:
    figures = {"learning_rate": trainer.optimizer.param_groups[0]["lr"]}
    return figures if trainer.self_critical is None else {**figures, "training_reward": progress.reward}


def make_self_critical(trainer: Trainer, loader, args) -> SelfCritical:
    """The reward with the document frequencies of --cached_words, or of the training captions, and the loss."""
    references = {image_key(item): item.captions for item in loader.items}
    if args.cached_words:
        words = CachedWords.load(args.cached_words)
    else:
        name = re.sub(r"[^\w.+-]", "-", args.dataset)
        file = args.vocab not in ("AUTO", "REGEN") and not args.load_model and Path(args.vocab)
        folder = file.parent if file else args.vocab_root
        words = kept_words(references, folder, f"{file.stem}-{name}" if file else name, write=is_main())
    return SelfCritical(
        CiderReward(references, trainer.captioner.vocabulary, words=words),
        args.self_critical_loss,
        args.self_critical_samples,
        args.self_critical_temperature,
        args.gamma_ml_rl,
        args.trigram_penalty_alpha,
        trainer.word_counts,
    )


def turn_self_critical(trainer: Trainer, loader, folder: RunFolder, args, epoch: int) -> None:
    """Self-critical training from `epoch` on; a run that did otherwise before goes back to its best epoch."""
    trainer.self_critical = make_self_critical(trainer, loader, args)
    if trainer.was_self_critical or not folder.stats:
        return
    wait_for_all()  # until the first process has written the last epoch's model
    best = folder.best_epoch()
    file = best and folder.file(f"ep{best}.model")
    if folder.criterion() == "training_loss" or not file:
        note = f"epoch {epoch - 1}: nothing was validated, so no epoch is known to be the best"
    elif not file.exists():
        note = f"epoch {epoch - 1}: {file} of the best epoch is gone"
    else:
        trainer.captioner.model.load_trained_state(checkpoint.load(file)["state"], file)
        note = f"epoch {best}, the best so far"
    trainer.turn_self_critical(epoch, args.num_epochs - epoch + 1)
    if is_main():
        print(f"self-critical training goes on from {note}")


def run_epochs(trainer: Trainer, loader, validation, folder: RunFolder, args, first: int, resumed, log) -> int:
    """Train from epoch `first` to --num_epochs. Returns the exit status."""
    captioner, metrics = trainer.captioner, parse_metrics_or_none(args.validation_scoring)
    search = Search(beam_size=args.validation_beam_size, trigram_penalty_alpha=args.trigram_penalty_alpha)
    words = words_for(metrics, args) if validation is not None else None
    stop = Stop()
    for epoch in range(first, args.num_epochs + 1):
        if 0 <= args.self_critical_from_epoch <= epoch and trainer.self_critical is None:
            turn_self_critical(trainer, loader, folder, args, epoch)
        progress = train_one_epoch(trainer, loader, folder, args, epoch, resumed, stop, log)
        resumed = None
        if progress is None:
            print(f"stopped in epoch {epoch}; {folder.file('last.model')} holds the state: go on with --resume")
            return 128 + stop.signal
        row = {"training_loss": progress.loss, **epoch_figures(trainer, progress)}
        with trainer.averaged_weights():
            if validation is not None and (epoch % args.validation_step == 0 or epoch == args.num_epochs):
                bar = Bar(len(validation.items), "validation", "image")
                row |= validate(captioner, validation, metrics, search, args.amp, bar, words)
                bar.close()
            row = from_main(lambda row=row: row)  # all processes decide by the same figures
            trainer.epoch_ended(row)
            folder.add_epoch(epoch, row, write=is_main())
            if is_main():
                folder.save_epoch(captioner, epoch)
                log.epoch(epoch, row, captioner.model)
        if is_main():
            folder.save_last(captioner, trainer, epoch + 1, 0, None)
            best = folder.best_epoch() == epoch
            print(epoch_line(epoch, args.num_epochs, row, progress.speed, best), flush=True)
        best = max(folder.best_epoch() or epoch, trainer.turned - 1)  # a new way to train has its own patience
        if args.early_stopping and epoch - best >= args.early_stopping:
            if is_main():
                print(f"no better {folder.criterion()} for {args.early_stopping} epochs: stopped early")
            break
        if stop.signal:
            print(f"stopped after epoch {epoch}; go on with --resume")
            return 128 + stop.signal
    if is_main():
        report_end(folder, loader.bad_items)
    return 1 if loader.bad_items else 0


def validate_only(args) -> int:
    """--validate_only: the figures of each model of --load_model, printed and kept beside it."""
    metrics = parse_metrics_or_none(args.validation_scoring)
    search = Search(beam_size=args.validation_beam_size, trigram_penalty_alpha=args.trigram_penalty_alpha)
    device, words = choose_device(args.device, args.cpu), words_for(metrics, args)

    def measure(captioner: Captioner) -> dict[str, float]:
        loader = validation_loader(captioner, args.validate, args.dataset_config_file, args.num_workers)
        try:
            return validate(captioner, loader, metrics, search, args.amp, words=words)
        finally:
            loader.close()

    names = {"bleu": "bleu_4", "rouge": "rouge_l", "cider": "cider"}  # the others can be left out for want of something
    wanted = ["validation_loss", *(f"validation_{names[name]}" for name in metrics if name in names)]
    return validate_models(
        args.load_model,
        args.validate,
        wanted,
        measure,
        lambda path: load_captioner(path, device, args.weights, photos=False, vocabulary=given_vocabulary(args)),
        args.skip_existing_validations,
    )


def words_for(metrics: tuple[str, ...], args) -> dict | None:
    """The document frequencies that the metric ciderd needs."""
    return CachedWords.load(args.cached_words).to_dict() if "ciderd" in metrics and args.cached_words else None


def parse_metrics_or_none(text: str) -> tuple[str, ...]:
    return () if text.lower() in ("", "none") else parse_metrics(text)


def start_training(args, trainer: Trainer, folder: RunFolder, contents: dict | None) -> tuple[int, dict | None]:
    """Take over state from last.model or --load_model. Returns the first epoch and, mid-epoch, where to go on."""
    captioner = trainer.captioner
    if contents is not None:
        saved, own = ModelConfig.from_dict(contents["config"]).to_dict(), captioner.config.to_dict()
        for name in own:
            if saved.get(name) != own[name]:
                was = f"the run was started with {name} {saved.get(name)!r}"
                raise UserError(f"--resume: {was}, now it is {own[name]!r}")
        if contents["vocabulary"] != captioner.vocabulary.to_dict():
            raise UserError("--resume: the run was started with another vocabulary")
        captioner.model.load_trained_state(contents["state"], folder.file("last.model"))
        position = contents["training"]
        trainer.load_state_dict(position["trainer"])
        print(f"resumed at epoch {position['epoch']}, batch {position['batch']}")
        return position["epoch"], position if position["batch"] else None
    first = 1
    if args.load_model:
        first = int(captioner.info.get("epoch", 0)) + 1
        training = captioner.info.get("training")
        if training and not args.optimizer_reset:
            trainer.load_state_dict({**training["trainer"], "step": 0, "began": 0, "turned": 0})
            first = training["epoch"]
    if args.force_epoch:
        first = args.force_epoch
    trainer.num_epochs = args.num_epochs - first + 1  # the schedules begin anew
    return first, None


def main(args) -> int:
    parse_metrics_or_none(args.validation_scoring)
    if args.validate_only:
        return validate_only(args)
    if args.tensorboard:
        require_tensorboard()  # before a run of that name is replaced
    device = start_processes(choose_device(args.device, args.cpu))
    torch.manual_seed(args.seed)
    torch.use_deterministic_algorithms(args.deterministic)
    dataset = open_dataset(args.dataset, args.dataset_config_file)
    dataset.require_captions()
    folder = RunFolder(Path(args.output_root) / args.model_path / model_name(args), sys.argv)
    contents = folder.prepare(args.resume, args.replace, is_main())
    log = TrainingLog(folder.path, args.tensorboard and is_main(), args.profiler and is_main())
    captioner = make_captioner(args, dataset)
    captioner.model.to(device)
    folder.history = contents.get("history", []) if contents else command_history(captioner.info)
    if args.show_tokens:
        show_tokens(dataset, captioner.vocabulary)
    cached, bad = use_cache(args, captioner, dataset) if args.cache_features else ({}, [])
    dataset = readable(dataset, cached)
    inputs = plan_inputs(captioner.config, dataset, sources=cached)
    keep_sizes(captioner.config, inputs)
    teachers = Teachers(args.distill, captioner, inputs, dataset, args.weights) if args.distill else None
    loader = open_loader(args, captioner, dataset, inputs + (teachers.inputs if teachers else []))
    loader.bad_items += bad
    validation = None
    if args.validate and is_main():
        validation = validation_loader(captioner, args.validate, args.dataset_config_file, args.num_workers, cached)
    settings = Settings(**{name: getattr(args, name) for name in Settings.__dataclass_fields__})
    trainer = Trainer(captioner, settings, args.num_batches or len(loader), args.num_epochs)
    first, resumed = start_training(args, trainer, folder, contents)
    trainer.teachers = teachers
    if first > args.num_epochs:
        print(f"nothing to do: epoch {first - 1} of --num_epochs {args.num_epochs} is done already")
        return 0
    if is_main():
        describe(captioner, loader, validation)
        if args.verbose:
            print(captioner.model)
    if args.compile and (reason := compile_captioner(captioner)):
        print(f"--compile: torch cannot compile this model here, it runs as it is ({reason})", file=sys.stderr)
    try:
        return run_epochs(trainer, loader, validation, folder, args, first, resumed, log)
    finally:
        log.close()
        loader.close()
        end_processes()


if __name__ == "__main__":
    sys.exit(run(main, ARGS))

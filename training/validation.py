"""Loss and scores of a captioner on a dataset: in training, and for --validate_only, which keeps them in files.

models/NAME/train_stats-DATASET.json    {"3": {"validation_loss": ..., "validation_cider": ...}, ...}: of epN.model and
                                        best.model, by epoch, as plot_stats.py draws
models/NAME/train_stats-DATASET-STEM.json    of another file, STEM.model
"""

import json
import math
import re
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from captioning.batches.features import CachedFeatures
from captioning.batches.inputs import plan_inputs
from captioning.datasets.base import CaptionDataset, image_key
from captioning.datasets.factory import open_dataset
from captioning.datasets.names import short_names
from captioning.datasets.splits import divided
from captioning.decoder.search import Search
from captioning.devices import autocast
from captioning.errors import UserError, warn, warn_once
from captioning.files import atomic_write
from captioning.locks import FileLock
from captioning.scoring.bootstrap import few_images_note
from captioning.scoring.metrics import fitting, score_captions
from captioning.scoring.statistics import caption_statistics
from captioning.text.paragraphs import split_sentences
from data_loader import Loader, LoaderSettings, get_eval_loader
from model import Captioner, caption_loader, load_captioner
from training.feature_cache import copied, readable
from training.losses import captions_of, token_cross_entropy
from training.paragraph_losses import ParagraphLosses, paragraph_losses
from training.run_folder import read_stats
from training.settings import DataSettings, ModelSettings
from vocabulary import MOST_UNKNOWN, Vocabulary

ITS_EPOCH = re.compile(r"ep(\d+)|best")
CAN_BE_LEFT_OUT = ("meteor", "spice", "ciderd")  # where a program or a file is missing
BATCH_SIZE = 64  # images


@dataclass
class Validation:
    """What is measured of a captioner, and how.

    metrics: names of captioning.scoring.metrics. search: how captions are written. amp: "bf16" for mixed precision.
    words: document frequencies for the metric ciderd.
    """

    metrics: tuple[str, ...]
    search: Search
    amp: str = "off"
    words: dict | None = None

    @property
    def wanted(self) -> list[str]:
        """The figures that a model must have to be validated already."""
        names = {"bleu": "bleu_4", "rouge": "rouge_l"}
        scores = [names.get(name, name) for name in self.metrics if name not in CAN_BE_LEFT_OUT]
        return ["validation_loss", *(f"validation_{name}" for name in scores)]

    def measure(self, captioner: Captioner, loader, bar=None) -> dict[str, float]:
        """Loss under teacher forcing and scores of free-running captions over `loader` (with_captions).

        Returns `validation_loss` (nats per token), `validation_METRIC`, and what warns of collapse: the share of
        distinct captions, their mean length in words, the share of <unk>. Tokens are those of the Python tokenizer: the
        same everywhere. Of a hierarchical model also what `ParagraphFigures` measures. bar: a captioning.progress.Bar.
        """
        loss_sum, tokens, written, references = 0.0, 0, {}, {}
        config = captioner.config.paragraphs
        figures = None if config is None else ParagraphFigures(config.max_sentences)
        search = self.search if self.metrics else None
        for batch, memory, captions in caption_loader(captioner, loader, search, self.amp):
            with torch.inference_mode(), autocast(captioner.device, self.amp):
                loss, count = held_out_loss(captioner, memory, batch, figures)
            loss_sum += loss * count
            tokens += count
            for item, best in zip(batch.items, captions or []):
                written[image_key(item)] = best[0].text
                references[image_key(item)] = item.captions
                if figures is not None:
                    figures.compare(best[0].paragraph, item.captions[0])
            if bar is not None:
                bar.update(len(batch.items))
        results = {"validation_loss": loss_sum / max(1, tokens)} | (figures.results() if figures else {})
        return results | (self._scores(written, references) if self.metrics else {})

    def _scores(self, written: dict, references: dict) -> dict[str, float]:
        by = fitting("auto", (text for texts in references.values() for text in texts))
        by = "python" if by == "auto" else by  # the same tokens on every machine
        scores = score_captions(written, references, self.metrics, by, document_frequencies=self.words)
        for name, reason in scores.left_out.items():
            print(f"validation: {name} left out: {reason}")
        if line := few_images_note(len(written)):
            warn_once(f"validation: {line}")
        values = scores.values | caption_statistics(scores.by_words(list(written.values())))
        return {f"validation_{name}": value for name, value in values.items()}


def held_out_loss(captioner: Captioner, memory, batch, figures: "ParagraphFigures | None") -> tuple[float, int]:
    """The loss of a batch in nats per token, and the number of tokens; `figures` of a hierarchical model."""
    if figures is not None:
        losses = paragraph_losses(captioner, memory, batch)
        figures.add(losses, len(batch.lengths))
        return losses.total.item(), losses.tokens
    logits, targets, _, _ = captioner.model.decode(memory, *captions_of(batch, captioner.device))
    return token_cross_entropy(logits, targets).item(), len(targets)


class ParagraphFigures:
    """What validation measures of a hierarchical model besides its loss and scores.

    `validation_word_loss` (nats per word), `validation_stop_loss` (nats per sentence), both also under DeepCaption's
    names, `val_loss_word` and `val_loss_sentence`; where captions were written `validation_sentences` (mean
    number written), `validation_right_number` (share of paragraphs with as many sentences as the first reference).
    """

    def __init__(self, max_sentences: int):
        self.max_sentences = max_sentences
        self.word_sum = self.stop_sum = 0.0
        self.words = self.sentences = self.written = self.right = self.images = 0

    def add(self, losses: ParagraphLosses, sentences: int) -> None:
        self.word_sum += losses.word.item() * losses.tokens
        self.stop_sum += losses.stop.item() * sentences
        self.words += losses.tokens
        self.sentences += sentences

    def compare(self, paragraph, reference: str) -> None:
        """A Paragraph that was written, and the first reference."""
        expected = min(len(split_sentences(reference)), self.max_sentences)
        self.written += len(paragraph.sentences)
        self.right += len(paragraph.sentences) == expected
        self.images += 1

    def results(self) -> dict[str, float]:
        word, stop = self.word_sum / max(1, self.words), self.stop_sum / max(1, self.sentences)
        figures = {"validation_word_loss": word, "validation_stop_loss": stop}
        figures |= {"val_loss_word": word, "val_loss_sentence": stop}
        if self.images:
            figures["validation_sentences"] = self.written / self.images
            figures["validation_right_number"] = self.right / self.images
        return figures


# ---- data ----


def open_images(data: DataSettings, validation: bool = False) -> CaptionDataset:
    """The images of --dataset, or of the validation data: those of --validate, or a --val_fraction of --dataset."""
    if validation and data.validate:
        return open_dataset(data.validate, data.dataset_config_file, data.images, "--validate")
    dataset = open_dataset(data.dataset, data.dataset_config_file, data.images)
    if data.val_fraction:
        return divided(dataset, data.val_fraction, f"--val_fraction {data.val_fraction:g}")[validation]
    return dataset


def validation_loader(
    captioner: Captioner, data: DataSettings, cached: dict[str, CachedFeatures] | None = None
) -> Loader:
    """The captioned images of the validation data with the features, or the pixels, that the captioner reads.

    All of them, or those of the first `data.num_batches` batches. cached: what `cache_features` gave.
    """
    config = captioner.config
    images = readable(open_images(data, validation=True), cached or {})
    if data.num_batches:
        captioned = [item for item in images.items if item.captions]
        images = copied(images, captioned[: data.num_batches * BATCH_SIZE])
    inputs = plan_inputs(config, images, sources=cached)
    most = config.paragraphs and config.paragraphs.max_sentences
    settings = LoaderSettings(batch_size=BATCH_SIZE, num_workers=data.num_workers, max_sentences=most)
    loader = get_eval_loader(images, inputs, settings, captioner.transform, captioner.vocabulary)
    if (share := loader.unknown_share) > MOST_UNKNOWN:
        what = f"--validate {data.validate}" if data.validate else "--val_fraction"
        warn(f"{what}: the model's vocabulary lacks {share:.0%} of the words of its captions")
    return loader


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
            print(f"{path}: left out: {error}")
    if failed:
        print(f"{failed} of {len(wanted.load_model)} models could not be validated")
    return 1 if failed else 0


def validate_model(
    path, wanted: ModelSettings, data: DataSettings, validation: Validation, device: torch.device, skip_existing: bool
) -> None:
    """Measure the model of the file `path`, print its figures and write them to its `stats_file`."""
    vocabulary = data.vocabulary_file and Vocabulary.load(data.vocabulary_file)
    load = partial(load_captioner, path, device, wanted.weights, photos=False, vocabulary=vocabulary)
    file = stats_file(path, data.validate)
    known = known_figures(file)
    named = re.fullmatch(r"ep(\d+)", Path(path).stem)
    epoch = named and int(named.group(1))
    captioner = None
    if epoch is None or not skip_existing:
        captioner = load()
        epoch = epoch or int(captioner.info.get("epoch") or 0)
    if skip_existing and all(name in known.get(epoch, {}) for name in validation.wanted):
        print(f"{path}: validated already (epoch {epoch} of {file}), passed over")
        return
    captioner = captioner or load()
    with closing(validation_loader(captioner, data)) as loader:
        row = validation.measure(captioner, loader)
    print(f"{path}: " + ", ".join(f"{k.removeprefix('validation_')} {v:.4f}" for k, v in row.items()))
    add_row(file, epoch, row)
    print(f"statistics: {file}")


def add_row(file: Path, epoch: int, row: dict[str, float]) -> None:
    """Write the figures of an epoch into `file`, beside those that are there; another process may do so too."""
    lock = FileLock(file.with_name(f".{file.name}.lock"), str(file), wait=60)
    try:
        stats = known_figures(file) | {epoch: {k: v if math.isfinite(v) else None for k, v in row.items()}}
        with atomic_write(file) as out:
            json.dump(dict(sorted(stats.items())), out, indent=2)
    finally:
        lock.release(remove=True)

"""Loss and scores of a captioner on a dataset: in training, and for --validate_only, which keeps them in files.

models/NAME/train_stats-DATASET.json    {"3": {"validation_loss": ..., "validation_cider": ...}, ...}: of epN.model and
                                        best.model, by epoch, as plot_stats.py draws
models/NAME/train_stats-DATASET-STEM.json    of another file, STEM.model
"""

import json
import math
import re
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from captioning.batches.features import CachedFeatures
from captioning.batches.inputs import plan_inputs
from captioning.cores import first_speaks
from captioning.datasets.base import CaptionDataset, image_key
from captioning.datasets.factory import open_dataset
from captioning.datasets.names import short_names
from captioning.datasets.splits import divided
from captioning.decoder.search import Search
from captioning.devices import autocast, from_main, is_main, process, to_main
from captioning.errors import UserError, warn, warn_once
from captioning.files import atomic_write
from captioning.locks import FileLock
from captioning.scoring import calibration
from captioning.scoring.bootstrap import few_images_note
from captioning.scoring.metrics import (
    METRICS,
    NEEDS_JAVA,
    Scores,
    fitting,
    java_missing,
    parse_metrics,
    score_captions,
)
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
    words: document frequencies for the metric ciderd. best_by: as `criterion_of` gives it; None: by a rule of the run's
    folder.
    """

    metrics: tuple[str, ...]
    search: Search
    amp: str = "off"
    words: dict | None = None
    best_by: str | None = None

    @property
    def wanted(self) -> list[str]:
        """The figures that a model must have to be validated already."""
        names = {"bleu": "bleu_4", "rouge": "rouge_l"}
        scores = [names.get(name, name) for name in self.metrics if name not in CAN_BE_LEFT_OUT]
        return ["validation_loss", *(f"validation_{name}" for name in scores)]

    def measure(self, captioner: Captioner, loader, bar=None, guard=None) -> dict[str, float] | None:
        """Loss under teacher forcing and scores of free-running captions over `loader` (with_captions).

        Returns `validation_loss` (nats per token), `validation_METRIC`, and what warns of collapse: the share of
        distinct captions, their mean length in words, the share of <unk>. Tokens are those of the Python tokenizer: the
        same everywhere. Of a hierarchical model also what `ParagraphFigures` measures. Each of several processes works
        on the batches of its loader; all call it, and all get the figures that a single process would have. In the
        first process the captioner gets its calibration, None where CIDEr is no metric or there are few images.
        bar: a captioning.progress.Bar over the images of all. guard: does a piece of work, or gives None; where one
        process gives None for its share, or the first one for the scores, all get None.
        """
        guard = guard or (lambda work: work())
        shares = to_main(guard(lambda: self.measure_share(captioner, loader, bar)))
        lost = any(share is None for share in shares)
        measured = [] if lost else [one for share in shares for one in share]
        return from_main(lambda: None if lost else guard(lambda: self._results(measured, loader, captioner)))

    def measure_share(self, captioner: Captioner, loader, bar=None) -> list["BatchFigures"]:
        """What is measured on each batch of this process."""
        config, measured = captioner.config.paragraphs, []
        search = self.search if self.metrics else None
        rank, count = process()
        for batch, memory, captions in caption_loader(captioner, loader, search, self.amp):
            figures = None if config is None else ParagraphFigures(config.max_sentences)
            with torch.inference_mode(), autocast(captioner.device, self.amp):
                loss, tokens = held_out_loss(captioner, memory, batch, figures)
            one = BatchFigures(rank + count * batch.index, loss * tokens, tokens, {}, {}, figures)
            for item, best in zip(batch.items, captions or []):
                one.written[image_key(item)] = best[0].text
                one.mean_log_probs[image_key(item)] = best[0].mean_log_prob
                if figures is not None:
                    figures.compare(best[0].paragraph, item.captions[0])
            measured.append(one)
            if bar is not None:
                bar.move_to(min(bar.total, bar.done + count * len(batch.items)))
        return measured

    def _results(self, measured: list["BatchFigures"], loader, captioner: Captioner) -> dict[str, float]:
        measured = sorted(measured, key=lambda one: one.place)  # sums of floats depend on the order
        loss = sum(one.loss_sum for one in measured) / max(1, sum(one.tokens for one in measured))
        results, captioner.calibration = {"validation_loss": loss}, None
        if measured and measured[0].paragraphs is not None:
            results |= summed_figures([one.paragraphs for one in measured]).results()
        if not self.metrics:
            return results
        written = {key: text for one in measured for key, text in one.written.items()}
        references = {image_key(item): item.captions for item in loader.items}
        scores = self._scores(written, {key: references[key] for key in written})
        mean_log_probs = [value for one in measured for value in one.mean_log_probs.values()]
        captioner.calibration = self._calibration(mean_log_probs, scores.per_image)
        values = scores.values | caption_statistics(scores.by_words(list(written.values())))
        return results | {f"validation_{name}": value for name, value in values.items()}

    def _calibration(self, mean_log_probs: list[float], per_image: dict) -> calibration.Calibration | None:
        """That of captions by their scores; None without CIDEr, and where there are few."""
        scores = per_image.get(calibration.METRIC, [])
        if len(scores) < calibration.LEAST_IMAGES:
            return None
        return calibration.fit(mean_log_probs, scores, self.search.beam_size, self.search.length_penalty)

    def _scores(self, written: dict, references: dict) -> Scores:
        by = fitting("auto", (text for texts in references.values() for text in texts))
        by = "python" if by == "auto" else by  # the same tokens on every machine
        scores = score_captions(written, references, self.metrics, by, document_frequencies=self.words)
        for name, reason in scores.left_out.items():
            print(f"validation: {name} left out: {reason}")
        if line := few_images_note(len(written)):
            warn_once(f"validation: {line}")
        return scores


def criterion_of(name: str, metrics: Sequence[str], has_words: bool) -> str:
    """The figure that --best_by names, as its statistics are called: "loss", "cider", "bleu_4", ...

    has_words: whether there are document frequencies, for ciderd. Raises UserError for another one, and for one that
    is not measured.
    """
    if name.lower() in ("loss", "validation_loss"):
        return "loss"
    plain = re.sub(r"[-_\s]", "", name.lower().removeprefix("validation"))
    try:
        (metric,) = parse_metrics(name.lower().removeprefix("validation_"))
    except (UserError, ValueError):
        raise UserError(f"--best_by {name}: it is none of loss, bleu1 to bleu4, {', '.join(METRICS[1:])}") from None
    if metric not in metrics:
        raise UserError(f"--best_by {name}: it is not measured: add {metric} to --validation_scoring")
    if metric in NEEDS_JAVA and java_missing():
        raise UserError(f"--best_by {name}: it needs Java, which is not installed")
    if metric == "ciderd" and not has_words:
        raise UserError(f"--best_by {name}: it needs document frequencies (--cached_words)")
    figures = {"rouge": "rouge_l", "bleu": f"bleu_{plain[-1] if plain[-1].isdigit() else 4}"}
    return figures.get(metric, metric)


def held_out_loss(captioner: Captioner, memory, batch, figures: "ParagraphFigures | None") -> tuple[float, int]:
    """The loss of a batch in nats per token, and the number of tokens; `figures` of a hierarchical model."""
    if figures is not None:
        losses = paragraph_losses(captioner, memory, batch)
        figures.add(losses, len(batch.lengths))
        return losses.total.item(), losses.tokens
    logits, targets, _, _ = captioner.model.decode(memory, *captions_of(batch, captioner.device))
    return token_cross_entropy(logits, targets).item(), len(targets)


@dataclass
class BatchFigures:
    """What was measured on a batch.

    place: its number among the batches of all processes; loss_sum: nats of its `tokens`; written: a caption by
    `image_key`, none where no metric is asked for; mean_log_probs: of those captions, by `image_key`; paragraphs: of a
    hierarchical model.
    """

    place: int
    loss_sum: float
    tokens: int
    written: dict
    mean_log_probs: dict
    paragraphs: "ParagraphFigures | None"


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


def summed_figures(several: list[ParagraphFigures]) -> ParagraphFigures:
    """The figures of all batches."""
    total = ParagraphFigures(several[0].max_sentences)
    for name in vars(total).keys() - {"max_sentences"}:
        setattr(total, name, sum(getattr(one, name) for one in several))
    return total


# ---- data ----


def open_images(data: DataSettings, validation: bool = False) -> CaptionDataset:
    """The images of --dataset, or of the validation data: those of --validate, or a --val_fraction of --dataset."""
    if validation and data.validate:
        return open_dataset(data.validate, data.dataset_config_file, data.images, "--validate")
    option = "--captions" if data.captions else "--dataset"
    dataset = open_dataset(data.dataset, data.dataset_config_file, data.images, option)
    if data.val_fraction:
        return divided(dataset, data.val_fraction, f"--val_fraction {data.val_fraction:g}")[validation]
    return dataset


def validation_loader(
    captioner: Captioner, data: DataSettings, cached: dict[str, CachedFeatures] | None = None
) -> Loader:
    """The captioned images of the validation data with the features, or the pixels, that the captioner reads.

    All of them, or those of the first `data.num_batches` batches; of several processes each has its share of the
    batches, and only the first warns. cached: what `cache_features` gave.
    """
    with first_speaks():
        return _validation_loader(captioner, data, cached)


def _validation_loader(captioner: Captioner, data: DataSettings, cached: dict | None) -> Loader:
    config, (rank, count) = captioner.config, process()
    images = readable(open_images(data, validation=True), cached or {})
    if data.num_batches:
        images = copied(images, images.items.captioned()[: data.num_batches * BATCH_SIZE])
    inputs = plan_inputs(config, images, sources=cached)
    most = config.paragraphs and config.paragraphs.max_sentences
    settings = LoaderSettings(
        BATCH_SIZE,
        num_workers=data.num_workers,
        max_sentences=most,
        ids_folder=data.ids_folder,
        rank=rank,
        world_size=count,
    )
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

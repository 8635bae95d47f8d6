"""Loss and scores of a captioner on images with captions."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from captioning.datasets.base import image_key
from captioning.decoder.search import Search
from captioning.devices import autocast, from_main, process, to_main
from captioning.errors import UserError, warn_once
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
from model import Captioner, caption_loader
from training.losses import captions_of, token_cross_entropy
from training.paragraph_losses import ParagraphLosses, paragraph_losses

CAN_BE_LEFT_OUT = ("meteor", "spice", "ciderd")  # where a program or a file is missing


@dataclass
class Validation:
    """What is measured of a captioner, and how.

    metrics: names of captioning.scoring.metrics. search: how captions are written. amp: "bf16" for mixed precision.
    words: document frequencies for the metric ciderd. best_by: as `criterion_of` gives it; None: by a rule of the run's
    folder. blank: whether the calibration is to know how likely captions are about a blank picture.
    """

    metrics: tuple[str, ...]
    search: Search
    amp: str = "off"
    words: dict | None = None
    best_by: str | None = None
    blank: bool = False

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
            if self.blank and captions:
                captioner.read_on_blank([best[0] for best in captions])
            for item, best in zip(batch.items, captions or []):
                one.written[image_key(item)] = best[0].text
                one.mean_log_probs[image_key(item)] = best[0].mean_log_prob
                one.blank[image_key(item)] = best[0].blank
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
        blank = [value for one in measured for value in one.blank.values()] if self.blank else None
        captioner.calibration = self._calibration(mean_log_probs, scores.per_image, blank)
        values = scores.values | caption_statistics(scores.by_words(list(written.values())))
        return results | {f"validation_{name}": value for name, value in values.items()}

    def _calibration(self, mean_log_probs: list[float], per_image: dict, blank) -> calibration.Calibration | None:
        """The calibration of the captions by their scores; None without CIDEr, and where there are few captions."""
        scores = per_image.get(calibration.METRIC, [])
        if len(scores) < calibration.LEAST_IMAGES:
            return None
        return calibration.fit(mean_log_probs, scores, self.search.beam_size, self.search.length_penalty, blank)

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
    hierarchical model; blank: `Caption.blank` of the captions, where it is asked for.
    """

    place: int
    loss_sum: float
    tokens: int
    written: dict
    mean_log_probs: dict
    paragraphs: "ParagraphFigures | None"
    blank: dict = field(default_factory=dict)


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
        """Count a Paragraph that was written, and whether it has as many sentences as the first reference."""
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

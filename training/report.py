"""What a training run prints: the sizes before it, a bar or a line a minute during it, a line per epoch."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from tqdm import tqdm

from captioning.cores import process_number
from captioning.next_steps import print_next
from model import Captioner
from training.run_folder import RunFolder
from vocabulary import Vocabulary

LABELS = {
    "training_loss": "loss",
    "training_reward": "reward",
    "validation_loss": "val loss",
    "validation_cider": "CIDEr",
    "validation_bleu_4": "BLEU-4",
    "validation_meteor": "METEOR",
    "validation_rouge_l": "ROUGE-L",
    "validation_spice": "SPICE",
}


class StartTimes:
    """Prints how long each part of the start of a run took, in the first process and with --verbose.

    began: when the first part began, by time.monotonic(); None: now.
    """

    def __init__(self, verbose: bool, began: float | None = None):
        self.speaks = verbose and process_number() == 0
        self.last = time.monotonic() if began is None else began

    def done(self, what: str) -> None:
        """`what` ends now; what comes next begins."""
        now = time.monotonic()
        if self.speaks:
            print(f"start: {now - self.last:5.1f} s {what}", flush=True)
        self.last = now


def describe(captioner: Captioner, loader, validation) -> None:
    """Data sizes, vocabulary, model and device, before a long run."""
    config = captioner.config
    total = sum(p.numel() for p in captioner.model.parameters())
    trained = sum(p.numel() for p in captioner.model.parameters() if p.requires_grad)
    sizes = f"{len(loader.items):,} images, {loader.num_captions:,} captions, {len(loader):,} batches an epoch"
    print(f"training:   {sizes}")
    if validation is not None:
        print(f"validation: {len(validation.items):,} images, {validation.num_captions:,} captions")
    print(f"vocabulary: {len(captioner.vocabulary):,} words")
    shapes = [f"{spec.name} {'x'.join(map(str, spec.shape))}" for spec in config.specs]
    transformer = config.decoder == "transformer"
    kind = f"{config.num_layers}-layer {'Transformer' if transformer else config.rnn_arch} {config.hidden_size}"
    kind += f", {config.heads} heads" if transformer else ""
    kind += f", {config.region_layers} layers over the regions" if transformer and config.region_layers else ""
    kind += f", {config.attention} attention" if config.attention else ""
    if config.paragraphs is not None:
        coherent = "coherent " if config.paragraphs.coherent_sentences else ""
        kind += f", {coherent}paragraphs of up to {config.paragraphs.max_sentences} sentences"
    print(f"model:      {', '.join(shapes)} -> {kind}; {total / 1e6:.1f} M parameters, {trained / 1e6:.1f} M trained")
    print(f"device:     {captioner.device}", flush=True)


def show_tokens(dataset, vocabulary: Vocabulary, n: int = 5) -> None:
    """The tokens of the first caption of the first n images, unknown words as <unk>."""
    for item in dataset.items[:n]:
        for caption in item.captions[:1]:
            print(f"tokens: {' '.join(vocabulary.tokens(vocabulary.encode(caption)))}")


def epoch_line(epoch: int, num_epochs: int, row: dict, times: str, best: str | None) -> str:
    """The line of an epoch.

    times: its speed and how long it took; best: by which criterion it is the best so far, as
    `RunFolder.criterion_text`, or None.
    """
    figures = [f"{label} {row[name]:.3f}" for name, label in LABELS.items() if row.get(name) is not None]
    line = f"epoch {epoch}/{num_epochs}: {', '.join(figures)} ({times})"
    if best is None:
        return line
    return f"{line}  best by {best}" if ", as " in best else f"{line}  best"


@dataclass
class EpochTimes:
    """How long the epochs of a run take, their validation included; the first is begun now.

    whole: whether it is a whole one, rather than the rest of one that was interrupted.
    """

    whole: bool
    seconds: float | None = None  # the last whole epoch

    def __post_init__(self):
        self.began = time.monotonic()

    def end_epoch(self, left: int, speed: float) -> str:
        """What is said of the epoch that ends now: "300 captions/s, 04:12, 29:24 left". The next one begins.

        left: epochs that follow; speed: captions a second.
        """
        now = time.monotonic()
        took, self.began = now - self.began, now
        self.seconds, self.whole = took if self.whole else self.seconds, True
        parts = [f"{speed:.0f} captions/s", tqdm.format_interval(took)]
        if left and self.seconds is not None:
            parts.append(f"{tqdm.format_interval(left * self.seconds)} left")
        return ", ".join(parts)


def report_end(folder: RunFolder, bad_line: str, validation: Sequence[str] = ()) -> None:
    """Where things are, which epoch was best, and what may be typed next.

    bad_line: what is said of images that could not be read, "" where there are none; validation: the flags of infer.py
    that name the validation data, nothing where there is none.
    """
    best = folder.best_epoch()
    if best is not None:
        name = folder.criterion()
        figure = f"{name} {folder.stats[best][name]:.3f}"
        why = folder.criterion_text().removeprefix(name)
        print(f"best epoch {best} ({figure}{why}): {folder.path / 'best.model'}")
    print(f"statistics: {folder.path / 'train_stats.json'}")
    if bad_line:
        print(bad_line, file=sys.stderr)
    infer = ["infer.py", "--model", folder.path / "best.model"]
    scored = [[*infer, *validation, "--scoring", "bleu,cider"]] if validation else []
    print_next([*infer, "photo.jpg"], *scored, ["plot_stats.py", folder.path / "train_stats.json"])

"""What a training run prints: the sizes before it, a bar or a line a minute during it, a line per epoch."""

import sys

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


def epoch_line(epoch: int, num_epochs: int, row: dict, speed: float, best: str | None) -> str:
    """The line of an epoch. best: by which criterion it is the best so far, as `RunFolder.criterion_text`; or None."""
    figures = [f"{label} {row[name]:.3f}" for name, label in LABELS.items() if row.get(name) is not None]
    line = f"epoch {epoch}/{num_epochs}: {', '.join(figures)} ({speed:.0f} captions/s)"
    if best is None:
        return line
    return f"{line}  best by {best}" if ", as " in best else f"{line}  best"


def report_end(folder: RunFolder, bad_items: list[str]) -> None:
    """Where things are, and which epoch was best."""
    best = folder.best_epoch()
    if best is not None:
        name = folder.criterion()
        figure = f"{name} {folder.stats[best][name]:.3f}"
        why = folder.criterion_text().removeprefix(name)
        print(f"best epoch {best} ({figure}{why}): {folder.path / 'best.model'}")
    print(f"statistics: {folder.path / 'train_stats.json'}")
    if bad_items:
        print(f"{len(bad_items)} images could not be read and were left out", file=sys.stderr)

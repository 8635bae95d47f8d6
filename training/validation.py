"""Validation data of a captioner, and --validate_only: the figures of trained models, kept in files of their own.

models/NAME/train_stats-DATASET.json    {"3": {"validation_loss": ..., "validation_cider": ...}, ...}: of epN.model and
                                        best.model, by epoch, as plot_stats.py draws
models/NAME/train_stats-DATASET-STEM.json    of another file, STEM.model
"""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from captioning.batches.features import CachedFeatures
from captioning.batches.inputs import plan_inputs
from captioning.datasets.factory import open_dataset
from captioning.decoder.search import Search
from captioning.devices import autocast
from captioning.errors import UserError
from captioning.files import atomic_write, read_json
from captioning.scoring.metrics import caption_statistics, score_captions
from data_loader import Loader, LoaderSettings, get_eval_loader
from model import Captioner, caption_loader
from training.feature_cache import readable
from training.paragraph_losses import ParagraphFigures, held_out_loss

ITS_EPOCH = re.compile(r"ep(\d+)|best")


def validation_loader(
    captioner: Captioner,
    dataset: str,
    config_file: str | None,
    num_workers: int | None = None,
    cached: dict[str, CachedFeatures] | None = None,
) -> Loader:
    """All captioned images of `dataset` with the features, or the pixels, that the captioner reads.

    cached: what `cache_features` gave.
    """
    config = captioner.config
    images = readable(open_dataset(dataset, config_file), cached or {})
    inputs = plan_inputs(config, images, sources=cached)
    max_sentences = None if config.paragraphs is None else config.paragraphs.max_sentences
    settings = LoaderSettings(batch_size=64, num_workers=num_workers, max_sentences=max_sentences)
    return get_eval_loader(images, inputs, settings, captioner.transform, captioner.vocabulary)


def stats_file(model_path, dataset: str) -> Path:
    """Where the figures of a model on `dataset` are kept: in the model's folder."""
    path = Path(model_path)
    name = re.sub(r"[^\w.+-]", "-", dataset)
    other = "" if ITS_EPOCH.fullmatch(path.stem) else f"-{path.stem}"
    return path.with_name(f"train_stats-{name}{other}.json")


def read_stats(path: Path) -> dict[str, dict]:
    """The figures kept so far, none where there is no file. Raises UserError where it is no table of figures."""
    if not path.exists():
        return {}
    stats = read_json(path, "--validate_only")
    if not isinstance(stats, dict) or not all(k.isdigit() and isinstance(row, dict) for k, row in stats.items()):
        raise UserError(f"--validate_only: {path} is not a file of validation figures: move it away")
    return stats


def validate_models(
    paths: Sequence[str],
    dataset: str,
    wanted: Sequence[str],
    measure: Callable[[Captioner], dict[str, float]],
    load: Callable[[str], Captioner],
    skip_existing: bool = False,
) -> int:
    """Measure each model and keep its figures; one that fails is told and passed over, if it is not the only one.

    wanted: figures that a model must have been measured in to be passed over with `skip_existing`. Models whose name
    says their epoch (ep3.model) are not even read then. Returns the exit status.
    """
    failed = 0
    for path in paths:
        try:
            validate_model(path, dataset, wanted, measure, load, skip_existing)
        except UserError as error:
            if len(paths) == 1:
                raise
            failed += 1
            print(f"{path}: left out: {error}")
    if failed:
        print(f"{failed} of {len(paths)} models could not be validated")
    return 1 if failed else 0


def validate_model(path, dataset: str, wanted, measure, load, skip_existing: bool) -> None:
    file = stats_file(path, dataset)
    stats = read_stats(file)
    named = re.fullmatch(r"ep(\d+)", Path(path).stem)
    epoch = named and named.group(1)
    captioner = None
    if epoch is None or not skip_existing:
        captioner = load(path)
        epoch = epoch or str(int(captioner.info.get("epoch") or 0))
    if skip_existing and all(name in stats.get(epoch, {}) for name in wanted):
        print(f"{path}: validated already (epoch {epoch} of {file}), passed over")
        return
    row = measure(captioner or load(path))
    print(f"{path}: " + ", ".join(f"{k.removeprefix('validation_')} {v:.4f}" for k, v in row.items()))
    stats = read_stats(file) | {epoch: {k: v if v == v else None for k, v in row.items()}}
    with atomic_write(file) as out:
        json.dump(dict(sorted(stats.items(), key=lambda pair: int(pair[0]))), out, indent=2)
    print(f"statistics: {file}")


def validate(
    captioner: Captioner,
    loader,
    metrics: tuple[str, ...],
    search: Search,
    amp: str = "off",
    bar=None,
    words: dict | None = None,
) -> dict[str, float]:
    """Validation loss under teacher forcing and scores of free-running captions over `loader` (with_captions).

    Returns `validation_loss` (nats per token), `validation_METRIC`, and what warns of collapse: the share of distinct
    captions, their mean length in words, the share of <unk>. Tokens by the Python tokenizer: the same everywhere.
    words: document frequencies for "ciderd", as scoring.py takes them. Of a hierarchical model also what
    ParagraphFigures measures.
    """
    loss_sum, tokens, written, references = 0.0, 0, {}, {}
    settings = captioner.config.paragraphs
    figures = None if settings is None else ParagraphFigures(settings.max_sentences)
    for batch, memory, captions in caption_loader(captioner, loader, search if metrics else None, amp):
        with torch.inference_mode(), autocast(captioner.device, amp):
            loss, count = held_out_loss(captioner, memory, batch, figures)
        loss_sum += loss * count
        tokens += count
        for item, best in zip(batch.items, captions or []):
            written[item.image_id] = best[0].text
            references[item.image_id] = item.captions
            if figures is not None:
                figures.compare(best[0].paragraph, item.captions[0])
        if bar is not None:
            bar.update(len(batch.items))
    results = {"validation_loss": loss_sum / max(1, tokens)} | ({} if figures is None else figures.results())
    if metrics:
        scores = score_captions(written, references, metrics, tokenizer="python", document_frequencies=words)
        results |= {f"validation_{name}": value for name, value in scores.values.items()}
        results |= {f"validation_{name}": value for name, value in caption_statistics(list(written.values())).items()}
        for name, reason in scores.left_out.items():
            print(f"validation: {name} left out: {reason}")
    return results

"""Rows that train: the loader, the trainer and the model are those of train.py, with its defaults."""

import os
import time

import torch
from bench_data import captions, words, write_captions, write_config, write_features, write_pictures, write_regions
from bench_limits import CAPTION, IMAGE, TOKEN, Sizes, convolutions_of, decoder_terms, encoder_terms, operations
from bench_machine import forget_peak, synchronize
from bench_memory import proportional, tree
from bench_models import MAP, POOLED, from_file, from_pixels, random_encoder
from bench_rows import Bench, Row, of_products, peak_of_this_process

from captioning.batches.inputs import plan_inputs
from captioning.datasets.factory import open_dataset
from captioning.encoder.transforms import ImageTransform
from captioning.features.convert import convert
from data_loader import LoaderSettings, get_loader
from training.losses import CrossEntropy
from training.settings import TrainSettings
from training.trainer import Trainer

PROFILED = 8  # batches with --profile
WARM_UP = 3  # batches before the first run: libraries set themselves up


class Training:
    """A trainer and a loader, run for a number of batches at a time. An epoch begins where the last one ended."""

    def __init__(self, captioner, dataset, bench: Bench, batch_size: int = 128, cached: dict | None = None):
        self.captioner, self.device = captioner, bench.device
        captioner.model.to(bench.device)
        inputs, transform = plan_inputs(captioner.config, dataset, sources=cached), captioner.transform
        if transform is not None:
            transform = ImageTransform(transform.size, transform.interpolation, train=True)
        self.loader = get_loader(dataset, captioner.vocabulary, inputs, LoaderSettings(batch_size), transform)
        settings = TrainSettings(amp=bench.amp).for_decoder(captioner.config.decoder, {})
        self.trainer = Trainer(captioner, settings, CrossEntropy(settings), len(self.loader), 1)
        self.sizes, self.epoch = Sizes.of(captioner), 0

    def run(self, batches: int | None = None) -> tuple[dict[str, int], float]:
        """Train on `batches` (None: an epoch); counts of images, captions and tokens, and the seconds."""
        self.epoch += 1
        self.loader.set_position(self.epoch)
        counts = {IMAGE: 0, CAPTION: 0, TOKEN: 0}
        steps = 0
        step = self.trainer.train_step

        def counted(batch):
            counts[IMAGE] += len(batch.items)
            counts[CAPTION] += len(batch.lengths)
            counts[TOKEN] += int(batch.lengths.sum()) - len(batch.lengths)  # <start> is no target
            return step(batch)

        def on_step(progress, index: int) -> bool:
            nonlocal steps
            steps += 1
            if self.trainer.step % 10 == 0:
                progress.loss  # noqa: B018  (train.py shows it every ten steps, and waits for it)
            return batches is not None and steps >= batches

        self.trainer.train_step = counted
        synchronize(self.device)
        began = time.perf_counter()
        try:
            self.trainer.train_epoch(self.loader, on_step)
        finally:
            del self.trainer.train_step
        synchronize(self.device)
        return counts, time.perf_counter() - began


def from_features(bench: Bench, name: str, shape: tuple, dtype: str, texts: int, row: Row, **settings) -> Row:
    """A row that trains from a feature file, an epoch a run."""
    section = f"train_{name}"
    names = write_captions(
        bench.folder / "captions" / f"{section}.json", captions(texts, words(2928)), images=texts // 5
    )
    write_features(bench.folder / "features" / section / f"{name}.lmdb", names, shape, dtype)
    config = write_config(bench.folder, [section])
    dataset = open_dataset(f"bench:{section}", str(config))
    training = Training(from_file(f"{name}.lmdb", shape, **settings), dataset, bench)
    terms = decoder_terms(training.sizes)
    row.explain = [term.line(training=True) for term in terms]

    def run():
        counts, seconds = training.run()
        row.parts["tokens_per_caption"] = counts[TOKEN] / counts[CAPTION]
        return counts[CAPTION], seconds, operations(terms, counts, training=True)

    training.run(WARM_UP)
    runs = bench.scale.runs if texts < 10_000 else bench.scale.script_runs  # of a minute each
    of_products(row, bench, run, runs, shorter=lambda: training.run(PROFILED))
    training.loader.close()
    return row


def train_lstm(bench: Bench) -> Row:
    row = Row("LSTM training, pooled features (lmdb)", "captions/s", "matrix products")
    return from_features(bench, "pooled", POOLED, "float32", bench.scale.lstm_captions, row)


def train_attention(bench: Bench) -> Row:
    row = Row("soft-attention training, 49 x 1280 map, dropout", "captions/s", "matrix products")
    return from_features(
        bench, "map", MAP, "float16", bench.scale.attention_captions, row, dropout=0.4, encoder_dropout=0.2
    )


def train_updown(bench: Bench) -> Row:
    row = Row("up-down attention training, 49 x 1280 map", "captions/s", "matrix products")
    return from_features(bench, "updown", MAP, "float16", bench.scale.attention_captions, row, attention="updown")


def train_transformer(bench: Bench) -> Row:
    row = Row("Transformer training, 49 x 1280 map, 3 layers", "captions/s", "matrix products")
    return from_features(
        bench, "transformer", MAP, "float16", bench.scale.attention_captions, row, decoder="transformer"
    )


def pixel_data(bench: Bench, section: str, images: int):
    """A dataset of JPEGs of 256x256, as resize.py leaves them, with five captions each."""
    texts = captions(images * 5, words(2928))
    names = write_captions(bench.folder / "captions" / f"{section}.json", texts, images)
    write_pictures(bench.folder / "images" / section, names, 256, 256)
    return open_dataset(f"bench:{section}", str(write_config(bench.folder, [section]))), names


def train_pixels(bench: Bench) -> Row:
    """ResNet-152 with random weights, LSTM, batches of 32 captions, 5 of them an image, random crops."""
    row = Row("training from pixels, ResNet-152, batch 32, 5 captions an image", "captions/s", "matrix products")
    dataset, _ = pixel_data(bench, "train_pixels", bench.scale.pixel_images)
    captioner = from_pixels(random_encoder("resnet152"))
    training = Training(captioner, dataset, bench, batch_size=32)
    extractor = captioner.model.extractors[0]
    pixels = torch.empty(1, 3, captioner.size, captioner.size)
    terms = encoder_terms("ResNet-152", convolutions_of(extractor.network, pixels))
    terms += decoder_terms(training.sizes)
    row.explain = [term.line(training=True) for term in terms]

    def run():
        counts, seconds = training.run()
        return counts[CAPTION], seconds, operations(terms, counts, training=True)

    training.run(1)
    of_products(row, bench, run, bench.scale.runs, shorter=lambda: training.run(PROFILED))
    row.peak_bytes += sum(proportional(pid) for pid in tree(os.getpid())[1:])  # the workers
    training.loader.close()
    return row


def train_cached(bench: Bench) -> Row:
    """train.py --cache_features from the second epoch on, beside the same training from a feature file."""
    from training.feature_cache import cache_features

    row = Row("attention training from --cache_features, EfficientNet-Lite0", "captions/s", "an lmdb file")
    dataset, names = pixel_data(bench, "train_cached", bench.scale.cached_images)
    captioner = from_pixels(random_encoder("efficientnet_lite0-conv", pretrained=True), dropout=0.4)
    captioner.model.to(bench.device)
    began = time.perf_counter()
    cached, _ = cache_features(bench.folder / "cache", captioner, [dataset], tell=lambda line: None)
    row.parts["filling_images_per_second"] = len(names) / (time.perf_counter() - began)
    cached = Training(captioner, dataset, bench, cached=cached)
    write_features(bench.folder / "features" / "train_cached" / "map.lmdb", names, MAP, "float16")
    external = Training(from_file("map.lmdb", MAP, dropout=0.4), dataset, bench)
    epochs = max(1, 800 // len(names)) if bench.scale.runs > 3 else 1
    row.explain = ["the limit: the same model, images and captions, the maps read from an lmdb file (float16)"]
    return beside(row, bench, cached, external, epochs)


def train_regions(bench: Bench) -> Row:
    """Training from a folder of .npz files, beside the same training from the lmdb file that --convert makes of it."""
    row = Row("soft-attention training, 36 regions x 2048 in .npz files", "captions/s", "an lmdb file")
    images = bench.scale.cached_images
    names = write_captions(bench.folder / "captions" / "train_regions.json", captions(images * 5, words(2928)), images)
    folder = bench.folder / "features" / "train_regions"
    write_regions(folder / "att", names, 36, 2048)
    began = time.perf_counter()
    convert(str(folder / "att"), folder / "att.lmdb")
    row.parts["converting_images_per_second"] = images / (time.perf_counter() - began)
    dataset = open_dataset("bench:train_regions", str(write_config(bench.folder, ["train_regions"])))
    in_files, in_one = (Training(from_file(name, (2048, 0, 1)), dataset, bench) for name in ("att/", "att.lmdb"))
    row.explain = ["the limit: the same model, images and captions, the regions read from the converted lmdb file"]
    return beside(row, bench, in_files, in_one, epochs=1)


def beside(row: Row, bench: Bench, training: Training, other: Training, epochs: int) -> Row:
    """Fill `row` from `training`; the limit is the rate of `other` around each run. epochs: in a run."""

    def rate(one: Training) -> float:
        rates = [one.run() for _ in range(epochs)]
        return sum(counts[CAPTION] for counts, _ in rates) / sum(seconds for _, seconds in rates)

    for one in (training, other):
        one.run(WARM_UP)
    forget_peak(bench.device)
    for _ in range(bench.scale.runs):
        first = rate(other)
        row.add(rate(training), (first + rate(other)) / 2)
    row.peak_bytes = peak_of_this_process(bench.device)
    for one in (training, other):
        one.loader.close()
    return row

"""Rows that need no model: shrinking images, vocabularies, feature files, scores, start-up."""

import io
import re
import shutil
import struct
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from bench_data import captions, features, words, write_captions, write_config, write_pictures
from bench_machine import MB, forget_peak, run_script
from bench_rows import ROOT, Bench, Row, peak_of_this_process
from PIL import Image

from captioning.cores import core_count

# ---- resize.py ----


def resize(bench: Bench, width: int, height: int, count: int, row: Row) -> Row:
    """resize.py to 256x256 with all cores. The limit: decoding and encoding the JPEGs, on all cores, and no more."""
    from captioning.images.encoding import OVERSAMPLING
    from captioning.images.image_file import open_image, resize_square

    section = f"{width}x{height}"
    source, targets = bench.folder / "images" / section, bench.folder / f"resized_{section}"
    names = [f"{number:05d}.jpg" for number in range(count)]
    write_pictures(source, names, width, height, different=12 if width < 1000 else 1)
    one = bench.folder / "images" / f"{section}_one"
    write_pictures(one, names[:1], width, height)

    def script(folder: Path, watch: bool = False):
        # To a new folder each time, removed at the end: deleting thousands of files slows down what is written next.
        target = targets / f"{len(list(targets.iterdir())) if targets.exists() else 0}"
        return bench.script("resize.py", "--image_dir", folder, "--output_dir", target, watch=watch)

    def full(path: Path) -> Image.Image:
        return Image.open(path).convert("RGB").resize((256, 256), Image.Resampling.BILINEAR)

    def save(image: Image.Image) -> None:
        image.save(io.BytesIO(), "JPEG", quality=95)

    def rate(work, of: list) -> float:
        """Of `work` in all cores at once, as they share caches and memory; Pillow lets other threads run meanwhile."""
        with ThreadPoolExecutor(core_count()) as pool:
            began = time.perf_counter()
            for _ in pool.map(work, of):
                pass
            return len(of) / (time.perf_counter() - began)

    paths = [source / name for name in names[:96]]
    small = [full(path) for path in paths[:3]]
    errors = [
        difference(resize_square(open_image(path, int(256 * OVERSAMPLING)), 256), one)
        for path, one in zip(paths, small)
    ]
    row.explain = [
        "the limit: 1 / (decoding at the scale that resize.py asks libjpeg for + encoding 256x256), each measured on",
        "all cores at once; start-up (a run over one image) is taken off the time of resize.py, importing torch is not",
        "plain: the same with every JPEG decoded in full and resized by Pillow, on all cores at once",
    ]
    row.peak_bytes = script(source, watch=True).peak
    for _ in range(bench.scale.script_runs):
        start_up = script(one).seconds
        seconds = max(1e-3, script(source).seconds - start_up)
        decoding = rate(lambda path: open_image(path, int(256 * OVERSAMPLING)), paths)
        encoding = rate(save, small * 40)
        plain = rate(lambda path: save(full(path)), paths if width < 1000 else paths[:12])
        row.add((count - 1) / seconds, 1 / (1 / decoding + 1 / encoding))
        row.parts.setdefault("times_plain_full_decoding", []).append(row.runs[-1] / plain)
    row.parts["start_up_seconds"] = start_up
    row.parts["mean_error_grey_levels"] = errors
    shutil.rmtree(targets)
    return row


def difference(image: Image.Image, other: Image.Image) -> float:
    """Mean absolute difference in grey levels."""
    return float(np.abs(np.asarray(image, np.float32) - np.asarray(other, np.float32)).mean())


def resize_small(bench: Bench) -> Row:
    row = Row("resize.py, 640x480 to 256x256", "images/s", "the JPEG codec alone")
    return resize(bench, 640, 480, bench.scale.small_photos, row)


def resize_large(bench: Bench) -> Row:
    row = Row("resize.py, 4000x3000 to 256x256", "images/s", "the JPEG codec alone")
    return resize(bench, 4000, 3000, bench.scale.large_photos, row)


# ---- build_vocab.py ----


def vocabulary(bench: Bench, count: int, distinct_words: int) -> Row:
    """build_vocab.py as a whole. The limit: one core that reads the JSON and counts what stands between blanks."""
    row = Row(
        f"build_vocab.py, {count:,} distinct captions, whole process", "s", "load, split, count", less_is_better=True
    )
    section = f"vocab_{count}"
    path = bench.folder / "captions" / f"{section}.json"
    write_captions(path, captions(count, words(distinct_words)), max(1, count // 5))
    config = write_config(bench.folder, [section])
    command = ["build_vocab.py", "--dataset", f"bench:{section}", "--dataset_config_file", config, "--force"]
    command += ["--vocab_output_path", bench.folder / "vocab.json"]
    row.explain = ["the limit: a Python process that loads the caption file, lower-cases, splits at blanks and counts"]
    floor = (
        "import json, sys; from collections import Counter; count = Counter()\n"
        "for a in json.load(open(sys.argv[1]))['annotations']: count.update(a['caption'].lower().split())"
    )
    if not bench.hurried:
        row.peak_bytes = bench.script(*command, watch=True).peak
    for _ in range(bench.scale.script_runs):
        limit = run_script([bench.python, "-c", floor, path], ROOT).seconds
        ran = bench.script(*command, watch=bench.hurried)
        row.add(ran.seconds, limit)
        row.peak_bytes = row.peak_bytes or ran.peak
    row.parts["captions_per_second"] = [count / seconds for seconds in row.runs]
    row.parts["peak_megabytes"] = row.peak_bytes / MB
    path.unlink()
    return row


def vocab_30k(bench: Bench) -> Row:
    return vocabulary(bench, bench.scale.captions, 8_000)


def vocab_414k(bench: Bench) -> Row:
    return vocabulary(bench, bench.scale.many_captions, 25_000)


# ---- reading features ----

FORMATS = {"lmdb": ".lmdb", "npy": ".npy", "bin": ".bin", "h5": ".h5"}
DIMENSION, AT_ONCE = 1280, 25  # numbers of a record; records of a batch


def feature_file(bench: Bench, kind: str) -> tuple[Path, list[str], np.ndarray]:
    """A file of one format with the same records for each; the order in which they are read."""
    from captioning.features.writer import FeatureWriter

    names = [f"{number:06d}.jpg" for number in range(bench.scale.records)]
    path = bench.folder / f"read_{kind}" / f"records{FORMATS[kind]}"
    path.parent.mkdir(exist_ok=True)
    records = features(len(names), (DIMENSION,))
    with FeatureWriter(path, (DIMENSION,)) as writer:
        for name, record in zip(names, records):
            writer.write(name, record)
    np.save(path.with_name("plain.npy"), records)
    return path, names, np.random.default_rng(1).permutation(len(names))


def timed(work) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def read_file(bench: Bench, kind: str) -> Row:
    """All records once in random order, 25 at a time, through the toolkit's reader and through numpy.memmap."""
    from captioning.features.factory import open_features

    row = Row(f"reading features, .{kind}, random order", "records/s", "memmap by rows")
    path, names, order = feature_file(bench, kind)
    batches = [order[i : i + AT_ONCE] for i in range(0, len(order), AT_ONCE)]
    keys = [[names[i] for i in batch] for batch in batches]
    reader = open_features(path)
    mapped = np.load(path.with_name("plain.npy"), mmap_mode="r")

    def ours() -> None:
        for batch in keys:
            reader.get_many(batch)

    def plain() -> None:
        for batch in batches:
            out = np.empty((len(batch), DIMENSION), np.float32)
            for place, number in enumerate(batch):
                out[place] = mapped[number]

    forget_peak(bench.device)
    for work in (ours, plain):  # once to have the files in memory
        work()
    row.explain = [f"the limit: out[i] = memmap[row] for the same rows of {DIMENSION} float32 in the same order"]
    before = timed(plain)
    for _ in range(max(3, bench.scale.runs)):
        seconds = timed(ours)
        after = timed(plain)
        row.add(len(order) / seconds, len(order) / ((before + after) / 2))
        before = after
    speed = bench.probe()
    copied = 2 * len(order) * DIMENSION * 4 / speed.gbytes / 1e9  # seconds at the machine's copy rate
    row.parts["fraction_of_the_copy_rate"] = copied / (len(order) / max(row.runs))
    row.peak_bytes = peak_of_this_process(bench.device)
    return row


def read_lmdb(bench: Bench) -> Row:
    return read_file(bench, "lmdb")


def read_npy(bench: Bench) -> Row:
    return read_file(bench, "npy")


def read_bin(bench: Bench) -> Row:
    return read_file(bench, "bin")


def read_h5(bench: Bench) -> Row:
    return read_file(bench, "h5")


def read_bin_struct(bench: Bench) -> Row:
    """PicSOM .bin against a loop of seek, read and struct.unpack; the fraction says how many times as fast."""
    from captioning.features.factory import open_features

    row = Row("reading PicSOM .bin, beside a struct.unpack loop", "records/s", "a struct loop (times)")
    path, names, order = feature_file(bench, "bin")
    order = order[: max(AT_ONCE, len(order) // 8)]
    reader = open_features(path)
    layout = struct.Struct(f"{DIMENSION}f")

    def ours() -> None:
        for i in range(0, len(order), AT_ONCE):
            reader.get_many([names[number] for number in order[i : i + AT_ONCE]])

    def plain() -> None:
        with open(path, "rb") as file:
            for number in order:
                file.seek(64 + int(number) * layout.size)
                np.array(layout.unpack(file.read(layout.size)), np.float32)

    row.explain = [
        "no limit but a yardstick: a record at a time by struct.unpack into an array; 20 means 20 times as fast"
    ]
    ours()
    for _ in range(max(3, bench.scale.runs)):
        slow = timed(plain)
        row.add(len(order) / timed(ours), len(order) / slow)
    return row


# ---- scores, start-up ----


def scoring(bench: Bench) -> Row:
    """BLEU, CIDEr and ROUGE-L of captions with five references each, tokens by the Python tokenizer."""
    from captioning.scoring.metrics import score_captions

    row = Row("scoring, bleu,cider,rouge, five references", "captions/s", "n-grams counted once")
    texts = captions(6 * bench.scale.scored, words(2928))
    candidates = dict(enumerate(texts[: bench.scale.scored]))
    others = texts[bench.scale.scored :]
    references = {number: others[number * 5 : number * 5 + 5] for number in candidates}

    def floor() -> None:
        for number, text in candidates.items():
            for one in (text, *references[number]):
                tokens = re.findall(r"\w+", one.lower())
                for n in range(1, 5):
                    Counter(zip(*(tokens[i:] for i in range(n))))

    row.explain = ["the limit: words found by one regular expression, n-grams of 1 to 4 words counted once, in Python"]
    forget_peak(bench.device)
    for _ in range(bench.scale.runs):
        limit = timed(floor)
        seconds = timed(lambda: score_captions(candidates, references, ("bleu", "cider", "rouge"), tokenizer="python"))
        row.add(len(candidates) / seconds, len(candidates) / limit)
    row.peak_bytes = peak_of_this_process(bench.device)
    return row


def startup(bench: Bench) -> Row:
    """--help of every script; the slowest one is what the row shows."""
    row = Row("--help, the slowest script", "s", "bare Python", less_is_better=True)
    scripts = sorted(path for path in ROOT.glob("*.py") if path.read_text(encoding="utf-8").startswith("#!"))
    row.explain = ["the limit: a Python process that imports argparse and ends"]
    every: dict[str, list[float]] = {path.name: [] for path in scripts}
    for _ in range(bench.scale.script_runs):
        for path in scripts:
            every[path.name].append(bench.script(path.name, "--help").seconds)
        limit = run_script([bench.python, "-c", "import argparse"], ROOT).seconds
        row.add(max(times[-1] for times in every.values()), limit)
    row.parts["seconds_of_each_script"] = {name: min(times) for name, times in every.items()}
    row.peak_bytes = bench.script("train.py", "--help", watch=True).peak
    return row

"""Rows that caption: decoding from features as infer.py does it, and infer.py itself."""

import contextlib
import io
import re
import time
from pathlib import Path

import torch
from bench_data import captions, words, write_captions, write_config, write_features, write_pictures
from bench_limits import CAPTION, IMAGE, TOKEN, Sizes, beam_tokens, decoder_terms, operations
from bench_machine import Ran, forget_peak, synchronize
from bench_models import MAP, POOLED, from_file, from_pixels, plant_ending, random_encoder
from bench_rows import Bench, Row, import_seconds, of_products, peak_of_this_process

from captioning.batches.inputs import plan_inputs
from captioning.cores import core_count
from captioning.datasets.factory import open_dataset
from captioning.decoder.search import Search
from captioning.images.image_file import open_image
from data_loader import LoaderSettings, get_eval_loader
from model import caption_loader, save_captioner

LITE0 = "efficientnet_lite0-conv"


def feature_data(bench: Bench, section: str, images: int, shape: tuple, dtype: str, **settings):
    """A captioner of features with sentences of natural lengths, and its dataset."""
    texts = captions(images, words(2928))
    names = write_captions(bench.folder / "captions" / f"{section}.json", texts, images)
    file = bench.folder / "features" / section / "features.lmdb"
    if not file.exists():
        write_features(file, names, shape, dtype)
    dataset = open_dataset(f"bench:{section}", str(write_config(bench.folder, [section])))
    captioner = from_file("features.lmdb", shape, **settings)
    captioner.model.to(bench.device)
    batch = next(iter(get_eval_loader(dataset, plan_inputs(captioner.config, dataset))))
    plant_ending(captioner.model, None, [batch.inputs[0].to(bench.device)])
    return captioner, dataset


def decode(bench: Bench, beams: int, row: Row, **settings) -> Row:
    """Captions of images from their maps, in infer.py's batches of 32; settings: of the model."""
    key = "decode", *settings.values()
    if key not in bench.made:
        bench.made[key] = feature_data(bench, "decode", bench.scale.decode_images, MAP, "float16", **settings)
    captioner, dataset = bench.made[key]
    loader = get_eval_loader(dataset, plan_inputs(captioner.config, dataset), LoaderSettings(batch_size=32))
    search = Search(beam_size=beams)
    terms = decoder_terms(Sizes.of(captioner))
    row.explain = [term.line(training=False) for term in terms]

    # what the search cannot do without, from the sentences it finds: all K of them where there are beams
    lengths = []
    for _, _, several in caption_loader(captioner, loader, Search(beam_size=beams, n_best=beams), bench.amp):
        lengths += [[len(caption.tokens) + 1 for caption in image] for image in several]
    counts = {IMAGE: len(dataset), CAPTION: len(dataset), TOKEN: beam_tokens(lengths, beams)}
    row.parts["decoder_rows_per_image"] = counts[TOKEN] / len(dataset)
    row.parts["tokens_per_caption"] = sum(image[0] for image in lengths) / len(dataset)
    if beams > 1:
        row.explain.append("tokens: of an image 1 + K x (T - 1), T being those of the longest of its K best sentences")

    def run():
        synchronize(bench.device)
        began = time.perf_counter()
        for _ in caption_loader(captioner, loader, search, bench.amp):
            pass
        synchronize(bench.device)
        return len(dataset), time.perf_counter() - began, operations(terms, counts, training=False)

    return of_products(row, bench, run, bench.scale.runs)


def greedy_attention(bench: Bench) -> Row:
    return decode(bench, 1, Row("greedy with attention, from features (lmdb)", "images/s", "matrix products"))


def beam5_attention(bench: Bench) -> Row:
    return decode(bench, 5, Row("beam 5 with attention, from features (lmdb)", "images/s", "matrix products"))


def greedy_updown(bench: Bench) -> Row:
    row = Row("greedy with up-down attention, from features (lmdb)", "images/s", "matrix products")
    return decode(bench, 1, row, attention="updown")


def greedy_transformer(bench: Bench) -> Row:
    row = Row("greedy of a Transformer, from features (lmdb)", "images/s", "matrix products")
    return decode(bench, 1, row, decoder="transformer")


def beam5_transformer(bench: Bench) -> Row:
    row = Row("beam 5 of a Transformer, from features (lmdb)", "images/s", "matrix products")
    return decode(bench, 5, row, decoder="transformer")


# ---- infer.py on a folder ----


def folder_model(bench: Bench) -> tuple[Path, list[Path], object]:
    """A model file with EfficientNet-Lite0 and attention, a folder of 224x224 JPEGs, and the captioner; made once."""
    if "folder" in bench.made:
        return bench.made["folder"]
    folder, model = bench.folder / "images" / "folder", bench.folder / "lite0.model"
    names = [f"{number:05d}.jpg" for number in range(bench.scale.folder_images)]
    write_pictures(folder, names, 224, 224)
    captioner = from_pixels(random_encoder(LITE0, pretrained=True))
    paths = [folder / name for name in names]
    pixels = torch.stack([captioner.transform(open_image(path), None) for path in paths[:12]])
    plant_ending(captioner.model, pixels, [None])
    save_captioner(captioner, model)
    captioner.model.to(bench.device)
    bench.made["folder"] = model, paths, captioner
    return bench.made["folder"]


def parts_of_folder(bench: Bench, captioner, paths: list[Path], search: Search) -> dict[str, float]:
    """Images a second of each part by itself: decoding JPEGs (one core), the encoder, the decoder."""
    paths = paths[: 32 if bench.hurried else 64]
    began = time.perf_counter()
    pixels = [captioner.transform(open_image(path, captioner.transform.size_hint), None) for path in paths]
    jpeg = len(paths) / (time.perf_counter() - began)
    batches = [batch.to(bench.device) for batch in torch.stack(pixels).split(32)]
    extractor, decoder = captioner.model.extractors[0], captioner.ready_decoder()
    found = {"jpeg_one_core": jpeg}
    with torch.inference_mode():
        maps = [extractor(batch).flatten(2).transpose(1, 2) for batch in batches]
        for name, work, inputs in (
            ("encoder", extractor, batches),
            ("decoder", lambda values: captioner.caption(captioner.encode(None, [values]), search, decoder), maps),
        ):
            synchronize(bench.device)
            began = time.perf_counter()
            for part in inputs:
                work(part)
            synchronize(bench.device)
            found[name] = len(paths) / (time.perf_counter() - began)
    return found


def run_infer(bench: Bench, arguments: list, watch: bool) -> Ran:
    """infer.py as a process of its own; in a hurry within this one, which has the imports already."""
    if not bench.hurried:
        return bench.script("infer.py", *arguments, watch=watch)
    import infer

    forget_peak(bench.device)
    out, err = io.StringIO(), io.StringIO()
    began = time.perf_counter()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = infer.main(infer.parse_args([str(part) for part in arguments]))
    if status:
        raise RuntimeError(f"infer.py ended with {status}: {err.getvalue().strip()[-300:]}")
    return Ran(time.perf_counter() - began, out.getvalue(), err.getvalue(), peak_of_this_process(bench.device))


def infer_folder(bench: Bench, beams: int, row: Row) -> Row:
    model, paths, captioner = folder_model(bench)
    search = Search(beam_size=beams)
    parts_of_folder(bench, captioner, paths, search)  # the first time sets things up
    command = ["--model", model, "--image_dir", paths[0].parent, "--beam_size", beams, "--verbose"]
    command += ["--output_file", bench.folder / "folder.json", *bench.device_flags(), "--amp", bench.amp]
    row.explain = [
        f"the parts in turn: 1 / (1 / encoder + 1 / decoder + 1 / (JPEGs of one core x {core_count()} cores)),",
        "each measured by itself before and after every run; the time is infer.py's own, without imports and start-up",
    ]
    if not bench.hurried:
        row.peak_bytes = run_infer(bench, command, watch=True).peak
    before = parts_of_folder(bench, captioner, paths, search)
    for _ in range(bench.scale.script_runs):
        ran = run_infer(bench, command, watch=False)
        row.peak_bytes = row.peak_bytes or ran.peak
        images, seconds = re.search(r"(\d+) images in ([\d.]+) s", ran.err).groups()
        after = parts_of_folder(bench, captioner, paths, search)
        part = {name: (before[name] + after[name]) / 2 for name in before}
        limit = 1 / (1 / part["encoder"] + 1 / part["decoder"] + 1 / (part["jpeg_one_core"] * core_count()))
        row.add(int(images) / float(seconds), limit)
        row.parts |= {f"{name}_images_per_second": value for name, value in part.items()}
        row.parts["whole_process_seconds"] = ran.seconds
        before = after
    return row


def infer_folder_greedy(bench: Bench) -> Row:
    row = Row("infer.py, folder of 224x224 JPEGs, Lite0, greedy", "images/s", "its parts in turn")
    return infer_folder(bench, 1, row)


def infer_folder_beam5(bench: Bench) -> Row:
    row = Row("infer.py, folder of 224x224 JPEGs, Lite0, beam 5", "images/s", "its parts in turn")
    return infer_folder(bench, 5, row)


# ---- whole scripts, from their start ----


def infer_features(bench: Bench) -> Row:
    """infer.py as a whole over a dataset of pooled features."""
    count = bench.scale.feature_images
    row = Row(
        f"captions of {count:,} images from pooled features, whole infer.py",
        "s",
        "importing torch",
        less_is_better=True,
    )
    captioner, _ = feature_data(bench, "infer", count, POOLED, "float32")
    model = bench.folder / "pooled.model"
    save_captioner(captioner, model)
    command = ["infer.py", "--model", model, "--dataset", "bench:infer", "--beam_size", 1, *bench.device_flags()]
    command += ["--dataset_config_file", bench.folder / "datasets.conf", "--output_file", bench.folder / "infer.json"]
    row.explain = ["the limit: a Python process that imports torch and ends; what is above it is infer.py's own time"]
    if not bench.hurried:
        row.peak_bytes = bench.script(*command, watch=True).peak
    beyond = []
    for _ in range(bench.scale.script_runs):
        imports = import_seconds(bench, "torch")
        ran = bench.script(*command, watch=not row.peak_bytes)
        row.peak_bytes = row.peak_bytes or ran.peak
        row.add(ran.seconds, imports)
        beyond.append(ran.seconds - imports)
    row.parts["seconds_beyond_importing_torch"] = beyond
    return row


def first_caption(bench: Bench) -> Row:
    """infer.py photo.jpg, from the shell's prompt to the caption."""
    row = Row("first caption of one photo, Lite0, whole infer.py", "s", "importing torch", less_is_better=True)
    model, paths, _ = folder_model(bench)
    row.explain = ["the limit: a Python process that imports torch and ends"]
    beyond = []
    for _ in range(bench.scale.script_runs):
        imports = import_seconds(bench, "torch")
        ran = bench.script("infer.py", "--model", model, paths[0], *bench.device_flags(), watch=not row.peak_bytes)
        row.peak_bytes = row.peak_bytes or ran.peak
        row.add(ran.seconds, imports)
        beyond.append(ran.seconds - imports)
    row.parts["seconds_beyond_importing_torch"] = beyond
    return row

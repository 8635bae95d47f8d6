#!/usr/bin/env python3
"""Caption photos, folders and datasets with a trained model; score the captions where captions are known.

    ./infer.py --model models/mymodel/ep5.model photo.jpg                # photo.jpg: A man in a red shirt.
    ./infer.py --model models/mymodel/ep5.model --image_dir photos --recursive --html gallery.html
    ./infer.py --model models/mymodel/ep5.model --dataset coco:val2014 --scoring bleu,cider
    ./infer.py --model models/mymodel/ep5.model --image_dir photos --output_file captions.jsonl --resume

The model file knows its vocabulary, its encoder and the size of its images. A dataset whose feature files exist is
captioned from them, without the encoder. Captions are printed where no file is named; a dataset's go to
results/DATASET_MODEL.json. Images that cannot be read are named and passed over; the exit status is then 1.
"""

import argparse
import sys
from pathlib import Path

BUNDLED = Path(__file__).resolve().parent / "models" / "flickr8k.model"


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument_group("what to caption").add_argument
    add("images", nargs="*", metavar="IMAGE", help="image files")
    add("--image_dir", metavar="DIR", help="caption every image of this folder or zip file")
    add("--recursive", action="store_true", help="with the images of its subfolders")
    add("--dataset", metavar="NAME", help='datasets of datasets.conf, "a:x+b:y" joined')
    add("--dataset_config_file", metavar="FILE", help="configuration (default: datasets/datasets.conf)")
    add("--batch_size", type=int, default=32, metavar="N", help="images captioned at a time (default: 32)")
    add("--num_workers", type=int, metavar="N", help="processes that decode images (default: one per core; 0 for few)")
    add("--resize", type=int, metavar="PIXELS", help="width and height given to the encoder (default: the model's)")

    add = parser.add_argument_group("model").add_argument
    add("--model", metavar="FILE", help="model file of train.py (default: the bundled model, models/flickr8k.model)")
    add("--weights", metavar="FILE", help="local file of the encoder's weights (default: package, cache or download)")
    add("--vocab", metavar="FILE", help="vocabulary of the same size to use instead of the model's own")
    add("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps, ... (default: cuda or mps where there is one)")
    add("--cpu", action="store_true", help="the same as --device cpu")
    add("--amp", choices=("off", "bf16"), default="off", help="mixed precision (default: off)")

    add = parser.add_argument_group("how sentences are written").add_argument
    add("--max_seq_length", type=int, default=20, metavar="N", help="most words of a caption (default: 20)")
    add("--beam_size", type=int, metavar="K", help="beams; 1 is greedy (default: 3, or --n_best if more)")
    add("--length_penalty", type=float, default=0.0, metavar="A", help="rank beams by log p / length^A (default: 0)")
    add("--n_best", type=int, default=1, metavar="N", help="captions of each image, best first (default: 1)")
    add("--block_trigrams", action="store_true", help="never repeat three words in a caption")
    add("--trigram_penalty_alpha", type=float, default=0.0, metavar="A", help="lower the log-probability of a word "
        "that would repeat three words by A ln 2 per earlier time (default: 0, off)")  # fmt: skip
    add("--allow_unk", action="store_true", help="let <unk>, the unknown word, be written")
    add("--sample", action="store_true", help="draw the words at random instead of searching for the likeliest")
    add("--temperature", type=float, metavar="T", help="with --sample: below 1 bolder, above wilder (default: 1)")
    add("--top_k", type=int, metavar="K", help="with --sample: among the K likeliest words (default: all)")
    add("--top_p", type=float, metavar="P", help="with --sample: among the words that make up P (default: 1, all)")
    add("--seed", type=int, metavar="N", help="with --sample: seed of the random numbers (default: 42)")
    add("--no_capitalize", action="store_true", help="plain lower-case words, without capital and period")

    add = parser.add_argument_group("where captions go").add_argument
    add("--print_results", action="store_true", help="print the captions also where they are written to a file")
    add("--output_file", metavar="FILE", help="results file")
    add("--output_format", choices=("txt", "json", "jsonl", "csv"), help="of it (default: by its extension, or json)")
    add("--results_path", metavar="DIR", help="folder of results files without a name (default: results)")
    add("--resume", action="store_true", help="go on with an interrupted jsonl or csv file: pass over what it has")
    add("--html", metavar="FILE", help="gallery of the images and their captions, in one file")
    add("--attention_output", metavar="FILE.npz", help="where the model looked for every word of the best captions")
    add("--scoring", metavar="NAMES", help="print scores: bleu, cider, rouge, meteor, spice; comma separated")
    add("--verbose", action="store_true", help="say which model, encoder and device, and how fast")
    return parser.parse_args(argv)


if __name__ == "__main__":
    ARGS = parse_args()  # before the heavy imports, so that --help and mistakes answer at once

import contextlib
import copy
import math
import time

import torch
from tqdm import tqdm

from caption_datasets import CaptionDataset, GenericDataset, ImageItem, open_dataset
from common import UserError, run, script_name
from data_loader import FeatureSource, Loader, feature_path, get_eval_loader
from decoding import Search
from devices import choose_device
from encoder import image_transform
from image_zips import is_zip
from images import image_exists
from loaded_model import check_feature_files
from model import Caption, Captioner, caption_loader, load_captioner
from model_config import FeatureSpec
from result_files import GROWING, AttentionLog, Result, ResultsFile, check_writable, format_of, write_gallery
from vocabulary import Vocabulary


def note(message: str) -> None:
    """For the person, not for the pipe."""
    print(message, file=sys.stderr)


# ---- what the arguments mean ----


def check(args) -> None:
    for name in ("batch_size", "resize", "max_seq_length", "beam_size", "n_best", "top_k"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise UserError(f"--{name} {value}: must be at least 1")
    if args.num_workers is not None and args.num_workers < 0:
        raise UserError(f"--num_workers {args.num_workers}: must be 0 or more")
    for name in ("temperature", "top_k", "top_p", "seed"):
        if getattr(args, name) is not None and not args.sample:
            raise UserError(f"--{name} is for sampling: add --sample")
    if args.temperature is not None and not 0 < args.temperature < math.inf:
        raise UserError(f"--temperature {args.temperature}: must be above 0")
    if args.top_p is not None and not 0 < args.top_p <= 1:
        raise UserError(f"--top_p {args.top_p}: must be above 0 and at most 1")
    for name in ("length_penalty", "trigram_penalty_alpha"):
        if not math.isfinite(getattr(args, name)):
            raise UserError(f"--{name} {getattr(args, name)}: must be a number")
    if args.sample and (args.beam_size or 1) > 1:
        raise UserError("--sample and --beam_size exclude each other; for several samples of an image give --n_best")
    if args.beam_size and args.n_best > args.beam_size and not args.sample:
        raise UserError(f"--n_best {args.n_best} needs as many beams, not --beam_size {args.beam_size}")
    if args.cpu and args.device not in (None, "cpu"):
        raise UserError(f"--cpu and --device {args.device} exclude each other")
    if args.recursive and not args.image_dir:
        raise UserError("--recursive is for --image_dir")


def as_deepcaption(args, captioner: Captioner) -> bool:
    """Whether to write as DeepCaption did, greedily and with <unk>: for its files, unless a flag says how to search."""
    asked = args.beam_size or args.sample or args.n_best > 1 or args.length_penalty or args.block_trigrams
    return captioner.info.get("made_by") == "DeepCaption" and not asked


def search_of(args, captioner: Captioner) -> Search:
    old = as_deepcaption(args, captioner)
    beams = 1 if args.sample or old else args.beam_size or max(3, args.n_best)
    return Search(
        beam_size=beams,
        max_length=args.max_seq_length,
        length_penalty=args.length_penalty,
        n_best=args.n_best,
        sample=args.sample,
        temperature=args.temperature or 1.0,
        top_k=args.top_k or 0,
        top_p=args.top_p or 1.0,
        allow_unk=args.allow_unk or old,
        block_trigrams=args.block_trigrams,
        trigram_penalty_alpha=args.trigram_penalty_alpha,
    )


def model_path(args) -> str:
    if args.model:
        return args.model
    if not BUNDLED.exists():
        raise UserError("--model: give a model file, such as models/NAME/best.model; there is no bundled model here")
    return str(BUNDLED)


def open_images(args) -> CaptionDataset:
    """The images to caption. Raises UserError where there are none."""
    loose = bool(args.images or args.image_dir)
    if loose and args.dataset in (None, "generic"):
        for path in map(Path, args.images):
            if path.is_dir() or is_zip(path):
                kind = "folder" if path.is_dir() else "zip file"
                raise UserError(f"{path} is a {kind}: give it with --image_dir")
            if not image_exists(path):
                raise UserError(f"no such image: {path}")
        dataset = GenericDataset(files=args.images, image_dir=args.image_dir, recursive=args.recursive)
    elif loose:
        raise UserError(f"--dataset {args.dataset} and images or --image_dir exclude each other")
    elif not args.dataset:
        raise UserError("nothing to caption: give image files, --image_dir or --dataset")
    else:
        dataset = open_dataset(args.dataset, args.dataset_config_file)
    if args.scoring and not any(item.captions for item in dataset.items):
        raise UserError("--scoring needs captions to compare with: give a --dataset that has them")
    return dataset


def results_path(args) -> tuple[Path | None, str]:
    """The results file and its format; None where captions are only printed."""
    if args.output_file:
        return Path(args.output_file), format_of(args.output_file, args.output_format)
    if not (args.dataset or args.results_path or args.output_format):
        return None, ""
    source = args.dataset or (Path(args.image_dir).resolve().name if args.image_dir else "images")
    model = Path(model_path(args))
    # ep5 or best says little without the folder of its run
    name = f"{source}_{model.stem if model == BUNDLED else f'{model.resolve().parent.name}-{model.stem}'}"
    for character in ':/\\ *?"<>|':
        name = name.replace(character, "-")
    form = args.output_format or "json"
    return Path(args.results_path or "results") / f"{name}.{form}", form


# ---- model and batches ----


def open_model(args) -> Captioner:
    """The captioner without the encoders that feature files may spare."""
    vocabulary = Vocabulary.load(args.vocab) if args.vocab else None
    device = choose_device(args.device, args.cpu)
    captioner = load_captioner(model_path(args), device, args.weights, photos=False, vocabulary=vocabulary)
    if vocabulary is not None:
        if len(vocabulary) != len(captioner.vocabulary):
            sizes = f"it has {len(vocabulary)} words, the model {len(captioner.vocabulary)}"
            raise UserError(f"--vocab {args.vocab} does not fit the model: {sizes}")
        captioner.vocabulary = vocabulary
    if as_deepcaption(args, captioner):
        note("a model of DeepCaption: captions as it wrote them (greedy, with <unk>); --beam_size 3 searches better")
    if args.attention_output and captioner.model.attended is None:
        raise UserError("--attention_output: the model has no attention")
    return captioner


def features_at_hand(captioner: Captioner, dataset: CaptionDataset, is_dataset: bool) -> bool:
    """Whether the feature files that the model reads are there; says so where the photos have to do instead."""
    names = dict.fromkeys(spec.name for spec in captioner.config.specs if spec.external)
    if not names or not is_dataset:
        return False
    for part in dataset.parts:
        for name in names:
            path = Path(feature_path(part, name))
            if path.exists() or path.with_name(f"{path.stem}-mean{path.suffix}").exists():
                continue
            if any(item.path is None for item in part.items):
                raise UserError(f"--dataset {part.name}: no such feature file: {path}, and image_dir is not set either")
            note(f"{part.name} has no feature file {path}: its photos are captioned instead")
            return False
    return True


def resized(captioner: Captioner, size: int) -> None:
    """Have images of another size given to the encoders. Raises UserError where one cannot take it."""
    captioner.size, captioner.transform = size, image_transform(size, captioner.transform.interpolation)
    probe = torch.zeros(1, 3, size, size, dtype=torch.uint8, device=captioner.device)
    try:
        captioner.encode(probe, [None] * len(captioner.external))
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:150]
        raise UserError(f"--resize {size}: the model's encoder cannot take images of this size ({reason})") from error


def make_loader(args, captioner: Captioner, dataset: CaptionDataset) -> Loader:
    """Batches of the images, from feature files where they exist, else from pixels."""
    from_files = features_at_hand(captioner, dataset, bool(args.dataset))
    if not from_files and any(captioner.external):
        captioner.prepare_for_photos()
    if args.resize:
        if from_files:
            raise UserError("--resize is for photos, but the model reads this dataset from feature files")
        resized(captioner, args.resize)
    transform = None if all(captioner.external) else captioner.transform
    lists = (captioner.config.features, captioner.config.persist_features)
    external = [[spec for spec in specs if spec.external and from_files] for specs in lists]
    workers = args.num_workers
    if workers is None and len(dataset) <= args.batch_size:
        workers = 0  # a single batch: starting processes would only cost time
    loader = get_eval_loader(
        dataset,
        batch_size=args.batch_size,
        features=[spec.name for spec in external[0]],
        persist_features=[spec.name for spec in external[1]],
        transform=transform,
        num_workers=workers,
    )
    check_feature_files(captioner.config, loader)
    for spec, source in zip(external[0] + external[1], loader.features + loader.persist_features):
        check_features(spec, source)
    return loader


def check_features(spec: FeatureSpec, source: FeatureSource) -> None:
    """Raises UserError where a dataset's feature file is not what the model was trained on."""
    path = source.readers[0].path
    if tuple(source.shape) != tuple(spec.shape):
        raise UserError(f"{path} has features of shape {tuple(source.shape)}, but the model reads {tuple(spec.shape)}")
    for key in ("extractor", "weights_sha256", "feature_type"):
        has, wants = ((maker or {}).get(key) for maker in (source.maker, spec.maker))
        if has and wants and has != wants:
            raise UserError(f"{path} was made with {key} {has}, but the model was trained with {key} {wants}")


# ---- captioning ----


def log_attention(log: AttentionLog, captioner: Captioner, items: list[ImageItem], memory, captions, amp: str) -> None:
    best = [several[0] for several in captions]
    with torch.autocast(captioner.device.type, torch.bfloat16, enabled=amp == "bf16"):
        explained = captioner.explain(memory, best)
    for item, caption, (weights, log_probs) in zip(items, best, explained):
        words = [*captioner.vocabulary.tokens(caption.tokens), "<end>"]
        log.add(printable(item.image_id), words, weights.numpy(), log_probs.numpy())


def caption_all(args, captioner: Captioner, loader: Loader, add, attention: AttentionLog | None) -> None:
    """Caption the images of `loader`, telling add(result) of each; prints them where that is asked for."""
    if args.sample:
        torch.manual_seed(42 if args.seed is None else args.seed)
    bar = tqdm(total=len(loader.items), unit="image", desc="caption", disable=True if args.print_results else None)
    with bar, contextlib.closing(loader):
        for batch, memory, captions in caption_loader(captioner, loader, search_of(args, captioner), args.amp):
            for item, several in zip(batch.items, captions):
                result = result_of(captioner, item, several, capitalize=not args.no_capitalize)
                add(result)
                if args.print_results:
                    print_captions(item, result)
            if attention is not None:
                log_attention(attention, captioner, batch.items, memory, captions, args.amp)
            bar.update(len(batch.items))


def result_of(captioner: Captioner, item: ImageItem, captions: list[Caption], capitalize: bool) -> Result:
    texts = [captioner.vocabulary.sentence(caption.tokens, capitalize) for caption in captions]
    pairs = [(text, caption.log_prob) for text, caption in zip(texts, captions)]
    return Result(printable(item.image_id), pairs, item.path, item.captions)


def printable(image_id):
    """A file name may hold bytes that are no text; they are written out as \\udcXX."""
    return image_id.encode("utf-8", "backslashreplace").decode() if isinstance(image_id, str) else image_id


def print_captions(item: ImageItem, result: Result) -> None:
    name = result.image_id if isinstance(result.image_id, str) else printable(item.key)
    for text, log_prob in result.captions:
        print(f"{name}: {text}" + (f"  ({log_prob:.2f})" if len(result.captions) > 1 else ""), flush=True)


# ---- after it ----


def report_scores(metrics: tuple[str, ...], results: list[Result]) -> tuple[list[str], bool]:
    """Print the scores of the best captions; gives the table, and whether a metric was left out."""
    from scoring import caption_statistics, java_note, score_captions

    known = [result for result in results if result.references]
    candidates = {result.image_id: result.captions[0][0] for result in known}
    scores = score_captions(candidates, {result.image_id: result.references for result in known}, metrics)
    if line := java_note(metrics):
        note(line)
    statistics = caption_statistics(candidates.values())
    lines = [
        *scores.lines(),
        f"{len(candidates)} captions, {statistics['distinct']:.1%} of them distinct, "
        f"mean length {statistics['mean_length']:.1f} words",
    ]
    print("\n".join(lines))
    return lines, bool(scores.left_out)


def describe(captioner: Captioner, dataset: CaptionDataset, args) -> None:
    made = [
        spec.name if external or not spec.external else f"{spec.name} made by {spec.maker['extractor']}"
        for spec, external in zip(captioner.config.specs, captioner.external)
    ]
    size = sum(p.numel() for p in captioner.model.decoder.parameters())
    note(f"model {model_path(args)}: decoder of {size / 1e6:.1f} million weights, {len(captioner.vocabulary)} words")
    pixels = "" if all(captioner.external) else f"; images {captioner.size}x{captioner.size}"
    note(f"features {', '.join(made)}{pixels}; device {captioner.device}")
    note(f"{len(dataset)} images of {dataset.name}")


def take_over(file: ResultsFile, dataset: CaptionDataset) -> CaptionDataset:
    """The images that `file` does not have yet; what it has is told what the dataset knows of it."""
    by_id = {str(printable(item.image_id)): item for item in dataset.items}
    for result in file.earlier:
        item = by_id.get(str(result.image_id))
        if item is None:
            raise UserError(f"--resume: {file.path} has image {result.image_id!r}, which is not among those to caption")
        result.image_id, result.path, result.references = printable(item.image_id), item.path, item.captions
    done = {str(result.image_id) for result in file.earlier}
    if not done:
        return dataset
    note(f"{len(done)} of {len(dataset)} images are captioned already")
    rest = copy.copy(dataset)  # its parts stay whole: rows of a feature file may follow their order
    rest.items = [item for item in dataset.items if str(printable(item.image_id)) not in done]
    return rest


def outputs(args) -> tuple[ResultsFile | None, tuple[str, ...]]:
    """The results file and the metrics, all checked before the work begins."""
    path, form = results_path(args)
    if args.resume and form not in GROWING:
        raise UserError(f"--resume goes on with {' and '.join(GROWING)} files: name one with --output_file")
    if args.resume and args.attention_output:
        raise UserError("--attention_output cannot be resumed: leave out --resume")
    for option, name in (("--output_file", path), ("--html", args.html), ("--attention_output", args.attention_output)):
        if name:
            check_writable(option, name)
    args.print_results |= path is None
    metrics = ()
    if args.scoring:
        from scoring import parse_metrics

        metrics = parse_metrics(args.scoring)
    return ResultsFile(path, form, args.resume) if path else None, metrics


def caption_rest(args, rest: CaptionDataset, file: ResultsFile | None, results: list[Result]) -> list[str]:
    """Caption the images of `rest` into `file`, or `results` where there is none; gives why images were left out."""
    captioner = open_model(args)
    loader = make_loader(args, captioner, rest)
    if args.verbose:
        describe(captioner, rest, args)
    attention = None
    if args.attention_output:
        attention = AttentionLog(captioner.config.specs[captioner.model.attended].shape[1:])
    began = time.monotonic()
    try:
        caption_all(args, captioner, loader, file.add if file else results.append, attention)
    except KeyboardInterrupt:
        if file and file.form in GROWING:
            note(f"\n{file.part} has the captions so far: add --resume to go on")
        raise
    if not results:
        raise UserError(f"none of the {len(rest)} images could be captioned")
    if args.verbose:
        count, seconds = len(rest) - len(loader.bad_items), time.monotonic() - began
        note(f"{count} images in {seconds:.1f} s, {count / max(seconds, 1e-9):.1f} a second")
    if attention is not None:
        attention.write(args.attention_output)
        note(f"{args.attention_output}: attention weights of {len(attention.ids)} images")
    return loader.bad_items


def main(args) -> int:
    check(args)
    dataset = open_images(args)
    file, metrics = outputs(args)
    results = file.results if file else []
    rest = take_over(file, dataset) if file else dataset
    with file or contextlib.nullcontext():
        bad = caption_rest(args, rest, file, results) if rest.items else []
    if file:
        note(f"{file.path}: captions of {len(results)} images")
    lines, left_out = report_scores(metrics, results) if metrics else ([], False)
    if args.html:
        title = f"{len(results)} images of {args.dataset or args.image_dir or 'a list'}"
        write_gallery(args.html, results, title, f"Captioned by {model_path(args)}", lines)
        note(f"{args.html}: gallery of {len(results)} images")
    if bad:
        note(f"{script_name()}: {len(bad)} of {len(rest)} images could not be read")
    return 1 if bad or left_out else 0


if __name__ == "__main__":
    sys.exit(run(main, ARGS))

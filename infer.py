#!/usr/bin/env python3
"""Caption photos, folders and datasets with a trained model; score the captions where captions are known.

    ./infer.py --model models/mymodel/ep5.model photo.jpg                # photo.jpg: A man in a red shirt.
    ./infer.py --model models/mymodel/ep5.model --image_dir photos --recursive --html gallery.html
    ./infer.py --model models/mymodel/ep5.model --dataset coco:val2014 --scoring bleu,cider
    ./infer.py --model models/mymodel/ep5.model --image_dir photos --output_file captions.jsonl --resume
    ./infer.py --model models/mymodel/ep5.model --probabilities --alternatives 3 photo.jpg

The model file knows its vocabulary, its encoder and the size of its images. A dataset whose feature files exist is
captioned from them, without the encoder. Captions are printed where no file is named; a dataset's go to
results/DATASET_MODEL.json. Images that cannot be read are named and passed over; the exit status is then 1.
"""

import sys

from captioning.errors import UserError, run
from inference import flags


def parse_args(argv=None):
    return flags.parse_args(__doc__, argv)


if __name__ == "__main__":
    ARGS = parse_args()  # before the heavy imports, so that --help and mistakes answer at once

import contextlib
import copy
import time
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from captioning.batches.inputs import Input, plan_inputs
from captioning.datasets.base import CaptionDataset, ImageItem
from captioning.datasets.factory import open_dataset
from captioning.datasets.folder import GenericDataset
from captioning.decoder.search import Search
from captioning.devices import choose_device
from captioning.encoder.ten_crops import with_size
from captioning.errors import script_name
from captioning.files import check_writable
from captioning.images.image_file import image_exists
from captioning.images.zip_file import is_zip
from captioning.text.tokenizers import as_sentence
from data_loader import Loader, LoaderSettings, get_eval_loader
from inference.attention_maps import AttentionLog
from inference.flags import BUNDLED, check
from inference.gallery import write_gallery
from inference.lemmas import LemmaRules
from inference.results import GROWING, Result, ResultsFile, format_of, shown_texts
from inference.words import word_probabilities
from model import Caption, Captioner, caption_loader, load_captioner
from vocabulary import Vocabulary


def note(message: str) -> None:
    """For the person, not for the pipe."""
    print(message, file=sys.stderr)


# ---- what the arguments mean ----


def as_deepcaption(args, captioner: Captioner) -> bool:
    """Whether to write as DeepCaption did, greedily and with <unk>: for its files, unless a flag says how to search."""
    asked = args.beam_size or args.sample or args.n_best > 1 or args.length_penalty or args.block_trigrams
    return captioner.info.get("made_by") == "DeepCaption" and not asked


def search_of(args, captioner: Captioner) -> Search:
    old = as_deepcaption(args, captioner)
    beams = 1 if args.sample or old else args.beam_size or max(3, args.n_best)
    own = 0.0 if old or args.sample else captioner.length_penalty
    length_penalty = own if args.length_penalty is None else args.length_penalty
    return Search(
        beam_size=beams,
        max_length=args.max_seq_length,
        length_penalty=length_penalty,
        n_best=args.n_best,
        sample=args.sample,
        temperature=args.temperature or 1.0,
        top_k=args.top_k or 0,
        top_p=args.top_p or 1.0,
        allow_unk=args.allow_unk or old,
        block_trigrams=args.block_trigrams,
        trigram_penalty_alpha=args.trigram_penalty_alpha,
        no_repeat_sentences=args.no_repeat_sentences,
        only_complete_sentences=args.only_complete_sentences,
    )


def check_paragraphs(args) -> None:
    """Raises UserError for what cannot be asked of a model that writes paragraphs."""
    if args.n_best > 1 and not args.sample:
        raise UserError(f"--n_best {args.n_best}: a beam search writes one paragraph of an image; for several --sample")
    for name in ("alternatives", "probabilities", "lemma_pos_rules"):
        if getattr(args, name):
            raise UserError(f"--{name} is for captions of one sentence; the model writes paragraphs")


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
    names = {item.image_id: result_id(args, item) for item in dataset.items}
    if args.store_image_paths and len(set(names.values())) < len(names):
        raise UserError("--store_image_paths: several items share a photo, so that its path would not tell them apart")
    if args.scoring and not any(item.captions for item in dataset.items):
        raise UserError("--scoring needs captions to compare with: give a --dataset that has them")
    return dataset


def results_path(args) -> tuple[Path | None, str]:
    """The results file and its format; None where captions are only printed."""
    if args.output_file:
        return Path(args.results_path or ".") / args.output_file, format_of(args.output_file, args.output_format)
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
    if captioner.config.paragraphs is not None:
        check_paragraphs(args)
    if args.attention_output and captioner.model.attended is None:
        raise UserError("--attention_output: the model has no attention")
    return captioner


def resized(captioner: Captioner, size: int) -> None:
    """Have images of another size given to the encoders. Raises UserError where one cannot take it."""
    captioner.size, captioner.transform = size, with_size(captioner.transform, size)
    probe = captioner.transform(Image.new("RGB", (size, size)), None).unsqueeze(0)
    try:
        captioner.encode(probe.to(captioner.device), [None] * len(captioner.config.specs))
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:150]
        raise UserError(f"--resize {size}: the model's encoder cannot take images of this size ({reason})") from error


def make_loader(args, captioner: Captioner, dataset: CaptionDataset) -> Loader:
    """Batches of the images, from feature files where they exist, else from pixels."""
    replaced = {"features": args.ext_features, "persist_features": args.ext_persist_features}
    photos = "instead" if args.dataset else "always"
    inputs = plan_inputs(captioner.config, dataset, replaced=replaced, photos=photos, strict=True)
    pixels = all(one.from_pixels for one in inputs)
    if pixels:
        captioner.prepare_for_photos()
    if args.resize:
        if not pixels:
            raise UserError("--resize is for photos, but the model reads this dataset from feature files")
        resized(captioner, args.resize)
    workers = args.num_workers
    if workers is None and len(dataset) <= args.batch_size:
        workers = 0  # a single batch: starting processes would only cost time
    settings = LoaderSettings(args.batch_size, num_workers=workers)
    return get_eval_loader(dataset, inputs, settings, captioner.transform)


# ---- captioning ----


def log_attention(args, log: AttentionLog, captioner: Captioner, items: list[ImageItem], memory, captions) -> None:
    best = [several[0] for several in captions]
    with torch.autocast(captioner.device.type, torch.bfloat16, enabled=args.amp == "bf16"):
        explained = captioner.explain(memory, best)
    for item, caption, (weights, log_probs) in zip(items, best, explained):
        log.add(result_id(args, item), captioner.words(caption), weights.numpy(), log_probs.numpy())


def caption_all(args, captioner: Captioner, loader: Loader, add, attention: AttentionLog | None) -> None:
    """Caption the images of `loader`, telling add(result) of each; prints them where that is asked for."""
    if args.sample:
        torch.manual_seed(42 if args.seed is None else args.seed)
    rules = LemmaRules.load(args.lemma_pos_rules) if args.lemma_pos_rules else None
    bar = tqdm(total=len(loader.items), unit="image", desc="caption", disable=True if args.print_results else None)
    with bar, contextlib.closing(loader):
        for batch, memory, captions in caption_loader(captioner, loader, search_of(args, captioner), args.amp):
            words = words_of(args, captioner, memory, captions)
            for item, several, steps in zip(batch.items, captions, words):
                result = result_of(args, captioner, item, several, rules)
                result.words = steps
                add(result)
                if args.print_results:
                    print_captions(item, result)
            if attention is not None:
                log_attention(args, attention, captioner, batch.items, memory, captions)
            bar.update(len(batch.items))
    if rules and (line := rules.report()):
        note(f"{args.lemma_pos_rules}: {line}")


def words_of(args, captioner: Captioner, memory, captions: list[list[Caption]]) -> list[list]:
    """What is told of the words of the captions of each image: nothing, where neither flag asks for it."""
    if not told_by_word(args):
        return [[] for _ in captions]
    with torch.autocast(captioner.device.type, torch.bfloat16, enabled=args.amp == "bf16"):
        found = word_probabilities(captioner, memory, captions, args.alternatives or 1)
    return [
        [[[(w, p if args.probabilities else None) for w, p in step.words] for step in steps] for steps in several]
        for several in found
    ]


def told_by_word(args) -> bool:
    return args.probabilities or args.alternatives is not None


def result_of(args, captioner: Captioner, item: ImageItem, captions: list[Caption], rules: LemmaRules | None) -> Result:
    vocabulary, pairs = captioner.vocabulary, []
    for caption in captions:
        if rules is None:
            text = captioner.text(caption, not args.no_capitalize)
        else:
            text = " ".join(rules.words(vocabulary.tokens(caption.tokens)))
            text = text if args.no_capitalize else as_sentence(text)
        pairs.append((text, caption.log_prob))
    return Result(result_id(args, item), pairs, item.path, item.captions)


def result_id(args, item: ImageItem):
    """How results name an image: by its id, or by its path (its key where no image_dir tells the path)."""
    return printable((item.path or item.key) if args.store_image_paths else item.image_id)


def printable(image_id):
    """A file name may hold bytes that are no text; they are written out as \\udcXX."""
    return image_id.encode("utf-8", "backslashreplace").decode() if isinstance(image_id, str) else image_id


def print_captions(item: ImageItem, result: Result) -> None:
    name = result.image_id if isinstance(result.image_id, str) else printable(item.key)
    for text, (_, log_prob) in zip(shown_texts(result), result.captions):
        print(f"{name}: {text}" + (f"  ({log_prob:.2f})" if len(result.captions) > 1 else ""), flush=True)


# ---- after it ----


def report_scores(metrics: tuple[str, ...], results: list[Result]) -> tuple[list[str], bool]:
    """Print the scores of the best captions; gives the table, and whether a metric was left out."""
    from captioning.scoring.metrics import caption_statistics, java_note, score_captions

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


def describe(captioner: Captioner, dataset: CaptionDataset, inputs: list[Input], args) -> None:
    made = [
        f"{x.spec.name} made by {x.spec.provenance['extractor']}" if x.from_pixels and x.spec.from_file else x.spec.name
        for x in inputs
    ]
    size = sum(p.numel() for p in captioner.model.decoder.parameters())
    note(f"model {model_path(args)}: decoder of {size / 1e6:.1f} million weights, {len(captioner.vocabulary)} words")
    pixels = "" if not any(one.from_pixels for one in inputs) else f"; images {captioner.size}x{captioner.size}"
    note(f"features {', '.join(made)}{pixels}; device {captioner.device}")
    note(f"{len(dataset)} images of {dataset.name}")


def take_over(args, file: ResultsFile, dataset: CaptionDataset) -> CaptionDataset:
    """The images that `file` does not have yet; what it has is told what the dataset knows of it."""
    by_id = {str(result_id(args, item)): item for item in dataset.items}
    for result in file.earlier:
        item = by_id.get(str(result.image_id))
        if item is None:
            raise UserError(f"--resume: {file.path} has image {result.image_id!r}, which is not among those to caption")
        result.image_id, result.path, result.references = result_id(args, item), item.path, item.captions
    done = {str(result.image_id) for result in file.earlier}
    if not done:
        return dataset
    note(f"{len(done)} of {len(dataset)} images are captioned already")
    rest = copy.copy(dataset)  # its parts stay whole: rows of a feature file may follow their order
    rest.items = [item for item in dataset.items if str(result_id(args, item)) not in done]
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
        from captioning.scoring.metrics import parse_metrics

        metrics = parse_metrics(args.scoring)
    return ResultsFile(path, form, args.resume, told_by_word(args)) if path else None, metrics


def caption_rest(args, rest: CaptionDataset, file: ResultsFile | None, results: list[Result]) -> list[str]:
    """Caption the images of `rest` into `file`, or `results` where there is none; gives why images were left out."""
    captioner = open_model(args)
    loader = make_loader(args, captioner, rest)
    if args.verbose:
        describe(captioner, rest, loader.inputs, args)
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
    rest = take_over(args, file, dataset) if file else dataset
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

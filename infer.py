#!/usr/bin/env python3
"""Caption photos, folders and datasets with a trained model; score the captions of a dataset that has references.

    ./infer.py photo.jpg                                                 # photo.jpg: A man in a red shirt.
    ./infer.py --model models/mymodel/ep5.model --image_dir photos --recursive --html gallery.html
    ./infer.py --model models/mymodel/ep5.model --dataset coco:val2014 --scoring bleu,cider
    ./infer.py --model models/mymodel/ep5.model --image_dir photos --output_file captions.jsonl --resume
    ./infer.py --model models/mymodel/ep5.model --probabilities --alternatives 3 photo.jpg

The model file holds its vocabulary, its encoder and the size of its images. A dataset whose feature files exist is
captioned from them, without the encoder. Captions are printed unless they are written to a file; those of a dataset
are written to results/DATASET_MODEL.json. Images that cannot be read are named and skipped; the exit status is then 1.
"""

import sys

from captioning.errors import UserError, run
from inference import flags


def parse_args(argv=None):
    return flags.parse_args(__doc__, argv)


if __name__ == "__main__":
    ARGS = parse_args()  # before the imports of packages, so that --help and mistakes answer at once

import contextlib
import copy
import time
from dataclasses import replace
from pathlib import Path

from captioning.datasets.base import CaptionDataset, ImageItem
from captioning.datasets.factory import open_dataset
from captioning.datasets.folder import GenericDataset
from captioning.errors import script_name
from captioning.files import check_writable, require_model_file
from captioning.images.image_file import image_exists
from captioning.images.zip_file import is_zip
from inference.gallery import write_gallery
from inference.lemmas import LemmaRules
from inference.results import GROWING, Result, ResultsFile, Style, format_of, printable, shown_texts
from vocabulary import Vocabulary


def note(message: str) -> None:
    """For the person, not for the pipe."""
    print(message, file=sys.stderr)


class InferRun:
    """One run of this script.

    prepare() opens the images and checks all that can be checked without torch; run() captions them, writes what was
    asked for and gives the exit status.
    """

    def __init__(self, args):
        self.args = args
        self.style = Style(not args.no_capitalize, None, args.probabilities, args.alternatives, args.store_image_paths)

    # ---- without torch ----

    def prepare(self) -> None:
        """Raises UserError for mistakes in the images, the outputs and the paths of other files."""
        args = self.args
        self.dataset = self.open_images()
        self.model = flags.model_path(args.model)
        self.metrics = ()
        self.file = self.open_results()
        self.results = self.file.results if self.file else []
        self.rest = self.skip_captioned() if self.file else self.dataset
        if self.rest.items:  # otherwise all is done, and no model is needed
            require_model_file(self.model)
        if args.lemma_pos_rules:
            self.style = replace(self.style, rules=LemmaRules.load(args.lemma_pos_rules))
        self.vocabulary = Vocabulary.load(args.vocab) if args.vocab else None

    def open_images(self) -> CaptionDataset:
        """The images to caption. Raises UserError where there are none."""
        args = self.args
        loose = bool(args.images or args.image_dir)
        if loose and args.dataset in (None, "generic"):
            check_photos(args.images)
            dataset = GenericDataset(files=args.images, image_dir=args.image_dir, recursive=args.recursive)
        elif loose:
            raise UserError(f"--dataset {args.dataset} and images or --image_dir exclude each other")
        elif not args.dataset:
            raise UserError("nothing to caption: give image files, --image_dir or --dataset")
        else:
            dataset = open_dataset(args.dataset, args.dataset_config_file)
        names = {item.image_id: self.style.id_of(item) for item in dataset.items}
        if args.store_image_paths and len(set(names.values())) < len(names):
            raise UserError("--store_image_paths: several items share a photo, so a path does not tell them apart")
        if args.scoring and not any(item.captions for item in dataset.items):
            raise UserError("--scoring needs captions to compare with: give a --dataset that has them")
        return dataset

    def open_results(self) -> ResultsFile | None:
        """The results file, None where captions are only printed. All outputs are checked here."""
        args = self.args
        path, form = self.results_path()
        if args.resume and form not in GROWING:
            raise UserError(f"--resume goes on with {' and '.join(GROWING)} files: name one with --output_file")
        if args.resume and args.attention_output:
            raise UserError("--attention_output cannot be resumed: leave out --resume")
        outputs = {"--output_file": path, "--html": args.html, "--attention_output": args.attention_output}
        for option, name in outputs.items():
            if name:
                check_writable(option, name)
        if args.scoring:
            from captioning.scoring.metrics import parse_metrics

            self.metrics = parse_metrics(args.scoring)
        return ResultsFile(path, form, args.resume, self.style.wants_words) if path else None

    def results_path(self) -> tuple[Path | None, str]:
        """The results file and its format; None where captions are only printed."""
        args = self.args
        if args.output_file:
            return Path(args.results_path or ".") / args.output_file, format_of(args.output_file, args.output_format)
        if not (args.dataset or args.results_path or args.output_format):
            return None, ""
        source = args.dataset or (Path(args.image_dir).resolve().name if args.image_dir else "images")
        # ep5 or best says little without the folder of its run
        bundled = self.model == flags.BUNDLED
        name = self.model.stem if bundled else f"{self.model.resolve().parent.name}-{self.model.stem}"
        name = f"{source}_{name}"
        for character in ':/\\ *?"<>|':
            name = name.replace(character, "-")
        form = args.output_format or "json"
        return Path(args.results_path or "results") / f"{name}.{form}", form

    def skip_captioned(self) -> CaptionDataset:
        """The images that the results file does not have yet; its results get what the dataset knows of theirs."""
        by_id = {str(self.style.id_of(item)): item for item in self.dataset.items}
        for result in self.file.earlier:
            item = by_id.get(str(result.image_id))
            if item is None:
                path = self.file.path
                raise UserError(f"--resume: {path} has image {result.image_id!r}, which is not among those to caption")
            result.image_id, result.path, result.references = self.style.id_of(item), item.path, item.captions
        done = {str(result.image_id) for result in self.file.earlier}
        if not done:
            return self.dataset
        note(f"{len(done)} of {len(self.dataset)} images are captioned already")
        rest = copy.copy(self.dataset)  # its parts stay whole: rows of a feature file may follow their order
        rest.items = [item for item in self.dataset.items if str(self.style.id_of(item)) not in done]
        return rest

    # ---- captioning ----

    def run(self) -> int:
        bad: list[str] = []
        with self.file or contextlib.nullcontext():
            if self.rest.items:
                bad = self.caption_rest()
        if self.file:
            note(f"{self.file.path}: captions of {len(self.results)} images")
        lines, left_out = report_scores(self.metrics, self.results) if self.metrics else ([], False)
        if self.args.html:
            title = f"{len(self.results)} images of {self.args.dataset or self.args.image_dir or 'a list'}"
            write_gallery(self.args.html, self.results, title, f"Captioned by {self.model}", lines)
            note(f"{self.args.html}: gallery of {len(self.results)} images")
        if bad:
            note(f"{script_name()}: {len(bad)} of {len(self.rest)} images could not be read")
        return 1 if bad or left_out else 0

    def caption_rest(self) -> list[str]:
        """Caption the images that are left, into the results; gives why images were left out."""
        # torch is imported only now, so that mistakes are answered at once
        from inference.attention_maps import AttentionLog
        from inference.captions import ImageCaptions

        args, attention = self.args, None
        captioner = self.open_model()
        loader = self.open_loader(captioner)
        if args.verbose:
            self.describe(captioner, loader.inputs)
        if args.attention_output:
            attention = AttentionLog(captioner.config.specs[captioner.model.attended].shape[1:])
        began = time.monotonic()
        captions = ImageCaptions(captioner, self.search(captioner), self.style, args.amp, attention)
        try:
            self.take(captions.of(loader))
        except KeyboardInterrupt:
            if self.file and self.file.form in GROWING:
                note(f"\n{self.file.part} has the captions so far: add --resume to go on")
            raise
        if not self.results:
            raise UserError(f"none of the {len(self.rest)} images could be captioned")
        if args.verbose:
            count, seconds = len(self.rest) - len(loader.bad_items), time.monotonic() - began
            note(f"{count} images in {seconds:.1f} s, {count / max(seconds, 1e-9):.1f} a second")
        if attention is not None:
            attention.write(args.attention_output)
            note(f"{args.attention_output}: attention weights of {len(attention.ids)} images")
        if self.style.rules and (line := self.style.rules.report()):
            note(f"{args.lemma_pos_rules}: {line}")
        return loader.bad_items

    def take(self, results) -> None:
        """Keep each of (item, result), in the results file if there is one; print it where that is asked for."""
        from tqdm import tqdm

        printed = self.args.print_results or self.file is None
        add = self.file.add if self.file else self.results.append
        with tqdm(total=len(self.rest), unit="image", desc="caption", disable=True if printed else None) as bar:
            for item, result in results:
                add(result)
                if printed:
                    print_captions(item, result)
                bar.update()

    def open_model(self):
        """The model.Captioner, without the encoders that feature files may stand in for.

        Raises UserError for what cannot be asked of it.
        """
        from captioning.devices import choose_device
        from model import load_captioner

        args = self.args
        device = choose_device(args.device, args.cpu)
        captioner = load_captioner(self.model, device, args.weights, photos=False, vocabulary=self.vocabulary)
        if self.vocabulary is not None:
            if len(self.vocabulary) != len(captioner.vocabulary):
                sizes = f"it has {len(self.vocabulary)} words, the model {len(captioner.vocabulary)}"
                raise UserError(f"--vocab {args.vocab} does not fit the model: {sizes}")
            captioner.vocabulary = self.vocabulary
        if self.as_deepcaption(captioner):
            note(
                "a model of DeepCaption: captions as it wrote them (greedy, with <unk>); --beam_size 3 searches better"
            )
        if captioner.config.paragraphs is not None:
            self.check_paragraphs()
        if args.attention_output and captioner.model.attended is None:
            raise UserError("--attention_output: the model has no attention")
        return captioner

    def check_paragraphs(self) -> None:
        """Raises UserError for what cannot be asked of a model that writes paragraphs."""
        several = self.args.n_best
        if several > 1 and not self.args.sample:
            raise UserError(f"--n_best {several}: a beam search writes one paragraph of an image; for several --sample")
        for name in ("alternatives", "probabilities", "lemma_pos_rules"):
            if getattr(self.args, name):
                raise UserError(f"--{name} is for captions of one sentence; the model writes paragraphs")

    def open_loader(self, captioner):
        from data_loader import LoaderSettings
        from inference.captions import open_loader

        args = self.args
        replaced = {"features": args.ext_features, "persist_features": args.ext_persist_features}
        settings = LoaderSettings(args.batch_size, num_workers=args.num_workers)
        photos = "instead" if args.dataset else "always"
        return open_loader(captioner, self.rest, settings, replaced, photos, args.resize)

    def as_deepcaption(self, captioner) -> bool:
        """Whether to write as DeepCaption did, greedily and with <unk>: with its models, unless a flag says how."""
        args = self.args
        asked = args.beam_size or args.sample or args.n_best > 1 or args.length_penalty or args.block_trigrams
        return captioner.info.get("made_by") == "DeepCaption" and not asked

    def search(self, captioner):
        """The Search that the flags ask for."""
        import torch

        from captioning.decoder.search import Search

        args, old = self.args, self.as_deepcaption(captioner)
        if args.sample:
            torch.manual_seed(42 if args.seed is None else args.seed)
        return Search(
            beam_size=1 if args.sample or old else args.beam_size or max(3, args.n_best),
            max_length=args.max_seq_length,
            length_penalty=flags.length_penalty(args.length_penalty, captioner),
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

    def describe(self, captioner, inputs) -> None:
        """Print what --verbose asks for; inputs: the Input of each feature that the model reads."""
        made = [
            f"{x.spec.name} made by {x.spec.provenance['extractor']}"
            if x.from_pixels and x.spec.from_file
            else x.spec.name
            for x in inputs
        ]
        size = sum(p.numel() for p in captioner.model.decoder.parameters())
        note(f"model {self.model}: decoder of {size / 1e6:.1f} million weights, {len(captioner.vocabulary)} words")
        pixels = f"; images {captioner.size}x{captioner.size}" if any(x.from_pixels for x in inputs) else ""
        note(f"features {', '.join(made)}{pixels}; device {captioner.device}")
        note(f"{len(self.rest)} images of {self.rest.name}")


def check_photos(images: list[str]) -> None:
    """Raises UserError for a photo that is not there, or is a folder or a zip file."""
    for path in map(Path, images):
        if path.is_dir() or is_zip(path):
            kind = "folder" if path.is_dir() else "zip file"
            raise UserError(f"{path} is a {kind}: give it with --image_dir")
        if not image_exists(path):
            raise UserError(f"no such image: {path}")


def print_captions(item: ImageItem, result: Result) -> None:
    name = result.image_id if isinstance(result.image_id, str) else printable(item.key)
    for text, (_, log_prob) in zip(shown_texts(result), result.captions):
        print(f"{name}: {text}" + (f"  ({log_prob:.2f})" if len(result.captions) > 1 else ""), flush=True)


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


def main(args) -> int:
    job = InferRun(args)
    job.prepare()
    return job.run()


if __name__ == "__main__":
    sys.exit(run(main, ARGS))

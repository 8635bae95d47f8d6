#!/usr/bin/env python3
"""Caption photos, folders and datasets with a trained model; score the captions of a dataset that has references.

    ./infer.py photo.jpg                                                 # photo.jpg: A man in a red shirt.
    ./infer.py holiday photos.zip 'more/**/*.jpg' --html gallery.html    # folders, zip files, patterns
    ./infer.py holiday --recursive --sidecar txt                         # holiday/a.txt beside holiday/a.jpg
    ./infer.py --model models/mymodel/ep5.model --dataset coco:val2014 --scoring bleu,cider
    ./infer.py --model models/mymodel/ep5.model --image_dir photos --output_file captions.jsonl --resume
    ./infer.py --model models/mymodel/ep5.model --probabilities --alternatives 3 photo.jpg
    torchrun --nproc_per_node 4 infer.py ...                              # several GPUs or machines

The model file holds its vocabulary, its encoder and the size of its images. A dataset whose feature files exist is
captioned from them, without the encoder. Captions are printed unless they are written to a file; those of a dataset
are written to results/DATASET_MODEL.json. What folders hold besides images is counted by kind. Images that cannot be
read are named and skipped; the exit status is then 1.
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
import math
import os
import re
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

from captioning.cores import first_speaks, process_count, process_number
from captioning.datasets.base import CaptionDataset, ImageItem, image_key, shared_ids
from captioning.datasets.factory import open_dataset
from captioning.datasets.folder import GenericDataset
from captioning.datasets.items import Items
from captioning.datasets.names import short_names
from captioning.errors import first_few, script_name, shown, warn
from captioning.files import check_writable, is_plain, require_file, require_model_file
from captioning.images.listing import PassedOver
from captioning.text.cleaning import id_text, printable
from captioning.text.function_words import content_words
from captioning.text.paragraphs import PERIODS
from inference.caption_files import read_results
from inference.gallery.comparison import Comparison
from inference.gallery.page import Gallery, write_gallery
from inference.image_arguments import holds_images, named_images
from inference.image_outputs import Copies, Sidecars, outside
from inference.lemmas import LemmaRules
from inference.results import NOT_SURE, PartFile, Result, ResultsFile, Style, format_of, shown_texts
from vocabulary import Vocabulary


def note(message: str) -> None:
    """For the person, not for the pipe."""
    print(message, file=sys.stderr)


FEW_PHOTOS = 4  # so few are captioned sooner than an encoder is made faster


class InferRun:
    """One run of this script. settings: the flags of inference.flags, by name.

    prepare() opens the images and checks all that can be checked without torch; run() captions them, writes what was
    asked for and gives the exit status. Of several processes each captions its share, and the first one has the rest
    of the work; only it knows what the results file of an interrupted run holds.
    """

    def __init__(self, **settings):
        self.settings = s = SimpleNamespace(**settings)
        self.alone, self.first = process_count() == 1, process_number() == 0
        self.file: ResultsFile | None = None  # None where captions are only printed
        self.maps = {}  # where the model looked, for the gallery
        self.compared = []  # captions of the files of --compare
        shown_words = s.probabilities, s.alternatives
        self.style = Style(
            not s.no_capitalize, None, *shown_words, s.store_image_paths, s.with_scores, s.min_confidence
        )

    # ---- without torch ----

    def prepare(self) -> None:
        """Raises UserError for mistakes in the images, the outputs and the paths of other files."""
        s = self.settings
        self.dataset = self.open_images()
        self.model = flags.model_path(s.model)
        self.metrics = ()
        self.file = self.open_results()
        self.results = self.file.results if self.file else []
        self.rest = self.skip_captioned() if self.file else self.dataset
        self.outputs = self.open_outputs()
        self.skip_written()
        self.compared = [read_results(path) for path in s.compare or ()]
        if len(self.compared) == 2:
            self.take_compared()
        if self.rest.items and self.first:  # otherwise all is done, and no model is needed
            require_model_file(self.model)
        if s.weights:
            require_file("--weights", s.weights)
        self.check_feature_files()
        if s.lemma_pos_rules:
            self.style = replace(self.style, rules=LemmaRules.load(s.lemma_pos_rules))
        self.vocabulary = Vocabulary.load(s.vocab) if s.vocab else None
        if s.output_file and not (s.output_format or format_of(s.output_file)) and self.first:
            name = shown(s.output_file)
            note(f"--output_file {name}: its ending names no format, so it is a txt file (--output_format)")

    def check_feature_files(self) -> None:
        """Raises UserError where a file of --ext_features or --ext_persist_features is not there."""
        files = [text for text in (self.settings.ext_features, self.settings.ext_persist_features) if text]
        if not files:
            return
        from captioning.features.factory import is_feature_file
        from captioning.features.places import own_place, require_feature_file

        for name in (name.strip() for text in files for name in text.split(",")):
            for part in self.dataset.parts if is_feature_file(name) else ():
                require_feature_file(part, own_place(self.dataset.parts, name))

    def open_images(self) -> CaptionDataset:
        """The images to caption. Raises UserError where there are none."""
        s = self.settings
        loose = bool(s.images or s.image_dir)
        if loose and s.dataset in (None, "generic"):
            if s.recursive and not s.image_dir and not any(map(holds_images, s.images)):
                raise UserError("--recursive is for folders: name one, or give --image_dir")
            passed = PassedOver()
            files = named_images(s.images, s.recursive, passed)
            dataset = GenericDataset(files=files, image_dir=s.image_dir, recursive=s.recursive, passed=passed)
            if line := passed.line():
                note(f"{script_name()}: {line}")
            if s.write_metadata and (copies := len(dataset) - len(left := outside(dataset.items, s.write_metadata))):
                dataset.items = left
                note(f"{script_name()}: passed over: {copies} images in {s.write_metadata}, where the copies are")
        elif loose:
            raise UserError(f"--dataset {s.dataset} and images or --image_dir exclude each other")
        elif not s.dataset:
            raise UserError("nothing to caption: give image files, folders, --image_dir or --dataset")
        else:
            dataset = open_dataset(s.dataset, s.dataset_config_file, s.dataset_images)
        self.check_names(dataset)
        if s.scoring and not dataset.num_captions:
            raise UserError("--scoring needs captions to compare with: give a --dataset that has them")
        return dataset

    def check_names(self, dataset: CaptionDataset) -> None:
        """Raises UserError where two images would have the same name in the results."""
        if self.settings.store_image_paths:
            names = {image_key(item): self.style.id_of(item) for item in dataset.items}
            if len(set(names.values())) < len(names):
                raise UserError("--store_image_paths: several items share a photo, so a path does not tell them apart")
        elif shared := shared_ids(dataset):
            what = f"{len(shared)} image ids are in more than one of them: {first_few(shared)}"
            advice = "caption them one by one, or name images by their paths with --store_image_paths"
            raise UserError(f"--dataset {dataset.name}: {what}; {advice}")

    def open_results(self) -> ResultsFile | PartFile | None:
        """The results file, None where captions are only printed. All outputs are checked here."""
        s = self.settings
        path, form = self.results_path()
        if s.resume and path is None:
            raise UserError("--resume goes on with a results file: name one with --output_file")
        if s.resume and s.attention_output:
            raise UserError("--attention_output cannot be resumed: leave out --resume")
        outputs = {"--output_file": path, "--html": s.html, "--attention_output": s.attention_output}
        taken = {os.path.realpath(name): "--compare" for name in s.compare or ()}  # a file -> the flag that names it
        for option, name in outputs.items():
            if name:
                check_writable(option, name)
                if (other := taken.setdefault(os.path.realpath(name), option)) != option and is_plain(name):
                    raise UserError(f"{other} and {option} name the same file, {name}: give two")
        if s.scoring:
            from captioning.scoring.metrics import parse_metrics

            self.metrics = parse_metrics(s.scoring)
        words = self.style.wants_words
        if s.with_scores and form == "txt":
            raise UserError("--with_scores: a txt file has no room for them: use --output_format json, jsonl or csv")
        if path is None:
            return None
        if self.first:
            file = ResultsFile(path, form, s.resume, words, s.force, not self.alone)
            file.scores = s.with_scores
            return file
        return PartFile(path, form, process_number(), words)

    def results_path(self) -> tuple[Path | None, str]:
        """The results file and its format; None where captions are only printed."""
        s = self.settings
        if len(s.compare or ()) == 2:
            return None, ""
        if s.output_file:
            form = s.output_format or format_of(s.output_file) or "txt"
            return Path(s.results_path or ".") / s.output_file, form
        if not (s.dataset or s.results_path or s.output_format):
            return None, ""
        run = "" if self.model == flags.BUNDLED else f"{self.model.resolve().parent.name}-"  # "best" says little alone
        name = re.sub(r'[:/\\ *?"<>|]', "-", f"{self.source('images')}_{run}{self.model.stem}")
        form = s.output_format or "json"
        return Path(s.results_path or "results") / f"{name}.{form}", form

    def source(self, loose: str) -> str:
        """What the images are from: the dataset, the name of the only folder, or else `loose`."""
        s = self.settings
        if s.dataset:
            return short_names(s.dataset)
        places = [s.image_dir] if s.image_dir else s.images
        alone = len(places) == 1 and (s.image_dir or holds_images(places[0])) and os.path.exists(places[0])
        return Path(places[0]).resolve().name if alone else loose

    def skip_captioned(self) -> CaptionDataset:
        """The images that the results file does not have yet; its results get what the dataset knows of theirs."""
        by_id = {id_text(self.style.id_of(item)): item for item in self.dataset.items}
        for result in self.file.earlier:
            item = by_id.get(id_text(result.image_id))
            if item is None:
                path = self.file.path
                raise UserError(f"--resume: {path} has image {result.image_id!r}, which is not among those to caption")
            result.image_id, result.path, result.references = self.style.id_of(item), item.path, item.captions
            if self.style.min_confidence is None and result.unsure:
                advice = "give the same, or begin anew with --force"
                raise UserError(f"--resume: {self.file.path} was begun with --min_confidence: {advice}")
            if self.style.min_confidence is not None:
                withhold_earlier(result, self.style.min_confidence, self.file.path)
        done = {id_text(result.image_id) for result in self.file.earlier}
        if not done:
            return self.dataset
        note(f"{len(done)} of {len(self.dataset)} images are captioned already")
        return self.without(self.dataset.items.where(lambda item: id_text(self.style.id_of(item)) not in done))

    def take_compared(self) -> None:
        """Take the captions of the first file of --compare for the results. No image is left to caption."""
        s = self.settings
        for item in self.dataset.items:
            if texts := self.compared[0].get(id_text(self.style.id_of(item))):
                captions = [(text, math.nan) for text in texts]
                self.results.append(Result(self.style.id_of(item), captions, item.path, item.captions))
        if not self.results:
            raise UserError(f"--compare: {s.compare[0]} has no caption of any of the {len(self.dataset)} images")
        self.rest = self.without(self.dataset.items[:0])

    def open_outputs(self) -> list[Sidecars | Copies]:
        """What is written for each image. Raises UserError where it cannot be."""
        s, outputs = self.settings, []
        if s.sidecar:
            outputs.append(Sidecars(s.sidecar, s.existing, s.prefix or "", s.suffix or ""))
        if s.write_metadata or s.write_metadata_in_place:
            outputs.append(Copies(s.write_metadata, "skip" if s.existing == "append" else s.existing))
        for output in outputs:
            output.plan(self.dataset.items)
        return outputs

    def skip_written(self) -> None:
        """Leave out the images that have all their sidecars and copies."""
        if not self.outputs:
            return
        left = self.rest.items.where(lambda item: not all(output.is_done(item) for output in self.outputs))
        if done := len(self.rest) - len(left):
            note(f"{done} of {len(self.rest)} images have their files already (--existing overwrite writes them anew)")
            self.rest = self.without(left)

    def without(self, left: Items) -> CaptionDataset:
        """The dataset with the items `left` only."""
        rest = copy.copy(self.dataset)  # its parts stay whole: rows of a feature file may follow their order
        rest.items = left
        return rest

    def close(self) -> None:
        if self.file is not None:
            self.file.close()

    # ---- captioning ----

    def run(self) -> int:
        if self.alone and not self.rest.items:
            with self.file or contextlib.nullcontext():
                pass
            return self.finish([])
        # torch is imported only now, so that mistakes are answered at once
        import torch

        from captioning.devices import end_processes, from_main, partners_may_fail, start_processes
        from inference.sharing import work_of_all

        start_processes(torch.device("cpu"))  # over the CPU: what they exchange are finished captions
        try:
            with partners_may_fail(), contextlib.ExitStack() as stack:
                self.open_file(stack)
                shares = work_of_all(self.caption_share) if self.rest.items else []
                bad = from_main(lambda: self.take_all(shares))
                from_main(stack.close)  # the parts of the others go when the file is complete
                return from_main(lambda: self.finish(bad))
        finally:
            end_processes()

    def open_file(self, stack: contextlib.ExitStack) -> None:
        """Begin the results file, the first process before the others, which learn from it what is left to caption."""
        from captioning.devices import from_main

        def begin() -> list[int]:
            if self.file:
                stack.enter_context(self.file)
            left = set(map(image_key, self.rest.items))
            return [number for number, item in enumerate(self.dataset.items) if image_key(item) in left]

        left = from_main(begin)
        if not self.first:
            self.rest = self.without(self.dataset.items.chosen(left))
            if self.file:
                stack.enter_context(self.file)

    def take_all(self, shares: list) -> list[str]:
        """All results in the order of the images, in the file and, where that was put off, printed.

        shares: the inference.sharing.Share of every process. Gives why images were left out.
        """
        from inference.sharing import in_order, joined

        if not shares:
            return []
        for output, *counts in zip(self.outputs, *(share.counts for share in shares)):
            output.counts = sum(counts, Counter())
        by_id = {id_text(self.style.id_of(item)): item for item in self.dataset.items}
        order = {image_id: number for number, image_id in enumerate(by_id)}
        share = joined(shares, order)
        if not share.results and not (self.file and self.file.earlier):
            raise UserError(f"none of the {len(self.rest)} images could be captioned")
        if self.file:
            self.file.arrange(in_order([*self.file.earlier, *share.results], order))
        self.results = self.file.results if self.file else share.results
        if self.printed and not self.alone:
            for result in share.results:
                print_captions(by_id[id_text(result.image_id)], result, self.style.scores)
        if self.settings.html_attention:
            self.maps = share.attention.word_maps()
        if self.settings.attention_output:
            share.attention.write(self.settings.attention_output)
            note(f"{self.settings.attention_output}: attention weights of {len(share.attention.ids)} images")
        if self.style.rules:
            self.style.rules.unknown = share.unknown
            if line := self.style.rules.report():
                note(f"{self.settings.lemma_pos_rules}: {line}")
        if self.settings.verbose:
            count, seconds = len(self.rest) - len(share.bad), time.monotonic() - self.began
            note(f"{count} images in {seconds:.1f} s, {count / max(seconds, 1e-9):.1f} a second")
        return share.bad

    def finish(self, bad: list[str]) -> int:
        """Say what was written, score it, draw the gallery. Gives the exit status."""
        if self.file:
            note(f"{self.file.path}: captions of {len(self.results)} images")
        self.write_earlier()
        for output in self.outputs:
            note(output.report())
        if unsure := sum(result.unsure for result in self.results):
            note(f"{unsure} of {len(self.results)} images have no caption: the model was not sure enough of any")
        lines, scores = report_scores(self.metrics, self.results) if self.metrics and self.results else ([], None)
        if self.settings.html:
            self.write_gallery(lines, scores)
            note(f"{self.settings.html}: gallery of {len(self.results)} images")
        if bad:
            note(f"{script_name()}: {len(bad)} of {len(self.rest)} images could not be read")
        unscored = self.metrics and self.results and (scores is None or scores.left_out)
        if unwritten := sum(output.counts["failed"] for output in self.outputs):
            note(f"{script_name()}: the captions of {unwritten} images could not be written into them")
        return 1 if bad or unscored or unwritten else 0

    def write_gallery(self, table: list[str], scores) -> None:
        """Write the gallery. table: lines of scores; scores: the Scores that --scoring asked for, or None."""
        from inference.scored_files import scores_of_images

        s, metrics, other = self.settings, self.metrics or ("cider",), None
        name, of_images = scores_of_images(known_captions(self.results), scores or score(self.results, metrics))
        model = f"{Path(self.model).resolve().parent.name}/{self.model.name}"  # without the folders of whoever ran it
        if s.compare:
            files = [Path(path).name for path in s.compare]
            other = Comparison(files[0] if len(files) > 1 else model, files[-1], self.compared[-1])
            beside = [Result(one.image_id, [(text, math.nan)], one.path, one.references) for one in self.results
                      if (text := other.caption(one)) is not None]  # fmt: skip
            other.scores = scores_of_images(known_captions(beside), score(beside, metrics))[1]
        about = f"Captioned by {model}" if len(self.compared) < 2 else "Two results files side by side"
        place, count = self.source(""), len(self.results)
        title = f"{count:,} image{'s' * (count != 1)}" + (f" of {place}" if place else "")
        write_gallery(s.html, self.results, Gallery(title, about, table, name, of_images, self.maps, other))

    def write_earlier(self) -> None:
        """The sidecars and copies of images whose captions --resume found in the results file."""
        if not (self.file and self.outputs) or self.settings.existing == "append":  # which may have been done before
            return
        by_id = {self.style.id_of(item): item for item in self.dataset.items}
        for result in self.file.earlier:
            for output in self.outputs:
                output.write(by_id[result.image_id], result)

    def caption_share(self):
        """The inference.sharing.Share of this process: captions of its part of the images that are left."""
        from data_loader import LoaderSettings
        from inference.attention_maps import AttentionLog
        from inference.captions import ImageCaptions, open_loader
        from inference.sharing import Share, my_share

        s, attention = self.settings, None
        with first_speaks():
            captioner = self.open_model()
            replaced = {"features": s.ext_features, "persist_features": s.ext_persist_features}
            settings = my_share(LoaderSettings(s.batch_size, num_workers=s.num_workers))
            photos = "instead" if s.dataset else "always"
            loader = open_loader(captioner, self.rest, settings, replaced, photos, s.resize)
            if len(self.rest) <= FEW_PHOTOS:
                captioner.expect_few()
            if s.verbose:
                self.describe(captioner, loader.inputs)
        if s.attention_output or s.html_attention:
            attention = AttentionLog(captioner.config.specs[captioner.model.attended].shape[1:])
        self.began = time.monotonic()
        captions = ImageCaptions(captioner, self.search(captioner), self.style, s.amp, attention, self.sampling_seed)
        try:
            with contextlib.closing(captions.of(loader)) as found:  # also its processes, whatever happens
                results = self.take(found)
        except KeyboardInterrupt:
            if self.file and self.file.grows and self.first:
                note(f"\n{self.file.part} has the captions so far: add --resume to go on")
            raise
        unknown = self.style.rules.unknown if self.style.rules else Counter()
        return Share(results, loader.bad_items, attention, unknown, [output.counts for output in self.outputs])

    @property
    def printed(self) -> bool:
        return self.settings.print_results or not (self.file or self.outputs)

    @property
    def sampling_seed(self) -> int | None:
        """None where nothing is drawn at random."""
        s = self.settings
        return (42 if s.seed is None else s.seed) if s.sample else None

    def take(self, results) -> list[Result]:
        """Keep each of (item, result), in the results file if there is one; print it where that is asked for.

        Several processes print when all have ended, to keep the order.
        """
        from captioning.progress import Bar

        kept, drawn = [], not (self.printed and self.alone)
        with Bar(len(self.rest), "caption", "image", stream=sys.stderr, drawn=drawn) as bar:
            for item, result in results:
                kept.append(result)
                for output in self.outputs:
                    output.write(item, result)  # before the results file has it: --resume then need not write it
                if self.file:
                    self.file.add(result)
                if self.printed and self.alone:
                    print_captions(item, result, self.style.scores)
                bar.update(process_count())
        return kept

    def open_model(self):
        """The model.Captioner, without the encoders that feature files may stand in for.

        Raises UserError for what cannot be asked of it.
        """
        from captioning.devices import choose_device
        from model import load_captioner

        s = self.settings
        device = choose_device(s.device, s.cpu)
        captioner = load_captioner(self.model, device, s.weights, photos=False, vocabulary=self.vocabulary)
        if self.vocabulary is not None:
            if len(self.vocabulary) != len(captioner.vocabulary):
                sizes = f"it has {len(self.vocabulary)} words, the model {len(captioner.vocabulary)}"
                raise UserError(f"--vocab {s.vocab} does not fit the model: {sizes}")
            captioner.vocabulary = self.vocabulary
        if s.min_confidence is not None and captioner.calibration is None:
            advice = f"./average_models.py {self.model} --calibrate DATASET --output FILE gives it one"
            raise UserError(f"--min_confidence: the model file {self.model} has no calibration: {advice}")
        if self.as_deepcaption(captioner):
            note("a model of DeepCaption: captions as its own (greedy, with <unk>); --beam_size 3 searches better")
        if captioner.config.paragraphs is not None:
            self.check_paragraphs()
        for name in ("attention_output", "html_attention"):
            if getattr(s, name) and captioner.model.attended is None:
                raise UserError(f"--{name}: the model has no attention")
            if getattr(s, name) and captioner.config.specs[captioner.model.attended].varying:
                raise UserError(f"--{name}: the model attends to different numbers of regions, which fill no table")
        return captioner

    def check_paragraphs(self) -> None:
        """Raises UserError for what cannot be asked of a model that writes paragraphs."""
        several = self.settings.n_best
        if several > 1 and not self.settings.sample:
            raise UserError(f"--n_best {several}: a beam search writes one paragraph of an image; for several --sample")
        for name in ("alternatives", "probabilities", "lemma_pos_rules"):
            if getattr(self.settings, name):
                raise UserError(f"--{name} is for captions of one sentence; the model writes paragraphs")

    def as_deepcaption(self, captioner) -> bool:
        """Whether to write as DeepCaption did, greedily and with <unk>: with its models, unless a flag says how."""
        s = self.settings
        asked = s.beam_size or s.sample or s.n_best > 1 or s.length_penalty or s.block_trigrams
        return captioner.info.get("made_by") == "DeepCaption" and not asked

    def search(self, captioner):
        """The Search that the flags ask for."""
        from captioning.decoder.search import BEAMS, Search
        from inference.mentions import with_mentions

        s, old, words = self.settings, self.as_deepcaption(captioner), captioner.vocabulary.words
        search = Search(
            beam_size=1 if s.sample or old else s.beam_size or max(BEAMS, s.n_best),
            min_length=s.min_words,
            closing=tuple(words.index(mark) for mark in (*PERIODS, "!", "?") if mark in words),
            max_length=s.max_words or s.max_seq_length,
            length_penalty=captioner.length_penalty if s.length_penalty is None else s.length_penalty,
            n_best=s.n_best,
            sample=s.sample,
            temperature=s.temperature or 1.0,
            top_k=s.top_k or 0,
            top_p=s.top_p or 1.0,
            allow_unk=s.allow_unk or old,
            block_trigrams=s.block_trigrams,
            trigram_penalty_alpha=s.trigram_penalty_alpha,
            once=self.words_once(captioner.vocabulary),
            no_repeat_sentences=s.no_repeat_sentences,
            only_complete_sentences=s.only_complete_sentences,
        )
        return with_mentions(search, s.mention, captioner)

    def words_once(self, vocabulary: Vocabulary) -> tuple[int, ...]:
        """The ids of the words that --no_repeat_words keeps from coming twice."""
        s = self.settings
        if not s.no_repeat_words:
            return ()
        if vocabulary.tokenizer == "char":
            raise UserError("--no_repeat_words: the model writes characters, not words")
        return content_words(vocabulary.words, [word.strip() for word in (s.may_repeat or "").split(",")])

    def describe(self, captioner, inputs) -> None:
        """Print what --verbose asks for; inputs: the Input of each feature that the model reads."""
        made = [one.spec.name for one in inputs]
        for number, one in enumerate(inputs):
            if one.from_pixels and one.spec.from_file:
                made[number] += f" made by {one.spec.provenance['extractor']}"
        size = sum(p.numel() for p in captioner.model.decoder.parameters())
        note(f"model {self.model}: decoder of {size / 1e6:.1f} million weights, {len(captioner.vocabulary)} words")
        pixels = f"; images {captioner.size}x{captioner.size}" if any(one.from_pixels for one in inputs) else ""
        note(f"features {', '.join(made)}{pixels}; device {captioner.device}")
        note(f"{len(self.rest)} images of {self.rest.name}")


def print_captions(item: ImageItem, result: Result, scores: bool = False) -> None:
    """Print the captions of an image, a line for each. scores: with log-probability and confidence."""
    name = result.image_id if isinstance(result.image_id, str) else printable(item.key)
    for number, (text, (_, log_prob)) in enumerate(zip(shown_texts(result), result.captions)):
        figures = [f"{log_prob:.2f}"] if len(result.captions) > 1 else []
        if scores:
            figures = [f"log-probability {log_prob:.2f}"]
            figures += [f"confidence {sure:.2f}" for sure in result.confidences[number : number + 1]]
        line = f"{name}: {NOT_SURE if result.unsure else text}"
        print(shown(line) + (f"  ({', '.join(figures)})" if figures else ""), flush=True)


def withhold_earlier(result: Result, least: float, path) -> None:
    """`Result.withhold` for a result read from `path`. Raises UserError where what was read does not allow it."""
    if not result.confidences:
        advice = "leave out --min_confidence, or begin anew with --force"
        raise UserError(f"--resume: {path} has captions of which no confidence is known: {advice}")
    if result.unsure and result.confidences[0] >= least:
        advice = "give the same, or begin anew with --force"
        raise UserError(f"--resume: {path} was begun with a --min_confidence above {least:g}: {advice}")
    result.withhold(least)


def known_captions(results: list[Result]) -> dict:
    """Image id -> the best caption, of the images that have references and a caption."""
    known = [result for result in results if result.references and not result.unsure]
    return {result.image_id: result.captions[0][0] for result in known}


def score(results: list[Result], metrics: tuple[str, ...]):
    """The captioning.scoring.metrics.Scores of the best captions; none where no image has references."""
    from captioning.scoring.metrics import Scores, score_captions

    references = {result.image_id: result.references for result in results}
    known = known_captions(results)
    return score_captions(known, references, metrics) if known else Scores()


def report_scores(metrics: tuple[str, ...], results: list[Result]) -> tuple[list[str], object]:
    """Print the scores of the best captions; gives the table, and the Scores, None where no caption has any."""
    from captioning.scoring.bootstrap import few_images_note
    from captioning.scoring.metrics import java_note
    from captioning.scoring.statistics import caption_statistics

    candidates = known_captions(results)
    if not candidates:
        note("no captions to score: the model was not sure enough of any")
        return [], None
    scores = score(results, metrics)
    if line := java_note(metrics):
        note(line)
    if line := few_images_note(len(candidates)):
        warn(line)
    found = caption_statistics(scores.by_words(list(candidates.values())))
    figures = f"{found['distinct']:.1%} of them distinct, mean length {found['mean_length']:.1f} words"
    lines = [*scores.lines(), f"{len(candidates)} captions, {figures}"]
    if unsure := sum(result.unsure for result in results):
        lines.append(f"{unsure} images without a caption that the model was sure enough of are not scored")
    if others := len(results) - len(candidates) - unsure:
        lines.append(f"{others} captions of images without references are not scored")
    print("\n".join(lines))
    return lines, scores


def main(args) -> int:
    with contextlib.closing(InferRun(**vars(args))) as job:
        with first_speaks():
            job.prepare()
        return job.run()


if __name__ == "__main__":
    sys.exit(run(main, ARGS))

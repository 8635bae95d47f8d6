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
import time
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

from captioning.cores import first_speaks, process_count, process_number
from captioning.datasets.base import image_key
from captioning.errors import note, script_name, shown
from captioning.files import require_file, require_model_file
from captioning.text.cleaning import id_text
from inference.caption_files import read_results
from inference.lemmas import LemmaRules
from inference.results.files import PartFile, ResultsFile
from inference.results.formats import format_of
from inference.results.result import Result, Style
from inference.run.images import ImageFlags, check_feature_files, check_names, with_items
from inference.run.outputs import OutputFlags, compared_results, take_earlier
from inference.run.report import GalleryPlan, print_captions, report_scores
from vocabulary import Vocabulary

FEW_PHOTOS = 4  # so few are captioned sooner than an encoder is made faster


class InferRun:
    """One run of this script. settings: the flags of inference.flags, by name.

    prepare() opens the images and checks all that can be checked without torch; run() captions them, writes what was
    asked for and gives the exit status. Of several processes each captions its share, and the first one has the rest
    of the work; only it knows what the results file of an interrupted run holds.
    """

    def __init__(self, **settings):
        self.settings = SimpleNamespace(**settings)
        self.images, self.written = ImageFlags.of(settings), OutputFlags.of(settings)
        self.alone, self.first = process_count() == 1, process_number() == 0
        self.file: ResultsFile | PartFile | None = None  # None where captions are only printed
        self.maps = {}  # where the model looked, for the gallery
        s = self.settings
        self.style = Style(
            capitalize=not s.no_capitalize,
            probabilities=s.probabilities,
            alternatives=s.alternatives,
            paths=s.store_image_paths,
            scores=s.with_scores,
            min_confidence=s.min_confidence,
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
        self.rest = self.dataset
        if self.file:
            self.skip_captioned()
        self.outputs = self.written.for_each_image(self.dataset.items)
        self.skip_written()
        self.compared = [read_results(path) for path in s.compare or ()]  # the captions of each file
        if len(self.compared) == 2:  # the first file stands for a run
            self.results += compared_results(self.compared[0], s.compare[0], self.dataset, self.style)
            self.rest = with_items(self.dataset, [])
        if self.rest.items and self.first:  # otherwise all is done, and no model is needed
            require_model_file(self.model)
        if s.weights:
            require_file("--weights", s.weights)
        check_feature_files(self.dataset, (s.ext_features, s.ext_persist_features))
        if s.lemma_pos_rules:
            self.style = replace(self.style, rules=LemmaRules.load(s.lemma_pos_rules))
        self.vocabulary = Vocabulary.load(s.vocab) if s.vocab else None
        if s.output_file and not (s.output_format or format_of(s.output_file)) and self.first:
            name = shown(s.output_file)
            note(f"--output_file {name}: its ending names no format, so it is a txt file (--output_format)")

    def open_images(self):
        """The CaptionDataset of the images to caption."""
        dataset = self.images.open()
        check_names(dataset, self.style)
        if self.settings.scoring and not dataset.num_captions:
            raise UserError("--scoring needs captions to compare with: give a --dataset that has them")
        return dataset

    def open_results(self) -> ResultsFile | PartFile | None:
        """The results file, None where captions are only printed. All outputs are checked here."""
        path, form = self.written.results_file(self.images.source("images"), self.model)
        self.written.check(path, form)
        if self.settings.scoring:
            from captioning.scoring.metrics import parse_metrics

            self.metrics = parse_metrics(self.settings.scoring)
        return self.written.open_results(path, form, self.style.wants_words)

    def skip_captioned(self) -> None:
        """Leave out the images that the results file of an interrupted run has."""
        left = take_earlier(self.file, self.dataset, self.style)
        if self.file.earlier:
            note(f"{len(self.dataset) - len(left)} of {len(self.dataset)} images are captioned already")
            self.rest = with_items(self.dataset, left)

    def skip_written(self) -> None:
        """Leave out the images that have all their sidecars and copies."""
        if not self.outputs:
            return
        left = self.rest.items.where(lambda item: not all(output.is_done(item) for output in self.outputs))
        if done := len(self.rest) - len(left):
            note(f"{done} of {len(self.rest)} images have their files already (--existing overwrite writes them anew)")
            self.rest = with_items(self.dataset, left)

    def close(self) -> None:
        if self.file is not None:
            self.file.close()

    # ---- captioning ----

    def run(self) -> int:
        """Caption the images that are left; write and tell what was asked for. Gives the exit status."""
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
            self.rest = with_items(self.dataset, self.dataset.items.chosen(left))
            if self.file:
                stack.enter_context(self.file)

    def caption_share(self):
        """The inference.sharing.Share of this process: captions of its part of the images that are left."""
        from data_loader import LoaderSettings
        from inference.attention_maps import AttentionLog
        from inference.captions import ImageCaptions, open_loader
        from inference.run.model import ModelFlags, model_lines
        from inference.run.search import SearchFlags
        from inference.sharing import Share, my_share

        s, attention = self.settings, None
        wanted = SearchFlags.of(vars(s))
        with first_speaks():
            captioner = ModelFlags.of(vars(s)).open(self.model, self.vocabulary)
            if wanted.as_deepcaption(captioner):
                note("a model of DeepCaption: captions as its own (greedy, with <unk>); --beam_size 3 searches better")
            replaced = {"features": s.ext_features, "persist_features": s.ext_persist_features}
            settings = my_share(LoaderSettings(s.batch_size, num_workers=s.num_workers))
            photos = "instead" if s.dataset else "always"
            loader = open_loader(captioner, self.rest, settings, replaced, photos, s.resize)
            if len(self.rest) <= FEW_PHOTOS:
                captioner.expect_few()
            if s.verbose:
                note("\n".join(model_lines(captioner, self.model, loader.inputs)))
                note(f"{len(self.rest)} images of {self.rest.name}")
        if s.attention_output or s.html_attention:
            attention = AttentionLog(captioner.config.specs[captioner.model.attended].shape[1:])
        self.began = time.monotonic()
        captions = ImageCaptions(
            captioner, wanted.search(captioner), self.style, s.amp, attention, wanted.sampling_seed
        )
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
        """Whether captions are printed."""
        return self.settings.print_results or not (self.file or self.outputs)

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
            plan = GalleryPlan(
                model=self.model,
                place=self.images.source(""),
                table=lines,
                scores=scores,
                maps=self.maps,
                files=self.settings.compare or (),
                captions=self.compared,
            )
            plan.write(self.settings.html, self.results, self.metrics)
            note(f"{self.settings.html}: gallery of {len(self.results)} images")
        if bad:
            note(f"{script_name()}: {self.dataset.bad_line(bad, f'of {len(self.rest)} images could not be read')}")
        unscored = self.metrics and self.results and (scores is None or scores.left_out)
        if unwritten := sum(output.counts["failed"] for output in self.outputs):
            note(f"{script_name()}: the captions of {unwritten} images could not be written into them")
        return 1 if bad or unscored or unwritten else 0

    def write_earlier(self) -> None:
        """The sidecars and copies of images whose captions --resume found in the results file."""
        if not (self.file and self.outputs) or self.settings.existing == "append":  # which may have been done before
            return
        by_id = {self.style.id_of(item): item for item in self.dataset.items}
        for result in self.file.earlier:
            for output in self.outputs:
                output.write(by_id[result.image_id], result)


def main(args) -> int:
    with contextlib.closing(InferRun(**vars(args))) as job:
        with first_speaks():
            job.prepare()
        return job.run()


if __name__ == "__main__":
    sys.exit(run(main, ARGS))

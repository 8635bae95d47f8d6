"""Where infer.py writes captions, and what an earlier run has left there.

wanted = OutputFlags.of(vars(args))
path, form = wanted.results_file("coco:val2014", Path("models/a/ep5.model"))
wanted.check(path, form)
file = wanted.open_results(path, form, words=False)      # earlier results are in file.earlier
"""

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from captioning.config import Settings
from captioning.cores import process_count, process_number
from captioning.datasets.base import CaptionDataset, ImageItem
from captioning.datasets.items import Items
from captioning.errors import UserError
from captioning.files import check_writable, is_plain
from captioning.text.cleaning import id_text
from inference.flags import BUNDLED
from inference.image_outputs import Copies, Sidecars
from inference.results.files import PartFile, ResultsFile
from inference.results.formats import format_of
from inference.results.result import Result, Style


@dataclass(frozen=True)
class OutputFlags(Settings):
    """The flags of infer.py that say what is written where; inference/flags.py has their meaning."""

    dataset: str | None = None
    output_file: str | None = None
    output_format: str | None = None
    results_path: str | None = None
    resume: bool = False
    force: bool = False
    with_scores: bool = False
    html: str | None = None
    attention_output: str | None = None
    compare: Sequence[str] | None = None
    sidecar: str | None = None
    prefix: str | None = None
    suffix: str | None = None
    existing: str = "skip"
    write_metadata: str | None = None
    write_metadata_in_place: bool = False

    def results_file(self, source: str, model: Path) -> tuple[Path | None, str]:
        """The results file and its format; None where captions are only printed.

        Where no flag names it, its name is made of `source`, which tells what the images are from, and the model file.
        """
        if len(self.compare or ()) == 2:
            return None, ""
        if self.output_file:
            form = self.output_format or format_of(self.output_file) or "txt"
            return Path(self.results_path or ".") / self.output_file, form
        if not (self.dataset or self.results_path or self.output_format):
            return None, ""
        run = "" if model == BUNDLED else f"{model.resolve().parent.name}-"  # "best" says little alone
        name = re.sub(r'[:/\\ *?"<>|]', "-", f"{source}_{run}{model.stem}")
        form = self.output_format or "json"
        return Path(self.results_path or "results") / f"{name}.{form}", form

    def check(self, path: Path | None, form: str) -> None:
        """Raises UserError where an output cannot be written, or two flags ask for the same file.

        path, form: what `results_file` gave.
        """
        if self.resume and path is None:
            raise UserError("--resume goes on with a results file: name one with --output_file")
        if self.resume and self.attention_output:
            raise UserError("--attention_output cannot be resumed: leave out --resume")
        outputs = {"--output_file": path, "--html": self.html, "--attention_output": self.attention_output}
        taken = {os.path.realpath(name): "--compare" for name in self.compare or ()}  # a file -> the flag that names it
        for option, name in outputs.items():
            if name:
                check_writable(option, name)
                if (other := taken.setdefault(os.path.realpath(name), option)) != option and is_plain(name):
                    raise UserError(f"{other} and {option} name the same file, {name}: give two")
        if self.with_scores and form == "txt":
            raise UserError("--with_scores: a txt file has no room for them: use --output_format json, jsonl or csv")

    def open_results(self, path: Path | None, form: str, words: bool) -> ResultsFile | PartFile | None:
        """The results file, of another process than the first its part of it; None where captions are only printed."""
        if path is None:
            return None
        if process_number() > 0:
            return PartFile(path, form, process_number(), words)
        file = ResultsFile(path, form, self.resume, words, self.force, process_count() > 1)
        file.scores = self.with_scores
        return file

    def for_each_image(self, items: Sequence[ImageItem]) -> list[Sidecars | Copies]:
        """What is written for each image. Raises UserError where it cannot be."""
        outputs: list[Sidecars | Copies] = []
        if self.sidecar:
            outputs.append(Sidecars(self.sidecar, self.existing, self.prefix or "", self.suffix or ""))
        if self.write_metadata or self.write_metadata_in_place:
            outputs.append(Copies(self.write_metadata, "skip" if self.existing == "append" else self.existing))
        for output in outputs:
            output.plan(items)
        return outputs


def take_earlier(file: ResultsFile | PartFile, dataset: CaptionDataset, style: Style) -> Items:
    """The images that the results file does not have yet. Its results get what the dataset knows of their images.

    Raises UserError where the file has another image, or was written with another --min_confidence.
    """
    by_id = {id_text(style.id_of(item)): item for item in dataset.items}
    for result in file.earlier:
        item = by_id.get(id_text(result.image_id))
        if item is None:
            what = f"{file.path} has image {result.image_id!r}, which is not among those to caption"
            raise UserError(f"--resume: {what}")
        result.image_id, result.path, result.references = style.id_of(item), item.path, item.captions
        if style.min_confidence is not None:
            withhold_earlier(result, style.min_confidence, file.path)
        elif result.unsure:
            advice = "give the same, or begin anew with --force"
            raise UserError(f"--resume: {file.path} was begun with --min_confidence: {advice}")
    done = {id_text(result.image_id) for result in file.earlier}
    return dataset.items.where(lambda item: id_text(style.id_of(item)) not in done)


def withhold_earlier(result: Result, least: float, path) -> None:
    """`Result.withhold` for a result read from `path`. Raises UserError where what was read does not allow it."""
    if not result.confidences:
        advice = "leave out --min_confidence, or begin anew with --force"
        raise UserError(f"--resume: {path} has captions of which no confidence is known: {advice}")
    if result.unsure and result.confidences[0] >= least:
        advice = "give the same, or begin anew with --force"
        raise UserError(f"--resume: {path} was begun with a --min_confidence above {least:g}: {advice}")
    result.withhold(least)


def compared_results(captions: Mapping[str, list[str]], path, dataset: CaptionDataset, style: Style) -> list[Result]:
    """Results made of the `captions` of a file of --compare, by image id as text. Raises UserError where none fits."""
    results = []
    for item in dataset.items:
        if texts := captions.get(id_text(style.id_of(item))):
            pairs = [(text, math.nan) for text in texts]
            results.append(Result(style.id_of(item), pairs, item.path, item.captions))
    if not results:
        raise UserError(f"--compare: {path} has no caption of any of the {len(dataset)} images")
    return results

"""What infer.py tells of its results: captions on the screen, their scores, the gallery."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from captioning.datasets.base import ImageItem
from captioning.errors import note, shown, warn
from captioning.text.cleaning import printable
from inference.gallery.cards import WordMaps
from inference.gallery.comparison import Comparison
from inference.gallery.page import Gallery, write_gallery
from inference.results.result import NOT_SURE, Result, shown_texts


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


def known_captions(results: list[Result]) -> dict:
    """Image id -> the best caption, of the images that have references and a caption."""
    known = [result for result in results if result.references and not result.unsure]
    return {result.image_id: result.captions[0][0] for result in known}


def score(results: list[Result], metrics: Sequence[str]):
    """The captioning.scoring.metrics.Scores of the best captions; none where no image has references."""
    from captioning.scoring.metrics import Scores, score_captions

    references = {result.image_id: result.references for result in results}
    known = known_captions(results)
    return score_captions(known, references, metrics) if known else Scores()


def report_scores(metrics: Sequence[str], results: list[Result]) -> tuple[list[str], object]:
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


@dataclass
class GalleryPlan:
    """What the gallery of a run shows beside its results.

    model: the model file; place: what the images are from, "" for several places; table, scores: what `report_scores`
    gave; maps: where the model looked, by image; files: results files that are compared; captions: of each of them by
    image id as text.
    """

    model: Path
    place: str
    table: Sequence[str] = ()
    scores: object = None
    maps: Mapping[str, WordMaps] = field(default_factory=dict)
    files: Sequence[str] = ()
    captions: Sequence[Mapping[str, list[str]]] = ()

    def write(self, path, results: list[Result], metrics: Sequence[str]) -> None:
        """Write the page `path`. metrics: of which the first that can be computed is shown of each image."""
        from inference.scored_files import scores_of_images

        metrics = metrics or ("cider",)
        name, of_images = scores_of_images(known_captions(results), self.scores or score(results, metrics))
        about = f"Captioned by {self._model_name}" if len(self.files) < 2 else "Two results files side by side"
        title = f"{len(results):,} image{'s' * (len(results) != 1)}" + (f" of {self.place}" if self.place else "")
        other = self._comparison(results, metrics) if self.files else None
        write_gallery(path, results, Gallery(title, about, self.table, name, of_images, self.maps, other))

    @property
    def _model_name(self) -> str:
        return f"{self.model.resolve().parent.name}/{self.model.name}"  # without the folders of whoever ran it

    def _comparison(self, results: list[Result], metrics: Sequence[str]) -> Comparison:
        """The captions of the last file beside those of the results, with their scores."""
        from inference.scored_files import scores_of_images

        names = [Path(path).name for path in self.files]
        other = Comparison(names[0] if len(names) > 1 else self._model_name, names[-1], self.captions[-1])
        beside = [(one, other.caption(one)) for one in results]
        beside = [Result(one.image_id, [(text, math.nan)], one.path, one.references)
                  for one, text in beside if text is not None]  # fmt: skip
        other.scores = scores_of_images(known_captions(beside), score(beside, metrics))[1]
        return other

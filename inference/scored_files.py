"""Results files with their scores, statistics and intervals, and the tables that tell of several.

scoring = Scoring(references, ("bleu", "cider"))
one = scoring.of("a.json", read_results("a.json"))
scoring.add_confidence(one, one, {"confidence": 95})
one.scores.values["cider"], one.intervals["cider"]
"""

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from captioning.scoring.bootstrap import Difference, differences, intervals
from captioning.scoring.metrics import LABELS, Scores, fitting, score_captions, tokenize
from captioning.scoring.objects import score_objects
from captioning.scoring.statistics import caption_statistics, diversity, novel_share, vocabulary_used
from captioning.text.cleaning import id_text
from inference.score_tables import Figure, Row

# Which score tells most of a single image: the first of these that was computed.
OF_ONE_IMAGE = ("cider", "ciderd", "spice", "meteor", "rouge_l", "bleu_4")


def scores_of_images(captions: Mapping, scores: Scores) -> tuple[str, dict[str, float]]:
    """The label of one score and, by image id as text, its value for each of the `captions` that were scored.

    ("", {}) where `scores` has none.
    """
    name = next((name for name in OF_ONE_IMAGE if name in scores.per_image), None)
    if name is None:
        return "", {}
    return LABELS[name], dict(zip(map(id_text, captions), scores.per_image[name]))


@dataclass
class Scored:
    """A results file that has been scored.

    captions: image id -> its captions, best first; references: mean number of an image; missing: images of the ground
    truth without a result; intervals: of each score; differences: from the first results file.
    """

    path: str
    captions: dict
    scores: Scores
    statistics: dict
    references: float
    missing: int
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    differences: dict[str, Difference] = field(default_factory=dict)

    def numbers(self) -> dict[str, float]:
        """Scores and statistics by name."""
        return {**self.scores.values, "images": len(self.captions), **self.statistics}

    def report(self, confidence: float | None = None) -> dict:
        """All of it in plain types. confidence: of the intervals, in percent, where there are some."""
        report = {
            "results": self.path,
            "scores": self.scores.values,
            "left_out": self.scores.left_out,
            "tokenizer": self.scores.tokenizer,
            "images": len(self.captions),
            "images_without_result": self.missing,
            "statistics": self.statistics,
        }
        if confidence is not None:
            report |= {
                "confidence": confidence,
                "intervals": {name: list(pair) for name, pair in self.intervals.items()},
            }
        if self.differences:
            report["differences_from_first"] = {name: vars(found) for name, found in self.differences.items()}
        return report

    def rows(self) -> list[dict]:
        """A row for each scored caption, with its scores."""
        captions = self.captions.items()
        rows = [{"results": self.path, "image_id": image_id, "caption": texts[0]} for image_id, texts in captions]
        for name, values in self.scores.per_image.items():
            for row, value in zip(rows, values):
                row[name] = value
        return rows


@dataclass
class Scoring:
    """How results files are scored.

    references: image id -> its captions; metrics, tokenizer, frequencies: as in score_captions; training: captions of
    the training set, of which a caption may be a copy (None: not asked for); objects: whether it is counted how often
    the main object is named.
    """

    references: Mapping
    metrics: Sequence[str]
    tokenizer: str = "auto"
    frequencies: Mapping | None = None
    training: Sequence[str] | None = None
    objects: bool = False

    def __post_init__(self):
        self.tokenizer = fitting(self.tokenizer, (text for texts in self.references.values() for text in texts))
        self.known = None if self.training is None else set(tokenize(self.training, self.tokenizer)[0])

    def of(self, path: str, captions: Mapping) -> Scored:
        """The scores of the first of each image's `captions`, which were read from `path`."""
        scores = self._scores(captions)
        references = sum(len(self.references[image_id]) for image_id in captions) / len(captions)
        missing = len(self.references.keys() - captions.keys())
        return Scored(path, captions, scores, self._statistics(captions, scores), references, missing)

    def _scores(self, captions: Mapping) -> Scores:
        best = {image_id: texts[0] for image_id, texts in captions.items()}
        return score_captions(best, self.references, self.metrics, self.tokenizer, self.frequencies)

    def _statistics(self, captions: Mapping, scores: Scores) -> dict[str, float]:
        found = caption_statistics(scores.by_words([texts[0] for texts in captions.values()]))
        found["vocabulary_used"] = vocabulary_used(scores.tokens)
        if self.known is not None:
            found["novel"] = novel_share(scores.tokens, self.known)
        if self.objects:
            found |= self._objects(captions, scores)
        several = [texts for texts in captions.values() if len(texts) > 1]
        if several:
            tokens = iter(tokenize([text for texts in several for text in texts], scores.tokenizer)[0])
            found["captions_per_image"] = sum(map(len, several)) / len(several)
            found |= diversity([[next(tokens) for _ in texts] for texts in several])
        return found

    def _objects(self, captions: Mapping, scores: Scores) -> dict[str, float]:
        """The share of photos whose main object is named, and of how many photos."""
        references = [self.references[image_id] for image_id in captions]
        tokens = tokenize([text for texts in references for text in texts], scores.tokenizer)[0]
        words = iter([text.lower().split() for text in tokens])
        found = score_objects(
            [text.lower().split() for text in scores.tokens], [[next(words) for _ in r] for r in references]
        )
        return {"object_named": found.share, "object_images": found.images}

    def add_confidence(self, one: Scored, first: Scored, settings: dict) -> None:
        """Give `one` its intervals and, unless it is the `first`, its differences from that.

        settings: confidence, resamples and seed, as in captioning/scoring/bootstrap.py.
        """
        one.intervals = intervals(one.scores.additive, **settings)
        if one is not first:
            one.differences = self._compare(first, one, settings)

    def _compare(self, first: Scored, second: Scored, settings: dict) -> dict[str, Difference]:
        """Differences on the images that both have, which is said where one has others."""
        both = [image_id for image_id in first.captions if image_id in second.captions]
        if len(both) < 2:
            print(f"{first.path} and {second.path} share {len(both)} images: they are not compared", file=sys.stderr)
            return {}
        if not len(both) == len(first.captions) == len(second.captions):
            print(f"{first.path} and {second.path} are compared by the {len(both)} images of both", file=sys.stderr)
        return differences(self._additive(first, both), self._additive(second, both), **settings)

    def _additive(self, one: Scored, images: Sequence) -> list:
        """The figures of `images`, in their order. Fewer images than were scored are scored anew."""
        if len(images) < len(one.captions):
            return self._scores({image_id: one.captions[image_id] for image_id in images}).additive
        places = {image_id: place for place, image_id in enumerate(one.captions)}
        return [part.of_images([places[image_id] for image_id in images]) for part in one.scores.additive]


@dataclass(frozen=True)
class Group:
    """Results files, as those of several seeds, that one row of a table tells of."""

    name: str
    paths: list[str]


def file_rows(scored: Sequence[Scored]) -> list[Row]:
    """A table row for each results file, then one for each difference."""
    names = [Path(one.path).stem for one in scored]
    if len(set(names)) < len(names):  # they do not tell the files apart
        names = [one.path for one in scored]
    rows, later = [], []
    for name, one in zip(names, scored):
        figures = {key: Figure(value, bounds=one.intervals.get(key)) for key, value in one.numbers().items()}
        rows.append(Row(name, None, figures))
        if one.differences:
            figures = {key: Figure(d.value, bounds=(d.low, d.high), p=d.p) for key, d in one.differences.items()}
            later.append(Row(f"{name} - {names[0]}", None, figures))
    return rows + later


def group_rows(groups: Sequence[Group], scored: Sequence[Scored]) -> list[Row]:
    """A table row for each group: mean and standard deviation (of a sample: n - 1) of what all its files have."""
    by_path = {one.path: one.numbers() for one in scored}
    rows = []
    for group in groups:
        each = [by_path[path] for path in group.paths]
        figures = {}
        for name in each[0]:
            values = [numbers[name] for numbers in each if name in numbers]
            if name == "images" and len(set(values)) == 1:
                figures[name] = Figure(values[0])
            elif len(values) == len(each):
                deviation = statistics.stdev(values) if len(values) > 1 else None
                figures[name] = Figure(statistics.fmean(values), deviation)
        rows.append(Row(group.name, len(group.paths), figures))
    return rows


def to_json(scored: Sequence[Scored], confidence: float | None = None, groups: Sequence[Group] = ()) -> str:
    """The report, a list of them where there are several; with groups an object that has both."""
    reports = [one.report(confidence) for one in scored]
    content: dict | list = reports[0] if len(reports) == 1 else reports
    if groups:
        means = [_group_report(group, row) for group, row in zip(groups, group_rows(groups, scored))]
        content = {"groups": means, "results": reports}
    return json.dumps(content, indent=2) + "\n"


def _group_report(group: Group, row: Row) -> dict:
    means = {name: figure.value for name, figure in row.figures.items()}
    deviations = {name: figure.deviation for name, figure in row.figures.items() if figure.deviation is not None}
    return {"name": group.name, "results": group.paths, "mean": means, "deviation": deviations}

"""Runs that are drawn or put into a table: their curves, which scores they have, and their best epochs.

run = Run("lstm", 0, [History("seed1", 0, read_stats(path1)), History("seed2", 1, read_stats(path2))])
epochs, means, deviations = run.curve("cider")
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from captioning.errors import UserError
from captioning.scoring.bootstrap import NOISE
from training.curves.histories import History, is_loss, quantity_name

SCORES = {  # name in the file -> in the legend
    "cider": "CIDEr",
    "bleu_4": "BLEU-4",
    "ciderd": "CIDEr-D",
    "meteor": "METEOR",
    "rouge_l": "ROUGE-L",
    "spice": "SPICE",
    "bleu_1": "BLEU-1",
    "bleu_2": "BLEU-2",
    "bleu_3": "BLEU-3",
}
LOSSES = ("training_loss", "validation_loss")  # are drawn before other losses
SCHEDULES = ("learning_rate", "teacher_forcing")  # have flags of their own


@dataclass(frozen=True)
class Run:
    """One line of a figure: a statistics file, or several, as of several seeds, of which the mean is drawn.

    position: among the lines; decides colour, dashes and marker.
    """

    label: str
    position: int
    members: list[History]

    def curve(self, quantity: str) -> tuple[list[float], list[float], list[float]]:
        """Epochs in which every member has `quantity`, its means, and its standard deviations (of a sample, n - 1).

        There are no deviations where there is one member.
        """
        curves = [dict(zip(*member.curve(quantity))) for member in self.members]
        epochs = [epoch for epoch in curves[0] if all(epoch in curve for curve in curves)]
        each = [[curve[epoch] for curve in curves] for epoch in epochs]
        if len(curves) == 1:
            return epochs, [values[0] for values in each], []
        return epochs, list(map(statistics.fmean, each)), list(map(statistics.stdev, each))

    @property
    def last_epoch(self) -> float:
        return max(epoch for member in self.members for epoch in member.epochs)


def quantities(runs: Sequence[Run]) -> list[str]:
    """Every quantity that some epoch has, in order of first appearance."""
    epochs = (values for run in runs for member in run.members for values in member.epochs.values())
    return list(dict.fromkeys(name for values in epochs for name in values))


def known_scores(runs: Sequence[Run]) -> list[str]:
    there = quantities(runs)
    return [score for score in SCORES if score in there]


def chosen_scores(runs: Sequence[Run], names: str | None, strict: bool = True) -> list[str]:
    """The scores to draw, in order; `names` as in --metrics.

    Raises UserError for a name that no file has, with those there are; unless `strict`, for it may come later.
    """
    there = [name for name in quantities(runs) if not is_loss(name)]
    known = known_scores(runs)
    if names is None:
        return [score for score in ("cider", "bleu_4") if score in there] or known
    if names.strip() == "none":
        return []
    chosen = []
    for name in filter(None, map(str.strip, names.split(","))):
        wanted = ["bleu_1", "bleu_2", "bleu_3", "bleu_4"] if name == "bleu" else [quantity_name(name)]
        found = [quantity for quantity in wanted if quantity in there]
        if strict and not found:
            others = ", ".join(known + [quantity for quantity in there if quantity not in known])
            raise UserError(f"--metrics: no file has {name}; they have {others or 'no scores'}")
        chosen += found
    return list(dict.fromkeys(chosen))


def losses(runs: Sequence[Run]) -> list[str]:
    there = {name for name in quantities(runs) if is_loss(name)}
    return [name for name in LOSSES if name in there] + sorted(there.difference(LOSSES))


def best(run: Run, scores: Sequence[str]) -> tuple[str, float, float] | None:
    """(quantity, epoch, value) of the run's best epoch: by its first known score, else its validation loss.

    The loss decides too where the score is noise in all epochs, as it does for best.model.
    """
    validated = bool(run.curve("validation_loss")[1])
    for quantity in [*(score for score in scores if score in SCORES), "validation_loss"]:
        epochs, values, _ = run.curve(quantity)
        if values and (is_loss(quantity) or not validated or max(values) >= NOISE):
            pick = (min if is_loss(quantity) else max)(range(len(values)), key=values.__getitem__)
            return quantity, epochs[pick], values[pick]
    return None


def smoothed(values: Sequence[float], window: int) -> list[float]:
    """Mean over `window` neighbours, over fewer near the ends, so that the curve keeps its ends."""
    sums, means = [0.0, *accumulate(values)], []
    for i in range(len(values)):
        room = min(i, len(values) - 1 - i)
        first, end = i - min((window - 1) // 2, room), i + min(window // 2, room) + 1
        means.append((sums[end] - sums[first]) / (end - first))
    return means


def title(quantity: str) -> str:
    return SCORES.get(quantity) or quantity.replace("_", " ")


def described(run: Run, scores: Sequence[str]) -> str:
    """The best epoch in words, "" where nothing tells which it is."""
    found = best(run, scores)
    return f"best epoch {found[1]:g} ({title(found[0])} {found[2]:.3f})" if found else ""

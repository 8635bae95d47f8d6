#!/usr/bin/env python3
"""Draw the losses and scores that train.py writes after every epoch.

    ./plot_stats.py models/mymodel/train_stats.json             # a window, or train_stats.png where there is no display
    ./plot_stats.py models/mymodel --watch                      # redrawn at every new epoch, until Ctrl-C
    ./plot_stats.py models/a models/b --labels LSTM,GRU --output curves.pdf
    ./plot_stats.py models/mymodel --metrics bleu,rouge_l --smooth_cider 5

Losses are plain lines on the left axis, scores are lines with markers on the right axis, a star is the best epoch:
the highest of the first score drawn, or the lowest validation loss where that score stays under 0.01. Several files
get a colour each.
"""

import sys

from captioning.command_line import Parser


def parse_args(argv=None):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("files", nargs="+", metavar="FILE", help="train_stats.json, or the folder that holds it (models/NAME)")
    add(
        "--labels",
        metavar="A,B",
        help="names for the legend, of the first files where fewer (default: folders or files)",
    )
    add("--smooth_cider", default=1, metavar="W", help="draw the mean of CIDEr over W epochs")
    add("--watch", action="store_true", help="draw again whenever a file changes, until Ctrl-C")
    add("--interval", default=2.0, metavar="S", help="--watch: look at the files every S seconds")
    add("--output", metavar="FILE", help=".png, .svg or .pdf (default: a window, else train_stats.png beside FILE)")
    add("--metrics", metavar="NAMES", help="scores to draw, as in cider,bleu, or none (default: cider,bleu_4)")
    args = parser.parse_args(argv)
    parser.at_least(0, args, "smooth_cider")
    if not args.interval > 0:
        parser.error(f"--interval: {args.interval:g} is no time in seconds; give more than 0")
    if args.output and not args.output.lower().endswith((".png", ".svg", ".pdf")):
        parser.error(f"--output: {args.output} must end in .png, .svg or .pdf")
    return args


if __name__ == "__main__":
    ARGS = parse_args()  # before the heavy imports, so that --help and mistakes answer at once

import contextlib
import math
import os
import re
import signal
import threading
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, cycle
from pathlib import Path

BACKEND = os.environ.pop("MPLBACKEND", None)  # for a window only: matplotlib fails where it names one that is missing

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from captioning.errors import UserError, run
from captioning.files import atomic_write, check_writable, read_json
from captioning.scoring.bootstrap import NOISE

SCORES = {  # name in the file -> in the legend, marker
    "cider": ("CIDEr", "o"),
    "bleu_4": ("BLEU-4", "s"),
    "ciderd": ("CIDEr-D", "v"),
    "meteor": ("METEOR", "^"),
    "rouge_l": ("ROUGE-L", "D"),
    "spice": ("SPICE", "P"),
    "bleu_1": ("BLEU-1", "<"),
    "bleu_2": ("BLEU-2", ">"),
    "bleu_3": ("BLEU-3", "X"),
}
OTHER_NAMES = {"rouge": "rouge_l", "cider_d": "ciderd", "val_loss": "validation_loss", "train_loss": "training_loss"}
OTHER_NAMES |= {"val_loss_word": "validation_word_loss", "val_loss_sentence": "validation_stop_loss"}
OTHER_MARKERS = "hd*pH"
LOSS_DASHES = {"training_loss": "solid", "validation_loss": (0, (5, 2))}

# Okabe and Ito's colours, which the colour-blind tell apart. A single run: blues for losses, the others for scores.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F5539", "#666666"]
LOSS_COLOURS = ["#0072B2", "#56B4E9", "#1B3A57", "#7A9CC6"]
SCORE_COLOURS = ["#D55E00", "#E69F00", "#009E73", "#CC79A7", "#7F5539", "#666666"]
GREY = "#444444"
DEEPEST, MOST_QUANTITIES = 5, 200  # of the figures of an epoch
LARGEST = 1e100  # of figures and epochs: matplotlib cannot lay out axes of larger ones
NO_WINDOW = ("agg", "cairo", "pdf", "pgf", "ps", "svg", "template")

STYLE = {
    "font.size": 11,
    "axes.titlesize": 13,
    "axes.spines.top": False,
    "axes.edgecolor": "#999999",
    "axes.labelcolor": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "lines.linewidth": 2.0,
    "lines.markersize": 5.5,
    "legend.frameon": False,
    "savefig.dpi": 150,
}


@dataclass(frozen=True)
class History:
    """One statistics file: `epochs[epoch][quantity]`, finite numbers only."""

    label: str
    position: int  # among the files of the command line; decides the colour
    epochs: dict[float, dict[str, float]]

    def curve(self, quantity: str) -> tuple[list[float], list[float]]:
        """Epochs that have `quantity`, and its values."""
        points = [(epoch, values[quantity]) for epoch, values in self.epochs.items() if quantity in values]
        return [epoch for epoch, _ in points], [value for _, value in points]


# ---- reading ----


def stats_file(name: str) -> Path:
    path = Path(name)
    return path / "train_stats.json" if path.is_dir() else path


def labels_of(files: list[str], typed: str | None) -> list[str]:
    """A label for each file: those of --labels, then names of folders or files. Raises UserError for too many."""
    labels = [] if typed is None else [label.strip() for label in typed.split(",")]
    if len(labels) > len(files):
        raise UserError(f"--labels: {len(labels)} labels for {len(files)} files; give at most one for each")
    for path in map(stats_file, files[len(labels) :]):
        name = path.resolve().parent.name if path.name == "train_stats.json" else path.name.split(".")[0] or path.name
        labels.append(name)
    return labels


def read_stats(path: Path) -> dict[float, dict[str, float]]:
    """The epochs of a statistics file, in order. Raises UserError for a file that holds something else, or nothing."""
    content = read_json(path, "FILE")
    if not isinstance(content, dict):
        raise UserError(f'FILE: {path} holds no statistics; they look like {{"1": {{"training_loss": 3.2}}, ...}}')
    epochs = {}
    for key, values in content.items():
        try:
            epoch = float(key)
        except ValueError:
            epoch = math.nan
        if not abs(epoch) < LARGEST or not isinstance(values, dict):
            raise UserError(
                f'FILE: {path} holds no statistics: "{key[:60]}" is not an epoch with its losses and scores'
            )
        if epoch in epochs:
            raise UserError(f'FILE: {path} has the epoch {epoch:g} twice, the second time as "{key[:60]}"')
        epochs[epoch] = dict(numbers("", values))
        if len(epochs[epoch]) > MOST_QUANTITIES:
            raise UserError(f'FILE: {path}: epoch "{key[:60]}" has more than {MOST_QUANTITIES} numbers')
    if not any(epochs.values()):
        raise UserError(f"FILE: {path} holds no numbers yet; give it an epoch, or wait for one with --watch")
    return dict(sorted(epochs.items()))


def numbers(prefix: str, value, depth: int = 0):
    """Yield (quantity, number) for every number in `value` that can be drawn.

    Nested names are joined, lists count from 1. What is nested deeper than DEEPEST is passed over.
    """
    if isinstance(value, dict | list) and depth < DEEPEST:
        items = value.items() if isinstance(value, dict) else enumerate(value, start=1)
        for key, part in items:
            yield from numbers(f"{prefix}_{key}" if prefix else str(key), part, depth + 1)
    elif isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST:
        yield quantity_name(prefix), float(value)


@cache
def quantity_name(key: str) -> str:
    """One name for what files call validation_Bleu_4, validation_bleu4, bleu_4...; losses keep their prefix."""
    name = re.sub(r"\W+", "_", key.strip().lower())
    if not is_loss(name):
        name = re.sub(r"^(validation|val)_(scores_)?", "", name)
    name = re.sub(r"^bleu_?(\d)$", r"bleu_\1", name)
    return OTHER_NAMES.get(name, name)


def is_loss(quantity: str) -> bool:
    return "loss" in quantity


def watched(files: list[str], labels: list[str], pause):
    """Yield the histories at first and whenever a file changes, until `pause()` (which waits) returns False.

    A file that is missing or half written is named once and looked at again; what it held before stays.
    """
    histories, seen, problems = {}, {}, {}
    while True:
        changed = False
        for i, (name, label) in enumerate(zip(files, labels)):
            try:
                path = stats_file(name)
                status = path.stat() if path.exists() else None
                mark = status and (status.st_ino, status.st_mtime_ns, status.st_size)
                if mark and mark == seen.get(i):
                    continue
                histories[i] = History(label, i, read_stats(path))
                seen[i], changed = mark, True
                problems.pop(i, None)
            except (UserError, OSError) as error:
                seen.pop(i, None)
                if problems.get(i) != str(error):
                    print(f"waiting: {error}", file=sys.stderr)
                problems[i] = str(error)
        if changed:
            yield [histories[i] for i in sorted(histories)]
        if not pause():
            return


# ---- what to draw ----


def quantities(histories: list[History]) -> list[str]:
    """Every quantity that some epoch has, in order of first appearance."""
    return list(dict.fromkeys(name for history in histories for values in history.epochs.values() for name in values))


def chosen_scores(histories: list[History], names: str | None, strict: bool = True) -> list[str]:
    """The scores to draw, in order; `names` as in --metrics.

    Raises UserError for a name that no file has, with those there are; unless `strict`, for it may come later.
    """
    there = [name for name in quantities(histories) if not is_loss(name)]
    known = [score for score in SCORES if score in there]
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


def losses(histories: list[History]) -> list[str]:
    there = {name for name in quantities(histories) if is_loss(name)}
    return [name for name in LOSS_DASHES if name in there] + sorted(there - LOSS_DASHES.keys())


def best(history: History, scores: list[str]) -> tuple[str, float, float] | None:
    """(quantity, epoch, value) of the run's best epoch: by its first known score, else its validation loss.

    The loss decides too where the score is noise in all epochs, as it does for best.model.
    """
    losses = bool(history.curve("validation_loss")[1])
    for quantity in [*(score for score in scores if score in SCORES), "validation_loss"]:
        epochs, values = history.curve(quantity)
        if values and (is_loss(quantity) or not losses or max(values) >= NOISE):
            pick = (min if is_loss(quantity) else max)(range(len(values)), key=values.__getitem__)
            return quantity, epochs[pick], values[pick]
    return None


def smoothed(values: list[float], window: int) -> list[float]:
    """Mean over `window` neighbours, over fewer near the ends, so that the curve keeps its ends."""
    sums, means = [0.0, *accumulate(values)], []
    for i in range(len(values)):
        room = min(i, len(values) - 1 - i)
        first, end = i - min((window - 1) // 2, room), i + min(window // 2, room) + 1
        means.append((sums[end] - sums[first]) / (end - first))
    return means


def title(quantity: str) -> str:
    return SCORES[quantity][0] if quantity in SCORES else quantity.replace("_", " ")


def described(history: History, scores: list[str]) -> str:
    found = best(history, scores)
    return f"best epoch {found[1]:g} ({title(found[0])} {found[2]:.3f})" if found else ""


# ---- drawing ----


def draw(figure, histories: list[History], scores: list[str], smooth: int = 1) -> None:
    """Draw `histories` into an empty or old `figure`: losses on the left axis, `scores` on the right one."""
    figure.clear()
    left = figure.add_subplot()
    drawn_losses = losses(histories)
    right = left.twinx() if scores and drawn_losses else left
    one = len(histories) == 1
    palette = dict(zip(drawn_losses, cycle(LOSS_COLOURS))) | dict(zip(scores, cycle(SCORE_COLOURS)))

    def colour(history: History, quantity: str) -> str:
        return palette[quantity] if one else COLOURS[history.position % len(COLOURS)]

    handles = []
    for i, quantity in enumerate([*drawn_losses, *scores]):
        axis = left if is_loss(quantity) else right
        style = line_style(quantity, i)
        for history in histories:
            draw_curve(axis, history, quantity, {**style, "color": colour(history, quantity)}, smooth)
        label = f"{title(quantity)}, mean of {smooth}" if quantity == "cider" and smooth > 1 else title(quantity)
        handles.append(Line2D([], [], **style, color=palette[quantity] if one else GREY, label=label))
    marked = [(history, *found) for history in histories if (found := best(history, scores))]
    for history, quantity, epoch, value in marked:
        axis, shade = left if is_loss(quantity) else right, colour(history, quantity)
        left.axvline(epoch, color=shade, linewidth=1, alpha=0.35, zorder=0)
        star = {"marker": "*", "markersize": 17, "markeredgecolor": "white", "zorder": 5, "clip_on": False}
        axis.plot([epoch], [value], color=shade, **star)
    if marked:
        handles.append(Line2D([], [], linestyle="none", marker="*", markersize=12, color=GREY, label="best epoch"))
    decorate(left, right, drawn_losses, scores, palette if one else {})
    columns = max(1, len(handles) if len(handles) <= 5 else math.ceil(len(handles) / 2))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)

    labels = [", ".join(filter(None, [plain(history.label), described(history, scores)])) for history in histories]
    if one:
        left.set_title(labels[0], loc="left", pad=12)
    else:
        colours = [colour(history, "") for history in histories]
        names = [Line2D([], [], color=c, linewidth=4, label=label) for c, label in zip(colours, labels)]
        figure.legend(handles=names, loc="outside upper center", ncols=2)


def line_style(quantity: str, position: int) -> dict:
    if is_loss(quantity):
        return {"linestyle": LOSS_DASHES.get(quantity, (0, (1, 1.5))), "marker": ""}
    marker = SCORES[quantity][1] if quantity in SCORES else OTHER_MARKERS[position % len(OTHER_MARKERS)]
    return {"linestyle": "solid", "marker": marker, "markeredgecolor": "white", "markeredgewidth": 0.6}


def draw_curve(axis, history: History, quantity: str, style: dict, smooth: int) -> None:
    epochs, values = history.curve(quantity)
    if quantity == "cider" and smooth > 1:
        axis.plot(epochs, values, **{**style, "marker": "", "linewidth": 1, "alpha": 0.5})
        values = smoothed(values, smooth)
    if len(values) == 1 and not style["marker"]:  # a line through one point would not show
        style = {**style, "marker": "."}
    if len(values) > 40 and style["marker"]:
        style = {**style, "markevery": len(values) // 20}
    axis.plot(epochs, values, **style)


def decorate(left, right, drawn_losses: list[str], scores: list[str], palette: dict[str, str]) -> None:
    left.set_xlabel("epoch")
    left.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    left.grid(axis="y", color="#E6E6E6", linewidth=0.8)
    left.set_axisbelow(True)
    if drawn_losses:
        left.set_ylabel("loss", color=palette.get(drawn_losses[0], GREY))
    if scores:
        label = ", ".join(map(title, scores)) if len(scores) < 4 else "score"
        right.set_ylabel(label, color=palette.get(scores[0], GREY))
        right.set_ylim(bottom=min(0, right.get_ylim()[0]))
    right.spines["right"].set_visible(right is not left)


def plain(label: str) -> str:
    """`label` as text that matplotlib neither reads as mathematics nor hides."""
    return (" " + label if label.startswith("_") else label).replace("$", r"\$")


# ---- showing ----


def window_maker():
    """matplotlib.pyplot where it can open a window here, else None."""
    if sys.platform not in ("win32", "darwin") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return None
    import matplotlib.pyplot as pyplot  # tries the window toolkits in turn and settles on agg where none works

    if BACKEND:
        with contextlib.suppress(ImportError, ValueError):  # it is not installed, or is no backend
            pyplot.switch_backend(BACKEND)
    backend = pyplot.get_backend().lower()
    return None if backend in NO_WINDOW or "inline" in backend else pyplot


def save(figure, output: str | None, first: str) -> None:
    """Write `figure` to `output`, or to a .png beside the statistics file `first`, and say where."""
    path = Path(output) if output else stats_file(first).with_suffix(".png")
    try:
        with atomic_write(path, "wb") as file:
            figure.savefig(file, format=path.suffix[1:].lower())
    except (UserError, OSError) as error:
        raise UserError(f"{error}; name another place with --output") from error
    print(f"wrote {path}", flush=True)


class Plot:
    """The figure in a window, or in a file where `output` names one or no window can be opened.

    metrics: as in --metrics; smooth: epochs that CIDEr is averaged over.
    """

    def __init__(self, files: list[str], metrics: str | None, smooth: int, output: str | None):
        self.files, self.metrics, self.smooth, self.output = files, metrics, smooth, output
        self.ended = threading.Event()
        matplotlib.rcParams.update(STYLE)
        self.pyplot = None if output else window_maker()
        new_figure = self.pyplot.figure if self.pyplot else Figure
        self.figure = new_figure(figsize=(9, 5.6), layout="constrained")  # inches

    def show(self, histories: list[History], strict: bool = True) -> None:
        """Draw and print `histories`. strict: raise UserError where they lack what was asked for."""
        scores = chosen_scores(histories, self.metrics, strict)
        if strict and not (scores or losses(histories)):
            raise UserError(f"FILE: {self.files[0]} has neither losses nor scores; name what to draw with --metrics")
        draw(self.figure, histories, scores, self.smooth)
        for history in histories:
            last = f"{history.label}: epoch {max(history.epochs):g}"
            print(", ".join(filter(None, [last, described(history, scores)])), flush=True)
        if self.pyplot:
            self.figure.canvas.draw_idle()
        else:
            save(self.figure, self.output, self.files[0])

    def watch(self, labels: list[str], interval: float) -> None:
        """Draw again whenever a file changes, until Ctrl-C or until the window is closed."""
        if self.pyplot:
            self.pyplot.show(block=False)
        # An exception could be lost in a callback of matplotlib's; a flag is not.
        before = signal.signal(signal.SIGINT, lambda number, frame: self.ended.set())
        try:
            for histories in watched(self.files, labels, lambda: self._pause(interval)):
                self.show(histories, strict=False)
        finally:
            signal.signal(signal.SIGINT, before)

    def _pause(self, seconds: float) -> bool:
        """Whether to go on after `seconds`."""
        if not self.pyplot:
            return not self.ended.wait(seconds)
        self.figure.canvas.start_event_loop(seconds)  # unlike plt.pause, does not pull the window to the front
        return not self.ended.is_set() and self.pyplot.fignum_exists(self.figure.number)


def main(args) -> None:
    files, labels = args.files, labels_of(args.files, args.labels)
    if args.output:
        check_writable("--output", args.output)
    if not args.watch:  # a mistake is named before a window opens
        histories = [History(label, i, read_stats(stats_file(files[i]))) for i, label in enumerate(labels)]
    plot = Plot(files, args.metrics, args.smooth_cider, args.output)
    if args.watch:
        plot.watch(labels, args.interval)
        return
    plot.show(histories)
    if plot.pyplot:
        plot.pyplot.show()  # until the window is closed


if __name__ == "__main__":
    sys.exit(run(main, ARGS))

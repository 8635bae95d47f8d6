#!/usr/bin/env python3
"""Draw the losses and scores that train.py writes after every epoch, or print them as a table.

    ./plot_stats.py models/mymodel/train_stats.json             # a window, or train_stats.png where there is no display
    ./plot_stats.py models/mymodel --watch                      # redrawn at every new epoch, until Ctrl-C
    ./plot_stats.py models/a models/b --labels LSTM,GRU --output curves.pdf
    ./plot_stats.py --group lstm=models/lstm* --group gru=models/gru* --output seeds.pdf   # means and deviations
    ./plot_stats.py models/mymodel --metrics bleu,rouge_l --smooth 5 --learning_rate
    ./plot_stats.py models/a models/b --table markdown          # figures of the best and of the last epoch

Losses have a panel, and each kind of score has one. Runs differ by colour, dashes and marker. A star is the best epoch:
the highest of the first score drawn, or the lowest validation loss where that score stays under 0.01.
"""

import sys

from captioning.command_line import Parser
from captioning.groups import GROUP, group_mistake, read_groups

TABLES = ("text", "markdown", "latex", "csv")


def parse_args(argv=None):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("files", nargs="*", metavar="FILE", help="train_stats.json, or the folder that holds it (models/NAME)")
    add(
        "--labels",
        metavar="A,B",
        help="names for the legend, of the first files where fewer (default: folders or files)",
    )
    add("--group", **GROUP, help="draw the mean of several files, as of several seeds, with a band of one standard "
        "deviation: alone, of all FILEs; with NAME=A,B or NAME=PATTERN of those; may be repeated")  # fmt: skip
    add("--metrics", metavar="NAMES", help="scores to draw, as in cider,bleu, or none (default: cider,bleu_4)")
    add("--learning_rate", action="store_true", help="draw the learning rate too")
    add("--teacher_forcing", action="store_true", help="draw the probability of the true word too")
    add("--smooth", default=1, metavar="W", help="draw the mean of every loss and score over W epochs")
    add("--smooth_cider", type=int, metavar="W", help="draw the mean of CIDEr over W epochs (default: as --smooth)")
    add("--output", metavar="FILE", help=".png, .svg or .pdf (default: a window, else train_stats.png beside FILE)")
    add("--table", nargs="?", const="text", choices=TABLES, help="print the best and the last epoch of each run, of a "
        "group the mean and deviation; draw only where --output is given (default: text)")  # fmt: skip
    add("--watch", action="store_true", help="draw again whenever a file changes, until Ctrl-C")
    add("--interval", default=2.0, metavar="S", help="--watch: look at the files every S seconds")
    args = parser.parse_args(argv)
    if not args.files and not any(args.group or ()):
        parser.error("name one or more statistics files, or folders of runs")
    if mistake := group_mistake(args.group or (), args.files, "the FILEs"):
        parser.error(mistake)
    parser.at_least(0, args, "smooth", "smooth_cider")
    if not args.interval > 0:
        parser.error(f"--interval: {args.interval:g} is no time in seconds; give more than 0")
    if args.table and args.watch:
        parser.error("--table and --watch exclude each other")
    if args.output and not args.output.lower().endswith((".png", ".svg", ".pdf")):
        parser.error(f"--output: {args.output} must end in .png, .svg or .pdf")
    return args


if __name__ == "__main__":
    ARGS = parse_args()  # before the heavy imports, so that --help and mistakes answer at once

import contextlib
import os
import signal
import statistics
import threading
from dataclasses import dataclass
from pathlib import Path

BACKEND = os.environ.pop("MPLBACKEND", None)  # for a window only: matplotlib fails where it names one that is missing

import matplotlib
from matplotlib.figure import Figure

from captioning.errors import UserError, run
from captioning.files import atomic_write, check_writable
from training.curves.drawing import STYLE, draw
from training.curves.histories import History, labels_of, read_stats, stats_file, watched
from training.curves.runs import (
    SCHEDULES,
    Run,
    best,
    chosen_scores,
    described,
    known_scores,
    losses,
    quantities,
    title,
)

NO_WINDOW = ("agg", "cairo", "pdf", "pgf", "ps", "svg", "template")


@dataclass(frozen=True)
class Lines:
    """The lines of the figure. names: of each; members: the places of its files in `files`, all of them in a row."""

    names: list[str]
    members: list[list[int]]
    files: list[str]

    @classmethod
    def of(cls, groups: list[tuple[str, list[str]]]) -> "Lines":
        files = [file for _, several in groups for file in several]
        places = iter(range(len(files)))
        return cls([name for name, _ in groups], [[next(places) for _ in several] for _, several in groups], files)

    def labels(self) -> list[str]:
        """A label for each file: that of its line, or its own name where the line has several."""
        alone = {several[0]: name for name, several in zip(self.names, self.members) if len(several) == 1}
        return [alone.get(place) or labels_of([file], None)[0] for place, file in enumerate(self.files)]

    def runs(self, histories: list[History]) -> list[Run]:
        """Those of which some file could be read. histories: what was read, `position` being the place of its file."""
        by_place = {history.position: history for history in histories}
        runs = []
        for number, (name, places) in enumerate(zip(self.names, self.members)):
            if found := [by_place[place] for place in places if place in by_place]:
                runs.append(Run(name, number, found))
        return runs


@dataclass(frozen=True)
class Wanted:
    """What to draw. metrics: as in --metrics; smooth: epochs that curves are averaged over, and those of CIDEr."""

    metrics: str | None = None
    schedules: tuple[str, ...] = ()
    smooth: int = 1
    smooth_cider: int = 1

    def windows(self, names: list[str]) -> dict[str, int]:
        return {**dict.fromkeys(names, self.smooth), "cider": self.smooth_cider}

    def require_schedules(self, runs: list[Run]) -> None:
        """Raises UserError where no file has a schedule that was asked for."""
        there = quantities(runs)
        for name in self.schedules:
            if name not in there:
                why = "; with --teacher_forcing always there is none" if name == "teacher_forcing" else ""
                raise UserError(f"--{name}: no file has it{why}")


# ---- the table ----


def table(runs: list[Run], scores: list[str], form: str) -> str:
    """The figures of the best and of the last epoch of each run; of a group their mean and standard deviation."""
    from inference.score_tables import Figure, Row, render

    names = [*losses(runs), *scores]
    headings = {"best_epoch": ("best epoch", ".4g"), "last_epoch": ("last epoch", ".4g")}
    headings |= {f"{name}_{kind}": (f"{title(name)} ({kind})", ".4f") for name in names for kind in ("best", "last")}
    rows, groups = [], any(len(run.members) > 1 for run in runs)
    for line in runs:
        each = [epoch_figures(Run(line.label, 0, [member]), names, scores) for member in line.members]
        figures = {}
        for column in headings:
            values = [found[column] for found in each if column in found]
            if len(values) == len(each):
                deviation = statistics.stdev(values) if len(values) > 1 else None
                mean = values[0] if len(set(values)) == 1 else statistics.fmean(values)  # epochs stay whole numbers
                figures[column] = Figure(mean, deviation)
        ordered = sorted(figures, key=lambda column: column.startswith("last") or column.endswith("_last"))
        rows.append(Row(line.label, len(line.members) if groups else None, {name: figures[name] for name in ordered}))
    return render(rows, form, headings)


def epoch_figures(one: Run, names: list[str], scores: list[str]) -> dict[str, float]:
    """The figures of the best and of the last epoch of a run of one file, under the names of their columns."""
    found, figures = best(one, scores), {}
    for kind, epoch in (("best", found and found[1]), ("last", one.last_epoch)):
        if epoch is not None:
            figures[f"{kind}_epoch"] = int(epoch) if epoch == int(epoch) else epoch
            for name in names:
                if (value := dict(zip(*one.members[0].curve(name))).get(epoch)) is not None:
                    figures[f"{name}_{kind}"] = value
    return figures


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
    """The figure in a window, or in a file where `output` names one or no window can be opened."""

    def __init__(self, lines: Lines, wanted: Wanted, output: str | None):
        self.lines, self.wanted, self.output = lines, wanted, output
        self.ended = threading.Event()
        matplotlib.rcParams.update(STYLE)
        self.pyplot = None if output else window_maker()
        new_figure = self.pyplot.figure if self.pyplot else Figure
        self.figure = new_figure(layout="constrained")

    def show(self, histories: list[History], strict: bool = True) -> None:
        """Draw and print `histories`. strict: raise UserError where they lack what was asked for."""
        runs, wanted = self.lines.runs(histories), self.wanted
        scores = chosen_scores(runs, wanted.metrics, strict)
        if strict:
            wanted.require_schedules(runs)
        schedules = [name for name in wanted.schedules if name in quantities(runs)]
        drawn = [*losses(runs), *scores]
        if drawn or schedules:
            draw(self.figure, runs, scores, schedules, wanted.windows(drawn))
        elif strict:
            file = self.lines.files[0]
            raise UserError(f"FILE: {file} has neither losses nor scores; name what to draw with --metrics")
        for line in runs:
            if drawn and not any(line.curve(name)[0] for name in drawn):
                print(f"{line.label}: its files have no epoch in common, so no mean is drawn", file=sys.stderr)
            last = f"{line.label}: epoch {line.last_epoch:g}"
            print(", ".join(filter(None, [last, described(line, scores)])), flush=True)
        if self.pyplot:
            self.figure.canvas.draw_idle()
        else:
            save(self.figure, self.output, self.lines.files[0])

    def watch(self, interval: float) -> None:
        """Draw again whenever a file changes, until Ctrl-C or until the window is closed."""
        if self.pyplot:
            self.pyplot.show(block=False)
        # An exception could be lost in a callback of matplotlib's; a flag is not.
        before = signal.signal(signal.SIGINT, lambda number, frame: self.ended.set())
        try:
            for histories in watched(self.lines.files, self.lines.labels(), lambda: self._pause(interval)):
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
    lines = Lines.of(read_groups(args.files, labels_of(args.files, args.labels), args.group or []))
    if args.output:
        check_writable("--output", args.output)
    if not args.watch:  # a mistake is named before a window opens
        names = enumerate(zip(lines.files, lines.labels()))
        histories = [History(label, place, read_stats(stats_file(file))) for place, (file, label) in names]
    if args.table:
        runs = lines.runs(histories)
        scores = known_scores(runs) if args.metrics is None else chosen_scores(runs, args.metrics)
        print(table(runs, scores, args.table), end="")
        if not args.output:
            return
    schedules = tuple(name for name in SCHEDULES if getattr(args, name))
    smooth_cider = args.smooth if args.smooth_cider is None else args.smooth_cider
    plot = Plot(lines, Wanted(args.metrics, schedules, args.smooth, smooth_cider), args.output)
    if args.watch:
        plot.watch(args.interval)
        return
    plot.show(histories)
    if plot.pyplot:
        plot.pyplot.show()  # until the window is closed


if __name__ == "__main__":
    sys.exit(run(main, ARGS))

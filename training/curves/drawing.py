"""The figure of some runs: a panel of losses, one for each kind of score, and others on request.

    figure = Figure(layout="constrained")
    draw(figure, [Run("lstm", 0, [history])], ["cider", "bleu_4"])
    figure.savefig("curves.pdf")

Runs differ by colour, dashes and marker, so that a grey print tells them apart. A run of several seeds has a band of
one standard deviation about its mean. A star is the best epoch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from training.curves.histories import is_loss
from training.curves.runs import Run, best, described, losses, smoothed, title

# Scores of one scale share a panel: they, their name, and the least top of its axis. A CIDEr of 0.0004 is no triumph.
KINDS = (
    (("cider", "ciderd"), 0.5),
    (("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l"), 0.3),
    (("meteor", "spice"), 0.2),
)
# Okabe and Ito's colours, which the colour-blind tell apart.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F5539", "#666666"]
DASHES = ["solid", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 1.5, 1, 1.5)), (0, (9, 2)), (0, (3, 1, 1, 1, 1, 1))]
MARKERS = "os^DvPX"
FILLS = ("full", "none", "left", "top", "right", "bottom")  # of markers: the quantities of a panel, where runs are many
GREY, LINE = "#444444", "#999999"
PANEL = (4.4, 3.3)  # inches, width and height
MOST_MARKERS = 14  # of a curve

STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": LINE,
    "axes.labelcolor": GREY,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.7,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "savefig.dpi": 200,
    "pdf.fonttype": 42,  # the font itself, so that text stays text; SVG has its outlines
    "ps.fonttype": 42,
}


@dataclass(frozen=True)
class Panel:
    """An axis: its label, what is drawn in it, and the least value of its top (None: as tight as the curves)."""

    label: str
    quantities: list[str]
    top: float | None = None


def panels(drawn_losses: Sequence[str], scores: Sequence[str], schedules: Sequence[str] = ()) -> list[Panel]:
    """The panels of a figure, from left to right."""
    made = [Panel("loss", list(drawn_losses))] if drawn_losses else []
    left = list(scores)
    for kind, top in KINDS:
        if found := [score for score in scores if score in kind]:
            families = dict.fromkeys("BLEU" if len(found) > 1 and "bleu" in name else title(name) for name in found)
            made.append(Panel(", ".join(families), found, top))
            left = [score for score in left if score not in kind]
    made += [Panel(title(name), [name]) for name in left]
    labels = {"learning_rate": "learning rate", "teacher_forcing": "probability of the true word"}
    return made + [Panel(labels[name], [name]) for name in schedules]


def draw(figure, runs: Sequence[Run], scores: Sequence[str], schedules: Sequence[str] = (), smooth=None) -> None:
    """Draw `runs` into an empty or old `figure`.

    scores: those to draw; schedules: of SCHEDULES; smooth: {quantity: epochs}, over how many epochs means are drawn.
    """
    in_file = getattr(figure.canvas, "manager", None) is None
    sized = bool(figure.axes) and not in_file  # a window has the size that the person gave it
    figure.clear()
    made = panels(losses(runs), scores, schedules)
    columns = len(made) if len(made) <= 3 else 2 if len(made) == 4 else 3
    rows = -(-len(made) // columns)
    if not sized:
        figure.set_size_inches(max(6.0, PANEL[0] * columns), PANEL[1] * rows + 0.5)
    if engine := figure.get_layout_engine():
        engine.set(w_pad=0.1, h_pad=0.06)  # inches
    axes = [figure.add_subplot(rows, columns, number + 1) for number in range(len(made))]
    for axis, panel in zip(axes, made):
        draw_panel(axis, panel, runs, smooth or {})
    marked = False
    for run in runs:
        marked |= mark_best(axes, made, run, best(run, scores))
    legend_of_runs(figure, runs, scores, marked)


def draw_panel(axis, panel: Panel, runs: Sequence[Run], smooth: dict[str, int]) -> None:
    """The curves of a panel, its legend where it has several quantities, and its axes."""
    handles = []
    for number, quantity in enumerate(panel.quantities):
        window = smooth.get(quantity, 1)
        for run in runs:
            draw_curve(axis, run, quantity, style_of(run, quantity, number, len(runs) == 1), window)
        label = title(quantity).removesuffix(" loss") if panel.label == "loss" else title(quantity)
        label += f", mean of {window}" if window > 1 else ""
        shown = style_of(runs[0], quantity, number, len(runs) == 1)
        if len(runs) > 1:  # of all runs
            shown = {**shown, "color": GREY, "linestyle": "solid", "marker": shown["marker"] and "o"}
        handles.append(Line2D([], [], **shown, label=label))
    if len(handles) > 1 or any(smooth.get(quantity, 1) > 1 for quantity in panel.quantities):
        axis.legend(handles=handles, loc="best")
    axis.set_xlabel("epoch")
    axis.set_ylabel(panel.label)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    limit_axis(axis, panel)


def style_of(run: Run, quantity: str, number: int, alone: bool) -> dict:
    """How the curve of `quantity`, `number` in its panel, looks. alone: there is no other run.

    Runs differ by colour, dashes and marker, the quantities of one run by the filling of markers. A run alone needs no
    such thing, so its quantities differ by colour, dashes and marker.
    """
    look = number if alone else run.position
    style = {
        "color": COLOURS[look % len(COLOURS)],
        "linestyle": DASHES[look % len(DASHES)],
        "marker": MARKERS[look % len(MARKERS)],
        "markerfacecoloralt": "white",
        "fillstyle": "full" if alone else FILLS[number % len(FILLS)],
    }
    if quantity == "training_loss":  # plain and thin: validation counts
        style |= {"marker": "", "linewidth": 1.2}
    elif is_loss(quantity) and not alone:
        style["fillstyle"] = FILLS[max(0, number - 1) % len(FILLS)]
    return style


def draw_curve(axis, run: Run, quantity: str, style: dict, window: int) -> None:
    """The curve, over a faint one of the plain values where means of `window` epochs are drawn; the band of seeds."""
    epochs, values, deviations = run.curve(quantity)
    if window > 1:
        axis.plot(epochs, values, **{**style, "marker": "", "linewidth": 0.8, "alpha": 0.4})
        values, deviations = smoothed(values, window), smoothed(deviations, window)
    if deviations:
        low, high = ([m + sign * d for m, d in zip(values, deviations)] for sign in (-1, 1))
        axis.fill_between(epochs, low, high, color=style["color"], alpha=0.18, linewidth=0)
    if len(values) == 1 and not style["marker"]:  # a line through one point would not show
        style = {**style, "marker": "."}
    every = max(1, len(values) // MOST_MARKERS)
    axis.plot(epochs, values, **style, markevery=(run.position % every, every))


def limit_axis(axis, panel: Panel) -> None:
    """Set the range of an axis: scores and learning rates from 0, scores to a round top, tight around losses."""
    heights = [value for line in axis.lines for value in line.get_ydata()]
    heights += [value for band in axis.collections for path in band.get_paths() for value in path.vertices[:, 1]]
    if not heights:
        return
    low, high = min(heights), max(heights)
    if panel.quantities[0] == "teacher_forcing":
        axis.set_ylim(0, 1.05)
    elif panel.quantities[0] == "learning_rate":
        axis.set_ylim(min(0, low), high * 1.08 or 1)
        axis.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    elif panel.top is not None:
        axis.set_ylim(min(0, low), max(panel.top, high * 1.08))


def mark_best(axes, made: Sequence[Panel], run: Run, found: tuple[str, float, float] | None) -> bool:
    """Put a star at the best epoch of `run`, and a faint line through it in each panel. Gives whether there is one."""
    if found is None:
        return False
    quantity, epoch, value = found
    colour = COLOURS[run.position % len(COLOURS)]
    for axis, panel in zip(axes, made):
        axis.axvline(epoch, color=colour, linewidth=0.9, alpha=0.35, zorder=0)
        if quantity in panel.quantities:
            star = {"marker": "*", "markersize": 15, "markeredgecolor": "white", "zorder": 5, "clip_on": False}
            axis.plot([epoch], [value], color=colour, linestyle="none", **star)
    return True


def legend_of_runs(figure, runs: Sequence[Run], scores: Sequence[str], marked: bool) -> None:
    """The names of the runs with their best epochs, above the panels."""
    star = {"linestyle": "none", "marker": "*", "markersize": 11}
    handles = []
    for run in runs:
        seeds = f" ({len(run.members)} runs)" if len(run.members) > 1 else ""
        label = ", ".join(filter(None, [plain(run.label) + seeds, described(run, scores)]))
        if len(runs) == 1:
            handles.append(Line2D([], [], **(star if marked else {"linestyle": "none"}), color=COLOURS[0], label=label))
        else:
            style = style_of(run, "", 0, False)
            handles.append(Line2D([], [], **style, label=label))
    if marked and len(runs) > 1:
        handles.append(Line2D([], [], **star, color=GREY, label="best epoch"))
    wide = max(len(handle.get_label()) for handle in handles)
    columns = max(1, min(len(handles), int(figure.get_size_inches()[0] * 11 / (wide + 8))))
    figure.legend(handles=handles, loc="outside upper left", ncols=columns, handlelength=3.2)


def plain(label: str) -> str:
    """`label` as text that matplotlib neither reads as mathematics nor hides."""
    return (" " + label if label.startswith("_") else label).replace("$", r"\$")

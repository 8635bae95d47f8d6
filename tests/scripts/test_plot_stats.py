"""plot_stats.py through its command line: what it reads, what it draws, what it says, and watching."""

import csv
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image

import plot_stats
from captioning.errors import UserError
from training.curves.drawing import draw, panels
from training.curves.histories import History, read_stats, watched
from training.curves.runs import Run, best, chosen_scores, smoothed
from training.run_folder import RunFolder
from training.run_folder import read_stats as read_figures

EPOCHS = {
    "1": {"training_loss": 4.0, "validation_loss": 3.9, "validation_cider": 0.1, "validation_bleu_4": 0.05},
    "2": {"training_loss": 3.5, "validation_loss": 3.4, "learning_rate": 0.001},
    "3": {"training_loss": 3.2, "validation_loss": 3.3, "validation_cider": 0.4, "validation_bleu_4": 0.12},
    "10": {"training_loss": 3.0, "validation_loss": 3.5, "validation_cider": 0.3, "validation_bleu_4": 0.11},
}


@pytest.fixture(autouse=True)
def no_display(monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)


@pytest.fixture
def model(tmp_path):
    return write(tmp_path / "models" / "mymodel" / "train_stats.json", EPOCHS)


def write(path: Path, content) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def alone(epochs: dict, position: int = 0, label: str = "a") -> Run:
    """A run of one file."""
    return Run(label, position, [History(label, position, {float(key): value for key, value in epochs.items()})])


def test_writes_beside_the_file_and_says_where(script, model):
    result = script("plot_stats.py", model)
    picture = model.with_name("train_stats.png")
    assert (result.status, result.err) == (0, "")
    assert result.out == f"mymodel: epoch 10, best epoch 3 (CIDEr 0.400)\nwrote {picture}\n"
    assert min(Image.open(picture).size) > 600
    picture.unlink()
    assert script("plot_stats.py", model.parent).status == 0 and picture.exists()


@pytest.mark.parametrize("suffix, start", [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".PDF", b"%PDF")])
def test_output_formats(script, model, tmp_path, suffix, start):
    output = tmp_path / f"curves{suffix}"
    assert script("plot_stats.py", model, model, "--labels", "$a, _b", "--output", output).status == 0
    assert output.read_bytes().startswith(start)


def test_read_stats_takes_what_is_a_number(tmp_path):
    path = tmp_path / "s.json"
    path.write_text(
        '{"2": {"training_loss": NaN, "validation_Bleu_4": 0.2, "time": "late", "val_loss": 3, "done": true},'
        ' "10": {"validation": {"cider": 0.5, "loss": 2.5, "bleu": [0.6, 0.4, null, 0.2]}},'
        ' "1": {"training_loss": 4, "validation_cider": null, "validation_rouge": 0.4, "validation_CIDEr": Infinity}}'
    )
    stats = read_stats(path)
    assert list(stats) == [1, 2, 10]
    assert stats[1] == {"training_loss": 4.0, "rouge_l": 0.4}
    assert stats[2] == {"bleu_4": 0.2, "validation_loss": 3.0}
    assert stats[10] == {"cider": 0.5, "validation_loss": 2.5, "bleu_1": 0.6, "bleu_2": 0.4, "bleu_4": 0.2}


def test_panels_hold_the_curves(tmp_path):
    path = write(tmp_path / "a.json", EPOCHS)
    figure = Figure(layout="constrained")
    draw(figure, [alone(read_stats(path))], ["cider", "bleu_4"])
    loss, cider, bleu = figure.axes
    assert [axis.get_ylabel() for axis in figure.axes] == ["loss", "CIDEr", "BLEU-4"]
    assert {axis.get_xlabel() for axis in figure.axes} == {"epoch"}
    assert ([1, 2, 3, 10], [4.0, 3.5, 3.2, 3.0]) in points(loss) and ([1, 2, 3, 10], [3.9, 3.4, 3.3, 3.5]) in points(
        loss
    )
    assert ([1, 3, 10], [0.1, 0.4, 0.3]) in points(cider) and ([3], [0.4]) in points(cider)  # the curve, its star
    assert all(([3, 3], [0, 1]) in points(axis) for axis in figure.axes)  # a line through the best epoch
    assert [text.get_text() for text in loss.get_legend().get_texts()] == ["training", "validation"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a, best epoch 3 (CIDEr 0.400)"]


def points(axis) -> list[tuple]:
    return [(list(line.get_xdata()), list(line.get_ydata())) for line in axis.lines]


def test_axes_mean_something():
    """Scores from 0 to a sensible top, whatever the curve; losses tight; schedules on request."""
    rows = {n: {"training_loss": 3 - n / 10, "cider": n / 10_000, "learning_rate": 0.1 / n, "x": 7.0} for n in (1, 2)}
    figure = Figure()
    draw(figure, [alone(rows)], ["cider", "x"], ["learning_rate"])
    limits = {axis.get_ylabel(): axis.get_ylim() for axis in figure.axes}
    assert limits["CIDEr"] == (0, 0.5) and limits["x"] != (0, 7) and limits["learning rate"][0] == 0
    assert 2.7 < limits["loss"][0] < 2.8 and 2.9 < limits["loss"][1] < 3.0
    draw(figure, [alone({1: {"cider": 1.2}, 2: {"cider": -0.1}})], ["cider"])
    assert figure.axes[0].get_ylim() == pytest.approx((-0.1, 1.296))


def test_scores_of_one_scale_share_a_panel():
    made = panels(["training_loss"], ["meteor", "bleu_1", "cider", "bleu_4", "rouge_l", "mine"], ["teacher_forcing"])
    assert [(panel.label, panel.quantities) for panel in made] == [
        ("loss", ["training_loss"]),
        ("CIDEr", ["cider"]),
        ("BLEU, ROUGE-L", ["bleu_1", "bleu_4", "rouge_l"]),
        ("METEOR", ["meteor"]),
        ("mine", ["mine"]),
        ("probability of the true word", ["teacher_forcing"]),
    ]


def test_runs_differ_without_colour(tmp_path):
    stats = read_stats(write(tmp_path / "a.json", EPOCHS))
    figure = Figure()
    draw(figure, [alone(stats, number, name) for number, name in enumerate("abcdef")], ["cider", "bleu_4", "bleu_1"])
    for axis in figure.axes[1:]:
        curves = [line for line in axis.lines if len(line.get_xdata()) > 2]
        looks = {(line.get_linestyle(), line.get_marker(), line.get_fillstyle()) for line in curves}
        assert len(looks) == len(curves) >= 6 and len({line.get_color() for line in curves}) == 6
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts[1] == "b, best epoch 3 (CIDEr 0.400)" and texts[-1] == "best epoch"


# ---- several seeds ----


def test_mean_and_deviation_over_seeds():
    seeds = [{1: {"cider": 0.1}, 2: {"cider": 0.2}, 3: {"cider": 0.9}}, {1: {"cider": 0.3}, 2: {"cider": 0.4}}]
    run = Run("a", 0, [History(str(n), n, stats) for n, stats in enumerate(seeds)])
    epochs, means, deviations = run.curve("cider")
    assert epochs == [1, 2] and means == pytest.approx([0.2, 0.3])  # epoch 3 is of one alone
    assert deviations == pytest.approx([0.1 * math.sqrt(2)] * 2)  # of a sample: the root of 2 * 0.1 squared, over 1
    assert run.curve("bleu_4") == ([], [], [])
    figure = Figure()
    draw(figure, [run], ["cider"])
    (band,) = figure.axes[0].collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert (min(heights), max(heights)) == pytest.approx((0.2 - 0.1 * math.sqrt(2), 0.3 + 0.1 * math.sqrt(2)))
    assert figure.legends[0].get_texts()[0].get_text() == "a (2 runs), best epoch 2 (CIDEr 0.300)"


def test_groups_are_drawn_and_printed(script, tmp_path):
    for name, cider in (("lstm-1", 0.3), ("lstm-2", 0.5), ("gru-1", 0.2)):
        rows = {"1": {"training_loss": 3.0, "validation_cider": 0.1}, "2": {"validation_cider": cider}}
        write(tmp_path / name / "train_stats.json", rows)
    output, lstm = tmp_path / "a.svg", f"lstm={tmp_path}/lstm-*"
    done = script("plot_stats.py", tmp_path / "gru-1", "--group", lstm, "--output", output)
    assert done.status == 0 and done.err == ""
    assert done.out.splitlines()[:2] == [
        "gru-1: epoch 2, best epoch 2 (CIDEr 0.200)",
        "lstm: epoch 2, best epoch 2 (CIDEr 0.400)",
    ]
    done = script("plot_stats.py", tmp_path / "lstm-1", tmp_path / "lstm-2", "--group", "--output", output)
    assert done.out.startswith("lstm: epoch 2, ")

    done = script("plot_stats.py", tmp_path / "gru-1", "--group", lstm, "--table", "csv")
    names, gru, lstm_row = list(csv.reader(done.out.splitlines()))
    table = {name: (a, b) for name, a, b in zip(names, gru, lstm_row)}
    assert table["files"] == ("1", "2") and table["cider_best"] == ("0.2", "0.4")
    assert table["best_epoch"] == ("2", "2") and table["last_epoch"] == ("2", "2")  # whole numbers
    assert float(table["cider_last_deviation"][1]) == pytest.approx(math.sqrt(0.02))
    assert "CIDEr (best)  0.2000  0.4000 ± 0.1414" in script(
        "plot_stats.py", tmp_path / "gru-1", "--group", lstm, "--table"
    ).out.replace("            ", "  ")


def test_files_without_a_common_epoch_are_told(script, tmp_path):
    for name in ("1", "2"):
        write(tmp_path / f"s{name}.json", {name: {"validation_cider": 0.3}})
    done = script(
        "plot_stats.py", tmp_path / "s1.json", tmp_path / "s2.json", "--group", "--output", tmp_path / "a.png"
    )
    assert done.status == 0 and done.err == "s: its files have no epoch in common, so no mean is drawn\n"


def test_a_table_draws_nothing_unless_told_to(script, model, tmp_path):
    done = script("plot_stats.py", model, "--table", "markdown")
    assert done.status == 0 and not model.with_name("train_stats.png").exists()
    head, _, row = (line.split(" | ") for line in done.out.splitlines())
    figures = dict(zip(head[1:], row[1:]))
    assert figures["best epoch"] == "3" and figures["training loss (best)"] == "3.2000"
    assert figures["last epoch"] == "10" and figures["validation loss (last)"] == "3.5000"
    done = script("plot_stats.py", model, "--table", "--metrics", "none", "--output", tmp_path / "a.png")
    assert done.status == 0 and "CIDEr (" not in done.out and (tmp_path / "a.png").exists()


def test_the_loss_of_self_critical_training_is_no_cross_entropy():
    rows = {1: {"training_loss": 3.0}, 2: {"training_loss": -0.04, "training_reward": 0.8, "validation_loss": 2.9}}
    assert alone(rows).curve("training_loss") == ([1], [3.0], [])
    assert alone(rows).curve("validation_loss") == ([2], [2.9], [])


@pytest.mark.parametrize("ending", ["pdf", "svg"])
def test_fonts_are_in_the_file(script, model, tmp_path, ending):
    output = tmp_path / f"a.{ending}"
    assert script("plot_stats.py", model, "--output", output).status == 0
    content = output.read_bytes()
    assert b"/FontFile2" in content if ending == "pdf" else b"<text" not in content  # TrueType; outlines


def test_best_epoch():
    stats = {1: {"validation_loss": 3.0, "cider": 0.2}, 2: {"validation_loss": 2.0, "cider": 0.1}}
    assert best(alone(stats), ["cider"]) == ("cider", 1, 0.2)
    assert best(alone(stats), []) == ("validation_loss", 2, 2.0)
    assert best(alone({1: {"training_loss": 1.0}}), ["cider"]) is None


def test_best_epoch_where_the_score_is_noise():
    """As RunFolder chooses best.model: by the loss while no score reaches 0.01."""
    noise = {1: {"validation_loss": 3.0, "cider": 0.009}, 2: {"validation_loss": 2.0, "cider": 0.0}}
    assert best(alone(noise), ["cider"]) == ("validation_loss", 2, 2.0)
    assert best(alone(noise | {3: {"validation_loss": 4.0, "cider": 0.01}}), ["cider"]) == ("cider", 3, 0.01)
    assert best(alone({1: {"cider": 0.001}, 2: {"cider": 0.002}}), ["cider"]) == ("cider", 2, 0.002)


@pytest.mark.parametrize("window", [1, 2, 3, 4, 9])
def test_smoothing_is_a_mean_that_keeps_a_straight_line(window):
    assert smoothed([3.0, 6.0, 0.0], 3) == [3.0, 3.0, 0.0]
    assert smoothed([5.0] * 6, window) == [5.0] * 6
    assert smoothed([], window) == []
    if window % 2:
        assert smoothed([1.0, 2.0, 3.0, 4.0, 5.0], window) == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert smoothed([0.0] * 5 + [8.0] + [0.0] * 6, 4) == [0.0] * 3 + [2.0] * 4 + [0.0] * 5


def test_chosen_scores():
    runs = [alone({1: {"bleu_1": 0.5, "bleu_4": 0.1, "rouge_l": 0.3, "learning_rate": 0.1, "training_loss": 2.0}})]
    assert chosen_scores(runs, None) == ["bleu_4"]
    assert chosen_scores(runs, "rouge, bleu") == ["rouge_l", "bleu_1", "bleu_4"]
    assert chosen_scores(runs, "none") == []
    assert chosen_scores(runs, "cider", strict=False) == []
    assert chosen_scores([alone({1: {"meteor": 0.1, "seconds": 3.0}})], None) == ["meteor"]


@pytest.mark.parametrize(
    "epochs",
    [
        {"1": {"training_loss": 3.0}},
        {"1": {"validation_cider": 0.3}},
        {"1": {}, "2": {"training_loss": 3.0, "validation_cider": 0.3}},
        {str(i): {"training_loss": 1 / i, "validation_cider": i / 100, "my_reward": 1.0} for i in range(1, 101)},
    ],
    ids=["one epoch", "scores only", "empty epoch", "long"],
)
def test_odd_files_draw(script, tmp_path, epochs):
    path = write(tmp_path / "x.train_stats.json", epochs)
    result = script("plot_stats.py", path, "--smooth_cider", 5)
    assert (result.status, result.err) == (0, "")
    assert result.out.startswith("x: epoch") and (tmp_path / "x.train_stats.png").exists()


def test_labels_may_be_fewer_than_the_files(script, model, tmp_path):
    other = write(tmp_path / "other" / "train_stats.json", EPOCHS)
    for labels, words in (("mine", ["mine", "other"]), ("mine,yours", ["mine", "yours"])):
        result = script("plot_stats.py", model, other, "--labels", labels, "--output", tmp_path / "a.svg")
        assert result.status == 0
        assert [line.split(":")[0] for line in result.out.splitlines()[:2]] == words


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "not valid JSON"),
        ('{"1": {"training_loss": null, "validation_loss": NaN}}', "no numbers yet"),
        ('{"one": {"training_loss": 3}}', '"one" is not an epoch'),
        ('{"1": 3}', '"1" is not an epoch'),
        ('{"1e400": {"training_loss": 3}}', '"1e400" is not an epoch'),
        ('{"1": {"training_loss": 1}, "1": {"training_loss": 2}}', "has the key '1' twice"),
        ('{"1": {"training_loss": 1}, "1.0": {"training_loss": 2}}', "has the epoch 1 twice"),
        ('{"1": {"training_loss": 1%s}}' % ("0" * 400), "no numbers yet"),  # beyond the largest float
        ('{"1": {"training_loss": 1e308, "validation_loss": -1e308}}', "no numbers yet"),
        (json.dumps({"1": {"a": 0}}).replace("0", "[" * 900 + "]" * 900), "no numbers yet"),
        (json.dumps({"1": {f"loss_{n}": n for n in range(500)}}), "more than 200 numbers"),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_is_one_line(script, tmp_path, content, told):
    result = script("plot_stats.py", write(tmp_path / "x.json", content))
    assert (result.status, result.err.count("\n")) == (2, 1) and told in result.err, result.err


def test_very_many_epochs(script, tmp_path):
    epochs = {str(n): {"training_loss": 1 / n, "validation_cider": n / 30_000} for n in range(1, 30_001)}
    path = write(tmp_path / "x.json", epochs)
    result = script("plot_stats.py", path, "--smooth_cider", 10_000)
    assert (result.status, result.err) == (0, "") and "best epoch 30000 (CIDEr 1.000)" in result.out


@given(
    st.dictionaries(
        st.integers(1, 10**6),
        st.dictionaries(
            st.sampled_from(["training_loss", "validation_loss", "validation_cider", "x"]),
            st.none() | st.floats(allow_nan=True, allow_infinity=True),
        ),
    )
)
def test_what_training_writes_is_what_is_read(epochs):
    """train_stats.json as a run writes it, read for resuming and for drawing."""
    with tempfile.TemporaryDirectory() as name:
        folder = RunFolder(name, [])
        for epoch, row in epochs.items():
            folder.add_epoch(epoch, {key: math.nan if value is None else value for key, value in row.items()})
        if not epochs:
            return
        path = folder.path / "train_stats.json"
        assert read_figures(path, "--resume") == folder.stats
        kept = {
            epoch: {k: v for k, v in row.items() if v is not None and abs(v) < 1e100}
            for epoch, row in folder.stats.items()
        }
        if any(kept.values()):
            drawn = read_stats(path)
            assert {e: sorted(row.values()) for e, row in drawn.items()} == {
                e: sorted(r.values()) for e, r in kept.items()
            }
        else:
            with pytest.raises(UserError, match="no numbers yet"):
                read_stats(path)


def test_a_folder_that_cannot_be_written_names_the_flag(script, model, monkeypatch):
    def no_space(*arguments, **options):
        raise UserError("cannot write train_stats.png: No space left on device")

    monkeypatch.setattr(plot_stats, "atomic_write", no_space)
    result = script("plot_stats.py", model)
    assert result.status == 2 and result.err.endswith("No space left on device; name another place with --output\n")


def test_mistakes_are_one_line(script, model, tmp_path):
    cases = [
        ([tmp_path / "none.json"], "no such file"),
        ([tmp_path], "train_stats.json"),
        ([write(tmp_path / "bad.json", '{"1": {"training_loss": 3.2')], "not valid JSON"),
        ([write(tmp_path / "empty.json", "{}")], "no numbers yet"),
        ([write(tmp_path / "list.json", "[1, 2]")], "holds no statistics"),
        ([write(tmp_path / "other.json", {"images": []})], '"images" is not an epoch'),
        ([write(tmp_path / "rate.json", {"1": {"learning_rate": 0.1}})], "neither losses nor scores"),
        ([model, "--labels", "a,b"], "2 labels for 1 files"),
        ([model, "--metrics", "cider,spice"], "no file has spice; they have cider, bleu_4, learning_rate"),
        ([model, "--output", tmp_path / "a.jpg"], "must end in"),
        ([model, "--output", model / "a.png"], "--output: cannot make the folder"),
        ([model, "--output", write(tmp_path / "folder.png" / "x", "").parent], "folder.png is a folder"),
        ([model, "--interval", 0, "--watch"], "--interval"),
        ([model, "--smooth_cider", -1], "--smooth_cider"),
        ([model, "--smooth", -1], "--smooth"),
        ([], "name one or more statistics files"),
        ([model, "--group", "a="], "--group a=: write NAME=FILE,FILE"),
        (["--group", "a=none*"], "--group a: there is no file none*"),
        ([model, "--table", "--watch"], "exclude each other"),
        ([model, "--table", "html"], "--table"),
        ([model, "--teacher_forcing"], "--teacher_forcing: no file has it; with --teacher_forcing always"),
    ]
    for arguments, message in cases:
        result = script("plot_stats.py", *arguments)
        assert (result.status, result.err.count("\n")) == (2, 1), arguments
        assert message in result.err
    assert not model.with_name("train_stats.png").exists()


def test_watching_survives_missing_and_half_written_files(model, tmp_path, capsys):
    other = tmp_path / "late"
    more = {**EPOCHS, "11": {"training_loss": 2.0}}
    steps = [
        lambda: None,  # nothing new: nothing drawn
        lambda: model.write_text(json.dumps(more)[:50]),  # half written
        lambda: model.unlink(),
        lambda: model.write_text(json.dumps(more)),
        lambda: write(other / "train_stats.json", EPOCHS),  # a folder that was not there at first
        lambda: write(model.with_name("new"), {"12": {"training_loss": 1.0}}).replace(
            model
        ),  # renamed over, as by train.py
        lambda: (model.unlink(), os.mkfifo(model)),
    ]

    def pause():
        return bool(steps) and (steps.pop(0)(), True)[1]

    seen = [[(run.position, max(run.epochs)) for run in runs] for runs in watched([model, other], ["a", "b"], pause)]
    assert seen == [[(0, 10)], [(0, 11)], [(0, 11), (1, 10)], [(0, 12), (1, 10)]]
    waiting = capsys.readouterr().err.splitlines()
    assert len(waiting) == 4 and all(line.startswith("waiting: ") for line in waiting)  # each trouble once


def test_watching_as_a_program(model):
    environment = {key: value for key, value in os.environ.items() if key not in ("DISPLAY", "WAYLAND_DISPLAY")}
    command = [sys.executable, "plot_stats.py", str(model.parent), "--watch", "--interval", "0.05"]
    root = Path(plot_stats.__file__).parent
    with subprocess.Popen(command, cwd=root, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert [process.stdout.readline() for _ in range(2)][1].startswith("wrote ")
            model.write_text(json.dumps({**EPOCHS, "11": {"validation_cider": 0.7}}))
            assert process.stdout.readline() == "mymodel: epoch 11, best epoch 11 (CIDEr 0.700)\n"
            assert process.stdout.readline().startswith("wrote ")
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=60) == 0
        finally:
            process.kill()


@pytest.mark.parametrize("backend", ["module://no_such_package.backend", "no_such_backend"])
def test_a_backend_that_is_not_installed(script_alone, model, tmp_path, backend):
    """MPLBACKEND as a notebook leaves it to programs that it starts, in an environment without that package."""
    environment = {**os.environ, "MPLBACKEND": backend}
    for display, output in ((None, ["--output", tmp_path / "p.png"]), (None, []), (":no", [])):
        env = environment if display is None else {**environment, "DISPLAY": display}
        result = script_alone("plot_stats.py", model.parent, *output, env=env)
        assert (result.status, result.err) == (0, ""), result.err
    assert (tmp_path / "p.png").exists() and model.with_name("train_stats.png").exists()


def test_window(script, model, monkeypatch):
    """The path with a display, drawn without one: a window is shown, nothing is written, closing it ends --watch."""
    import matplotlib.pyplot as plt

    shown = []
    monkeypatch.setattr(plot_stats, "window_maker", lambda: plt)
    monkeypatch.setattr(plt, "show", lambda block=True: shown.append(block))
    plt.switch_backend("agg")
    try:
        assert script("plot_stats.py", model).status == 0
        monkeypatch.setattr(plt, "fignum_exists", lambda number: False)
        assert script("plot_stats.py", model, "--watch", "--interval", 0.05).status == 0
    finally:
        plt.close("all")
    assert shown == [True, False]
    assert not model.with_name("train_stats.png").exists()

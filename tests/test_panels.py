"""``sim plot --grid``, ``--style``, ``--smooth`` and ``--target``: panels, lines, fonts and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex

from conftest import Sim
from sim import Look, RunConfig, curves_figure, curves_of, grid_figure
from sim.config.run_config import CentralizedConfig
from sim.errors import ConfigError
from sim.run_folder import plots
from sim.run_folder.folder import Run, list_runs
from sim.run_folder.plot_style import OKABE_ITO
from sim.run_folder.records import RoundRecord
from sim.run_folder.settings import ordered
from sim.run_folder.writer import RunWriter


def made(folder: Path, name: str, accuracies: list[float | None], config: Any = None, **settings: Any) -> Run:
    config = config or RunConfig(**settings)
    writer = RunWriter.create(str(folder), name, config.to_toml(), clients=False)
    for number, accuracy in enumerate(accuracies):
        seconds = {"round_seconds": 2.0, "bytes_down": 10**6, "bytes_up": 10**6}
        writer.append(RoundRecord(number, test_accuracy=accuracy, test_loss=1.0, **seconds))
    writer.close()
    return writer.run


@pytest.fixture
def swept(tmp_path: Path) -> Path:
    """Two alphas, two strategies, two learning rates and two seeds, without fedadam at alpha 10; lr 0.1 is better."""
    folder = tmp_path / "swept"
    for alpha, strategy in ((10.0, "fedavg"), (0.5, "fedavg"), (0.5, "fedadam")):
        for lr in (0.05, 0.1):
            for seed in (0, 1):
                name = f"{strategy}-{alpha}-{lr}-{seed}"
                values: list[float | None] = [0.1, alpha / 20 + lr, alpha / 20 + lr + 0.2 * seed]
                made(folder, name, values, alpha=alpha, strategy=strategy, lr=lr, seed=seed)
    return folder


def lines(axes: Axes) -> dict[str, list[float]]:
    """The drawn lines by their label, without those of targets."""
    return {
        str(line.get_label()): [float(y) for y in line.get_ydata()]
        for line in axes.lines
        if not str(line.get_label()).startswith("_")
    }


def texts(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_a_grid_has_a_panel_for_each_combination(swept: Path) -> None:
    runs = list_runs(str(swept))[::-1]  # alpha 10 is first
    figure = grid_figure(runs, ["alpha", "strategy"])
    panels = figure.axes
    assert len(panels) == 4
    assert [axes.get_title() for axes in panels] == ["strategy fedavg", "strategy fedadam", "", ""]
    assert [axes.get_ylabel() for axes in panels] == ["alpha 0.5", "", "alpha 10", ""]  # numbers in order
    assert texts(panels[3]) == ["no run"]
    assert lines(panels[3]) == {}
    # Mean over the seeds 0 and 1.
    assert lines(panels[0]) == {
        "lr 0.05": pytest.approx([0.1, 0.075, 0.175]),
        "lr 0.1": pytest.approx([0.1, 0.125, 0.225]),
    }
    assert lines(panels[2])["lr 0.1"] == pytest.approx([0.1, 0.6, 0.7])
    assert [len(axes.collections) for axes in panels] == [2, 2, 2, 0]  # a band for each line
    (band,) = {round(float(path.vertices[:, 1].max()), 9) for path in panels[2].collections[1].get_paths()}
    assert band == pytest.approx(0.7 + 0.2 / 2**0.5)  # a sample standard deviation
    assert len({(axes.get_xlim(), axes.get_ylim()) for axes in panels}) == 1
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["lr 0.05", "lr 0.1"]
    assert legend.get_title().get_text() == "mean ± sample sd of 2 seeds"
    assert (figure.get_supxlabel(), figure.get_supylabel()) == ("round", "accuracy (fraction)")


def test_different_numbers_of_seeds_are_said() -> None:
    curves = [plots.Curve(name, [pd.DataFrame()] * count) for name, count in (("a", 3), ("b", 1))]
    assert plots.seeds_of(curves) == ""  # each label says it
    assert plots.seeds_of(curves, may_differ=True) == "mean ± sample sd of 1 to 3 seeds"
    assert plots.seeds_of(curves[1:], may_differ=True) == ""


def test_one_setting_is_wrapped_and_what_is_left_is_in_the_legend(swept: Path) -> None:
    figure = grid_figure(list_runs(str(swept)), ["seed"], None, "bytes", Look(style="paper", width="single"))
    assert [axes.get_title() for axes in figure.axes] == ["seed 0", "seed 1"]
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == [
        f"lr {lr}, alpha {alpha}, strategy {strategy}"
        for lr in ("0.05", "0.1")
        for alpha, strategy in (("0.5", "fedadam"), ("0.5", "fedavg"), ("10", "fedavg"))
    ]
    assert list(lines(figure.axes[0])) == names
    assert figure.get_supxlabel() == "traffic of all clients since the start, down + up (MB)"
    assert figure.axes[0].lines[0].get_xdata().tolist() == [2, 4, 6]
    three = [made(swept, f"three-{n}", [0.1, 0.2], num_clients=10 + n) for n in range(3)]
    figure = grid_figure(three, ["num_clients"], look=Look(style="paper"))
    assert [axes.get_visible() for axes in figure.axes] == [True, True, True, False]
    assert [len(axes.get_xticklabels()) > 0 for axes in figure.axes[:3]] == [False, True, True]


@pytest.mark.parametrize("look", [Look(style="paper"), Look(style="paper", width="double"), Look()])
def test_long_labels_are_wrapped_to_the_width_of_the_figure(tmp_path: Path, look: Look) -> None:
    settings = {"num_clients": 60, "clients_per_round": 30, "local_epochs": 7, "batch_size": 77, "momentum": 0.5}
    runs = [
        made(tmp_path, f"{lr}-{number}", [0.1, 0.2], lr=lr, **(settings if number else {}))
        for lr in (0.1, 0.2)
        for number in range(2)
    ]
    figure = grid_figure(runs, ["lr"], look=look)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    box = figure.legends[0].get_window_extent(canvas.get_renderer())
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1
    assert box.y1 <= figure.bbox.y1
    assert all(axes.get_window_extent().height > 20 for axes in figure.axes)


def test_long_values_are_shortened_to_the_width_of_their_panel(tmp_path: Path) -> None:
    models = "my_metrics:make_net", "my_metrics:" + "a_very_long_name_of_a_net" * 3
    runs = [made(tmp_path, f"run{number}", [0.1, 0.2], model=model) for number, model in enumerate(models)]
    figure = grid_figure(runs, ["model"], look=Look(style="paper"))
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[0] == "model make_net"
    assert titles[1].startswith("model a_very")
    assert "…" in titles[1]
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    left, right = (axes.title.get_window_extent(canvas.get_renderer()) for axes in figure.axes)
    assert left.x1 < right.x0
    assert right.x1 <= figure.bbox.x1


def test_print_has_the_width_of_a_column_and_lines_that_differ_twice(swept: Path) -> None:
    curves = curves_of(list_runs(str(swept)))
    look = Look(style="paper", width="double")
    figure = curves_figure(curves, ["accuracy", "loss"], look=look)
    assert figure.get_size_inches()[0] == 6.75
    accuracy, loss = figure.axes
    assert accuracy.get_title() == ""
    assert [to_hex(line.get_color()).upper() for line in accuracy.lines] == list(OKABE_ITO[:6])
    assert [line.get_linestyle() for line in accuracy.lines] == ["-", "--", ":", "-.", "-", "--"]
    single = curves_figure(curves, ["accuracy", "loss"], look=Look(style="paper"))
    assert single.get_size_inches()[0] == 3.25
    above, below = (axes.get_subplotspec().rowspan.start for axes in single.axes)
    assert (above, below) == (0, 1)
    assert accuracy.yaxis.label.get_size() == 8
    assert accuracy.yaxis.label.get_fontfamily() == ["STIXGeneral", "DejaVu Serif"]
    assert loss.get_ylabel() == "loss (nats per example)"


def test_values_are_in_the_order_of_numbers_and_none_comes_last() -> None:
    assert ordered([("10",), ("–",), ("2",)]) == [("2",), ("10",), ("–",)]
    assert ordered([("b", "1"), ("–", "1"), ("a", "2"), ("a", "1")]) == [("b", "1"), ("a", "1"), ("a", "2"), ("–", "1")]


def test_many_lines_in_print_all_differ() -> None:
    look = Look(style="paper")
    assert len({(look.color(number), look.line_style(number)) for number in range(28)}) == 28
    screen = Look()
    assert len({(screen.color(number), screen.line_style(number)) for number in range(40)}) == 40


@pytest.mark.parametrize("look", [Look(), Look(style="paper"), Look(style="paper", width="double")])
def test_fonts_of_a_pdf_are_embedded_as_outlines(swept: Path, look: Look) -> None:
    runs = list_runs(str(swept))
    for figure in (grid_figure(runs, ["strategy"], look=look), curves_figure(curves_of(runs), ["loss"], look=look)):
        content = plots.render(figure, "pdf")
        assert b"/Type3" not in content
        assert b"/CIDFontType2" in content
        fonts = {name for name in (b"STIXGeneral", b"DejaVuSans") if name in content}
        assert fonts == ({b"STIXGeneral"} if look.in_print else {b"DejaVuSans"})


def test_a_figure_for_print_keeps_its_fonts_when_python_saves_or_shows_it(swept: Path, tmp_path: Path) -> None:
    figure = grid_figure(list_runs(str(swept)), ["alpha"], look=Look(style="paper"))
    FigureCanvasAgg(figure).draw()  # as a notebook does
    ticks = [label for axes in figure.axes for label in axes.get_xticklabels() + axes.get_yticklabels()]
    assert {tuple(label.get_fontfamily()) for label in ticks} == {("STIXGeneral", "DejaVu Serif")}
    figure.savefig(tmp_path / "own.pdf")
    content = (tmp_path / "own.pdf").read_bytes()
    assert (b"/Type3" in content, b"DejaVu" in content, b"STIXGeneral" in content) == (False, False, True)


def test_smoothing_is_the_mean_of_the_last_rounds_and_the_axis_says_so(tmp_path: Path) -> None:
    run = made(tmp_path, "one", [0.0, None, 0.3, 0.6, 0.9])  # tested after some rounds only
    (axes,) = curves_figure(curves_of([run]), ["accuracy"], "round", Look(smooth=3)).axes
    (line,) = axes.lines
    assert line.get_xdata().tolist() == [0, 2, 3, 4]
    assert line.get_ydata().tolist() == pytest.approx([0, 0.15, 0.45, 0.6])
    assert axes.get_ylabel() == "accuracy (fraction),\nmean of 3 rounds"
    central = made(tmp_path, "central", [0.1, 0.3], CentralizedConfig(epochs=1))
    (axes,) = curves_figure(curves_of([central]), ["accuracy"], "round", Look(smooth=2)).axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("epoch", "accuracy (fraction),\nmean of 2 epochs")


def test_targets_are_drawn_and_labelled_on_the_metric_only(swept: Path) -> None:
    runs = list_runs(str(swept))
    look = Look(targets=(0.7, 1.5))
    accuracy, loss = curves_figure(curves_of(runs), ["accuracy", "loss"], "round", look).axes
    drawn = [line.get_ydata()[0] for line in accuracy.lines if line.get_label() == "_target"]
    assert drawn == [0.7, 1.5]
    assert texts(accuracy) == ["target 0.7", "target 1.5"]
    assert accuracy.get_ylim()[1] > 1.5  # not cut off
    assert (texts(loss), len(loss.lines)) == ([], len(accuracy.lines) - 2)
    (only_loss,) = curves_figure(curves_of(runs), ["loss"], "round", Look(targets=(0.5,))).axes
    assert texts(only_loss) == ["target 0.5"]
    panels = grid_figure(runs, ["alpha"], look=look).axes
    assert [texts(axes) for axes in panels] == [[], ["target 0.7", "target 1.5"]]  # once in each row
    assert [len([line for line in axes.lines if line.get_label() == "_target"]) for axes in panels] == [2, 2]
    with pytest.raises(ConfigError, match=r"--target 0.7: is of one metric; choose by --metric accuracy, f1"):
        curves_figure(curves_of(runs), ["accuracy", "f1"], "round", look)


@pytest.mark.usefixtures("pictures")
def test_the_command_takes_a_sweep_and_all_of_it_together(swept: Path, command: Sim, tmp_path: Path) -> None:
    writer = RunWriter.create(str(swept), "waiting", RunConfig(seed=9).to_toml(), clients=False)
    writer.close()
    words = ["plot", "swept", "--grid", "alpha,strategy", "--style", "paper", "--width", "double", "--smooth", "2"]
    done = command(*words, "--target", "0.5", "--target", "accuracy>=0.6", "--x", "seconds", "-o", "grid.pdf")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "note            left out, because no round is done yet: waiting",
        "picture         grid.pdf",
        "caption         lines and bands are mean ± sample sd of 2 seeds; each point is the mean of the last 2 rounds",
    ]
    assert b"/Type3" not in (tmp_path / "grid.pdf").read_bytes()
    assert command("plot", "swept", "--style", "paper", "-o", "curves.svg").returncode == 0


@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--grid", "nothing"], "--grid nothing: no run has the setting nothing; the runs differ in "),
        (["--grid", "alpha,lr,seed"], "--grid alpha,lr,seed: must be one setting or two, e.g. alpha,strategy"),
        (["--grid", "alpha,alpha"], "--grid alpha,alpha: must be one setting or two different ones"),
        (["--grid", ""], "--grid : must be one setting or two"),
        (["--grid", "name"], "--grid name: name has no effect on a result"),
        (["--smooth", "0"], "--smooth 0: must be a whole number, at least 1"),
        (["--smooth", "200000"], "--smooth 200000: must be at least 1 and at most 100000 rounds"),
        (["--target", "high"], "--target high: must be a number, e.g. 0.7, or a comparison, e.g. mae<=0.2"),
        (["--target", "accuracy>=2"], "--target accuracy>=2: an accuracy is a fraction, at least 0 and at most 1"),
        (["--target", "mae<=2"], "--target mae<=2: must be of accuracy; --metric chooses another metric"),
        (["--target", "mae<=2", "--grid", "alpha"], "--target mae<=2: must be of accuracy; --metric chooses another"),
        (["--target", "1e999"], "--target 1e999: must be a finite number"),
        (["--width", "double"], "--width double: only with --style paper"),
        (["--style", "poster"], "argument --style: invalid choice: 'poster'"),
        (["--timeline", "--grid", "alpha"], "--grid alpha: not with --timeline, which draws when clients worked"),
        (["--timeline", "--target", "1"], "--target 1: not with --timeline"),
        (["--timeline", "--smooth", "3"], "--smooth 3: not with --timeline"),
        (["--timeline", "--style", "paper"], "--style paper: not with --timeline"),
        (["--grid", "alpha", "--x", "virtual-seconds"], "--x virtual-seconds: "),
        (["--grid", "alpha", "--metric", "f1"], "--metric f1: "),
    ],
)
def test_what_cannot_be_drawn_is_one_line(
    swept: Path, command: Sim, tmp_path: Path, words: list[str], says: str
) -> None:
    done = command("plot", "swept", *words, "-o", "no.png")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert says in done.stderr
    assert not (tmp_path / "no.png").exists()


@pytest.mark.slow
def test_panels_that_do_not_fit_and_equal_runs_are_refused(tmp_path: Path) -> None:
    runs = [made(tmp_path, f"run{n}", [0.1, 0.2], alpha=0.1 + n % 4, lr=0.1 + n // 4) for n in range(8)]
    with pytest.raises(ConfigError, match=r"4 panels beside each other, of which 3 fit the width of a single column"):
        grid_figure(runs, ["lr", "alpha"], look=Look(style="paper"))
    assert len(grid_figure(runs, ["alpha", "lr"], look=Look(style="paper")).axes) == 8
    many = [made(tmp_path, f"many{n}", [0.1, 0.2], alpha=0.1 + n) for n in range(65)]
    with pytest.raises(ConfigError, match="makes 65 panels, of which at most 64 fit"):
        grid_figure(many, ["alpha"])
    with pytest.raises(ConfigError, match="leaves 65 lines for alpha; at most 40 can be told apart"):
        grid_figure(many, ["strategy"])
    twin = made(tmp_path, "twin", [0.1, 0.2], alpha=0.1, lr=0.1)
    with pytest.raises(ConfigError, match=r"twin and .*run0 have the same settings and the same seed"):
        grid_figure([*runs, twin], ["alpha"])

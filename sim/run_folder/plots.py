"""Draws runs and partitions as matplotlib figures; it opens no window and writes no file."""

from __future__ import annotations

import io
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import matplotlib
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

from sim.errors import ConfigError, one_line
from sim.metrics import MetricName
from sim.run_folder.figure import Figure
from sim.run_folder.measurements import QUANTILES, X_AXES, column, compared_phase, spent, table_of, unmeasured
from sim.run_folder.plot_style import Look
from sim.run_folder.settings import NOT_COMPARED, differing, shown

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from sim.data.partition import Summary
    from sim.run_folder.folder import Run

FORMATS = ("png", "svg", "pdf")
_MAX_COLUMNS = 2000  # of clients; the picture is only about 1000 pixels wide
ACCURACY = MetricName("accuracy", smaller_is_better=False)
_PHASES = {
    "test": "test examples",
    "validation": "validation examples",
    "fit": "training",
    "evaluate": "clients' own examples",
}
_MAX_LEGEND_LINES = 5
_MAX_LEGEND_LINES_IN_PRINT = 2
_LINE_STYLES = ("-", "--", ":", "-.")  # of the series of one curve
_SCREEN = Look()
_Place = Literal["outside upper center", "outside lower center"]
_BYTE_UNITS = (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3))


class NothingMeasuredError(ConfigError):
    """There is nothing to draw."""


@dataclass(frozen=True)
class Curve:
    """Runs that are drawn as one line: a single run, or several runs that differ only in their seed.

    Attributes:
        name: the name of the run, or what the names of the runs have in common.
        frames: what ``measurements.table_of`` returns for each run.
        row_word: what a row of them is, ``round`` or ``epoch``.
        runs: the runs.
        settings: what the name of a sweep's run says, ``strategy fedavg, alpha 0.1``; empty for other names.
    """

    name: str
    frames: list[pd.DataFrame]
    row_word: str = "round"
    runs: list[Any] = field(default_factory=list)
    settings: str = ""

    @property
    def title(self) -> str:
        """The text for legends without what line and band are."""
        return self.settings or self.name

    @property
    def label(self) -> str:
        """The text for legends: the name and, for several runs, what the line and the band around it are."""
        num_seeds = len(self.frames)
        return f"{self.title} (mean ± sample sd of {num_seeds} seeds)" if num_seeds > 1 else self.title

    def measures(self, name: str) -> bool:
        """Return whether a column has a number in any run; an infinite one cannot be drawn."""
        return any(name in frame and np.isfinite(frame[name].to_numpy(float)).any() for frame in self.frames)

    def series(self, column: str, x: str, smooth: int = 1) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Return x, mean and sample standard deviation of ``column`` over the runs, each float64 [num_points].

        The deviation of a single run is NaN, as is all that was not measured. Against rounds, only the rounds that all
        runs have are used. Everything else is different in each run. Therefore each of several runs is a step function
        there: at any place it has the last value that it has reached, also after its end if it is complete. The points
        are all places at which one of the runs has a new value, from where each has its first one to the end of the
        longest run, or to the end of the first one that is not complete.

        Args:
            x: a key of ``measurements.X_AXES``, see ``measurements.spent``.
            smooth: each measured value of a run is replaced by the mean of those of so many rounds, the last one being
                its own; there are fewer at the start.
        """
        frames = [frame if column in frame else frame.assign(**{column: np.nan}) for frame in self.frames]
        frames = [frame.assign(**{column: frame[column].where(np.isfinite(frame[column]))}) for frame in frames]
        if smooth > 1:
            frames = [frame.assign(**{column: _rolling_mean(frame[column], smooth)}) for frame in frames]
        if x != "round" and len(frames) > 1:
            places = [spent(frame, x).to_numpy(float) for frame in frames]
            are_done = [run.is_done() for run in self.runs] or [False] * len(frames)
            xs, values = _on_one_grid(places, [frame[column].to_numpy(float) for frame in frames], are_done)
        else:
            length = min(len(frame) for frame in frames)
            xs = spent(frames[0], x).to_numpy(float)[:length]
            values = np.array([frame[column].to_numpy(float)[:length] for frame in frames])
        return xs, values.mean(axis=0), sample_sd(values)


def _rolling_mean(values: pd.Series, smooth: int) -> pd.Series:
    return values.rolling(smooth, min_periods=1).mean().where(values.notna())


def _on_one_grid(
    places: Sequence[NDArray[Any]], values: Sequence[NDArray[Any]], are_done: Sequence[bool]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the points of ``Curve.series``, and float64 [num_runs, num_points] of step functions."""
    known = [np.isfinite(xs) & ~np.isnan(ys) for xs, ys in zip(places, values, strict=True)]
    if not all(each.any() for each in known):
        return np.empty(0), np.empty((len(places), 0))
    places = [xs[each] for xs, each in zip(places, known, strict=True)]
    values = [ys[each] for ys, each in zip(values, known, strict=True)]
    grid = np.unique(np.concatenate(places))
    end = min((xs[-1] for xs, is_done in zip(places, are_done, strict=True) if not is_done), default=np.inf)
    grid = grid[(grid >= max(xs[0] for xs in places)) & (grid <= end)]
    reached = [np.searchsorted(xs, grid, side="right") - 1 for xs in places]
    return grid, np.array([ys[each] for ys, each in zip(values, reached, strict=True)])


def sample_sd(values: NDArray[Any]) -> NDArray[Any]:
    """Return the sample standard deviation (n − 1) over the first axis, of all pictures and tables; NaN for n = 1."""
    if len(values) < 2:
        return np.full(values.shape[1:], np.nan)
    with np.errstate(invalid="ignore"):  # the deviation of infinite losses is NaN
        return np.asarray(np.std(values, axis=0, ddof=1))


def curves_of(runs: Sequence[Run], metrics: Sequence[MetricName] = ()) -> list[Curve]:
    """Group runs into curves, in the given order; runs that differ only in their seed form one curve.

    Args:
        metrics: what will be drawn besides accuracy and loss, with its quantiles over clients.

    Raises:
        RunFolderError: a run's config or tables cannot be read.
    """
    groups: dict[tuple[str, int], list[Run]] = {}
    repeats: Counter[str] = Counter()
    for run in runs:
        config = run.config()
        settings = repr(sorted((key, value) for key, value in config.items() if key not in NOT_COMPARED))
        with_seed = f"{settings} {config.get('seed')}"
        groups.setdefault((settings, repeats[with_seed]), []).append(run)
        repeats[with_seed] += 1  # a second run with the same seed belongs to another curve
    names = _names(list(groups.values()))
    in_words = _settings_in(names, [group[0].config() for group in groups.values()])
    return [
        Curve(
            name,
            [table_of(run, metrics, with_quantiles=True) for run in group],
            "epoch" if group[0].is_central else "round",
            group,
            words,
        )
        for name, words, group in zip(names, in_words, groups.values(), strict=True)
    ]


def _settings_in(names: Sequence[str], configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the settings that make up each name, as a sweep composes it; empty texts if a name has something else."""
    found = []
    for name, config in zip(names, configs, strict=True):
        given = {key.rpartition(".")[2]: shown(config, key) for key in differing(configs)}
        parts = {key: f"{key}-{value}" for key, value in given.items()}
        parts |= {key: f"{part}.0" for key, part in parts.items() if f"{part}.0" in name}  # a float that is whole
        parts = {key: part for key, part in parts.items() if part in name}
        in_order = sorted(parts, key=lambda key: name.index(parts[key]))
        if "_".join(parts[key] for key in in_order) != name:
            return [""] * len(names)
        found.append(", ".join(f"{key.replace('_', ' ')} {given[key]}" for key in in_order))
    return found


def _names(groups: Sequence[Sequence[Run]]) -> list[str]:
    """Return a name for each group; where the runs of a sweep tell only its seeds, or not which sweep, its folder's."""
    folders = [group[0].path.absolute().parent for group in groups]
    names = [_stem([one_line(run.name) for run in group]) for group in groups]
    alone = Counter(folder for folder, name in zip(folders, names, strict=True) if not name)
    names = [  # of several groups in one folder, the folder tells nothing
        one_line(group[0].name) if not name and alone[folder] > 1 else name
        for group, folder, name in zip(groups, folders, names, strict=True)
    ]
    counts = Counter(
        name for _, name in {(folder.name, name): None for folder, name in zip(folders, names, strict=True)}
    )
    return [
        one_line(folder.name) if not name else f"{one_line(folder.name)}/{name}" if counts[name] > 1 else name
        for folder, name in zip(folders, names, strict=True)
    ]


def _stem(names: list[str]) -> str:
    """Return what the names of runs that differ in their seed have in common; empty if that is nothing."""
    if len(names) == 1:
        return names[0]
    return "".join(_common_start(names)).rstrip("-_. ").removesuffix("seed").rstrip("-_. ")


def _common_start(names: list[str]) -> Iterator[str]:
    for letters in zip(*names, strict=False):
        if len(set(letters)) > 1:
            return
        yield letters[0]


def curves_figure(
    curves: Sequence[Curve], quantities: Sequence[str], x: str = "round", look: Look | None = None
) -> Figure:
    """Draw metrics such as ``accuracy`` and ``loss``, beside each other; in a single column of print below each other.

    For a single curve, every measured series is drawn; for several curves, only the results on the test examples. What
    none of them has measured is left out.

    Args:
        x: what they are drawn against: ``round``, ``seconds`` on the clock, ``virtual_seconds`` since the start of the
            run, or ``bytes`` that all clients together were sent and have sent since then.
        look: how they are drawn, with lines at targets for every quantity but ``loss``, or for the only one.

    Raises:
        ConfigError: there is no such ``x``, or a run has not measured it; or there are targets and several metrics.
        NothingMeasuredError: no curve has any of the metrics.
    """
    look = look or _SCREEN
    check_x(curves, x)
    metrics = [name for name in quantities if name != "loss"] or list(quantities)
    if look.targets and len(metrics) > 1:
        raise ConfigError(f"--target {look.targets[0]:g}: is of one metric; choose by --metric {', '.join(metrics)}")
    asked = quantities
    phases = {name: phase_of(curves, name) if len(curves) > 1 else None for name in asked}
    quantities = [name for name in asked if any(_series(curve, name, phases[name]) for curve in curves)]
    if not quantities:
        where = "in the central test or on clients, which curves of several runs show" if len(curves) > 1 else "yet"
        raise NothingMeasuredError(f"no run has measured {' or '.join(asked)} {where}")
    below = len(curves) > (_MAX_LEGEND_LINES_IN_PRINT if look.in_print else _MAX_LEGEND_LINES)
    beside = not (look.in_print and look.width == "single")
    shape = (1, len(quantities)) if beside else (len(quantities), 1)
    width = look.inches if look.in_print else 6.4 * len(quantities)
    height = width / shape[1] * 0.7 * shape[0] if look.in_print else 4.2
    height += (0.13 if look.in_print else 0.2) * -(-len(curves) // shape[1]) * below
    with look.applied():
        figure = look.figure(width, height)
        for axes, quantity in zip(figure.subplots(*shape, squeeze=False).flat, quantities, strict=True):
            _draw_curves(axes, curves, quantity, x, look, phase=phases[quantity], with_targets=quantity in metrics)
            if not below and axes.get_legend_handles_labels()[0]:
                axes.legend(edgecolor="none", framealpha=0.7)  # its words can be read where it covers a curve
        if below:  # inside the axes, the legend would hide the curves
            labels = (label for axes in figure.axes for label in axes.get_legend_handles_labels()[1])
            common_legend(figure, "outside lower center", labels, num_columns=shape[1])
    return figure


def common_legend(figure: Figure, place: _Place, labels: Iterable[str], *, num_columns: int, title: str = "") -> None:
    """Give a figure one legend for all its axes, with those of the labels that are drawn.

    Args:
        place: above or below the axes.
    """
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    drawn = [label for label in dict.fromkeys(labels) if label in handles]
    if drawn:
        figure.legend(
            [handles[label] for label in drawn],
            drawn,
            title=title or None,
            frameon=False,
            fontsize="small" if matplotlib.rcParams["font.size"] > 8 else 7,
            loc=place,
            ncols=num_columns,
        )


def check_x(curves: Sequence[Curve], x: str) -> None:
    """Check that every run has measured what the horizontal axis shows.

    Args:
        x: a key of ``measurements.X_AXES``.

    Raises:
        ConfigError: a run has not, or there is no such axis.
    """
    if x not in X_AXES:
        raise ConfigError(f"x {one_line(x, 60)}: must be one of {', '.join(X_AXES)}")
    if x in ("round", "seconds"):  # a run without its first round has not measured them yet
        return
    for curve in curves:
        for number, frame in enumerate(curve.frames):
            missing = unmeasured(frame, x)
            if missing:
                name = curve.runs[number].name if curve.runs else curve.name
                needed = "; only runs with --devices have virtual time" if x == "virtual_seconds" else ""
                raise ConfigError(
                    f"--x {x.replace('_', '-')}: {one_line(name)} has no {' and '.join(missing)} in rounds.csv{needed}"
                )


def bytes_unit(num_bytes: float) -> tuple[str, float]:
    """Return the unit in which a number of bytes is shown, of which it is at least one, and its bytes."""
    return next((unit for unit in _BYTE_UNITS if num_bytes >= unit[1]), _BYTE_UNITS[-1])


def x_label(curves: Sequence[Curve], x: str, unit: str = "") -> str:
    """Return the text for the horizontal axis; ``unit`` is that of bytes."""
    return {
        "round": "epoch" if all(curve.row_word == "epoch" for curve in curves) else "round",
        "seconds": "wall-clock seconds",
        "virtual_seconds": "virtual seconds since the start",
        "bytes": f"traffic of all clients since the start, down + up ({unit})",
    }[x]


def bytes_scale(curves: Sequence[Curve], x: str) -> tuple[str, float]:
    """Return the unit of the horizontal axis, and how many bytes it has; an empty text and 1 if ``x`` is not bytes."""
    if x != "bytes":
        return "", 1.0
    return bytes_unit(max(spent(frame, x).max() for curve in curves for frame in curve.frames))


def seeds_of(curves: Sequence[Curve], *, may_differ: bool = False) -> str:
    """Return what lines and bands are, if all curves have the same number of seeds, more than one, or it may differ."""
    counts = {len(curve.frames) for curve in curves}
    if max(counts) == 1 or (len(counts) > 1 and not may_differ):
        return ""
    return f"mean ± sample sd of {' to '.join(map(str, sorted({min(counts), max(counts)})))} seeds"


def phase_of(curves: Sequence[Curve], quantity: str) -> str:
    """Return the phase in which several curves are compared, see ``measurements.compared_phase``."""
    return compared_phase((frame for curve in curves for frame in curve.frames), quantity)


def _series(curve: Curve, quantity: str, phase: str | None) -> dict[str, str]:
    """Return the columns of a curve that are drawn, and what they are; those of all phases for None."""
    series = {column(each, quantity): words for each, words in _PHASES.items() if phase in (None, each)}
    return {name: words for name, words in series.items() if curve.measures(name)}


def _draw_curves(
    axes: Axes,
    curves: Sequence[Curve],
    quantity: str,
    x: str,
    look: Look,
    *,
    phase: str | None,
    with_targets: bool,
) -> None:
    unit, scale = bytes_scale(curves, x)
    # The mean of step functions is one, and what it is compared with is drawn alike.
    has_steps = x != "round" and any(len(curve.frames) > 1 for curve in curves)
    seeds = seeds_of(curves)
    for number, curve in enumerate(curves):
        series = _series(curve, quantity, phase)
        for name, own_style in zip(series, _LINE_STYLES, strict=False):
            label = series[name] if len(curves) == 1 else curve.title if seeds or look.in_print else curve.label
            pen = Pen(look.color(number), look.line_style(number) if len(curves) > 1 else own_style, label)
            draw_line(axes, curve, name, x, look, pen, scale=scale, has_steps=has_steps)
    title = curves[0].label if len(curves) == 1 else seeds
    if title and not look.in_print:
        axes.set_title(title, fontsize="medium")
    axes.set_xlabel(x_label(curves, x, unit))
    axes.set_ylabel(y_label(quantity, curves, look), multialignment="center")
    if with_targets:
        look.draw_targets(axes)
    finish_axes(axes, x)


def finish_axes(axes: Axes, x: str) -> None:
    """Let axes with curves begin at zero, and remove what is no data."""
    if axes.get_ylim()[0] >= 0 or not any(np.min(line.get_ydata()) < 0 for line in axes.lines):  # an R² may be below
        axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    if x == "round":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


@dataclass(frozen=True)
class Pen:
    """The colour and the style of a line, and its text in the legend."""

    color: str
    style: str
    label: str


def draw_line(
    axes: Axes,
    curve: Curve,
    name: str,
    x: str,
    look: Look,
    pen: Pen,
    *,
    scale: float,
    has_steps: bool,
) -> None:
    """Draw one column of a curve, with a band of one sample standard deviation if it has several seeds.

    Args:
        scale: how many of the units of ``x`` are one on the axis.
        has_steps: draw steps instead of straight lines between the points.
    """
    xs, mean, deviation = curve.series(name, x, look.smooth)
    measured = np.isfinite(mean)
    if not measured.any():
        return
    xs, mean, deviation = xs[measured] / scale, mean[measured], deviation[measured]
    (line,) = axes.plot(xs, mean, pen.style, color=pen.color, label=pen.label, linewidth=look.line_width)
    if has_steps:
        line.set_drawstyle("steps-post")
    if len(xs) < 10:
        line.set(marker="o", clip_on=False)  # a point in round 0 lies on the axis
    if not np.isnan(deviation).all():  # several seeds
        step: Any = "post" if has_steps else None
        axes.fill_between(xs, mean - deviation, mean + deviation, color=pen.color, alpha=0.2, linewidth=0, step=step)


def y_label(quantity: str, curves: Sequence[Curve], look: Look) -> str:
    """Return the text for the axis of a metric that may be smoothed, in two lines, because the axis may be short."""
    label = label_of(quantity, curves)
    if len(curves) > 1 and phase_of(curves, quantity) == "evaluate":
        label = f"clients' {label}"  # of one curve, the legend says it
    return ",\n".join(filter(None, (label, look.smoothed(x_label(curves, "round")))))


def label_of(quantity: str, curves: Sequence[Curve]) -> str:
    """Return the text for the axis of a metric."""
    if quantity == "accuracy":
        return "accuracy (fraction)"
    return "loss (nats per example)" if quantity == "loss" and are_in_nats(curves) else one_line(quantity, 60)


def are_in_nats(curves: Sequence[Curve]) -> bool:
    """Return whether all losses are cross-entropies of the built-in test; nobody knows what a test of the user's is."""
    return all(
        any(curve.measures(column(phase, "accuracy")) for phase in ("test", "evaluate"))
        and all(_is_cross_entropy(run.config()) for run in curve.runs)
        for curve in curves
    )


def _is_cross_entropy(config: Mapping[str, Any]) -> bool:
    has_own_test = any(name in config for name in ("test", "client", "client_fn", "app"))
    return not has_own_test and config.get("loss", "cross_entropy") in ("cross_entropy", "bce", "nll")


def measures_clients(curves: Sequence[Curve], metric: MetricName = ACCURACY) -> bool:
    """Return whether any round has this metric of clients."""
    return any(curve.measures(column("evaluate", metric.name, "p50")) for curve in curves)


def fairness_figure(curves: Sequence[Curve], metric: MetricName = ACCURACY) -> Figure:
    """Draw how a metric differs between clients, in one panel per curve; values are means over its seeds."""
    measured = [curve for curve in curves if measures_clients([curve], metric)]
    columns = min(3, len(measured))
    rows = -(-len(measured) // columns)
    figure = Figure(figsize=(max(6.4, 4.2 * columns), 4.2 if rows == 1 else 3.2 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for number, axes in enumerate(panels.flat):
        axes.set_visible(number < len(measured))
        if number < len(measured):
            _draw_fairness(axes, measured[number], metric)
    panels[0][0].legend(frameon=False, fontsize="small")
    return figure


def _draw_fairness(axes: Axes, curve: Curve, metric: MetricName) -> None:
    series = {name: curve.series(column("evaluate", metric.name, name), "round") for name in QUANTILES}
    xs, median, _ = series["p50"]
    known = np.isfinite(median)
    for low, high, label, alpha in (("p10", "p90", "10–90 % of clients", 0.15), ("p25", "p75", "25–75 %", 0.25)):
        axes.fill_between(
            xs[known], series[low][1][known], series[high][1][known], color="C0", alpha=alpha, linewidth=0, label=label
        )
    axes.plot(xs[known], median[known], color="C0", label="median client", linewidth=1.8)
    worst = series["worst10"][1]
    axes.plot(xs[known], worst[known], "--", color="C3", label="mean of the worst 10 %", linewidth=1.5)
    axes.set_title(curve.label, fontsize="medium")
    axes.set_xlabel(curve.row_word)
    axes.set_ylabel(f"clients' {label_of(metric.name, [curve])}")
    if metric.name == "accuracy":
        axes.set_ylim(0, 1)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def partition_figure(label_counts: NDArray[np.int64], classes: Sequence[str], title: str = "class") -> Figure:
    """Draw the number of examples of each class at each client.

    If there are more clients than columns, neighbouring clients share a column, which shows their mean.

    Args:
        label_counts: int64 [num_clients, num_classes].
        classes: the names of the classes.
        title: what they are classes of.
    """
    num_clients, num_classes = label_counts.shape
    # More columns than pixels cannot be seen and take long to draw.
    step = -(-num_clients // _MAX_COLUMNS)
    starts = np.arange(0, num_clients, step)
    widths = np.diff(np.append(starts, num_clients))
    heights = np.add.reduceat(label_counts, starts) / widths[:, None]
    figure = Figure(figsize=(8.5, 4.2), layout="constrained")
    axes = figure.subplots()
    edges = np.append(starts, num_clients) - 0.5
    tops = np.cumsum(heights, axis=1)
    palette = colormaps["tab10" if num_classes <= 10 else "tab20" if num_classes <= 20 else "turbo"]
    for number in range(num_classes):
        # fill_between, because stairs takes a second per class for 10,000 clients.
        axes.fill_between(
            edges,
            np.append(tops[:, number] - heights[:, number], 0),
            np.append(tops[:, number], 0),
            step="post",
            color=palette(number if num_classes <= 20 else number / num_classes),
            linewidth=0,
            label=str(number),  # matplotlib would leave out a name that begins with _
        )
    axes.set_xlabel("client" if step == 1 else f"client (each column is the mean of {step} clients)")
    axes.set_ylabel("examples")
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.spines[["top", "right"]].set_visible(False)
    if num_classes <= 20:
        legend = axes.legend(title=one_line(title, 30), frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
        for text, name in zip(legend.get_texts(), classes, strict=True):
            text.set_text(one_line(name, 60))
    return figure


def summary_figure(summary: Summary) -> Figure:
    """Draw what each client holds: the classes of its examples, or their number and the distribution of a column."""
    if summary.counts is not None:
        return partition_figure(summary.counts, summary.names, summary.column)
    num_panels = 1 if summary.quantiles is None and summary.distinct is None else 2
    figure = Figure(figsize=(8.5, 2.4 + 2.2 * num_panels), layout="constrained")
    panels = np.atleast_1d(figure.subplots(num_panels, 1, sharex=True))
    clients = np.arange(len(summary.sizes))
    _draw_steps(panels[0], summary.sizes, "examples")
    column = one_line(summary.column, 60)
    if summary.distinct is not None:
        _draw_steps(panels[1], summary.distinct, f"different values of {column}")
    elif summary.quantiles is not None:
        low, first, median, third, high = summary.quantiles.T
        width = max(0.5, min(6.0, 300 / len(clients)))  # points
        panels[1].vlines(clients, low, high, color="C0", alpha=0.4, linewidth=width / 4, label="smallest to largest")
        panels[1].vlines(clients, first, third, color="C0", linewidth=width, label="middle half of the examples")
        panels[1].plot(clients, median, "_", color="black", markersize=width + 1, label="median")
        panels[1].set_ylabel(column)
        panels[1].legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    for axes in panels:
        axes.set_xlim(-0.5, len(clients) - 0.5)
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel("client")
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    return figure


def _draw_steps(axes: Axes, heights: NDArray[np.int64], label: str) -> None:
    edges = np.arange(len(heights) + 1) - 0.5
    axes.fill_between(edges, np.append(heights, 0), step="post", color="C0", linewidth=0)
    axes.set_ylabel(label)
    axes.set_ylim(bottom=0)


def render(figure: Figure, image_format: str, dpi: int = 144) -> bytes:
    """Return the picture as bytes; ``image_format`` is one of ``FORMATS``."""
    for text in figure.findobj(Text):
        text.set_parse_math(False)  # the names of classes and runs may have dollars, which are no formula
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)  # a box is drawn
        with matplotlib.rc_context({"pdf.fonttype": 42}):  # publishers refuse fonts of type 3
            figure.savefig(buffer, format=image_format, dpi=dpi)
    return buffer.getvalue()

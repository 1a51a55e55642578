"""The pictures of a report: the figures of ``plots``, adapted to the page, and the time per round.

The legends are part of the page, not of the pictures, so that they can be read on a phone.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

from sim.metrics import MetricName
from sim.report.numbers import PARTS, Group, SeedStatistics, last, measured
from sim.run_folder import plots
from sim.run_folder.figure import Figure
from sim.run_folder.measurements import column
from sim.run_folder.plot_style import Look

# 10.5 points in a picture of 5.4 inches are 10 px on a phone 390 px wide, and 16 px at the 600 px of half a page.
_WIDTH = 5.4
_STYLE: dict[Any, Any] = {"font.size": 10.5, "svg.hashsalt": "sim"}
_LOOK = Look()
_BORDERS = {"-": "solid", "--": "dashed", ":": "dotted", "-.": "double"}  # the borders of CSS have no dashes with dots
_PART_COLORS = ("C9", "C0", "C7", "C4", "C1", "C2", "C5", "C8", "C3")
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Picture:
    """The attributes of an <img>: a data URI and the alternative text."""

    source: str
    alt: str


@dataclass(frozen=True)
class Mark:
    """One entry of a legend in the page: a label, and the colour and border style of its line."""

    label: str
    color: str
    border: str = "solid"


def curve_marks(groups: Sequence[Group]) -> list[Mark]:
    """Return the legend of the curves; how many seeds they have is in it only if the numbers differ."""
    seeds = plots.seeds_of([group.curve for group in groups])
    return [
        Mark(
            group.curve.title if seeds else group.curve.label,
            to_hex(_LOOK.color(group.number)),
            _BORDERS[_LOOK.line_style(group.number)],
        )
        for group in groups
    ]


def part_marks() -> list[Mark]:
    """Return the legend of the parts of a round."""
    return [Mark(part, to_hex(color)) for part, color in zip(PARTS, _PART_COLORS, strict=True)]


def curves_picture(groups: Sequence[Group], quantity: str, phase: str) -> Picture | None:
    """Draw a result against rounds; None if it was not measured yet.

    Args:
        groups: the curves.
        quantity: the name of a metric, or ``loss``.
        phase: ``test``, or ``evaluate`` for what clients measured.
    """
    curves = [_with_rounds(group) for group in groups]
    final = {
        group.name: _text(statistics)
        for group in groups
        if (statistics := measured(group.curve.frames, column(phase, quantity), last)) is not None
    }
    if not final:
        return None
    with matplotlib.rc_context(_STYLE), np.errstate(invalid="ignore"):  # an infinite loss is not drawn
        figure = plots.curves_figure(curves, [quantity])
        axes = figure.axes[0]
        axes.set_title("")
        for legend in figure.legends:
            legend.remove()
        figure.set_size_inches(_WIDTH, 3.7)
        low, high = axes.get_ylim()
        axes.set_ylim(top=high + 0.03 * (high - low))  # so that a marker at the top is not cut off
        if len(curves) > 1:
            _remove_legend(axes)
        return _svg(
            figure,
            f"{'Test' if phase == 'test' else 'Clients’'} {quantity} against rounds. At the end: {_listed(final)}.",
        )


def fairness_picture(group: Group, last_round: int, metric: MetricName) -> Picture | None:
    """Draw the distribution of a metric over the clients of one curve; None if it was not measured.

    Args:
        group: the curve.
        last_round: the end of the horizontal axis, which should be the same in all pictures of a report.
    """
    curve = _with_rounds(group)
    if not plots.measures_clients([curve], metric):
        return None
    final = {
        label: f"{statistics.mean:.3f}"
        for name, label in (("p10", "10th percentile"), ("p50", "median client"), ("p90", "90th percentile"))
        if (statistics := measured(curve.frames, column("evaluate", metric.name, name), last)) is not None
    }
    with matplotlib.rc_context(_STYLE):
        figure = plots.fairness_figure([curve], metric)
        figure.set_size_inches(4.2, 3.0)
        axes = figure.axes[0]
        axes.set_title("")
        _remove_legend(axes)
        axes.set_xlim(0, max(last_round, 1))
        return _svg(figure, f"Clients' {metric.name} against rounds, {group.name}. At the end: {_listed(final)}.")


def fairness_marks() -> list[Mark]:
    """Return the legend of the pictures that ``fairness_picture`` draws."""
    return [
        Mark("median client", to_hex("C0")),
        Mark("25th to 75th percentile", "#96bbd8"),
        Mark("10th to 90th percentile", "#dde9f3"),
        Mark("mean of the worst 10 %", to_hex("C3"), "dashed"),
    ]


def time_picture(seconds: Mapping[str, Mapping[str, float | None]]) -> Picture:
    """Draw the mean seconds per round as one bar for each curve, divided into the parts of a round.

    Args:
        seconds: name of a curve → seconds of each part, and of the ``whole`` round.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, 0.75 + 0.62 * len(seconds)), layout="constrained")
        axes = figure.subplots()
        for row, (name, parts) in enumerate(seconds.items()):
            left = 0.0
            for part, color in zip(PARTS, _PART_COLORS, strict=True):
                width = parts[part] or 0.0
                axes.barh(row, width, left=left, height=0.42, color=color)
                left += width
            # The name is above its bar, because a long name beside it would leave no space for the bar.
            short = name if len(name) <= 60 else f"{name[:59]}…"
            axes.annotate(
                short, (0, row - 0.28), xytext=(4, 0), textcoords="offset points", va="bottom", parse_math=False
            )
        axes.set_ylim(len(seconds) - 0.6, -0.85)
        axes.set_xlim(left=0)
        axes.set_yticks([])
        axes.set_xlabel("wall-clock seconds per round")
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        whole = {name: f"{parts['whole'] or 0:.3g} s" for name, parts in seconds.items()}
        return _svg(figure, f"Bars of the mean time per round, divided into its parts. Whole rounds: {_listed(whole)}.")


def png_picture(content: bytes, alt: str) -> Picture | None:
    """Return the picture of a PNG file; None if the content is not a PNG."""
    return Picture(_data_uri(content, "image/png"), alt) if content.startswith(_PNG) else None


def _with_rounds(group: Group) -> plots.Curve:
    """Return the curve without the seeds that have no round yet.

    A curve ends at the last round that all its seeds have, so with these seeds it would be empty.
    """
    frames = [frame for frame in group.curve.frames if len(frame)]
    return replace(group.curve, frames=frames or group.curve.frames)


def _remove_legend(axes: Axes) -> None:
    legend = axes.get_legend()
    if legend is not None:
        legend.remove()


def _text(statistics: SeedStatistics) -> str:
    return f"{statistics.mean:.3f}" if statistics.sd is None else f"{statistics.mean:.3f} ± {statistics.sd:.3f}"


def _listed(texts: Mapping[str, str]) -> str:
    return "; ".join(f"{label} {text}" for label, text in texts.items())


def _svg(figure: Figure, alt: str) -> Picture:
    return Picture(_data_uri(plots.render(figure, "svg"), "image/svg+xml"), alt)


def _data_uri(content: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"

"""A report's pictures: those of ``plots`` made fit for a page, and where the time went.

Names of curves stand in the page beside the picture, not in it: there they stay legible on a phone.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from sim.report.numbers import PARTS, Group, SeedStatistics, last, measured
from sim.run_folder import plots

# 10.5 points in a picture of 5.4 inches are 10 px on a phone of 390 px, and 17 px at the page's 640 px.
_WIDTH = 5.4
_STYLE: dict[Any, Any] = {"font.size": 10.5, "svg.hashsalt": "sim"}
_LINES: Final = ("-", "--", ":")  # one after the other, when the ten colours are used up
_BORDERS = ("solid", "dashed", "dotted")
_PART_COLORS = ("C9", "C0", "C7", "C4", "C1", "C2", "C8", "C3")
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Picture:
    """What an <img> needs."""

    source: str
    alt: str


@dataclass(frozen=True)
class Mark:
    """How something looks in a picture, for a legend in the page."""

    label: str
    color: str
    border: str = "solid"


def curve_marks(groups: Sequence[Group]) -> list[Mark]:
    """Return the look of each curve."""
    return [
        Mark(group.curve.label, to_hex(f"C{group.number % 10}"), _BORDERS[_cycle(group.number)]) for group in groups
    ]


def part_marks() -> list[Mark]:
    """Return the look of each part of a round's time."""
    return [Mark(part, to_hex(color)) for part, color in zip(PARTS, _PART_COLORS, strict=True)]


def curves_picture(groups: Sequence[Group], quantity: str) -> Picture | None:
    """Draw ``accuracy`` or ``loss`` against rounds; None if no test was made yet."""
    curves = [_begun(group) for group in groups]
    said = {
        group.name: _words(spread)
        for group in groups
        if (spread := measured(group.curve.frames, f"test_{quantity}", last)) is not None
    }
    if not said:
        return None
    with matplotlib.rc_context(_STYLE), np.errstate(invalid="ignore"):  # an infinite loss is left out
        figure = plots.curves_figure(curves, [quantity])
        axes = figure.axes[0]
        axes.set_title("")
        figure.set_size_inches(_WIDTH, 3.7)
        axes.set_ylim(top=axes.get_ylim()[1] * 1.03)  # a marker at the top is whole
        if len(curves) > 1:
            _remove_legend(axes)
            numbers = {group.curve.label: group.number for group in groups}
            for line in axes.lines:
                line.set_linestyle(_LINES[_cycle(numbers[str(line.get_label())])])
        return _svg(figure, f"Test {quantity} against rounds. At the end: {_listed(said)}.")


def fairness_picture(group: Group, last_round: int) -> Picture | None:
    """Draw how accuracy differs among the clients of one curve; None where it was not measured.

    Args:
        last_round: where the horizontal axis ends, so that the curves' pictures can be compared.
    """
    curve = _begun(group)
    if not plots.measures_clients([curve]):
        return None
    said = {
        words: f"{spread.mean:.3f}"
        for name, words in (("p10", "10 % of clients below"), ("p50", "median client"), ("p90", "90 % below"))
        if (spread := measured(curve.frames, f"eval_accuracy_{name}", last)) is not None
    }
    with matplotlib.rc_context(_STYLE):
        figure = plots.fairness_figure([curve])
        figure.set_size_inches(4.2, 3.0)
        axes = figure.axes[0]
        axes.set_title("")
        _remove_legend(axes)
        axes.set_xlim(0, max(last_round, 1))
        return _svg(figure, f"Clients' accuracy against rounds, {group.name}. At the end: {_listed(said)}.")


def fairness_marks() -> list[Mark]:
    """Return the look of what ``fairness_picture`` draws."""
    return [
        Mark("median client", to_hex("C0")),
        Mark("25–75 % of clients", "#96bbd8"),
        Mark("10–90 %", "#dde9f3"),
        Mark("mean of the worst 10 %", to_hex("C3"), "dashed"),
    ]


def time_picture(seconds: Mapping[str, Mapping[str, float | None]]) -> Picture:
    """Draw stacked bars of mean seconds a round.

    Args:
        seconds: name of a curve → seconds of each part, and ``whole``.
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
            # Above its bar, since a long name beside it would leave no room for the bar.
            short = name if len(name) <= 60 else f"{name[:59]}…"
            axes.annotate(
                short, (0, row - 0.28), xytext=(4, 0), textcoords="offset points", va="bottom", parse_math=False
            )
        axes.set_ylim(len(seconds) - 0.6, -0.85)
        axes.set_xlim(left=0)
        axes.set_yticks([])
        axes.set_xlabel("mean time a round (seconds)")
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        said = {name: f"{parts['whole'] or 0:.3g} s" for name, parts in seconds.items()}
        return _svg(figure, f"Bars of the mean time a round by its parts. Whole rounds: {_listed(said)}.")


def png_picture(content: bytes, alt: str) -> Picture | None:
    """Return a picture from a run folder; None if it is no PNG."""
    return Picture(_data_uri(content, "image/png"), alt) if content.startswith(_PNG) else None


def _begun(group: Group) -> plots.Curve:
    """Return its curve without the seeds that have no round yet: a curve is drawn as far as all its seeds are."""
    frames = [frame for frame in group.curve.frames if len(frame)]
    return replace(group.curve, frames=frames or group.curve.frames)


def _remove_legend(axes: Axes) -> None:
    legend = axes.get_legend()
    if legend is not None:
        legend.remove()


def _cycle(number: int) -> int:
    return number // 10 % len(_LINES)


def _words(spread: SeedStatistics) -> str:
    return f"{spread.mean:.3f}" if spread.sd is None else f"{spread.mean:.3f} ± {spread.sd:.3f}"


def _listed(said: Mapping[str, str]) -> str:
    return "; ".join(f"{label} {words}" for label, words in said.items())


def _svg(figure: Figure, alt: str) -> Picture:
    return Picture(_data_uri(plots.render(figure, "svg"), "image/svg+xml"), alt)


def _data_uri(content: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"

"""How curves look: on a screen or in print, smoothed or not, and with lines at targets."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib

from sim.config.choices import COLUMN_INCHES, PLOT_STYLES
from sim.errors import ConfigError, one_line
from sim.run_folder.figure import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_ROUNDS = 100_000
# Okabe and Ito's colours, which people who see few colours can tell apart; yellow is too faint for a line on white.
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_LINE_STYLES = ("-", "--", ":", "-.")
_NUM_SCREEN_COLORS = 10  # of matplotlib's own palette
# 8 points is the size of captions in these templates. STIX looks like Times, and comes with matplotlib.
_PAPER: dict[Any, Any] = {
    "font.family": ["STIXGeneral", "DejaVu Serif"],
    "mathtext.fontset": "stix",
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "legend.fontsize": 7,
    "legend.title_fontsize": 7,
    "legend.handlelength": 2.6,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "grid.linewidth": 0.4,
    "lines.markersize": 3,
}


@dataclass(frozen=True)
class Look:
    """How curves are drawn.

    Attributes:
        style: ``screen``, or ``paper`` for print: serif letters of 7 to 8 points, the colours of Okabe and Ito, a line
            style for each curve, and no title, because a paper has captions.
        width: of ``paper``: ``single`` (3.25 inches) or ``double`` (6.75 inches), the columns of two-column templates.
        smooth: each point is the mean over so many rounds, the last one being its own.
        targets: values of the metric at which a line is drawn.

    Raises:
        ConfigError: a value is not valid.
    """

    style: str = "screen"
    width: str = "single"
    smooth: int = 1
    targets: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for flag, value, valid in (("--style", self.style, PLOT_STYLES), ("--width", self.width, tuple(COLUMN_INCHES))):
            if value not in valid:
                raise ConfigError(f"{flag} {one_line(str(value), 60)}: must be one of {', '.join(valid)}")
        if not 1 <= self.smooth <= _MOST_ROUNDS:
            raise ConfigError(f"--smooth {self.smooth}: must be at least 1 and at most {_MOST_ROUNDS} rounds")
        for target in self.targets:
            if not math.isfinite(target):
                raise ConfigError(f"--target {target}: must be a finite number")

    @property
    def in_print(self) -> bool:
        """Whether the figure is for a paper."""
        return self.style == "paper"

    @property
    def inches(self) -> float:
        """The width of a figure in print."""
        return COLUMN_INCHES[self.width]

    @property
    def dots_per_inch(self) -> int:
        """The resolution of a PNG."""
        return 300 if self.in_print else 144

    @property
    def line_width(self) -> float:
        """The width of a line, in points."""
        return 1.1 if self.in_print else 1.8

    def color(self, number: int) -> str:
        """Return the colour of the curve with this number."""
        return OKABE_ITO[number % len(OKABE_ITO)] if self.in_print else f"C{number % _NUM_SCREEN_COLORS}"

    def line_style(self, number: int) -> str:
        """Return the line style of the curve with this number: in print it changes with the colour, else after it."""
        place = number if self.in_print else number // _NUM_SCREEN_COLORS
        return _LINE_STYLES[place % len(_LINE_STYLES)]

    def smoothed(self, row_word: str) -> str:
        """Return what the label of an axis ends with: over how many rounds its values are means."""
        return f"mean of {self.smooth} {row_word}s" if self.smooth > 1 else ""

    def figure(self, width_inches: float, height_inches: float) -> Figure:
        """Return an empty figure of this size."""
        kind = _PaperFigure if self.in_print else Figure
        return kind(figsize=(width_inches, height_inches), layout="constrained")

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Let what is drawn meanwhile have the fonts and lines of the style."""
        with matplotlib.rc_context(_PAPER if self.in_print else {}):
            yield

    def draw_targets(self, axes: Axes, *, labelled: bool = True) -> None:
        """Draw a line at each target, with its value at the right of the axes, where no curve can cover it."""
        for target in self.targets:
            axes.axhline(target, color="#555555", linewidth=0.8, linestyle=(0, (6, 3)), zorder=1.5, label="_target")
            if labelled:
                axes.annotate(
                    f"target {target:g}",
                    (1, target),
                    xytext=(3, 0),
                    textcoords="offset points",
                    xycoords=axes.get_yaxis_transform(),
                    va="center",
                    color="#555555",
                    fontsize="small" if not self.in_print else 7,
                    annotation_clip=False,
                )


class _PaperFigure(Figure):
    """A figure whose PDF publishers accept: they refuse fonts of type 3."""

    def savefig(self, *arguments: Any, **keywords: Any) -> None:
        with matplotlib.rc_context({"pdf.fonttype": 42}):
            super().savefig(*arguments, **keywords)

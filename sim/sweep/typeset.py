"""The cells of a table → LaTeX, Markdown or CSV."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sim.run_folder.settings import Key
from sim.sweep.cells import Cell, Cells

_LEVELS = ((0.01, "**"), (0.05, "*"))  # p-values below which a cell gets these marks
_COLUMN_LETTERS = 44  # of 10 points, in a column of 3.25 inches
_TESTS = {"t": "a paired t-test", "wilcoxon": "Wilcoxon's signed-rank test"}
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "–": "--",
    "±": r"$\pm$",
    "<": "$<$",
    ">": "$>$",
    **{each: "\\" + each for each in "{}$&#%_"},
}


Text = Callable[[str], str]


@dataclass(frozen=True)
class Look:
    """How a table looks.

    Attributes:
        spread: what stands beside a mean: ``sd``, ``ci`` or ``none``.
        bold: in what the best mean is bold: ``row``, ``column`` or ``none``.
        digits: decimals.
        unit: the power of ten by which the numbers are divided.
    """

    spread: str
    bold: str
    digits: int
    unit: int = 0

    def number(self, value: float) -> str:
        """Return a number as it stands in a cell."""
        return f"{value / 10.0**self.unit:.{self.digits}f}"


def unit_of(table: Cells) -> int:
    """Return the power of ten, a multiple of three, in which very large or very small means can be read."""
    largest = max((abs(cell.interval.mean) for cell in table.cells.values()), default=0.0)
    if not 0 < largest < math.inf or 1e-2 <= largest < 1e5:
        return 0
    return 3 * math.floor(math.log10(largest) / 3)


def caption(table: Cells, look: Look) -> str:
    """Return what the numbers of a table are, in sentences."""
    least, most = table.num_seeds
    seeds = f"{most} seed{'s' if most > 1 else ''}" if least == most else f"{least} to {most} seeds"
    spread = {"sd": " ± sample standard deviation", "ci": " with 95 % interval by Student's t", "none": ""}
    place = "of the central test" if table.phase == "test" else "of the clients"
    mean = f"mean{spread[look.spread]}" if most > 1 else "value"
    sentences = [f"{table.value.capitalize()} {table.metric.name} {place}: {mean} over {seeds}."]
    if look.unit:
        sentences.append(f"The numbers are multiples of 1e{look.unit}.")
    if table.best(look.bold):
        sentences.append(f"The best of each {look.bold} is bold.")
    if table.baseline:
        tested = [cell for cell in table.cells.values() if not math.isnan(cell.p_value)]
        if tested:
            count = f"{len(tested)} comparison{'s' if len(tested) > 1 else ''}"
            sentences.append(
                f"* p < 0.05, ** p < 0.01 against {table.baseline} by {_TESTS[table.test]} over the seeds, two-sided, "
                f"not corrected for {count}."
            )
        elif not any(cell.num_pairs for cell in table.cells.values()):
            sentences.append(f"No other cell has a seed of {table.baseline} to test against it.")
        else:
            sentences.append(f"Two seeds or more are needed to test against {table.baseline}.")
    return " ".join(sentences)


def _cell(cell: Cell | None, look: Look) -> tuple[str, str, str]:
    """Return the mean of a cell, what stands beside it, and its marks."""
    if cell is None:
        return "–", "", ""
    interval, beside = cell.interval, ""
    if look.spread == "sd" and not math.isnan(interval.sd):
        beside = f" ± {look.number(interval.sd)}"
    elif look.spread == "ci" and not math.isnan(interval.low):
        beside = f" [{look.number(interval.low)}, {look.number(interval.high)}]"
    marks = next((mark for level, mark in _LEVELS if cell.p_value < level), "")
    return look.number(interval.mean), beside, marks


def _grid(table: Cells, look: Look, escape: Text, strong: Text, raised: Text) -> list[list[str]]:
    """Return the rows of a table, each with its heads.

    Args:
        escape, strong, raised: make what the format wants of any text, of a bold number, and of marks.
    """
    best = table.best(look.bold)
    grid = []
    for row in table.row_keys:
        cells = []
        for col in table.column_keys:
            mean, beside, marks = _cell(table.cells.get((row, col)), look)
            mean = strong(escape(mean)) if (row, col) in best else escape(mean)
            cells.append(mean + escape(beside) + (raised(escape(marks)) if marks else ""))
        grid.append([*map(escape, row), *cells])
    return grid


def latex_text(text: str) -> str:
    """Return a text in which nothing is a command of LaTeX."""
    escaped = "".join(_LATEX.get(character, character) for character in text)
    return re.sub(r"(?<![\w-])-(?=[0-9])", "$-$", escaped)  # the sign of a number


def _num_letters(table: Cells, look: Look) -> int:
    """Return how wide a table is, in letters, with two between its columns."""
    titles = [*table.rows, *(", ".join(key) for key in table.column_keys)]
    grid = [titles, *_grid(table, look, str, str, lambda marks: "")]
    if not table.rows:
        grid = [["", *row] for row in grid]
    return sum(max(map(len, cells)) + 2 for cells in zip(*grid, strict=True)) - 2


def latex(table: Cells, look: Look, name: str) -> str:
    """Return a LaTeX table with booktabs, over both columns of a page if one is too narrow for it.

    Args:
        name: for the label.
    """
    heads, width = len(table.rows), len(table.column_keys)
    environment = "table*" if _num_letters(table, look) > _COLUMN_LETTERS else "table"
    lines = [
        r"% needs \usepackage{booktabs}",
        f"\\begin{{{environment}}}",
        r"  \centering",
        f"  \\caption{{{latex_text(caption(table, look))}}}",
        f"  \\label{{tab:{re.sub(r'[^A-Za-z0-9-]+', '-', name)}}}",
        r"  \smallskip",
        *([r"  \setlength{\tabcolsep}{8pt}"] if table.baseline else []),
        f"  \\begin{{tabular}}{{{'l' * max(heads, 1)}{'r' * width}}}",
        r"    \toprule",
    ]
    names = [latex_text(each) for each in table.rows] or [""]
    if table.columns:
        over = latex_text(", ".join(table.columns))
        lines.append(f"    {' & '.join([''] * max(heads, 1))} & \\multicolumn{{{width}}}{{c}}{{{over}}} \\\\")
        lines.append(f"    \\cmidrule(lr){{{max(heads, 1) + 1}-{max(heads, 1) + width}}}")
        titles = [latex_text(", ".join(key)) for key in table.column_keys]
    else:
        titles = [latex_text(f"{table.value} {table.metric.name}")]
    lines += [f"    {' & '.join([*names, *titles])} \\\\", r"    \midrule"]
    # Marks take no space, so that the numbers above each other are aligned.
    grid = _grid(table, look, latex_text, lambda text: f"\\textbf{{{text}}}", lambda marks: f"\\rlap{{$^{{{marks}}}$}}")
    lines += [f"    {latex_row(row if heads else ['', *row])}" for row in grid]
    lines += [r"    \bottomrule", r"  \end{tabular}", f"\\end{{{environment}}}", ""]
    return "\n".join(lines)


def latex_row(cells: Sequence[str]) -> str:
    """Return a row of a table; where it begins with * or [, LaTeX would take these for arguments of the row before."""
    return f"{'{}' if cells[0].startswith(('*', '[')) else ''}{' & '.join(cells)} \\\\"


def _markdown_text(text: str) -> str:
    return re.sub(r"([\\`*_{}\[\]<>|])", r"\\\1", text)


def markdown(table: Cells, look: Look, name: str = "") -> str:
    """Return a table of Markdown, with its caption below."""
    titles = [", ".join(key) for key in table.column_keys] if table.columns else [f"{table.value} {table.metric.name}"]
    heads = list(table.rows) or [""]
    if table.columns:
        heads[-1] = f"{heads[-1]} \\ {', '.join(table.columns)}".strip()
    grid = _grid(table, look, _markdown_text, lambda text: f"**{text}**", str)
    lines = [[*map(_markdown_text, heads), *map(_markdown_text, titles)], ["---"] * len(heads) + ["---:"] * len(titles)]
    lines += [row if table.rows else ["", *row] for row in grid]
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), "", _markdown_text(caption(table, look)), ""])


def comma_separated(table: Cells, look: Look, name: str = "") -> str:
    """Return one row for each cell, with numbers that are not rounded; results/README.md explains the columns."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    measure = f"{table.value}_{table.metric.name}"
    numbers = ("mean", "sd", "low", "high")
    tested = ["num_pairs", "p_value"] if table.baseline else []
    writer.writerow([*table.rows, *table.columns, "num_seeds", *(f"{measure}_{each}" for each in numbers), *tested])
    for row, col in ((row, col) for row in table.row_keys for col in table.column_keys):
        cell = table.cells.get((row, col))
        if cell is None:
            continue
        values = [getattr(cell.interval, each) for each in numbers]
        values += [cell.num_pairs or math.nan, cell.p_value] if tested else []
        found = ["" if isinstance(value, float) and math.isnan(value) else value for value in values]
        writer.writerow([*_plain(row), *_plain(col), len(cell.by_seed), *found])
    return text.getvalue()


def _plain(key: Key) -> list[str]:
    return ["" if each == "–" else each for each in key]

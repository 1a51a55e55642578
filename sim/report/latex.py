"""The results of a report as a table of LaTeX, to be copied into a paper.

It is a ``table*``, because it is wider than one of two columns; where there is one column, both are the same.
"""

from __future__ import annotations

from collections.abc import Sequence

from sim.metrics import MetricName
from sim.report.numbers import SeedStatistics, Summary
from sim.sweep.typeset import latex_row, latex_text

_DIGITS = 3


def latex_of(rows: Sequence[tuple[str, Summary]], metric: MetricName, phase: str) -> str:
    """Return a row for each curve: seeds, rounds, and the final and the best value of the metric and the final loss.

    Args:
        phase: ``test``, or ``evaluate`` for what clients measured.
    """
    titles = [f"final {metric.name}", f"best {metric.name}", *(["final loss"] if metric.name != "loss" else [])]
    lines = [
        r"% needs \usepackage{booktabs}",
        r"\begin{table*}",
        r"  \centering",
        f"  \\caption{{{latex_text(_caption([summary for _, summary in rows], phase))}}}",
        r"  \smallskip",
        f"  \\begin{{tabular}}{{l{'r' * (2 + len(titles))}}}",
        r"    \toprule",
        f"    {' & '.join(['', 'seeds', 'rounds', *map(latex_text, titles)])} \\\\",
        r"    \midrule",
    ]
    for name, summary in rows:
        least, most = summary.rounds
        found = [summary.final, summary.best, *([summary.final_loss] if metric.name != "loss" else [])]
        cells = [str(summary.num_seeds), str(most) if least == most else f"{least}–{most}", *map(_number, found)]
        lines.append(f"    {latex_row([latex_text(each) for each in (name, *cells)])}")
    return "\n".join([*lines, r"    \bottomrule", r"  \end{tabular}", r"\end{table*}", ""])


def _caption(summaries: Sequence[Summary], phase: str) -> str:
    examples = "central test examples" if phase == "test" else "clients' own examples"
    if all(summary.num_seeds == 1 for summary in summaries):
        return f"Results on the {examples}, of one seed each."
    return f"Results on the {examples}: mean ± sample standard deviation over the seeds."


def _number(found: SeedStatistics | None) -> str:
    if found is None:
        return "–"
    return f"{found.mean:.{_DIGITS}f}" + ("" if found.sd is None else f" ± {found.sd:.{_DIGITS}f}")

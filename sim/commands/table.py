"""The command ``sim table``: sweeps → a table for a paper."""

from __future__ import annotations

import argparse
from pathlib import Path

from sim.commands.output import output_path
from sim.config.fields import parse_number
from sim.errors import ConfigError, some

ENDINGS = ("tex", "md", "csv")
_MOST_DIGITS = 10


def table(arguments: argparse.Namespace) -> None:
    """``sim table``: write the results of sweeps as LaTeX, Markdown or CSV."""
    path = output_path(arguments.output, ENDINGS)
    digits = 3 if arguments.digits is None else parse_number(int, arguments.digits)
    if digits is None or not 0 <= digits <= _MOST_DIGITS:
        raise ConfigError(f"--digits {arguments.digits}: must be a whole number, at least 0 and at most {_MOST_DIGITS}")
    if arguments.test is not None and arguments.baseline is None:
        raise ConfigError(f"--test {arguments.test}: belongs to --baseline, against which cells are tested")
    from sim.run_folder.settings import named
    from sim.run_folder.writer import write_whole
    from sim.sweep import typeset
    from sim.sweep.cells import table_cells

    rows, columns = (
        None if text is None else tuple(named(name) for name in text.split(",") if name.strip())
        for text in (arguments.rows, arguments.columns)
    )
    cells = table_cells(
        [Path(sweep) for sweep in arguments.sweeps],
        rows,
        columns,
        metric=arguments.metric,
        value=arguments.value,
        phase=arguments.phase,
        baseline=arguments.baseline,
        test=arguments.test or "t",
    )
    bold = arguments.bold or ("row" if len(cells.column_keys) > 1 else "column")
    look = typeset.Look(arguments.spread, bold, digits, typeset.unit_of(cells) if arguments.digits is None else 0)
    form = {"tex": typeset.latex, "md": typeset.markdown, "csv": typeset.comma_separated}[path.suffix[1:]]
    content = form(cells, look, path.stem)
    try:
        write_whole(path, content.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise ConfigError(f"-o {path}: cannot be written: {error.strerror}") from None
    if cells.num_missing:
        print(f"note            {_left_out(cells.num_missing, 'is not done', 'are not done')}")
    name = cells.metric.name
    if cells.num_without_number:
        words = f"ends with nan as its {name}", f"end with nan as their {name}"
        print(f"note            {_left_out(cells.num_without_number, *words)}")
    if cells.num_unmeasured:
        words = f"has not measured {name}", f"have not measured {name}"
        print(f"note            {_left_out(cells.num_unmeasured, *words)}")
    if cells.other_settings:
        print(f"note            the runs also differ in {some(cells.other_settings, 9)}")
    print(typeset.markdown(cells, look), end="")
    print(f"table           {path}")


def _left_out(count: int, singular: str, plural: str) -> str:
    return f"{count} run {singular} and is left out" if count == 1 else f"{count} runs {plural} and are left out"

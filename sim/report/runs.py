"""RUN words of the command line → the runs that a report shows, each read once."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim.errors import RunFolderError
from sim.run_folder.folder import Run, list_runs, open_run

if TYPE_CHECKING:
    import pandas as pd


class ReadRun(Run):
    """A run that reads each of its files once, so that a page about a run under way has one state throughout."""

    def config(self) -> dict[str, Any]:
        """As ``Run.config``."""
        return self._config

    def rounds(self) -> pd.DataFrame:
        """As ``Run.rounds``; always the same frame, by which a curve's runs are known."""
        return self._rounds

    def clients(self) -> pd.DataFrame:
        """As ``Run.clients``, without the rows of a round that ``rounds`` does not have yet."""
        return self._clients

    @cached_property
    def _config(self) -> dict[str, Any]:
        return super().config()

    @cached_property
    def _rounds(self) -> pd.DataFrame:
        return super().rounds()

    @cached_property
    def _clients(self) -> pd.DataFrame:
        frame = super().clients()
        return frame[frame["round"] <= self.last_round]

    @cached_property
    def environment(self) -> dict[str, Any]:
        """``environment.json``; empty where there is none.

        Raises:
            RunFolderError: it is there and no JSON object.
        """
        try:
            content = json.loads(self.environment_path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise RunFolderError(f"{self.environment_path}: {error}") from error
        if not isinstance(content, dict):
            raise RunFolderError(f"{self.environment_path}: holds a {type(content).__name__}, not an object")
        return content

    @property
    def is_central(self) -> bool:
        """Whether it trained in one place, without clients."""
        return "epochs" in self.config()

    @property
    def num_rounds(self) -> int | None:
        """How many rounds (or epochs) it was to have; None if its config does not say."""
        number = self.config().get("epochs", self.config().get("num_rounds"))
        return number if isinstance(number, int) else None

    @property
    def last_round(self) -> int:
        """The last round in its table, 0 before training; -1 if there is none yet."""
        rounds = self.rounds()
        return int(rounds["round"].max()) if len(rounds) else -1


def chosen_runs(words: Sequence[str], results_dir: str) -> list[ReadRun]:
    """Return the runs that are named: by name in the results folder, by path, or by a folder that holds runs.

    Those of a folder come in natural order (run2 before run10); a run that is named twice comes once.

    Raises:
        RunFolderError: a word names neither; the message lists the runs that are there.
    """
    paths = dict.fromkeys(run.path for word in words for run in _runs_of(word, results_dir))
    return [ReadRun(path) for path in paths]


def _runs_of(word: str, results_dir: str) -> Iterator[Run]:
    folders = [path for path in (Path(results_dir) / word, Path(word)) if path.is_dir()]
    if any((path / "config.toml").is_file() for path in folders) or not folders:
        yield open_run(word, results_dir)
        return
    for folder in folders:
        runs = list_runs(str(folder))
        if runs:
            yield from (Run(run.path.resolve()) for run in sorted(runs, key=lambda run: natural(run.name)))
            return
    there = list_runs(results_dir) if Path(results_dir).is_dir() else []
    names = ", ".join(run.name for run in there) or "none yet"
    raise RunFolderError(
        f"run {word}: {folders[0]} is no run and holds none (a run has a config.toml); "
        f"there are in {results_dir}: {names}"
    )


def natural(name: str) -> list[tuple[int, str]]:
    """Return what names are sorted by, so that numbers in them count as numbers."""
    parts = re.split(r"([0-9]+)", name)
    return [(int(part), "") if number % 2 else (-1, part) for number, part in enumerate(parts)]

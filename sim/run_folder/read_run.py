"""A run whose files are read once each, so that what is shown of it is consistent while the run continues."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

from sim.errors import RunFolderError
from sim.run_folder import environment
from sim.run_folder.folder import Run

if TYPE_CHECKING:
    import pandas as pd


class ReadRun(Run):
    """A run that reads each of its files once, when it is first asked for."""

    def read(self) -> Self:
        """Read all files now.

        Raises:
            RunFolderError: one of them cannot be read.
        """
        _ = self.config(), self.rounds(), self.environment
        if not self.is_central:
            self.clients()
        if self.metrics_path.exists():  # not in runs of earlier versions
            self.metrics()
        return self

    def config(self) -> dict[str, Any]:
        """Return the same as ``Run.config``, read once."""
        return self._config

    def rounds(self) -> pd.DataFrame:
        """Return the same as ``Run.rounds``, read once."""
        return self._rounds

    def clients(self) -> pd.DataFrame:
        """Return the same as ``Run.clients``, without rows of a round that ``rounds`` does not have yet."""
        return self._clients

    def metrics(self) -> pd.DataFrame:
        """Return the same as ``Run.metrics``, without rows of a round that ``rounds`` does not have yet."""
        return self._metrics

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
    def _metrics(self) -> pd.DataFrame:
        frame = super().metrics()
        return frame[frame["round"] <= self.last_round]

    @cached_property
    def environment(self) -> dict[str, Any]:
        """The content of ``environment.json``; empty if there is no such file.

        Raises:
            RunFolderError: the file cannot be read or is not a JSON object.
        """
        try:
            return environment.read(self.environment_path)
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise RunFolderError(f"{self.environment_path}: {error}") from error

    @property
    def last_round(self) -> int:
        """The last recorded round (0 is before training); -1 if there is none yet."""
        rounds = self.rounds()
        return int(rounds["round"].max()) if len(rounds) else -1

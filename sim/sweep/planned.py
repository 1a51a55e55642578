"""One run of a sweep: what it is to be, and what is on disk of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from sim.config.run_config import RunConfig
from sim.errors import RunFolderError
from sim.run_folder.folder import Run
from sim.setup.resume import CHANGEABLE
from sim.sweep.grid import Variant, differences

_MAY_DIFFER = (*CHANGEABLE, "name", "results_dir", "data_dir")

Status = Literal["waiting", "running", "done", "failed"]


@dataclass
class Planned:
    """One run of a sweep."""

    variant: Variant
    config: RunConfig
    run: Run
    status: Status = "waiting"
    error: str = ""
    num_rounds: int = 0  # done so far
    measures: dict[str, Any] = field(default_factory=dict)  # of a run that is done, once they were asked for

    def look(self) -> None:
        """Find out whether it is done already.

        Raises:
            RunFolderError: another run, or something else, has its place.
        """
        if not self.run.path.exists():
            return
        if not self.run.config_path.exists():
            raise RunFolderError(f"{self.run.path} is in the way: it is no run")
        found = differences(self.run.config(), self.config, _MAY_DIFFER)
        if found:
            raise RunFolderError(
                f"{self.run.path}: is a run with {'; '.join(found)}; choose another --results-dir or remove it"
            )
        self.status = "done" if self.is_done() else "waiting"

    def is_done(self) -> bool:
        """Whether the run has all rounds that this sweep wants of it; also counts them."""
        try:
            rounds = self.run.rounds()
            self.num_rounds = int(rounds["round"].max()) if len(rounds) else 0
            enough = self.num_rounds >= self.config.num_rounds or self.run.reached(self.config.target_accuracy)
            return enough and self.run.model_path.exists()
        except RunFolderError:
            return False

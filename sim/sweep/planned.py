"""One run of a sweep: its config, its folder and its status."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from sim.config.choices import CHANGEABLE
from sim.config.run_config import RunConfig
from sim.errors import RunFolderError
from sim.metrics import MetricName, Target
from sim.run_folder.folder import Run
from sim.run_folder.writer import is_unbegun
from sim.sweep.variants import Variant, differences

_MAY_DIFFER = (*CHANGEABLE, "name", "results_dir", "data_dir")

Status = Literal["waiting", "running", "done", "failed"]


@dataclass
class Planned:
    """One run of a sweep: the config that it should have, its folder, and how far it is."""

    variant: Variant
    config: RunConfig
    run: Run
    status: Status = "waiting"
    error: str = ""
    was_refused: bool = False  # failed before its start, as it would again
    num_rounds: int = 0  # finished so far
    measures: dict[str, Any] = field(default_factory=dict)  # the cached measures of a finished run
    metric: MetricName | None = None  # the cached metric that stands for a finished run

    def inspect(self) -> None:
        """Read from the run folder whether the run is already finished, and set ``status``.

        Raises:
            RunFolderError: the folder holds a run with another config, or it is not a run folder.
        """
        if not self.run.path.exists() or is_unbegun(self.run.path):
            return
        if not self.run.config_path.exists():
            raise RunFolderError(
                f"{self.run.path}: exists, but is not a run folder; choose another --results-dir or remove it"
            )
        found = differences(self.run.config(), self.config, _MAY_DIFFER)
        if found:
            raise RunFolderError(
                f"{self.run.path}: holds a run with {'; '.join(found)}; "
                "choose another --results-dir or remove the folder"
            )
        self.status = "done" if self.is_done() else "waiting"

    def is_done(self) -> bool:
        """Return whether the run has all its rounds, its target or no better one, and its model was written.

        Also updates ``num_rounds``.
        """
        try:
            rounds = self.run.rounds()
            self.num_rounds = int(rounds["round"].max()) if len(rounds) else 0
            if not self.run.model_path.exists():
                return False
            if self.num_rounds >= self.config.num_rounds or self.run.reached(Target.of(vars(self.config))):
                return True
            return self.config.patience is not None and self.run.stopped_early(self.config.patience)
        except RunFolderError:
            return False

"""One run of a sweep: its config, its folder and its status."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sim.config.choices import CHANGEABLE
from sim.config.run_config import RunConfig
from sim.errors import RunFolderError, some
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

    def inspect(self, *, allow_changed_code: bool = False) -> None:
        """Read from the run folder whether the run is already finished, and set ``status``.

        Args:
            allow_changed_code: take a run although modules of the user's have changed since.

        Raises:
            RunFolderError: the folder holds a run with another config, data, code or more rounds, or no run.
        """
        if not self.run.path.exists() or is_unbegun(self.run.path):
            return
        if not self.run.config_path.exists():
            raise RunFolderError(
                f"{self.run.path}: exists, but is not a run folder; choose another --results-dir or remove it"
            )
        config = self.run.config()
        found = differences(config, self.config, _MAY_DIFFER)
        is_done = self.is_done()
        if self.num_rounds > self.config.num_rounds > 0:
            found.append(f"{self.num_rounds} rounds, not --num-rounds {self.config.num_rounds}")
        folders = [Path(str(each)).resolve() for each in (config.get("data_dir"), self.config.data_dir) if each]
        if len(folders) == 2 and folders[0] != folders[1] and folders[0].exists():  # not the same one, moved
            found.append(f"--data-dir {config['data_dir']}, not {self.config.data_dir}")
        files = [] if allow_changed_code else self._changed_code()
        if files:
            found.append(f"other code than now (changed: {some(files)}; --allow-changed-code accepts that)")
        if found:
            raise RunFolderError(
                f"{self.run.path}: holds a run with {'; '.join(found)}; "
                "choose another --results-dir or remove the folder"
            )
        self.status = "done" if is_done else "waiting"

    def _changed_code(self) -> list[str]:
        """Return the files of the user's that are no longer those of the last checkpoint; none if it has not said."""
        last = self.run.last_checkpoint()
        if last is None:
            return []
        root = Path(self.config.app or ".")
        try:
            content = json.loads((self.run.checkpoints_path / str(last) / "state.json").read_text(encoding="utf-8"))
            code = {str(path): str(digest) for path, digest in content["state"]["code"].values()}
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return []
        files = {path: root / path for path in code if (root / path).is_file()}
        return [path for path, file in files.items() if hashlib.sha256(file.read_bytes()).hexdigest() != code[path]]

    def is_done(self) -> bool:
        """Return whether the run has all its rounds, its target or no better one, and its model was written.

        Also updates ``num_rounds``.
        """
        try:
            rounds = self.run.rounds()
            self.num_rounds = int(rounds["round"].max()) if len(rounds) else 0
            if not self.run.model_path.exists():
                return False
            wanted = self.config.num_rounds or self.run.num_rounds  # which the program of an app decides
            if (wanted is not None and self.num_rounds >= wanted) or self.run.reached(Target.of(vars(self.config))):
                return True
            return self.config.patience is not None and self.run.stopped_early(self.config.patience)
        except RunFolderError:
            return False

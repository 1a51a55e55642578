"""Compare the sha256 of the weights of each strategy: inline, with 1, 2 and 3 processes, and after a resume.

    scripts/determinism.sh [STRATEGY …]

Prints one line per strategy. The exit code is 1 if a strategy has more than one sha256.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from typing import Any

from sim import Run, RunConfig, resume, simulate
from sim.run_folder.records import RoundRecord
from sim.server.strategy import STRATEGIES

KNOBS: dict[str, Any] = {"num_clients": 40, "clients_per_round": 20, "num_rounds": 4, "local_epochs": 1}


def stop(record: RoundRecord) -> None:
    """Interrupt the run after round 2."""
    if record.round == 2:
        raise KeyboardInterrupt


def sha256(run: Run) -> str:
    """Return the sha256 of the weights of a run."""
    return hashlib.sha256(run.model_path.read_bytes()).hexdigest()


def matrix(strategy: str, results_dir: str) -> dict[str, str]:
    """Run a strategy in all six ways and return the name of the way → sha256."""
    settings = {**KNOBS, "strategy": strategy, "results_dir": results_dir}
    found = {"inline": sha256(simulate(RunConfig(**settings, engine="inline", name="inline")))}
    for count in (1, 2, 3):
        run = simulate(RunConfig(**settings, name=f"ray-{count}"), ray_init_args={"num_cpus": count})
        found[f"{count} processes"] = sha256(run)
    for engine, count, then in (("inline", 1, 3), ("ray", 2, 1)):
        try:
            simulate(
                RunConfig(**settings, engine=engine, name=f"cut-{engine}"),
                ray_init_args={"num_cpus": count},
                on_record=stop,
            )
        except KeyboardInterrupt:
            run = resume(Run(run.path.parent / f"cut-{engine}"), engine="ray", ray_init_args={"num_cpus": then})
            found[f"{engine}, resumed with {then}"] = sha256(run)
    return found


def main() -> int:
    """Check the strategies that the arguments name, or all; return the exit code."""
    different = 0
    for strategy in sys.argv[1:] or STRATEGIES:
        with tempfile.TemporaryDirectory() as folder:
            found = matrix(strategy, folder)
        same = len(set(found.values())) == 1 and len(found) == 6
        different += not same
        print(strategy, "the same in 6 ways:" if same else found, next(iter(found.values())), flush=True)
    return int(different > 0)


if __name__ == "__main__":
    sys.exit(main())

"""Compare the sha256 of the weights of each strategy: inline, with 1, 2 and 3 processes, and after a resume.

    scripts/determinism.sh [STRATEGY …]
    scripts/determinism.sh [PROGRAM.py …]
    scripts/determinism.sh [FOLDER_OF_A_FLOWER_APP …]

A program is one of tests/programs/whole, with 20 clients and FedAvg; an app has 6 clients. Prints a line per strategy,
program or app. The exit code is 1 if one has more than one sha256.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from sim import AppConfig, Run, RunConfig, resume, simulate
from sim.run_folder.records import RoundRecord
from sim.server.async_rules import RULES
from sim.server.strategy import ALGORITHMS, STRATEGIES

PROGRAMS = Path(__file__).parents[2] / "tests" / "programs" / "whole"
SETTINGS: dict[str, Any] = {"num_clients": 40, "clients_per_round": 20, "num_rounds": 4, "local_epochs": 1}


def stop(record: RoundRecord) -> None:
    """Interrupt the run after round 2."""
    if record.round == 2:
        raise KeyboardInterrupt


def sha256(run: Run) -> str:
    """Return the sha256 of the weights of a run, and of what the clients measured with models of their own."""
    digest = hashlib.sha256(run.model_path.read_bytes())
    if run.config().get("fraction_evaluate"):
        digest.update(run.metrics_path.read_bytes())
    return digest.hexdigest()


def settings_of(name: str) -> dict[str, Any]:
    """Return the settings of a strategy, of a program that is named by its file, or of an app by its folder."""
    if Path(name).is_dir():
        return {"app": str(Path(name).resolve()), "num_clients": 6}
    if name in ALGORITHMS:  # with a small learning rate, because pFedMe multiplies it by 15
        os.chdir(PROGRAMS.parent)
        model = "own:WithBatchNorm" if name == "fedbn" else "auto"
        return {**SETTINGS, "strategy": name, "fraction_evaluate": 0.3, "lr": 0.02, "model": model}
    if name in RULES:  # of slow devices that come and go, with everything that keeps a state
        return {
            **SETTINGS,
            "strategy": name,
            "devices": "lognormal",
            "availability": "on-off",
            "availability_args": {"mean_on_seconds": 20.0, "mean_off_seconds": 10.0},
            "compress": {"up": "qsgd:4", "down": "fp16", "error_feedback": True},
            "local_parameters": "fc3.*",
            "fraction_evaluate": 0.3,
        }
    if not name.endswith(".py"):
        return {**SETTINGS, "strategy": name}
    os.chdir(PROGRAMS)
    some = {"num_clients": 20, "clients_per_round": 10, "batch_size": 2}  # of few examples; one loader drops the rest
    return {**SETTINGS, "program": name, "partitioner": "iid", **some}


def matrix(name: str, results_dir: str) -> dict[str, str]:
    """Run a strategy or a program in all six ways and return the name of the way → sha256."""
    settings = {**settings_of(name), "results_dir": results_dir}
    config_type = AppConfig if "app" in settings else RunConfig
    found = {"inline": sha256(simulate(config_type(**settings, engine="inline", name="inline")))}
    for count in (1, 2, 3):
        run = simulate(config_type(**settings, name=f"ray-{count}"), ray_init_args={"num_cpus": count})
        found[f"{count} processes"] = sha256(run)
    for engine, count, then in (("inline", 1, 3), ("ray", 2, 1)):
        try:
            simulate(
                config_type(**settings, engine=engine, name=f"cut-{engine}"),
                ray_init_args={"num_cpus": count},
                on_record=stop,
            )
        except KeyboardInterrupt:
            run = resume(Run(run.path.parent / f"cut-{engine}"), engine="ray", ray_init_args={"num_cpus": then})
            found[f"{engine}, resumed with {then}"] = sha256(run)
    return found


def main() -> int:
    """Check the strategies and programs that the arguments name, or all strategies; return the exit code."""
    different = 0
    for name in sys.argv[1:] or (*STRATEGIES, *ALGORITHMS, *RULES):
        with tempfile.TemporaryDirectory() as folder:
            found = matrix(name, folder)
        same = len(set(found.values())) == 1 and len(found) == 6
        different += not same
        print(name, "the same in 6 ways:" if same else found, next(iter(found.values())), flush=True)
    return int(different > 0)


if __name__ == "__main__":
    sys.exit(main())

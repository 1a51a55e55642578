"""Client updates a second: bare PyTorch, plain Flower and sim, round by round in turn, on this machine.

    scripts/bench.sh [--rounds 5] [--only pfl-research instant] [-o results/published/bench]

Writes OUTPUT.csv, one row a workload, and OUTPUT.json with machine and versions. A round's seconds are medians over
the rounds after the first; what is compared runs in the same minute, so that only ratios are reported.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from workloads import WORKLOADS

from sim import environment
from sim.config import RunConfig

HERE = Path(__file__).resolve().parent


class Contender:
    """A process that does a round when told to."""

    def __init__(self, name: str, arguments: dict[str, Any]) -> None:
        path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
        self.name = name
        self.seconds: list[float] = []
        self.process = subprocess.Popen(
            [sys.executable, "-c", "import contenders; contenders.main()", name, json.dumps(arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=HERE,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )

    def round(self) -> None:
        """Do one round."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        while line and not line[0].isdigit():
            line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended early; run contenders.main() by hand to see why")
        self.seconds.append(float(line))

    def end(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()


def measure(name: str, num_rounds: int, num_processes: int, device: str) -> dict[str, Any]:
    """Return the medians of a workload's rounds."""
    workload = WORKLOADS[name]
    arguments = {"name": name, "num_rounds": num_rounds + 1, "num_processes": num_processes, "device": device}
    names = ["flower", "sim"] if workload.instant else ["limit", "flower", "sim"]
    contenders = [Contender(contender, arguments) for contender in names]
    try:
        for _ in range(num_rounds + 1):
            for contender in contenders:
                contender.round()
    finally:
        for contender in contenders:
            contender.end()
    num_clients = RunConfig(**workload.knobs).num_fit_clients
    row: dict[str, Any] = {"workload": name, "clients_a_round": num_clients}
    for contender in contenders:
        row[f"{contender.name}_seconds"] = statistics.median(contender.seconds[1:])
    for contender in ("limit", "flower", "sim"):
        if seconds := row.get(f"{contender}_seconds"):
            row[f"{contender}_clients_a_second"] = num_clients / seconds
    if not workload.instant:
        row["flower_over_limit"] = row["flower_seconds"] / row["limit_seconds"]
        row["sim_over_limit"] = row["sim_seconds"] / row["limit_seconds"]
    row["sim_ms_a_client"] = 1000 * row["sim_seconds"] / num_clients
    row["flower_over_sim"] = row["flower_seconds"] / row["sim_seconds"]
    return row


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=5, help="rounds after the first [default 5]")
    parser.add_argument("--only", nargs="+", default=[""], help="workloads whose names contain one of these")
    parser.add_argument("--processes", type=int, default=environment.available_cpus())
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("-o", "--output", type=Path, default=Path("results/published/bench"))
    arguments = parser.parse_args()
    rows = []
    for name in WORKLOADS:
        if any(part in name for part in arguments.only):
            rows.append(measure(name, arguments.rounds, arguments.processes, arguments.device))
            print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in rows[-1].items()}), flush=True)
            pd.DataFrame(rows).round(4).to_csv(arguments.output.with_suffix(".csv"), index=False)
    about = {**environment.describe(), "rounds": arguments.rounds, "processes": arguments.processes}
    arguments.output.with_suffix(".json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

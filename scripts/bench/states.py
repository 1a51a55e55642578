"""Measure what states of clients cost: SCAFFOLD against federated averaging on the workload of pfl-research, in turn.

    scripts/bench_states.sh [--rounds 9] [--clients 100 1000] [-o TABLE.csv]

Each row is one strategy and number of clients, SimpleCnn with 1.6 million parameters, 50 clients per round with 50
synthetic examples each, batch size 10: the median seconds of a round without the first two, the ratio to federated
averaging, the driver's memory at the end and its growth since round 3 (USS), and the bytes of the states on the disk.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import psutil

from sim import RoundRecord, RunConfig, simulate

STRATEGIES = ("fedavg", "scaffold")
MIB = 2**20


def measured(strategy: str, num_clients: int, num_rounds: int) -> dict[str, Any]:
    """Run one strategy and return its row."""
    seconds: list[float] = []
    memory: list[int] = []

    def note(record: RoundRecord) -> None:
        seconds.append((record.round_seconds or 0.0) - (record.test_seconds or 0.0))
        memory.append(psutil.Process().memory_full_info().uss)

    with tempfile.TemporaryDirectory() as folder:
        run = simulate(
            RunConfig(
                dataset="synthetic",
                num_examples=50 * num_clients,
                model="SimpleCnn",
                num_clients=num_clients,
                clients_per_round=50,
                partitioner="iid",
                local_epochs=1,
                batch_size=10,
                lr=0.1,
                num_rounds=num_rounds,
                strategy=strategy,
                results_dir=folder,
                name=strategy,
            ),
            on_record=note,
        )
        states = sum(path.stat().st_size for path in run.client_states_path.glob("*"))
    return {
        "strategy": strategy,
        "num_clients": num_clients,
        "round_seconds": statistics.median(seconds[3:]),
        "driver_mib": memory[-1] / MIB,
        "driver_growth_mib": (memory[-1] - memory[3]) / MIB,
        "states_mib": states / MIB,
    }


def main() -> None:
    """Measure each strategy in turn, print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--clients", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    rows = []
    for num_clients in arguments.clients:
        both = [measured(strategy, num_clients, arguments.rounds) for strategy in STRATEGIES]
        rows += [{**row, "ratio": row["round_seconds"] / both[0]["round_seconds"]} for row in both]
        shown: Callable[[float], str] = "{:.3g}".format
        print(pd.DataFrame(rows).to_string(index=False, float_format=shown), flush=True)
    if arguments.output:
        pd.DataFrame(rows).round(4).to_csv(arguments.output, index=False)


if __name__ == "__main__":
    main()

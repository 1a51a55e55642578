"""Measure clients per second of asynchronous runs: against synchronous ones, and with 100,000 registered clients.

    scripts/bench_async.sh [--repeats 3] [-o TABLE.csv]

The clients of the first part are those of pfl-research's workload: 1,000 clients with 50 synthetic CIFAR-sized images
each, batch size 10, Net, 50 at a time, on lognormal devices. FedAvg has 50 clients per round, FedBuff a buffer of 10
and of 50, FedAsync a version per client; each executes the same number of clients. The second part has 100 and 100,000
registered clients with one image each, 100 of which work at a time. Each row is the median over the repeats, which run
in turn, of the seconds from the third round or version to the end ÷ clients or versions, and of the driver's memory at
the end (USS).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd
import psutil

from sim import RoundRecord, RunConfig, simulate

MIB = 2**20
WORKLOAD: dict[str, Any] = {
    "dataset": "synthetic",
    "num_examples": 50_000,
    "model": "Net",
    "num_clients": 1000,
    "partitioner": "iid",
    "local_epochs": 1,
    "batch_size": 10,
    "devices": "lognormal",
    "device_args": {"sigma": 1.0},
    "checkpoint_every": 0,
    "test_every": 1_000_000,
}
CLIENTS = 500
CONTENDERS: dict[str, dict[str, Any]] = {
    "fedavg, 50 per round": {"clients_per_round": 50, "num_rounds": CLIENTS // 50},
    "fedavg, 10 per round": {"clients_per_round": 10, "num_rounds": CLIENTS // 10},
    "fedbuff, buffer of 50": {"strategy": "fedbuff", "strategy_args": {"buffer_size": 50}, "num_rounds": CLIENTS // 50},
    "fedbuff, buffer of 10": {"strategy": "fedbuff", "strategy_args": {"buffer_size": 10}, "num_rounds": CLIENTS // 10},
    "fedasync": {"strategy": "fedasync", "num_rounds": CLIENTS},
}
REGISTERED: dict[str, Any] = {
    "dataset": "synthetic",
    "image_size": 8,
    "model": "Logistic",
    "partitioner": "iid",
    "local_epochs": 1,
    "batch_size": 1,
    "devices": "lognormal",
    "strategy": "fedbuff",
    "strategy_args": {"buffer_size": 10},
    "concurrency": 100,
    "num_rounds": 40,
    "checkpoint_every": 0,
    "test_every": 1_000_000,
}


def measured(settings: dict[str, Any]) -> dict[str, float]:
    """Run once; return the seconds per client and per version, without tests, and the driver's memory."""
    marks: list[tuple[float, int]] = []
    tests = 0.0

    def note(record: RoundRecord) -> None:
        nonlocal tests
        if len(marks) > 2:
            tests += record.test_seconds or 0.0
        marks.append((time.perf_counter(), record.num_clients or 0))

    with tempfile.TemporaryDirectory() as folder:
        simulate(RunConfig(**settings, results_dir=folder, name="run"), on_record=note)
    seconds = marks[-1][0] - marks[2][0] - tests
    return {
        "seconds_per_client": seconds / sum(count for _, count in marks[3:]),
        "seconds_per_version": seconds / len(marks[3:]),
        "driver_mib": psutil.Process().memory_full_info().uss / MIB,
    }


def compared(contenders: dict[str, dict[str, Any]], repeats: int, first: str) -> pd.DataFrame:
    """Run all in turn, ``repeats`` times; return medians, and ratios to the first."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, settings in contenders.items():
            found[name].append(measured(settings))
    rows = [
        {"run": name, **{key: statistics.median(each[key] for each in runs) for key in runs[0]}}
        for name, runs in found.items()
    ]
    frame = pd.DataFrame(rows)
    frame["ratio"] = frame[first] / frame[first][0]
    return frame


def main() -> None:
    """Measure both parts, print the tables and write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    against_rounds = {
        name: {**WORKLOAD, **({"concurrency": 50} if "strategy" in settings else {}), **settings}
        for name, settings in CONTENDERS.items()
    }
    registered = {
        f"{count} registered": {**REGISTERED, "num_clients": count, "num_examples": count} for count in (100, 100_000)
    }
    frames = [
        compared(against_rounds, arguments.repeats, "seconds_per_client"),
        compared(registered, arguments.repeats, "seconds_per_version"),
    ]
    for frame in frames:
        print(frame.to_string(index=False, float_format="{:.4g}".format), flush=True)
    if arguments.output:
        pd.concat(frames).round(6).to_csv(arguments.output, index=False)


if __name__ == "__main__":
    main()

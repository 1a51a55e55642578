"""Measure the seconds until the first round, compared with bare imports and ``ray.init``, and with many clients.

    scripts/bench_start.sh [--repeats 5] [--only digits registered million] [-o results/published/start]

The programs of a comparison are started in turn; the first start of each is not counted. Writes OUTPUT.csv, whose rows
are medians, and OUTPUT.json with the machine and the versions. With many registered clients, 100 of them train in each
round, or 1,000 of a million. The partition is made in the first start, whose seconds are in ``first_seconds``, and is
in the cache afterwards. ``peak_mib`` is the memory of the driver.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import psutil

from sim.run_folder import environment

BARE = "import torch, flwr, ray; ray.init(); print('started', flush=True)"
# Each client trains one step on one example, so that clients with many examples do not take longer.
REGISTERED = ("--dataset", "synthetic", "--num-examples", "100000", "--partitioner", "iid", "--local-epochs", "1")
REGISTERED += ("--max-local-steps", "1", "--batch-size", "1")
MILLION = ("--dataset", "synthetic", "--num-examples", "1000000", "--image-size", "8", "--model", "Logistic")
MILLION += (*REGISTERED[4:], "--clients-per-round", "1000")
STARTS = {
    "digits": {"bare": None, "sim run": ()},
    "registered": {
        f"{number:,} clients": (*REGISTERED, "--num-clients", str(number), "--clients-per-round", "100")
        for number in (100, 10_000, 100_000)
    },
    "million": {f"{number:,} clients": (*MILLION, "--num-clients", str(number)) for number in (10_000, 1_000_000)},
}


def bare() -> tuple[float, float, float]:
    """Import torch, flwr and ray, and start Ray.

    Returns:
        The seconds that this takes, twice: for the begin and for the end; and the MiB of memory.
    """
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", BARE], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    while process.stdout.readline() != b"started\n":
        if process.poll() is not None:
            raise RuntimeError(f"ray.init ended with exit code {process.returncode}")
    seconds, mib = time.perf_counter() - start, psutil.Process(process.pid).memory_info().rss / 2**20
    process.communicate()
    return seconds, seconds, mib


def run(*flags: str) -> tuple[float, float, float]:
    """Start a run of one round.

    Returns:
        The seconds until round 1 begins, the seconds until it is recorded, and the most MiB of memory until then.
    """
    with tempfile.TemporaryDirectory(prefix="sim-start-") as folder:
        words = ["run", "--num-rounds", "1", "--name", "start", "--results-dir", folder, *flags]
        table = Path(folder) / "start" / "rounds.csv"
        seconds: list[float] = []
        peak = 0
        start = time.perf_counter()
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        with subprocess.Popen([sys.executable, "-m", "sim", *words], **quiet) as process:
            try:
                while len(seconds) < 2:
                    recorded = table.read_text().count("\n") - 1 if table.exists() else 0
                    seconds += [time.perf_counter() - start] * (recorded - len(seconds))
                    if process.poll() is None:
                        peak = max(peak, psutil.Process(process.pid).memory_info().rss)
                    elif recorded < 2:
                        raise RuntimeError(f"sim {' '.join(words)}: exit code {process.returncode}")
                    time.sleep(0.005)
            except BaseException:
                process.terminate()
                raise
    return seconds[0], seconds[1], peak / 2**20


def compare(name: str, repeats: int) -> pd.DataFrame:
    """Start the programs of a comparison in turn; the other rows are compared with the first row."""
    starts = STARTS[name]
    taken: dict[str, list[tuple[float, float, float]]] = {label: [] for label in starts}
    for _ in range(repeats + 1):
        for label, flags in starts.items():
            taken[label].append(bare() if flags is None else run(*flags))
    rows = []
    for label, all_seconds in taken.items():
        begins, ends, mib = (statistics.median(column) for column in zip(*all_seconds[1:], strict=True))
        rows.append(
            {
                "comparison": name,
                "start": label,
                "first_seconds": all_seconds[0][0],
                "begin_seconds": begins,
                "end_seconds": ends,
                "peak_mib": mib,
            }
        )
    frame = pd.DataFrame(rows)
    for column in ("begin", "end"):
        seconds = frame[f"{column}_seconds"]
        frame[f"{column}_seconds_beyond"] = seconds - seconds[0]
        frame[f"{column}_ratio"] = seconds / seconds[0]
    return frame


def main() -> None:
    """Run the chosen comparisons, write the files and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--repeats", type=int, default=5, help="starts of each that count [default 5]")
    parser.add_argument("--only", nargs="+", choices=STARTS, default=list(STARTS))
    parser.add_argument("-o", "--output", type=Path, default=Path("results/published/start"))
    arguments = parser.parse_args()
    frame = pd.concat([compare(name, arguments.repeats) for name in arguments.only], ignore_index=True).round(3)
    frame.to_csv(arguments.output.with_suffix(".csv"), index=False)
    about = {**environment.describe(), "repeats": arguments.repeats}
    arguments.output.with_suffix(".json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    print(frame.to_string(index=False))


if __name__ == "__main__":
    main()

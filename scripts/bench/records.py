"""Measure how long ``sim list``, ``plot`` and ``report`` take for a long run of many clients, and how much memory.

    scripts/bench_records.sh [--rounds 2000] [--clients 1000]

The tables are those of a short run, whose rows are repeated until there are as many rounds and clients as asked for.
Each command is started three times; the medians are printed.
"""

from __future__ import annotations

import argparse
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from sim import RunConfig, simulate

COMMANDS = (("list",), ("plot", "long", "-o", "plot.png"), ("report", "long", "-o", "report.html"))


def make(folder: Path, num_rounds: int, num_clients: int) -> None:
    """Make a run folder with as many rounds and clients."""
    run = simulate(RunConfig(num_rounds=1, engine="inline", results_dir=str(folder), name="long"))
    settings = run.config_path.read_text(encoding="utf-8")
    settings = settings.replace("num_rounds = 1\n", f"num_rounds = {num_rounds}\n")
    run.config_path.write_text(
        settings.replace("num_clients = 100\n", f"num_clients = {num_clients}\n"), encoding="utf-8"
    )
    rng = random.Random(0)
    for path in (run.rounds_path, run.clients_path, run.metrics_path):
        lines = path.read_text(encoding="utf-8").splitlines()
        heading, first = lines[0], [line for line in lines[1:] if line.startswith("0,")]
        of_client = {line.split(",")[2]: line for line in lines[1:] if line.startswith("1,fit,")}
        others = [line for line in lines[1:] if line.startswith("1,") and line not in of_client.values()]
        client = next((line.split(",") for name, line in of_client.items() if name), None)
        with path.open("w", encoding="utf-8") as file:
            file.writelines(line + "\n" for line in [heading, *first])
            for number in range(1, num_rounds + 1):
                file.writelines(f"{number}{line[1:]}\n" for line in others)
                for client_id in range(num_clients if client else 0):
                    assert client is not None
                    row = [str(number), client[1], str(client_id), *client[3:]]
                    row[4 if path == run.clients_path else 5] = str(rng.random())  # its loss
                    file.write(",".join(row) + "\n")


def measure(words: tuple[str, ...], folder: Path) -> tuple[float, float]:
    """Run a command of sim.

    Returns:
        Its seconds, and the most MiB of memory that it had.
    """
    start, peak = time.perf_counter(), 0
    command = [sys.executable, "-m", "sim", *words, "--results-dir", str(folder)]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL) as process:
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            peak = max(peak, watched.memory_info().rss)
            time.sleep(0.005)
    if process.returncode:
        raise RuntimeError(f"sim {' '.join(words)}: exit code {process.returncode}")
    return time.perf_counter() - start, peak / 2**20


def main() -> None:
    """Make the run and time the commands."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=1000, help="clients that train in each round")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sim-records-") as folder:
        make(Path(folder), arguments.rounds, arguments.clients)
        for words in COMMANDS:
            seconds, mib = zip(*(measure(words, Path(folder)) for _ in range(3)), strict=True)
            print(f"sim {words[0]:8}{statistics.median(seconds):6.2f} s {max(mib):7.0f} MiB", flush=True)


if __name__ == "__main__":
    main()

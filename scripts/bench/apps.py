"""Time a Flower app by ``flwr run`` and by ``sim app``, in turn: clients that return at once, and clients that train.

    scripts/bench_apps.sh [--repeats 3] [--num-clients 100] [--parameters 60000 1600000 0] [-o TABLE.csv]

With 0 parameters, clients train the CNN of the workload of pfl-research: one epoch of 50 images.

The SuperLink of Flower is already up when its command is timed. Prints for each size the seconds from start to end of
three rounds, and the milliseconds per client from the end of round 1 to the end of round 3; medians of the repeats.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd

HERE = Path(__file__).resolve().parent
NUM_ROUNDS = 3


@contextmanager
def superlink(home: Path) -> Iterator[dict[str, str]]:
    """Start a SuperLink for simulations; yield the environment in which ``flwr run`` finds it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    lines = ["[superlink]", 'default = "here"', "[superlink.here]", f'address = "127.0.0.1:{port}"', "insecure = true"]
    (home / "config.toml").write_text("\n".join(lines) + "\n")
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
    }
    command = ["flower-superlink", "--insecure", "--simulation", "--host", "127.0.0.1", "--port", str(port)]
    command.append("--disable-runtime-dependency-installation")
    with (home / "superlink.log").open("w") as log:
        process = subprocess.Popen(command, cwd=home, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health").close()
                break
            except OSError:
                time.sleep(0.2)
        yield environment
    finally:
        os.killpg(process.pid, 15)
        process.wait()


def timed(command: list[str], times: Path, environment: dict[str, str], num_clients: int) -> tuple[float, float]:
    """Return the seconds of a command, and the milliseconds per client of rounds 2 and 3."""
    times.unlink(missing_ok=True)
    start = time.perf_counter()
    done = subprocess.run(command, env=environment, cwd=times.parent, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    ends = [float(line) for line in times.read_text().split()] if times.exists() else []
    if done.returncode or len(ends) != NUM_ROUNDS + 1:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return seconds, 1000 * (ends[-1] - ends[1]) / ((NUM_ROUNDS - 1) * num_clients)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--num-clients", type=int, default=100)
    parser.add_argument("--parameters", type=int, nargs="+", default=[60_000, 1_600_000, 0])
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder, superlink(Path(folder)) as environment:
        times, count = Path(folder) / "times", arguments.num_clients
        for number in arguments.parameters:
            run_config = f'num-parameters={number} times-file="{times}"'
            resources = f"num-supernodes={count} client-resources-num-cpus=1"
            flower = ["flwr", "run", str(HERE / "app"), "here", "--stream", "--run-config", run_config]
            ours = [sys.executable, "-m", "sim", "app", str(HERE / "app"), "--num-clients", str(count)]
            ours += ["--run-config", run_config, "--results-dir", f"{folder}/results"]
            commands = {"flwr run": [*flower, "--federation-config", resources], "sim app": ours}
            measured: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
            for _ in range(arguments.repeats):
                for name, command in commands.items():
                    measured[name].append(timed(command, times, environment, count))
            for name, pairs in measured.items():
                seconds, per_client = (statistics.median(values) for values in zip(*pairs, strict=True))
                rows.append({"parameters": number, "program": name, "seconds": seconds, "ms_per_client": per_client})
                print(
                    f"{number:>9} parameters  {name:<9} {seconds:6.1f} s  {per_client:7.2f} ms per client", flush=True
                )
    if arguments.output is not None:
        pd.DataFrame(rows).to_csv(arguments.output, index=False)


if __name__ == "__main__":
    main()

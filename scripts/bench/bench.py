"""Measure client updates per second of bare PyTorch, plain Flower and sim, round by round in turn, on this machine.

    scripts/bench.sh [--rounds 7] [--only pfl-research instant] [-o results/published/bench]
    scripts/bench.sh --device cuda -o results/published/bench-gpu

Writes OUTPUT.csv with one row per workload, OUTPUT.png, and OUTPUT.json with the machine and the versions. The seconds
per round are medians over the rounds after the first. Rounds that are compared run within the same minute, because
only their ratios are meaningful on a machine with varying load. On a GPU, plain Flower runs with ten actors that share
it, and sim runs with one, four and ten actors, and with vectorized clients on one actor.
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
from matplotlib.figure import Figure
from workloads import WORKLOADS

from sim.config.run_config import RunConfig
from sim.run_folder import environment

HERE = Path(__file__).resolve().parent
COLORS = ("#0072b2", "#56b4e9", "#009e73", "#e69f00", "#d55e00")
GPU_LABELS = {
    "flower": "Flower, 10 actors",
    "sim_1_actors": "sim, 1 actor",
    "sim_4_actors": "sim, 4 actors",
    "sim_10_actors": "sim, 10 actors",
    "sim": "sim, vectorized on 1 actor",
}


class Contender:
    """A process that runs one round at a time, on request.

    Args:
        label: the prefix of its columns in the CSV file.
        name: the name of its function in contenders.py.
        arguments: the arguments of this function.
    """

    def __init__(self, label: str, name: str, arguments: dict[str, Any]) -> None:
        path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
        self.name = label
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
        """Run one round and record its seconds."""
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


def line_up(name: str, num_processes: int, device: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return what is compared: label → (name of the function, its arguments)."""
    workload, both = WORKLOADS[name], {"num_processes": num_processes}
    if device == "cuda" and not workload.instant:
        sequential = {"local_training": "sequential"}
        return {
            "flower": ("flower", {"num_processes": 10}),
            **{f"sim_{n}_actors": ("sim", {"num_processes": n, **sequential}) for n in (1, 4, 10)},
            "sim": ("sim", {"num_processes": 1, "local_training": "vectorized"}),
        }
    compared = {name: (name, both) for name in ("bare", "bare_grad", "flower", "sim")}
    if name.startswith("tiny"):
        compared["sim_sequential"] = ("sim", {**both, "local_training": "sequential"})
    without = ("bare", "bare_grad") if workload.instant else ()
    return {label: each for label, each in compared.items() if label not in without}


def measure(name: str, num_rounds: int, num_processes: int, device: str) -> dict[str, Any]:
    """Return one row of the CSV file: the median seconds per round of each contender, and ratios of them."""
    workload = WORKLOADS[name]
    num_rounds = workload.num_rounds or num_rounds
    arguments = {"name": name, "num_rounds": num_rounds + 1, "device": device}
    contenders = [
        Contender(label, function, {**arguments, **more})
        for label, (function, more) in line_up(name, num_processes, device).items()
    ]
    try:
        for _ in range(num_rounds + 1):
            for contender in contenders:
                contender.round()
    finally:
        for contender in contenders:
            contender.end()
    num_clients = RunConfig(**workload.settings).num_fit_clients
    row: dict[str, Any] = {"workload": name, "clients_per_round": num_clients}
    for contender in contenders:
        row[f"{contender.name}_seconds"] = statistics.median(contender.seconds[1:])
    for contender in contenders:
        row[f"{contender.name}_clients_per_second"] = num_clients / row[f"{contender.name}_seconds"]
    if "bare_seconds" in row:
        fastest = min(row["bare_seconds"], row["bare_grad_seconds"])
        row["flower_over_bare"] = row["flower_seconds"] / fastest
        row["sim_over_bare"] = row["sim_seconds"] / fastest
    if "sim_sequential_seconds" in row:
        row["sequential_over_sim"] = row["sim_sequential_seconds"] / row["sim_seconds"]
    row["sim_ms_per_client"] = 1000 * row["sim_seconds"] / num_clients
    row["flower_over_sim"] = row["flower_seconds"] / row["sim_seconds"]
    return row


def picture(rows: pd.DataFrame) -> Figure:
    """Draw the round time as a multiple of bare PyTorch, and the milliseconds per client that returns at once."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    trained = rows[rows.get("flower_over_bare", pd.Series(index=rows.index)).notna()]
    instant = rows[rows["workload"].str.startswith("instant")]
    for axes, part, title in zip(
        figure.subplots(1, 2),
        (trained, instant),
        ("time of a round ÷ the faster bare PyTorch loop", "clients that return at once, ms per client (log)"),
        strict=True,
    ):
        positions = range(len(part))
        if part is trained:
            pairs = {"Flower": part.get("flower_over_bare"), "sim": part.get("sim_over_bare")}
            axes.axhline(1, color="0.4", linewidth=1, linestyle="--")
        else:
            each = 1000 / part["clients_per_round"]
            pairs = {"Flower": part["flower_seconds"] * each, "sim": part["sim_seconds"] * each}
            axes.set_yscale("log")
        for number, (label, values) in enumerate(pairs.items()):
            if values is None:
                continue
            shift = [position + (number - 0.5) * 0.38 for position in positions]
            bars = axes.bar(shift, values, 0.36, label=label, color=("0.72", "#1f77b4")[number])
            inside = {"padding": -11, "color": "white"} if label == "sim" and part is trained else {}
            axes.bar_label(bars, fmt="%.2f" if part is trained else "%.1f", fontsize=8, **inside)
        names = [name.replace(", ", "\n") for name in part["workload"]]
        axes.set_xticks(list(positions), [name.removeprefix("instant\n") for name in names], fontsize=7)
        axes.set_xlabel("" if part is trained else "parameters of the model")
        axes.set_title(title, fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    return figure


def gpu_picture(rows: pd.DataFrame) -> Figure:
    """Draw the clients per second of each contender that shares the GPU."""
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    axes = figure.subplots()
    drawn = {name: label for name, label in GPU_LABELS.items() if f"{name}_clients_per_second" in rows}
    for number, (name, label) in enumerate(drawn.items()):
        shift = [position + (number - (len(drawn) - 1) / 2) * 0.16 for position in range(len(rows))]
        color = "0.72" if name == "flower" else COLORS[number % len(COLORS)]
        bars = axes.bar(shift, rows[f"{name}_clients_per_second"], 0.15, label=label, color=color)
        axes.bar_label(bars, fmt="%.0f", fontsize=7)
    axes.set_yscale("log")
    axes.set_xticks(range(len(rows)), [name.replace(", ", "\n", 1) for name in rows["workload"]], fontsize=8)
    axes.set_ylabel("clients per second (log)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, ncols=2)
    axes.set_ylim(1, axes.get_ylim()[1] * 4)  # room for the legend
    return figure


def main() -> None:
    """Measure the chosen workloads, print the results and write the files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=7, help="rounds after the first [default 7]")
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
    draw = gpu_picture if arguments.device == "cuda" else picture
    draw(pd.DataFrame(rows)).savefig(arguments.output.with_suffix(".png"), dpi=144)
    about = {**environment.describe(), "rounds": arguments.rounds, "processes": arguments.processes}
    arguments.output.with_suffix(".json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

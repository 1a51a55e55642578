"""Compare runs of 30 rounds in which a fault happens at a random moment with runs without a fault.

    scripts/fault_campaign.sh [--trials 100] [--seed 0] [-o results/published/faults.csv]

The CSV file has one row per trial. A trial passes if the weights have the same sha256 as without the fault, no round is
missing or recorded twice, every file is complete, and no process is left. If a client failed and was dropped, the run
is compared with a run in which this client raises. A JSON file beside the CSV file records the machine and the
versions. The fault "full disk" needs the permission to mount a tmpfs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
from PIL import Image
from safetensors.numpy import load_file

from sim import Run, RunConfig, simulate
from sim.run_folder import environment
from sim.run_folder.checkpoint import read_last
from sim.scale.usage import is_actor
from sim.server.strategy import ALGORITHMS

HERE = Path(__file__).resolve().parent
NUM_ROUNDS = 30
STRATEGIES = ("fedavg", "fedavgm", "fedadam", "fedyogi", "krum")
KINDS = (
    "kill actor",
    "kill driver",
    "full disk",
    "hang",
    "nan",
    "SIGTERM",
    "raise",
    "hanging-test",
    "memory",
    "damaged checkpoint",
)
KINDS_OF_PROCESSES = ("kill actor", "kill driver", "full disk", "SIGTERM", "hanging-test", "damaged checkpoint")
_ON_RAY = ("kill actor", "hang", "hanging-test", "memory")
_LEFT_OUT = ("raise", "nan", "hang")  # after which the client of the fault is dropped
SETTINGS: dict[str, Any] = {
    "num_clients": 20,
    "fraction_fit": 0.5,
    "local_epochs": 1,
    "fraction_evaluate": 0.2,
    "client": "faulty:Faulty",
    "test": "faulty:test",
}


def settings_of(strategy: str) -> dict[str, Any]:
    """Return the settings of the runs of a strategy; an algorithm has a client of its own."""
    if strategy not in ALGORITHMS:
        return SETTINGS
    local = {"local_parameters": "fc3.*"} if strategy == "fedbn" else {}  # the model has no BatchNorm
    return {**{name: value for name, value in SETTINGS.items() if name != "client"}, "lr": 0.02, **local}


_TIMES = ["seconds", "actor"]


@dataclass
class Trial:
    """One run and its fault."""

    number: int
    kind: str
    strategy: str
    engine: str
    fault: str
    seconds: float
    problems: list[str] = field(default_factory=list)
    exit_codes: list[int] = field(default_factory=list)


def command(folder: Path, trial: Trial, *more: str) -> list[str]:
    """Return the ``sim run`` command of a trial."""
    drop = ["--on-client-error", "drop"] if trial.fault else []
    timeout = ["--client-timeout", "10"] if trial.kind in ("hang", "hanging-test") else []
    run = ["--strategy", trial.strategy, "--num-rounds", str(NUM_ROUNDS), "--name", "run", *drop, *timeout]
    engine = ["--engine", trial.engine]
    settings = settings_of(trial.strategy)
    flags = [word for name, value in settings.items() for word in ("--" + name.replace("_", "-"), str(value))]
    return [sys.executable, "-m", "sim", "run", "--results-dir", str(folder), *flags, *run, *engine, *more]


def resume(folder: Path, engine: str, num_cpus: int) -> list[str]:
    """Return the ``sim run --resume`` command of a trial."""
    flags = ["--results-dir", str(folder), "--engine", engine, "--num-cpus", str(num_cpus)]
    return [sys.executable, "-m", "sim", "run", "--resume", "run", *flags]


class Campaign:
    """Runs trials in a temporary folder, and the runs without faults that they are compared with."""

    def __init__(self, rng: random.Random, root: Path, strategies: Sequence[str], kinds: Sequence[str]) -> None:
        self.rng = rng
        self.strategies = strategies
        self.kinds = kinds
        self.root = root
        self.mark = f"campaign-{os.getpid()}"
        self.happened = root / "happened"  # is there once a fault that happens once has done so
        self.undisturbed: dict[tuple[str, str], Run] = {}

    def start(self, words: list[str], fault: str) -> subprocess.Popen[bytes]:
        """Start a command with a mark in its environment, by which processes that it leaves behind are found."""
        variables = {**os.environ, "SIM_FAULT": fault, "SIM_MARK": self.mark}
        if fault:
            variables["SIM_FAULT_ONCE"] = str(self.happened)
        if fault.startswith("memory"):  # Ray ends a process when 4 GiB more are in use than now
            memory = psutil.virtual_memory()
            threshold = 1 - (memory.available - 4 * 2**30) / memory.total
            variables |= {"RAY_memory_usage_threshold": f"{threshold:.3f}", "RAY_memory_monitor_refresh_ms": "100"}
        log = (self.root / "output.txt").open("ab")
        return subprocess.Popen(words, cwd=HERE, env=variables, stdout=log, stderr=log)

    def reference(self, strategy: str, fault: str) -> Run:
        """Return the run without the fault or, if a client fails in the trial, the run in which this client raises."""
        kind, _, place = fault.partition(":")
        where = place if kind in _LEFT_OUT else ""
        if (strategy, where) not in self.undisturbed:
            os.environ["SIM_FAULT"] = f"raise:{where}" if where else ""
            config = RunConfig(
                **settings_of(strategy),
                strategy=strategy,
                num_rounds=NUM_ROUNDS,
                engine="inline",
                on_client_error="drop",
                results_dir=str(self.root),
                name=f"reference-{strategy}-{where.replace(':', '-') or 'none'}",
            )
            self.undisturbed[strategy, where] = simulate(config)
        return self.undisturbed[strategy, where]

    def draw(self, number: int) -> Trial:
        """Choose the kind, the strategy, the engine, the client and the time of a fault."""
        strategy = self.rng.choice(self.strategies)
        kinds = KINDS_OF_PROCESSES if strategy in ALGORITHMS else KINDS
        kinds = [each for each in kinds if each in self.kinds] or self.kinds
        kind = kinds[number % len(kinds)]
        engine = "ray" if kind in _ON_RAY else self.rng.choice(("ray", "inline"))
        fault = ""
        if kind == "hanging-test":
            fault = f"{kind}:{self.rng.randrange(3, NUM_ROUNDS)}:0"
        elif kind in (*_LEFT_OUT, "memory"):
            clients = self.reference(strategy, "").clients()
            trained = clients[clients.phase == "fit"]
            row = trained.iloc[self.rng.randrange(len(trained))]
            fault = f"{kind}:{row['round']}:{row.client_id}"
        return Trial(number, kind, strategy, engine, fault, self.rng.uniform(0, 6))

    def run(self, trial: Trial) -> None:
        """Run a trial and record every problem in ``trial.problems``."""
        folder = self.root / f"trial-{trial.number}"
        folder.mkdir()
        reference = self.reference(trial.strategy, trial.fault)
        self.happened.unlink(missing_ok=True)
        if trial.kind == "full disk":
            self._mount(folder)
        try:
            self._disturb(trial, folder)
            self._compare(trial, Run(folder / "run"), reference)
            if trial.kind in ("hanging-test", "memory") and not self.happened.exists():
                trial.problems.append("the fault did not happen")
        finally:
            if trial.kind == "full disk":
                subprocess.run(["umount", str(folder)], check=False)
        self._look_for_processes(trial)
        if not trial.problems:
            shutil.rmtree(folder)

    def _mount(self, folder: Path) -> None:
        size = self.rng.randrange(100, 1700)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(folder)], check=True)

    def _disturb(self, trial: Trial, folder: Path) -> None:
        process = self.start(command(folder, trial), trial.fault)
        if trial.kind in ("kill actor", "kill driver", "SIGTERM", "damaged checkpoint"):
            self._wait_for_round(process, folder / "run" / "rounds.csv")
            time.sleep(trial.seconds * 0.3)
            if trial.kind == "kill actor":
                self._kill_actors(process)
            else:
                process.send_signal(signal.SIGTERM if trial.kind == "SIGTERM" else signal.SIGKILL)
        trial.exit_codes.append(process.wait(timeout=300))
        if trial.kind == "full disk":
            if trial.exit_codes[0] not in (0, 1, 2):  # 0: the disk was large enough
                trial.problems.append(f"exit code {trial.exit_codes[0]} on a full disk")
            subprocess.run(["mount", "-o", "remount,size=1g", str(folder)], check=True)
        run = Run(folder / "run")
        if trial.kind == "damaged checkpoint":
            self._damage(run)
        if run.last_checkpoint() is None:  # it did not get as far as that, and begins anew
            shutil.rmtree(run.path, ignore_errors=True)
            trial.exit_codes.append(self.start(command(folder, trial), trial.fault).wait(timeout=300))
            return
        if run.last_checkpoint() != NUM_ROUNDS or not run.model_path.exists():
            self._look_for_processes(trial)
            engine, num_cpus = self.rng.choice((("inline", 1), ("ray", 1), ("ray", 2)))
            trial.exit_codes.append(self.start(resume(folder, engine, num_cpus), trial.fault).wait(timeout=300))

    def _damage(self, run: Run) -> None:
        """Change a byte of the newest checkpoint, if there is one before it."""
        if len(run.checkpoints()) > 1:
            files = sorted((run.checkpoints_path / str(run.last_checkpoint())).iterdir())
            path = self.rng.choice(files)
            content = bytearray(path.read_bytes())
            content[self.rng.randrange(len(content))] ^= 255
            path.write_bytes(content)

    def _wait_for_round(self, process: subprocess.Popen[bytes], table: Path) -> None:
        while process.poll() is None and not (table.exists() and table.read_text().count("\n") > 1):
            time.sleep(0.05)

    def _kill_actors(self, process: subprocess.Popen[bytes]) -> None:
        """Kill a random actor, one to three times."""
        for _ in range(self.rng.randrange(1, 4)):
            try:
                actors = [p for p in psutil.Process(process.pid).children(recursive=True) if is_actor(p)]
                if actors:
                    self.rng.choice(actors).kill()
            except psutil.Error:
                return
            time.sleep(self.rng.uniform(0, 1.5))

    def _compare(self, trial: Trial, run: Run, reference: Run) -> None:
        if trial.exit_codes[-1] != 0:
            trial.problems.append(f"exit codes {trial.exit_codes}")
            return
        if _sha256(run.model_path) != _sha256(reference.model_path):
            trial.problems.append("other weights")
        if run.rounds()["round"].tolist() != list(range(NUM_ROUNDS + 1)):
            trial.problems.append("rounds lost or doubled")
        for name in ("rounds", "clients"):
            frames = [getattr(each, name)() for each in (run, reference)]
            kept = [c for c in frames[0].columns if not c.endswith("seconds") and c not in (*_TIMES, "error")]
            if not frames[0][kept].equals(frames[1][kept]):
                trial.problems.append(f"other {name}.csv")
        try:
            load_file(run.model_path)
            read_last(run)
            for picture in run.path.glob("*.png"):
                Image.open(picture).verify()
        except Exception as error:  # noqa: BLE001 - a damaged file may raise any exception
            trial.problems.append(f"a damaged file: {error}")
        left = [path.name for path in run.path.iterdir() if path.name.startswith(".")]
        if left:
            trial.problems.append(f"left {left}")

    def _look_for_processes(self, trial: Trial) -> None:
        for _ in range(200):  # Ray's own programs end some seconds after one that was killed
            left = [process for process in psutil.process_iter() if self._is_ours(process)]
            if not left:
                return
            time.sleep(0.1)
        trial.problems.append(f"processes left: {[process.name() for process in left]}")

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            if process.status() == psutil.STATUS_ZOMBIE or process.pid == os.getpid():
                return False
            # Ray's processes overwrite their environment with their title, so they are recognised as orphans instead.
            orphan = process.name().startswith("ray::") and process.ppid() == 1
            return orphan or process.environ().get("SIM_MARK") == self.mark
        except psutil.Error:
            return False


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> int:
    """Run the trials and return the exit code: 1 if a trial failed, otherwise 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--strategies", nargs="+", default=STRATEGIES)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("-o", "--output", type=Path, help="CSV, one row a trial")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    root = Path(tempfile.mkdtemp(prefix="fault-campaign-"))
    campaign = Campaign(random.Random(arguments.seed), root, arguments.strategies, arguments.kinds)
    output = arguments.output.resolve() if arguments.output else None
    os.chdir(HERE)  # faulty.py is imported from the current folder
    for number in range(arguments.trials):
        trial = campaign.draw(number)
        start = time.perf_counter()
        campaign.run(trial)
        rows.append(
            {
                "seed": arguments.seed,
                "trial": number,
                "kind": trial.kind,
                "strategy": trial.strategy,
                "engine": trial.engine,
                "fault": trial.fault,
                "exit_codes": " ".join(map(str, trial.exit_codes)),
                "seconds": round(time.perf_counter() - start, 1),
                "outcome": "; ".join(trial.problems) or "ok",
            }
        )
        print(" ".join(f"{value}" for value in rows[-1].values()), flush=True)
        if output:
            pd.DataFrame(rows).to_csv(output, index=False)
    if output:
        about = {**environment.describe(), "trials": arguments.trials, "seed": arguments.seed}
        output.with_suffix(".json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    failed = sum(row["outcome"] != "ok" for row in rows)
    print(f"{len(rows) - failed} of {len(rows)} trials ended as they should" + (f"; see {root}" if failed else ""))
    if not failed:
        shutil.rmtree(root)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())

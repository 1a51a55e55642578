"""The repository as a Flower app, through the script that the README names."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import zipfile
from dataclasses import fields
from pathlib import Path

import pytest

from conftest import ROOT, Small, sha256
from sim import Run, RunConfig
from sim.config import presets
from sim.flower_app import _given
from sim.network.options import ServerOptions

APP = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["flwr"]["app"]


def test_the_run_config_is_that_of_sim_run() -> None:
    assert list(APP["config"]) == [*(field.name for field in fields(RunConfig)), "min_clients", "round_timeout"]
    assert RunConfig(**_given(RunConfig, APP["config"])) == RunConfig()
    assert ServerOptions(**_given(ServerOptions, APP["config"])) == ServerOptions()


def test_arguments_are_read_as_on_the_command_line() -> None:
    given = _given(RunConfig, {"strategy": "fedprox", "strategy_args": "proximal_mu=0.5", "lr": 1})
    assert given == {"strategy": "fedprox", "strategy_args": {"proximal_mu": 0.5}, "lr": 1.0}


@pytest.mark.slow
def test_the_bundle_holds_the_package_and_nothing_else(tmp_path: Path) -> None:
    flwr = Path(sys.executable).parent / "flwr"
    environment = {**os.environ, "FLWR_HOME": str(tmp_path / "home"), "FLWR_DISABLE_UPDATE_CHECK": "1"}
    subprocess.run([flwr, "build", "--app", ROOT], cwd=tmp_path, env=environment, check=True, capture_output=True)
    (bundle,) = tmp_path.glob("*.fab")
    with zipfile.ZipFile(bundle) as archive:
        names = {name for name in archive.namelist() if not name.startswith(".info/")}
    # Flower leaves out files whose names look like those of tests.
    assert {str(path.relative_to(ROOT)) for path in (ROOT / "sim").rglob("*.py")} <= names
    assert {f"sim/config/{name}.toml" for name in presets.preset_names()} <= names
    assert {name.split("/")[0] for name in names} == {"sim", "README.md", "pyproject.toml"}
    assert {Path(name).suffix for name in names} == {".py", ".toml", ".md"}


@pytest.mark.network
@pytest.mark.parametrize(
    ("mode", "num_clients", "num_rounds"),
    [
        pytest.param("simulate", 2, 2, marks=pytest.mark.ray),
        pytest.param("deploy", 1, 1, marks=pytest.mark.nightly),  # each message is a process
    ],
)
def test_flower_runs_the_app_to_the_same_weights(
    tmp_path: Path, small: Small, mode: str, num_clients: int, num_rounds: int
) -> None:
    # It comes first, so that the processes of Flower find the data in the cache.
    simulated = small(num_clients=num_clients, fraction_fit=1.0, clients_per_round=None, num_rounds=num_rounds)
    settings = f"num_rounds={num_rounds} local_epochs=1 max_local_steps=3 name='app' results_dir='{tmp_path}'"
    result = subprocess.run(
        [ROOT / "scripts" / "flower_app.sh", mode, str(num_clients), settings],
        env={**os.environ, "VENV": sys.prefix},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert sha256(Run(tmp_path / "app").model_path) == sha256(simulated.model_path)
    assert Run(tmp_path / "app").rounds().test_accuracy.equals(simulated.rounds().test_accuracy)

from __future__ import annotations

import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from sim.config.fields import parse_flag
from sim.config.run_config import CentralizedConfig, RunConfig
from sim.errors import ConfigError


def test_the_defaults_are_the_documented_ones() -> None:
    config = RunConfig()
    assert (config.dataset, config.num_clients, config.fraction_fit, config.num_rounds) == ("digits", 100, 0.2, 30)
    assert (config.local_epochs, config.batch_size, config.lr, config.alpha) == (5, None, None, 0.5)
    config = config.resolved({})
    assert (config.batch_size, config.lr, config.momentum, config.optimizer) == (8, 0.1, 0, "sgd")
    central = CentralizedConfig().resolved({})
    assert (central.epochs, central.batch_size, central.lr, central.momentum) == (2, 32, 0.001, 0.9)


def test_a_written_config_is_read_back_unchanged(tmp_path: Path) -> None:
    config = RunConfig(strategy="fedprox", strategy_args={"proximal_mu": 0.5}, clients_per_round=7, name="x")
    path = tmp_path / "config.toml"
    path.write_text(config.to_toml())
    assert RunConfig.load(path) == config
    assert "fraction_fit" not in tomllib.loads(config.to_toml())


def test_values_override_the_file(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("lr = 0.5\nfraction_fit = 0.3\nnum_rounds = 4\n")
    config = RunConfig.load(path, lr=0.25, clients_per_round=3)
    assert (config.lr, config.num_rounds, config.clients_per_round, config.fraction_fit) == (0.25, 4, 3, None)
    path.write_text("clients_per_round = 3\n")
    assert RunConfig.load(path, fraction_fit=0.5).num_fit_clients == 50


@pytest.mark.parametrize(
    ("num_clients", "fraction", "count"),
    [(100, 0.29, 29), (100, 0.1, 10), (7, 0.5, 3), (10, 1.0, 10), (3, 0.34, 1)],
)
def test_a_fraction_of_the_clients_is_rounded_down_without_floating_point_error(
    num_clients: int, fraction: float, count: int
) -> None:
    assert RunConfig(num_clients=num_clients, fraction_fit=fraction).num_fit_clients == count


@pytest.mark.parametrize(
    ("num_gpus", "reserved"),
    [(0, 0), (0.1, 0.1), (0.25, 0.25), (0.3, 1 / 3), (0.4, 0.5), (0.6, 1), (1 / 49, 1 / 49), (1, 1), (2, 2)],
)
def test_no_share_of_a_gpu_is_spread_over_two_gpus(num_gpus: float, reserved: float) -> None:
    """With 0.4 of a GPU per actor, Ray would wait forever for the fifth actor on two GPUs."""
    assert RunConfig(num_gpus=float(num_gpus)).client_resources["num_gpus"] == pytest.approx(reserved)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": 0}, "lr = 0: must be above 0"),
        ({"lr": float("nan")}, "lr = nan: must be a number, above 0"),
        ({"num_clients": 1.0}, "num_clients = 1.0: must be a whole number, at least 1"),
        ({"num_rounds": True}, "num_rounds = True: must be a whole number, at least 1"),
        ({"momentum": 1.0}, "momentum = 1.0: must be at least 0 and below 1"),
        (
            {"model": "Nett"},
            "must be one of auto, Net, SimpleCnn, ResNet18, Mlp, Logistic, CharLstm, package.module:name",
        ),
        ({"name": "../x"}, "--name ../x: must be at most 100 letters, digits, '.', '_' and '-'"),
        ({"strategy_args": {"a": [1]}}, "the value of a must be a number, text, true or false"),
    ],
)
def test_python_values_are_checked_like_flags(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        RunConfig(**settings)  # type: ignore[arg-type]
    assert message in str(raised.value)


def test_a_file_of_a_run_config_keeps_its_values(tmp_path: Path) -> None:
    def given(*words: str) -> Any:
        run_config = next(field for field in fields(RunConfig) if field.name == "run_config")
        return parse_flag(RunConfig, run_config, list(words))

    path = tmp_path / "run.toml"
    path.write_text("msg = \"a \U0001f600 'b' = c\"\nlr = 1.0\non = true\n[outer.inner]\nsize = 3\n", encoding="utf-8")
    values = {"msg": "a \U0001f600 'b' = c", "lr": 1.0, "on": True, "outer.inner.size": 3}
    assert given(str(path)) == values
    assert list(map(type, given(str(path)).values())) == [str, float, bool, int]
    assert given("lr=1.0 on=true", "outer.inner.size=3") == {name: values[name] for name in [*values][1:]}
    for text in ("2020-01-01", "12:30:00", "inf", "nan", "[1, 2]", "[]"):
        path.write_text(f"a.b = {text}\n", encoding="utf-8")
        with pytest.raises(ConfigError) as raised:
            given(str(path))
        assert str(raised.value) == f"--run-config {path}: the value of a.b must be a number, text, true or false"

from __future__ import annotations

import argparse
import re
from pathlib import Path

import numpy as np
import pytest

from conftest import Sim, Small, sha256
from sim import Run
from sim.config.flags import add_config, config_from
from sim.config.presets import preset_names, preset_path
from sim.config.run_config import RunConfig
from sim.data import partition
from sim.data.columns import Columns
from sim.data.load_dataset import Dataset, DataSource, load_dataset
from sim.errors import ConfigError

PUBLISHED = [
    "blazefl",
    "feddyn",
    "fedprox-synthetic",
    "fedrep",
    "hsu2019",
    "mcmahan2017",
    "moon",
    "niid-bench",
    "pfl-research",
    "reddi2020",
]
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 500))


def test_the_published_experiments_are_there() -> None:
    assert preset_names() == PUBLISHED


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_is_a_complete_config_with_source_accuracy_and_cost(name: str) -> None:
    config = RunConfig.load(preset=name)
    assert config.dataset == ("fedprox-synthetic" if name == "fedprox-synthetic" else "cifar10")
    text = preset_path(name).read_text(encoding="utf-8")
    for words in (r"arXiv:\d{4}\.\d{5}", "# Settings: ", "# Published: ", "# Cost: "):
        assert re.search(words, text), words


def test_the_settings_of_the_papers() -> None:
    mcmahan = RunConfig.load(preset="mcmahan2017")
    assert (mcmahan.num_clients, mcmahan.num_fit_clients, mcmahan.local_epochs, mcmahan.batch_size) == (
        100,
        10,
        5,
        50,
    )
    assert mcmahan.lr_in(3, 2000) == pytest.approx(mcmahan.lr * 0.99**2)
    niid = RunConfig.load(preset="niid-bench")
    assert (niid.num_fit_clients, niid.local_epochs, niid.batch_size, niid.num_rounds) == (10, 10, 64, 50)
    reddi = RunConfig.load(preset="reddi2020")
    assert (reddi.num_clients, reddi.num_fit_clients, reddi.batch_size, reddi.model) == (500, 10, 20, "ResNet18")
    pfl = RunConfig.load(preset="pfl-research")
    assert (pfl.num_clients, pfl.num_fit_clients, pfl.batch_size, pfl.lr) == (1000, 50, 10, 0.1)
    assert RunConfig.load(preset="blazefl").num_fit_clients == 100


@pytest.mark.parametrize(
    ("name", "arguments", "training"),
    [
        ("feddyn", {"alpha": 0.01}, (10, 5, 50, 0.1, None)),
        ("fedrep", {"head_epochs": 10, "body_epochs": 1}, (10, 1, 10, 0.01, 0.5)),
        ("moon", {"mu": 5.0, "tau": 0.5}, (10, 10, 64, 0.01, 0.9)),
    ],
)
def test_the_settings_of_the_papers_of_algorithms(
    name: str, arguments: dict[str, object], training: tuple[object, ...]
) -> None:
    config = RunConfig.load(preset=name)
    assert (config.strategy, config.strategy_args) == (name, arguments)
    assert (config.num_fit_clients, config.local_epochs, config.batch_size, config.lr, config.momentum) == training
    compared = RunConfig.load(preset=name, strategy="fedavg")
    assert (compared.strategy, compared.strategy_args, compared.lr) == ("fedavg", {}, config.lr)


def test_the_clients_of_fedrep_have_at_most_two_classes() -> None:
    assigned = partition.assign(_labels(), RunConfig.load(preset="fedrep"))
    counts = assigned.label_counts(LABELS, 10)
    assert assigned.sizes.tolist() == [50] * 100
    assert (counts > 0).sum(axis=1).max() == 2
    assert set(counts.flatten()) == {0, 25, 50}


@pytest.mark.parametrize("strategy", ["fedavg", "fedprox", "scaffold", "fednova"])
def test_the_algorithms_of_niid_bench(strategy: str) -> None:
    assert RunConfig.load(preset="niid-bench", strategy=strategy).lr == 0.01


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_assigns_examples_to_all_its_clients(name: str) -> None:
    config = RunConfig.load(preset=name)
    dataset = load_dataset(config) if config.dataset == "fedprox-synthetic" else _labels()
    sizes = partition.assign(dataset, config).sizes
    assert len(sizes) == config.num_clients
    assert sizes.sum() == len(dataset.train)


def _labels() -> Dataset:
    """Return a tenth of the examples that CIFAR-10 has of each class, without images."""
    return Dataset(DataSource(), Columns([LABELS, LABELS]), None)


@pytest.mark.parametrize(
    ("flags", "most_classes", "sizes"),
    [
        ("", 10, []),
        ("--partitioner pathological --partitioner-args num_classes_per_partition=1 CLASSES", 1, [500] * 10),
        ("--partitioner pathological --partitioner-args num_classes_per_partition=2 CLASSES", 2, []),
        ("--partitioner pathological --partitioner-args num_classes_per_partition=3 CLASSES", 3, []),
        ("--partitioner quantity", 10, [335, 577, 223, 371, 858, 102, 389, 1306, 190, 649]),
        ("--partitioner iid --feature-noise 0.1", 10, [500] * 10),
        ("--partitioner iid", 10, [500] * 10),
    ],
)
def test_the_partitions_of_niid_bench(flags: str, most_classes: int, sizes: list[int]) -> None:
    words = flags.replace("CLASSES", "class_assignment_mode=first-deterministic").split()
    parser = argparse.ArgumentParser()
    add_config(parser, RunConfig)
    config = config_from(RunConfig, parser.parse_args(["--preset", "niid-bench", *words]))
    assert (config.feature_noise, config.batch_size) == (0.1 if "noise" in flags else 0.0, 64)
    assert config.alpha == 0.5
    assigned = partition.assign(_labels(), config)
    assert assigned.sizes.sum() == 5000
    assert sizes in ([], assigned.sizes.tolist())
    classes = assigned.label_counts(LABELS, 10) > 0
    assert classes.sum(axis=1).max() == most_classes
    assert not flags.startswith("--partitioner pathological") or classes.diagonal().all()


def test_files_override_a_preset_and_flags_override_both(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("lr = 0.5\nnum_rounds = 7\n")
    config = RunConfig.load(path, preset="niid-bench", num_rounds=3, clients_per_round=4)
    assert (config.lr, config.num_rounds, config.num_fit_clients, config.momentum) == (0.5, 3, 4, 0.9)


def test_a_new_strategy_or_partitioner_removes_the_arguments_of_the_old_one() -> None:
    assert RunConfig.load(preset="niid-bench").partitioner_args == {"self_balancing": True}
    assert RunConfig.load(preset="niid-bench", partitioner="iid").partitioner_args == {}
    assert RunConfig.load(preset="reddi2020", strategy="fedavg").strategy_args == {}
    kept = RunConfig.load(preset="reddi2020", strategy_args={"eta": 1})
    assert (kept.strategy, kept.strategy_args) == ("fedadam", {"eta": 1})


def test_an_unknown_preset_is_an_error() -> None:
    with pytest.raises(
        ConfigError,
        match="--preset mcmahan: must be one of blazefl, feddyn, fedprox-synthetic, fedrep, hsu2019, mcmahan2017",
    ):
        RunConfig.load(preset="mcmahan")


def test_two_runs_of_a_preset_are_the_same_to_the_bit(small: Small, tmp_path: Path) -> None:
    few = {"results_dir": str(tmp_path), "dataset": "digits", "num_rounds": 2, "max_local_steps": 4, "engine": "inline"}
    runs = [small(**vars(RunConfig.load(preset="niid-bench", **few, name=name))) for name in ("one", "two")]
    assert sha256(runs[0].model_path) == sha256(runs[1].model_path)
    assert runs[0].rounds().num_clients[1] == 10


def test_a_round_of_fedprox_synthetic(command: Sim, tmp_path: Path) -> None:
    words = ("--engine", "inline", "--name", "one")
    ended = command("run", "--preset", "fedprox-synthetic", "--num-rounds", "1", "--max-local-steps", "50", *words)
    assert ended.returncode == 0, ended.stderr
    run = Run(tmp_path / "results" / "one")
    assert (len(run.clients()), run.rounds().num_clients[1]) == (10, 10)
    before, after = run.rounds().test_loss
    assert after < before - 0.1
    assert run.config()["strategy_args"] == {"proximal_mu": 1.0}

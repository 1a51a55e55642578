"""Plots: curves over seeds, pictures in every format, and commands that import nothing heavy."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from conftest import Sim
from sim.config.run_config import CentralizedConfig, RunConfig
from sim.metrics import MetricName
from sim.run_folder import plots
from sim.run_folder.folder import Run
from sim.run_folder.records import MetricRecord, RoundRecord
from sim.run_folder.writer import RunWriter

STRATEGIES = ("fedavg", "fedprox")


def _run(root: Path, name: str, accuracies: list[float], config: RunConfig | CentralizedConfig) -> Run:
    writer = RunWriter.create(str(root), name, config.to_toml(), clients=False)
    for number, accuracy in enumerate(accuracies):
        writer.append(RoundRecord(number, test_accuracy=accuracy, test_loss=1.0, round_seconds=0.5 * (number + 1)))
    writer.close()
    return writer.run


def test_runs_that_differ_only_in_their_seed_are_one_curve(tmp_path: Path) -> None:
    runs = [
        _run(tmp_path, "iid-seed0", [0.1, 0.4, 0.5], RunConfig(partitioner="iid", seed=0)),
        _run(tmp_path, "iid-seed1", [0.3, 0.6], RunConfig(partitioner="iid", seed=1)),
        _run(tmp_path, "skewed", [0.1, 0.2], RunConfig(seed=0)),
        _run(tmp_path, "central", [0.1, 0.9], CentralizedConfig()),
    ]
    curves = plots.curves_of(runs)
    assert [curve.label for curve in plots.curves_of([runs[0], runs[0]])] == ["iid-seed0", "iid-seed0"]
    assert [curve.label for curve in curves] == ["iid (mean ± sample sd of 2 seeds)", "skewed", "central"]
    xs, mean, deviation = curves[0].series("test_accuracy", "round")
    assert xs.tolist() == [0, 1]
    assert mean.tolist() == pytest.approx([0.2, 0.5])
    assert deviation.tolist() == pytest.approx([0.2 / 2**0.5, 0.2 / 2**0.5])  # n − 1, as in every table
    assert curves[1].series("test_accuracy", "seconds")[0].tolist() == [0.5, 1.5]


def test_curves_of_several_sweeps_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    seeds_alone = [_run(tmp_path / "prox", f"seed-{seed}", [0.1], RunConfig(lr=0.2, seed=seed)) for seed in (0, 1)]
    plain = _run(tmp_path / "plain", "alpha-0.5_seed-0", [0.1], RunConfig(alpha=0.5, lr=0.3))
    long = _run(tmp_path / "long", "alpha-0.5_seed-0", [0.1], RunConfig(alpha=0.5, lr=0.4))
    names = ["prox", "plain/alpha-0.5_seed-0", "long/alpha-0.5_seed-0"]
    assert [curve.title for curve in plots.curves_of([*seeds_alone, plain, long])] == names
    others = [_run(tmp_path / "prox", f"other-{seed}", [0.1], RunConfig(lr=0.3, seed=seed)) for seed in (0, 1)]
    thirds = [_run(tmp_path / "prox", f"{seed}", [0.1], RunConfig(lr=0.4, seed=seed)) for seed in (0, 1)]
    titles = [curve.title for curve in plots.curves_of([*seeds_alone, *others, *thirds])]
    assert titles == ["seed-0", "other", "0"]


def test_the_legend_of_a_sweep_has_the_settings_and_other_names_stay(tmp_path: Path) -> None:
    configs = [RunConfig(strategy=strategy, alpha=1.0 if number else 0.5) for number, strategy in enumerate(STRATEGIES)]
    names = [f"strategy-{config.strategy}_alpha-{config.alpha}" for config in configs]
    runs = [
        _run(tmp_path, f"{name}_seed-{seed}", [0.1, 0.2], replace(config, seed=seed))
        for name, config in zip(names, configs, strict=True)
        for seed in (0, 1)
    ]
    curves = plots.curves_of(runs)
    assert [curve.title for curve in curves] == ["strategy fedavg, alpha 0.5", "strategy fedprox, alpha 1"]
    assert [curve.name for curve in curves] == names
    other = _run(tmp_path, "strategy-fedavg-alpha-0.5", [0.1], RunConfig(strategy="fedavg", alpha=0.5))
    assert [curve.title for curve in plots.curves_of([other, *runs[2:]])] == ["strategy-fedavg-alpha-0.5", names[1]]


def test_the_figure_has_a_line_per_curve_a_band_per_mean_and_units(tmp_path: Path) -> None:
    curves = plots.curves_of(
        [_run(tmp_path, f"s{seed}", [0.1, 0.2 * seed], RunConfig(seed=seed)) for seed in (1, 2)]
        + [_run(tmp_path, "central", [0.1, 0.9], CentralizedConfig())]
    )
    figure = plots.curves_figure(curves, ("accuracy", "loss"), "seconds")
    accuracy, loss = figure.axes
    assert len(accuracy.lines) == 2
    assert len(accuracy.collections) == 1
    assert accuracy.lines[0].get_ydata().tolist() == pytest.approx([0.1, 0.3])
    assert (accuracy.get_xlabel(), accuracy.get_ylabel()) == (
        "wall-clock seconds",
        "accuracy (fraction)",
    )
    assert loss.get_ylabel() == "loss (nats per example)"
    assert [text.get_text() for text in accuracy.get_legend().get_texts()] == [
        "s (mean ± sample sd of 2 seeds)",
        "central",
    ]


@pytest.mark.parametrize("settings", [{"loss": "mse"}, {"test": "own:test"}])
def test_the_loss_has_a_unit_only_if_all_are_cross_entropies(tmp_path: Path, settings: dict[str, str]) -> None:
    runs = [_run(tmp_path, "one", [0.1], RunConfig()), _run(tmp_path, "other", [0.1], RunConfig(**settings))]
    (of_one,), (of_both,) = (plots.curves_figure(plots.curves_of(each), ["loss"]).axes for each in (runs[:1], runs))
    assert (of_one.get_ylabel(), of_both.get_ylabel()) == ("loss (nats per example)", "loss")


@pytest.mark.parametrize("image_format", plots.FORMATS)
def test_pictures_have_the_format_that_was_asked_for(image_format: str) -> None:
    counts = np.array([[3, 0, 1], [0, 5, 2]])
    content = plots.render(plots.partition_figure(counts, ["a", "b", "c"]), image_format)
    assert {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[image_format] == content[
        : 5 if image_format == "svg" else 4
    ]


@pytest.mark.parametrize("num_classes", [2, 15, 100])
def test_bars_of_a_client_add_up_to_its_examples(num_classes: int) -> None:
    counts = np.random.default_rng(0).integers(0, 9, (30, num_classes))
    (axes,) = plots.partition_figure(counts, [str(c) for c in range(num_classes)]).axes
    assert len(axes.collections) == num_classes
    for number, bars in enumerate(axes.collections):
        (outline,) = bars.get_paths()
        bottoms, tops = counts[:, :number].sum(axis=1), counts[:, : number + 1].sum(axis=1)
        for client_id, (bottom, top) in enumerate(zip(bottoms, tops, strict=True)):
            inside = [
                outline.contains_point((client_id, y)) for y in (bottom - 0.1, bottom + 0.1, top - 0.1, top + 0.1)
            ]
            assert inside == [False, top > bottom, top > bottom, False]


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [["--help"], ["--version"], ["run", "--help"], ["plot", "one"], ["list"], ["report", "one"]]
)
def test_these_commands_do_not_import_torch_flwr_or_ray(tmp_path: Path, words: list[str]) -> None:
    _run(tmp_path / "results", "one", [0.1, 0.2], CentralizedConfig())
    program = (
        "import sys; from sim.cli import main\n"
        "try: code = main(sys.argv[1:])\n"
        "except SystemExit as end: code = end.code\n"
        "heavy = {'torch', 'flwr', 'ray', 'torchvision', 'sklearn', 'datasets'} & set(sys.modules)\n"
        "if sys.argv[-1] in ('--help', '--version'):\n"
        "    heavy |= {'pandas', 'matplotlib', 'numpy', 'rich'} & set(sys.modules)\n"
        "print('code', code, sorted(heavy))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, *words], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines()[-1] == "code 0 []"


SILENT = """
import numpy as np
from flwr.client import NumPyClient


class Silent(NumPyClient):
    def get_parameters(self, config):
        return [np.zeros(2)]

    def fit(self, parameters, config):
        return parameters, 1, {}


def client_fn(context):
    return Silent().to_client()
"""


@pytest.mark.usefixtures("pictures")
def test_there_is_no_picture_without_a_curve(command: Sim, tmp_path: Path) -> None:
    (tmp_path / "silent.py").write_text(SILENT, encoding="utf-8")
    words = ("--client-fn", "silent:client_fn", "--num-clients", "2", "--num-rounds", "1", "--engine", "inline")
    done = command("run", *words, "--name", "one")
    assert done.stdout.splitlines() == ["run folder      results/one", "final round     1"]
    assert not [*tmp_path.rglob("*.png")]
    plotted = command("plot", "one")
    assert (plotted.returncode, plotted.stderr) == (2, "sim: no run has measured accuracy or loss yet\n")


@pytest.mark.usefixtures("pictures")
def test_infinite_values_are_not_drawn(tmp_path: Path, command: Sim) -> None:
    writer = RunWriter.create(str(tmp_path / "results"), "a", RunConfig().to_toml(), clients=True)
    for number, value in enumerate((1.0, math.inf, 0.5)):
        rows = [
            MetricRecord(number, "test", None, 1, "gap", value),
            MetricRecord(number, "test", None, 1, "inf", math.inf),
        ]
        writer.append(RoundRecord(number), metrics=rows)
    writer.close()
    (curve,) = plots.curves_of([Run(tmp_path / "results" / "a")], [MetricName("gap", smaller_is_better=True)])
    assert curve.series("test/gap/", "round")[1].tolist()[::2] == [1.0, 0.5]
    assert math.isnan(curve.series("test/gap/", "round")[1][1])
    assert command("plot", "a", "--metric", "gap", "-o", "gap.png").returncode == 0
    plotted = command("plot", "a", "--metric", "inf", "-o", "inf.png")
    assert (plotted.returncode, plotted.stderr) == (2, "sim: no run has measured inf yet\n")

"""Notebooks: each is executed on a small input and shows the numbers of its tables; programs in cells."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import pytest
from nbclient import NotebookClient

from conftest import ROOT, SMALL, Small, sha256
from sim import Run, cli, list_runs
from sim.config.flags import settings_given
from sim.config.run_config import RunConfig
from sim.scale.cells import cells
from sim.scale.execute import COLUMNS, CellRecord, efficiency_frame, read_scale
from sim.sweep.planned import Planned
from sim.sweep.table import write_tables
from sim.sweep.variants import parse_axis, variants

pytestmark = pytest.mark.slow  # Jupyter's kernel is a process of its own


def _execute(name: str) -> tuple[str, int]:
    """Execute a notebook and return its text output and the number of its pictures."""
    notebook = nbformat.read(ROOT / "notebooks" / name, as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells)  # notebooks are stored without outputs
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(ROOT / "notebooks")}}).execute()
    outputs: list[Any] = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    pictures = sum("image/png" in output.get("data", {}) for output in outputs)
    texts = [output.get("text", "") + output.get("data", {}).get("text/plain", "") for output in outputs]
    return "\n".join(texts), pictures


@pytest.mark.nightly
def test_the_quickstart_notebook_trains_in_one_place_and_on_clients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIM_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("SIM_CIFAR", str(tmp_path))  # has none
    monkeypatch.setenv("SIM_ROUNDS", "1")
    text, pictures = _execute("quickstart.ipynb")
    assert pictures == 2
    assert "digits, 1 rounds" in text
    runs = sorted(list_runs(str(tmp_path / "results")), key=lambda run: run.config_path.stat().st_mtime_ns)
    central, even, skewed = runs
    assert central.is_central
    assert [run.config()["partitioner"] for run in (even, skewed)] == ["iid", "dirichlet"]
    for name, run in (("in one place", central), ("50 equal clients", even), ("50 different clients", skewed)):
        assert f"{name:<22} test accuracy {run.rounds().test_accuracy.iloc[-1]:.4f}" in text


_PROGRAM = """
import torch
from torch import nn
from sim import RunConfig, simulate

SCALE = 0.1  # a variable of the notebook, which the function of a cell uses

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(32 * 32, 10))

def train(net, loader, epochs, device):
    optimizer = torch.optim.SGD(net.parameters(), lr=SCALE)
    for images, labels in loader:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(images), labels)
        loss.backward()
        optimizer.step()
    return loss.item()

class Smoothed(nn.CrossEntropyLoss):
    def __init__(self):
        super().__init__(label_smoothing=SCALE)

def top3(outputs, target):
    return (outputs.topk(3).indices == target[:, None]).any(1).float().mean()
"""
_SIMULATE = """
settings = {"num_clients": 10, "clients_per_round": 4, "num_rounds": 2, "engine": ENGINE, "name": ENGINE}
settings["metric"] = "accuracy,__main__:top3"
seen = []
run = simulate(
    RunConfig(**settings), model=Net, train=train, loss=Smoothed(), ray_init_args={"num_cpus": 1},
    on_record=lambda record: seen.append(record.round),
)
"""
_SHOWN = (
    "seen",
    "run",
    "run.rounds()",
    "from sim import curves_figure, curves_of\ncurves_figure(curves_of([run]), ['loss'])",
)


@pytest.mark.ray
def test_a_program_in_cells_runs_on_both_engines_and_shows_itself(tmp_path: Path) -> None:
    notebook = nbformat.v4.new_notebook()
    sources = [_PROGRAM]
    for engine in ("inline", "ray"):
        sources += [_SIMULATE.replace("ENGINE", repr(engine)), *_SHOWN]
    notebook.cells = [nbformat.v4.new_code_cell(source) for source in sources]
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs: list[Any] = [cell.outputs for cell in notebook.cells]
    for first, engine in ((1, "inline"), (1 + 1 + len(_SHOWN), "ray")):
        run = Run(tmp_path / "results" / engine)
        accuracies = run.rounds().test_accuracy
        assert set(run.metrics().name) == {"loss", "accuracy", "top3"}
        live = [each for each in outputs[first] if each.output_type == "display_data"]
        (line,) = live  # one line, in whose place each round comes
        assert line.data["text/plain"].startswith(f"round 2/2 · accuracy {accuracies.iloc[-1]:.4f} · loss ")
        seen, shown, frame, figure = (each[0].data for each in outputs[first + 1 : first + 1 + len(_SHOWN)])
        assert seen["text/plain"] == "[0, 1, 2]"
        html = shown["text/html"]
        assert f"<b>{engine}</b>: round 2 of 2" in html
        assert f"<td>{accuracies.iloc[-1]:.6f}</td>" in html
        assert html.count("data:image/png;base64,") == 2
        assert frame["text/html"].count("<tr") == 4
        assert figure["image/png"].startswith("iVBOR")  # as a PNG begins
    results = tmp_path / "results"
    assert sha256(results / "ray" / "model.safetensors") == sha256(results / "inline" / "model.safetensors")


def test_the_noniid_notebook_shows_the_numbers_of_a_sweep(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    axes = [parse_axis("alpha=0.5,10"), parse_axis("strategy=fedavg,fedprox,fedadam")]
    found = variants({**SMALL, "num_rounds": 1}, axes, 1, str(tmp_path / "noniid"))
    planned = [Planned(each, config, small(**vars(config))) for each in found for config in each.configs]
    for each in planned:
        each.inspect()
    write_tables(tmp_path / "noniid", planned)
    monkeypatch.setenv("SIM_SWEEP", str(tmp_path / "noniid"))
    text, pictures = _execute("noniid.ipynb")
    assert pictures == 1
    assert "6 of 6 runs are done" in text
    assert "no run reached a target" in text
    table = pd.read_csv(tmp_path / "noniid" / "sweep.csv")
    shown = re.findall(r"^\d +([\d.]+) +(fed\w+) +(\d) +([\d.]+) +NaN +NaN$", text, re.MULTILINE)
    expected = [
        (str(row.alpha), str(row.strategy), "1", row.final_accuracy_mean) for row in table.itertuples(index=False)
    ]
    assert [row[:3] for row in shown] == [row[:3] for row in expected]
    assert [float(row[3]) for row in shown] == pytest.approx([row[3] for row in expected], abs=5.1e-5)
    by_alpha = table.pivot(index="alpha", columns="strategy", values="final_accuracy_mean")
    for strategy in by_alpha:
        (cost,) = re.findall(rf"^{strategy} +(-?[\d.]+)$", text, re.MULTILINE)
        assert float(cost) == pytest.approx(by_alpha[strategy][0.5] - by_alpha[strategy][10], abs=5.1e-5)


def test_the_noniid_notebook_draws_rounds_to_a_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = []
    for alpha in (0.5, 10.0):
        for number, strategy in enumerate(("fedavg", "fedprox", "fedadam")):
            rounds = 11.0 + number if strategy != "fedadam" else None
            row = {"alpha": alpha, "strategy": strategy, "num_done": 2, "num_reached": 2 if rounds else 0}
            for measure, mean in (("final_accuracy", 0.9), ("rounds_to_target", rounds)):
                for part, shift in (("mean", 0), ("low", -0.1), ("high", 0.1)):
                    row[f"{measure}_{part}"] = None if mean is None else mean + shift
            rows.append(row)
    pd.DataFrame(rows).to_csv(tmp_path / "sweep.csv", index=False)
    runs = [{**row, "seed": seed, "status": "done", "final_accuracy": 0.9} for row in rows for seed in (0, 1)]
    pd.DataFrame(runs).to_csv(tmp_path / "runs.csv", index=False)
    monkeypatch.setenv("SIM_SWEEP", str(tmp_path))
    text, pictures = _execute("noniid.ipynb")
    assert pictures == 2
    assert re.search(r"fedprox +2 +2 +12\.0$", text, re.MULTILINE)
    assert re.search(r"fedadam +0 +2 +NaN$", text, re.MULTILINE)


def test_the_scalability_notebook_shows_the_numbers_of_a_scale_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [
        CellRecord(engine, 4, num_actors, 0, "ok", None, 2.5, seconds, 4 / seconds, 0.75, 600.0, memory)
        for engine, num_actors, seconds, memory in (
            ("inline", 1, 0.1234, None),
            ("ray", 1, 0.2345, 400.0),
            ("ray", 2, 0.1456, 800.0),
        )
    ]
    pd.DataFrame([vars(record) for record in records], columns=COLUMNS).to_csv(tmp_path / "scale.csv", index=False)
    monkeypatch.setenv("SIM_SCALE", str(tmp_path))
    text, pictures = _execute("scalability.ipynb")
    assert pictures == 3
    frame = read_scale(tmp_path / "scale.csv")
    assert "3 of 3 measurements are good" in text
    best = frame.loc[frame.updates_per_second.idxmax()]
    words = f"{best.updates_per_second:.1f} clients per second, {best.num_clients} clients on {best.num_actors} actor"
    assert f"most: {words}(s) of the engine {best.engine}" in text
    two = efficiency_frame(frame).query("scaling == 'strong' and num_actors == 2")
    assert two.num_clients.tolist() == [4]
    updates = frame.set_index(["engine", "num_clients", "num_actors"]).updates_per_second
    for row in two.itertuples(index=False):
        before, after = (updates["ray", row.num_clients, actors] for actors in (1, 2))
        found = f"second actor, {row.num_clients} clients: {before:.1f} → {after:.1f} clients per second, "
        assert f"{found}{row.speedup:.2f} times as fast, efficiency {row.efficiency:.2f}" in text
    for seconds in frame.round_seconds:  # the table of medians: with one repeat, each is the measured value
        assert f"{seconds:.3f}" in text


@pytest.mark.parametrize("name", ["noniid", "scalability"])
def test_the_commands_of_the_notebooks_are_valid(name: str) -> None:
    """The tests above give the notebooks what these commands make in two minutes."""
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    words = re.findall(r'words \+?= "(.*)"', "\n".join(cell.source for cell in notebook.cells))
    arguments = cli._parser().parse_strictly([*" ".join(words).split(), "folder"])
    assert arguments.results_dir == "folder"
    if name == "noniid":
        settings = settings_given(RunConfig, arguments)
        settings.pop("results_dir")
        assert len(variants(settings, [parse_axis(each) for each in arguments.vary], 2, "folder")) == 9
    else:
        chosen = {"num_clients": [10, 100], "num_actors": [1, 2]}
        assert len(cells(["ray"], chosen["num_clients"], chosen["num_actors"], arguments.scaling)) == 6

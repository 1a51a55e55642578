"""Notebooks: each is executed on a small input and shows the numbers of its tables."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import pytest
from nbclient import NotebookClient

from conftest import ROOT, SMALL, Small
from sim.scale.execute import COLUMNS, CellRecord, efficiency_frame, read_scale
from sim.sweep.grid import parse_axis, variants
from sim.sweep.planned import Planned
from sim.sweep.table import write_tables

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


def test_the_quickstart_notebook_runs(small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small(name="even", partitioner="iid")
    last = small(name="skewed").rounds().test_accuracy.iloc[-1]
    monkeypatch.setenv("SIM_RESULTS", str(tmp_path / "results"))
    text, pictures = _execute("quickstart.ipynb")
    assert pictures == 2
    assert f"{last:.4f}"[:5] in text


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
    words = f"{best.updates_per_second:.1f} clients a second, {best.num_clients} clients on {best.num_actors} actor"
    assert f"most: {words}(s) of the engine {best.engine}" in text
    two = efficiency_frame(frame).query("scaling == 'strong' and num_actors == 2")
    assert two.num_clients.tolist() == [4]
    updates = frame.set_index(["engine", "num_clients", "num_actors"]).updates_per_second
    for row in two.itertuples(index=False):
        before, after = (updates["ray", row.num_clients, actors] for actors in (1, 2))
        found = f"second actor, {row.num_clients} clients: {before:.1f} → {after:.1f} clients a second, "
        assert f"{found}{row.speedup:.2f} times as fast, efficiency {row.efficiency:.2f}" in text
    for seconds in frame.round_seconds:  # the table of medians: with one repeat, each is the measured value
        assert f"{seconds:.3f}" in text

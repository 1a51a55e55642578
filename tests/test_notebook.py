from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from conftest import ROOT
from sim import Run


def test_the_quickstart_notebook_runs(
    small: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(name="even", partitioner="iid")
    last = small(name="skewed").rounds().test_accuracy.iloc[-1]
    monkeypatch.setenv("SIM_RESULTS", str(tmp_path / "results"))
    notebook = nbformat.read(ROOT / "notebooks" / "quickstart.ipynb", as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells)  # stored without outputs
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(ROOT / "notebooks")}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    texts = " ".join(output.get("data", {}).get("text/plain", "") for output in outputs)
    assert f"{last:.4f}"[:5] in texts

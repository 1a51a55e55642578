"""The architecture and the texts, as far as a program can check them."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from conftest import README, ROOT
from sim.run_folder.records import ClientRecord, RoundRecord, columns

TREE = re.search(r"```\nsim/\n(.*?)scripts/", README, re.DOTALL)[1]  # type: ignore[index]
ORDER: list[str] = re.findall(r"(\w+)\.py", TREE)
PACKAGES = re.findall(r"(\w+)/\n", TREE)
SOURCES = sorted(path for path in (ROOT / "sim").rglob("*.py") if not path.name.startswith("__"))


def _imports(path: Path) -> set[str]:
    """Names of the rooms of sim that a file imports, at the top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "sim":
            words = node.module.split(".")[1:]
            names = [alias.name for alias in node.names]
            found |= {words[-1]} if words and words[-1] not in PACKAGES else set(names)
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[-1] for alias in node.names if alias.name.startswith("sim.")}
    return found


def test_the_readmes_tree_lists_every_file() -> None:
    assert sorted(ORDER) == sorted(path.stem for path in SOURCES)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_data_goes_one_way(path: Path) -> None:
    above = ORDER[: ORDER.index(path.stem)]
    assert _imports(path) <= set(above)


def test_one_file_touches_start_simulation_and_four_ray() -> None:
    touching: dict[str, set[str]] = {"ray": set(), "flwr.simulation": set()}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                module = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
                for library, files in touching.items():
                    if module and f"{module}.".startswith(f"{library}."):
                        files.add(path.stem)
    assert touching == {"ray": {"actor", "own_ray", "dispatch", "ray"}, "flwr.simulation": {"ray"}}


def test_training_knows_nothing_of_flower() -> None:
    text = (ROOT / "sim" / "training.py").read_text(encoding="utf-8")
    assert "flwr" not in text


def test_no_file_grows_past_a_sitting() -> None:
    for path in [*SOURCES, *(ROOT / "tests").glob("*.py")]:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 330, path


def test_links_of_the_readme_lead_somewhere() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert link.startswith("https://") or (ROOT / link).is_file(), link
    for script in re.findall(r"scripts/[\w/]+\.sh", README):
        assert (ROOT / script).is_file(), script


@pytest.mark.parametrize("text", [README, (ROOT / "results" / "README.md").read_text(encoding="utf-8")])
def test_every_column_is_explained(text: str) -> None:
    for name in {*columns(RoundRecord), *columns(ClientRecord)}:
        assert f"`{name}`" in text, name

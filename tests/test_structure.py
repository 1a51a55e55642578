"""The architecture and the texts, as far as a program can check them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import sim
from conftest import ROOT
from sim.run_folder.records import ClientRecord, MetricRecord, RoundRecord, columns

ORDER = (ROOT / "docs" / "import_order.txt").read_text(encoding="utf-8").split()
SOURCES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for path in sorted((ROOT / "sim").rglob("*.py"))
    if not path.name.startswith("__")
}
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "results" / "README.md", *(ROOT / "docs").glob("*.md")]

# Which rooms may import a library; a name stands for a file, or for all files of a folder.
ALLOWED = {
    "ray": "engine.ray",
    "flwr.simulation": "engine.ray.start_simulation",
    "flwr": "client engine server setup measure network flower_app flower_programs run_folder.encode_state"
    " run_folder.checkpoint run_folder.torch_states",
    "torch": "entropy seeds process_settings own_generators own_networks user_variables data.batches data.items"
    " data.loaders training algorithms client engine setup tracking measure run_folder.environment"
    " run_folder.plain_forms run_folder.torch_states simulation commands.scale",
}
# What Ray, Flower and PyTorch do not document, besides names that begin with an underscore.
PRIVATE = ("flwr.proto", "flwr.supercore", "flwr.superlink", "flwr.server.superlink")
PRIVATE += ("flwr.compat", "flwr.common.serde")


def imports(source: str) -> Iterator[str]:
    """Dotted names of everything that a source imports, at the top or inside a function."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def imported_modules(source: str) -> set[str]:
    """Modules of sim that a source imports."""
    return {module for name in imports(source) for module in SOURCES if name == module or name.startswith(f"{module}.")}


def downward(module: str, source: str) -> set[str]:
    """What a module imports though it stands below it in the order."""
    return imported_modules(source) - set(ORDER[: ORDER.index(module)])


def foreign(module: str, source: str) -> set[str]:
    """What a module imports though its room may not."""
    return {
        name
        for name in imports(source)
        for library, rooms in ALLOWED.items()
        if f"{name}.".startswith(f"{library}.")
        and not any(f"{module}.".startswith(f"sim.{room}.") for room in rooms.split())
    }


def private_names(source: str) -> set[str]:
    """Private names of Ray, Flower and PyTorch that a source imports or reads."""
    tree = ast.parse(source)
    local = {"ray": "ray", "flwr": "flwr", "torch": "torch"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            local |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    read = set(imports(source))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            words = ast.unparse(node).split(".")
            read.add(".".join([local.get(words[0], words[0]), *words[1:]]))
    own = [name for name in read if name.split(".")[0] in ("ray", "flwr", "torch")]
    return {
        name
        for name in own
        if any(word.startswith("_") and not word.startswith("__") for word in name.split("."))
        or any(f"{name}.".startswith(f"{private}.") for private in PRIVATE)
    }


def test_the_order_lists_every_file_once() -> None:
    assert sorted(ORDER) == sorted(SOURCES)


@pytest.mark.parametrize("module", SOURCES)
def test_data_goes_one_way_and_libraries_stay_in_their_rooms(module: str) -> None:
    source = SOURCES[module].read_text(encoding="utf-8")
    assert not downward(module, source)
    assert not foreign(module, source)
    if module != "sim.private_names":
        assert not private_names(source)


def test_the_rules_see_what_breaks_them() -> None:
    assert downward("sim.data.batches", "from sim.server import rounds") == {"sim.server.rounds"}
    assert downward("sim.data.batches", "def f():\n    from sim.cli import main") == {"sim.cli"}
    assert downward("sim.cli", "from sim.errors import SimError") == set()
    assert foreign("sim.server.rounds", "import ray.exceptions") == {"ray.exceptions"}
    assert foreign("sim.training.local", "def f():\n    from flwr.common import log") == {"flwr.common.log"}
    assert foreign("sim.engine.ray.session", "from flwr.simulation import x") == {"flwr.simulation.x"}
    assert private_names("from ray._private import worker") == {"ray._private.worker"}
    assert private_names("from torch import nn\nnn.modules.dropout._DropoutNd") == {
        "torch.nn.modules.dropout._DropoutNd"
    }
    assert private_names("from flwr.proto.recorddict_pb2 import RecordDict") == {"flwr.proto.recorddict_pb2.RecordDict"}


def test_what_python_users_import_is_there() -> None:
    assert all(getattr(sim, name) is not None for name in sim.__all__)
    source = (ROOT / "sim" / "__init__.py").read_text(encoding="utf-8")
    typed = set(re.findall(r"import (\w+) as \1", source))
    assert typed == set(sim.__all__)


def test_no_file_grows_past_its_cap() -> None:
    for path in [*SOURCES.values(), *(ROOT / "tests").glob("*.py")]:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 600, path


def test_the_readme_is_short() -> None:
    assert (ROOT / "README.md").stat().st_size <= 9_000


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_links_and_scripts_of_the_texts_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        assert link.startswith("https://") or (path.parent / link).resolve().exists(), link
    for script in re.findall(r"scripts/[\w/]+\.sh", text):
        assert (ROOT / script).is_file(), script


def test_the_architecture_names_every_file() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    missing = [module for module, path in SOURCES.items() if path.name not in text]
    assert not missing


def test_every_column_is_explained_in_one_place() -> None:
    text = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    for name in {*columns(RoundRecord), *columns(ClientRecord), *columns(MetricRecord)}:
        assert f"`{name}`" in text, name

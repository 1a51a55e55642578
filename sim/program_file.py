"""What a file of the user's holds, read from its text: nothing is imported or executed."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

# What a program may call its parts, the usual name first.
PARTS: dict[str, tuple[str, ...]] = {
    part: tuple(names.split())
    for part, names in {
        "dataset": (
            "load_data get_data get_loaders load_datasets get_dataloaders get_datasets make_data load_dataset "
            "get_dataset prepare_data create_dataloaders get_data_loaders make_loaders load_dataloaders"
        ),
        "model": (
            "Net Model build_model get_model make_model create_model CNN MLP NeuralNetwork Network ConvNet LeNet "
            "Classifier get_net build_net"
        ),
        "train": "train fit train_model train_one_epoch train_epoch train_loop train_net training_loop",
        "test": "test evaluate validate test_model eval test_loop eval_model evaluate_model test_net",
    }.items()
}
# Data and models that are no functions and classes, but variables at the top level.
_NAMES_OF_DATA = "{0}loader {0}_loader {0}_dataloader {0}_dl {0}_iter {0}set {0}_set {0}_dataset {0}_data {0}_ds"
_SPLITS = ("train", "training"), ("test", "testing", "val", "valid", "validation", "eval")
_BOTH_SPLITS = "dataloaders", "data_loaders", "loaders", "datasets"  # a dict
_MODELS = "model", "net"
_READING: list[Path] = []


@dataclass(frozen=True)
class ProgramFile:
    """A file of the user's.

    Attributes:
        names: what it defines or imports at its top level.
        variables: those of them that are variables.
        arguments: the defaults of its argparse options, by their names in the namespace.
        modules: the classes at its top level that are PyTorch modules.
        training_line: the line in which it trains when it is imported; None if it does not.
    """

    path: Path
    names: frozenset[str]
    variables: frozenset[str]
    arguments: dict[str, Any]
    training_line: int | None
    modules: tuple[str, ...]

    def parts(self) -> dict[str, str]:
        """Return dataset, model, train and test → the name that the file has for it, of those that it has.

        Data in two variables are both names, with a comma between them.
        """
        found = {part: next((name for name in names if name in self.names), None) for part, names in PARTS.items()}
        if found["model"] is None:  # a variable first, since its class may take arguments
            found["model"] = next((name for name in _MODELS if name in self.variables), None)
        if found["model"] is None and len(self.modules) == 1:
            (found["model"],) = self.modules
        if found["dataset"] is None:
            found["dataset"] = self._data_in_variables()
        return {part: name for part, name in found.items() if name is not None}

    def _data_in_variables(self) -> str | None:
        for pattern in _NAMES_OF_DATA.split():
            splits = [[pattern.format(split) for split in names] for names in _SPLITS]
            found = [next((name for name in names if name in self.variables), None) for names in splits]
            if None not in found:
                return ",".join(map(str, found))
        return next((name for name in _BOTH_SPLITS if name in self.variables), None)


@lru_cache(maxsize=64)
def read(path: Path) -> ProgramFile | None:
    """Read a Python file; return None if there is none, or if it is not Python (its import will say so)."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return None
    modules = tuple(
        node.name
        for node in tree.body
        if isinstance(node, ast.ClassDef) and any(ast.unparse(base).endswith("Module") for base in node.bases)
    )
    found = list(_names(tree.body, path))
    variables = frozenset(name for name, is_variable in found if is_variable)
    names = frozenset(name for name, _ in found)
    return ProgramFile(path, names, variables, _arguments(tree), _training_line(tree.body), modules)


def _names(body: list[ast.stmt], path: Path) -> Iterator[tuple[str, bool]]:
    """Return what statements at the top level of a file define, and whether it is a variable."""
    for node in body:
        match node:
            case ast.FunctionDef() | ast.ClassDef() | ast.AsyncFunctionDef():
                yield node.name, False
            case ast.ImportFrom(names=[ast.alias(name="*")]):
                yield from _names_of_all(node, path)
            case ast.Import() | ast.ImportFrom():
                yield from ((alias.asname or alias.name.partition(".")[0], False) for alias in node.names)
            case ast.Assign():
                for target in node.targets:
                    elements = target.elts if isinstance(target, ast.Tuple | ast.List) else [target]
                    yield from ((each.id, True) for each in elements if isinstance(each, ast.Name))
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name, True
            case ast.If() if not _is_main_guard(node):
                yield from _names([*node.body, *node.orelse], path)
            case ast.With():
                yield from _names(node.body, path)
            case ast.Try():
                bodies = node.body, *(handler.body for handler in node.handlers), node.orelse, node.finalbody
                yield from _names([each for body in bodies for each in body], path)


def _names_of_all(node: ast.ImportFrom, path: Path) -> Iterator[tuple[str, bool]]:
    """Return the names that ``from module import *`` gives, if the module is a file beside this one."""
    folder = path.parents[node.level - 1] if 0 < node.level <= len(path.parents) else path.parent
    file = folder.joinpath(*(node.module or "__init__").split(".")).with_suffix(".py")
    _READING.append(path)
    found = None if file in _READING else read(file)  # two files may do so with each other
    _READING.remove(path)
    if found is not None:
        yield from ((name, name in found.variables) for name in found.names if not name.startswith("_"))


def _is_main_guard(node: ast.If) -> bool:
    return any(isinstance(each, ast.Name) and each.id == "__name__" for each in ast.walk(node.test))


def _arguments(tree: ast.Module) -> dict[str, Any]:
    """Return the defaults of all ``add_argument`` calls with a default that is a constant."""
    found: dict[str, Any] = {}
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        if node.func.attr != "add_argument":
            continue
        flags = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        options = {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg}
        if not flags:
            continue
        name = next((flag for flag in flags if flag.startswith("--")), flags[0]).lstrip("-").replace("-", "_")
        name = _constant(options.get("dest"), name)
        action = _constant(options.get("action"), "store")
        default = {"store_true": False, "store_false": True}.get(action)
        value = _constant(options.get("default"), default)
        kind = getattr(options.get("type"), "id", "")
        if isinstance(value, str) and kind in ("int", "float"):
            value = {"int": int, "float": float}[kind](value)
        if "default" not in options or _is_constant(options["default"]):
            found[name] = value
    return found


def _is_constant(node: ast.expr) -> bool:
    try:
        ast.literal_eval(node)
    except (ValueError, TypeError, MemoryError, RecursionError):
        return False
    return True


def _constant(node: ast.expr | None, otherwise: Any) -> Any:
    return ast.literal_eval(node) if node is not None and _is_constant(node) else otherwise


def _training_line(body: list[ast.stmt]) -> int | None:
    """Return the line of a backward pass at the top level, outside of functions, classes and the ``__main__`` guard."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and _is_main_guard(node):
            continue
        if isinstance(node, ast.If | ast.For | ast.While | ast.With | ast.Try):
            inner = [each for name in ("body", "orelse", "finalbody") for each in getattr(node, name, [])]
            line = _training_line(inner)
            if line is not None:
                return line
            continue
        for each in ast.walk(node):
            if isinstance(each, ast.Call) and isinstance(each.func, ast.Attribute) and each.func.attr == "backward":
                return each.lineno
    return None

"""What a script or a notebook has set in the modules of the user's that it imports, as in ``settings.LR = 0.5``.

Another process that imports such a module finds the value in its file. So what differs is sent there: variables that
the file sets once, to a literal, and that now hold another plain value; variables that the file does not set at all;
and functions and classes of the script itself that were put into a module. What a file computes is not sent, because it
may depend on the process, as ``"cuda" if torch.cuda.is_available() else "cpu"`` does.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from sim.user_objects import NotPlainError, Value, copied, equal, own_modules


def changed_variables() -> dict[str, dict[str, Any]]:
    """Return module → variable → value of what was set from outside of the module's file."""
    found = {}
    for module in own_modules():
        known = _bound_in(module) if module.__name__ != "__main__" else None
        if known is not None and (changed := dict(_changed(module, known))):
            found[module.__name__] = changed
    return found


def set_variable(module: str, name: str, value: Any) -> None:
    """Set a variable of a module in this process.

    A list, dict or set that is there is filled, because another module may have it, too.

    Raises:
        Exception: the module cannot be imported.
    """
    variables = vars(import_module(module))
    held = variables.get(name)
    is_filled = type(held) is type(value) and isinstance(held, list | dict | set)
    variables[name] = Value(held, value).filled() if is_filled else value


_NOT_LITERAL = object()
_ANY = ""  # stands for names that are not known


def _bound_in(module: ModuleType) -> dict[str, Any] | None:
    """Return the names that a file binds, with the literal that each is set to; None if that cannot be known."""
    try:
        tree = ast.parse(Path(module.__file__ or "").read_bytes())
    except (OSError, SyntaxError, ValueError):
        return None
    times = Counter(name for node in ast.walk(tree) for name in _names_set_by(node))
    if _ANY in times:
        return None
    known: dict[str, Any] = dict.fromkeys(times, _NOT_LITERAL)
    for node in tree.body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if times[name] == 1:
                known[name] = _literal(value)
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value) if times[name] == 1:
                known[name] = _literal(value)
    return known


def _names_set_by(node: ast.AST) -> list[str]:
    """Return the names that a part of a file binds, or whose content it may change."""
    match node:
        case ast.ImportFrom(names=names) if any(each.name == "*" for each in names):
            return [_ANY]
        case ast.Call(func=ast.Name(id="globals" | "exec" | "setattr" | "vars" | "locals")):
            return [_ANY]
        case ast.Import(names=names) | ast.ImportFrom(names=names):
            return [(each.asname or each.name).partition(".")[0] for each in names]
        case (
            ast.FunctionDef(name=str(name))
            | ast.AsyncFunctionDef(name=str(name))
            | ast.ClassDef(name=str(name))
            | ast.ExceptHandler(name=str(name))
            | ast.MatchAs(name=str(name))
            | ast.MatchStar(name=str(name))
            | ast.MatchMapping(rest=str(name))
            | ast.Name(id=name, ctx=ast.Store() | ast.Del())
            | ast.Subscript(value=ast.Name(id=name), ctx=ast.Store() | ast.Del())
            | ast.Call(func=ast.Attribute(value=ast.Name(id=name)))
        ):
            return [name]
    return []


def _literal(value: ast.expr) -> Any:
    try:
        return ast.literal_eval(value)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return _NOT_LITERAL


def _changed(module: ModuleType, known: dict[str, Any]) -> list[tuple[str, Any]]:
    found = []
    for name, value in list(vars(module).items()):
        if not name.isidentifier() or (name.startswith("__") and name.endswith("__")):
            continue
        is_of_script = getattr(value, "__module__", None) == "__main__" and callable(value)
        if isinstance(sys.modules.get(f"{module.__name__}.{name}"), ModuleType):  # a part of a package
            continue
        literal = known.get(name, value)
        is_same = name in known and (literal is _NOT_LITERAL or _same(value, literal))
        if is_of_script or (not is_same and _is_plain(value)):
            found.append((name, value))
    return found


def _same(value: Any, literal: Any) -> bool:
    return type(value) is type(literal) and equal(value, literal)


def _is_plain(value: Any) -> bool:
    try:
        copied(value, arrays_inside=True)
    except (NotPlainError, RuntimeError):
        return False
    return True

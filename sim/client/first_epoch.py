"""From which number a program counts its epochs."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from sim.user_objects import own_modules


@lru_cache(maxsize=64)  # a client of the user's own asks for it each time that it trains
def first_epoch_of(function: Callable[..., Any]) -> int:
    """Return the number that the first call gets of a function that trains an epoch; 1 if no loop of the program says.

    Such a loop is ``for epoch in range(…)``, perhaps in ``main``, that calls the function with ``epoch`` or
    ``epoch + 1``. A beginning that is no number in the file, such as ``args.start_epoch``, counts as 0.
    """
    name, own = getattr(function, "__name__", ""), sys.modules.get(getattr(function, "__module__", ""))
    owner = getattr(own, getattr(function, "__qualname__", "").partition(".")[0], None)
    known = {id(thing) for thing in (function, own, owner) if thing is not None}
    for module in own_modules():
        if module is not own and known.isdisjoint(map(id, vars(module).values())):  # it does not know the function
            continue
        try:
            tree = ast.parse(Path(module.__dict__.get("__file__") or "").read_bytes())
        except (OSError, SyntaxError, ValueError):
            continue
        for loop in ast.walk(tree):
            if isinstance(loop, ast.For) and isinstance(loop.target, ast.Name):
                start = _start_of(loop.iter)
                for added in _added_in_calls(loop, name, loop.target.id):
                    if start is not None:
                        return start + added
    return 1


def _start_of(iterated: ast.expr) -> int | None:
    """Return the first number of ``range(…)``, also inside of a progress bar; None for anything else."""
    for node in ast.walk(iterated):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("range", "trange"):
            first = node.args[0] if len(node.args) > 1 else None
            return first.value if isinstance(first, ast.Constant) and isinstance(first.value, int) else 0
    return None


def _added_in_calls(loop: ast.For, name: str, variable: str) -> Iterator[int]:
    """Yield what is added to the variable of a loop in each call of a function by this name."""
    for node in ast.walk(loop):
        if not isinstance(node, ast.Call) or getattr(node.func, "id", getattr(node.func, "attr", None)) != name:
            continue
        for value in [*node.args, *(keyword.value for keyword in node.keywords)]:
            match value:
                case ast.Name(id=found) if found == variable:
                    yield 0
                case ast.BinOp(left=ast.Name(id=found), op=ast.Add(), right=ast.Constant(value=int(added))) if (
                    found == variable
                ):
                    yield added

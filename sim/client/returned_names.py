"""What the return statements of the user's ``train`` and ``test`` call the numbers that they return."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from types import CodeType
from typing import Any, NamedTuple

from sim.errors import some
from sim.metrics import is_better_smaller

_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")
_LOSSES = frozenset(("loss", "losses", "cost", "objective", "criterion", "entropy", "nll"))
_ACCURACIES = frozenset(("acc", "accs", "accuracy", "accuracies", "correct", "corrects"))
# Functions and methods that change the form of a number, but not what it is.
_FORMS = frozenset(("float", "round", "sum", "mean", "average", "item", "cpu", "detach", "numpy", "tolist", "avg"))


class _Name(NamedTuple):
    """What one element of a return statement is called.

    Attributes:
        text: its name, such as ``val_loss``; empty for an expression that has none.
        kind: ``loss`` or ``accuracy`` if a word of the name says so, else empty.
    """

    text: str = ""
    kind: str = ""


def names_of_numbers(
    function: Callable[..., Any] | None,
    count: int,
    positions: Sequence[int],
    defaults: Sequence[str],
    score: str = "accuracy",
) -> tuple[list[str] | None, tuple[str, ...]]:
    """Return what the numbers at some positions of ``count`` returned values are called, and a note if it is unusual.

    The words "loss" and "accuracy" in a return statement decide. Other numbers have the names that are expected in
    their places, or else their own; there is None if one has no name, or two have the same.

    Args:
        defaults: what is expected, in this order; a score is never a number whose name says that smaller is better.
        score: what an accuracy is called.
    """
    names = _names_of_all(function, count) if function is not None else [_Name()] * count
    kinds = {"loss": "loss", "accuracy": score}
    called = [""] * len(positions)
    for number, position in enumerate(positions):
        kind = kinds.get(names[position].kind, "")
        called[number] = names[position].text if kind and kind in called else kind
    for number, position in enumerate(positions):
        if called[number]:
            continue
        text = names[position].text
        free = [name for name in defaults if name not in called]
        expected = next((name for name in defaults[number : number + 1] if name in free), "".join(free[:1]))
        is_other = is_better_smaller(text) if expected == score else bool(number and text)
        called[number] = text if is_other or not expected else expected
    if "" in called or len(set(called)) < len(called):
        return None, ()
    if called == list(defaults[: len(called)]):
        return called, ()
    return called, (f"what it returns is recorded as {some(called, 5)}, which its return statement calls it",)


def _names_of_all(function: Callable[..., Any], count: int) -> list[_Name]:
    """Return the names of ``count`` returned elements; a name is empty where return statements differ.

    What has no source, such as a class with ``__call__``, has no names.
    """
    code = getattr(inspect.unwrap(function), "__code__", None)
    found = [names for names in (_all_names(code) if code is not None else ()) if len(names) == count]
    if not found:
        return [_Name()] * count
    return [names[0] if len(set(names)) == 1 else _common(names) for names in zip(*found, strict=True)]


def _common(names: Sequence[_Name]) -> _Name:
    """Return what different names have in common, which may be their kind."""
    kinds = {name.kind for name in names}
    return _Name("", kinds.pop()) if len(kinds) == 1 else _Name()


@cache
def _all_names(code: CodeType) -> list[list[_Name]]:
    """Return the names of each return statement of a function that does not return only constants."""
    return [
        [_name(element) for element in elements]
        for elements in _returns(code)
        if not all(isinstance(element, ast.Constant) for element in elements)
    ]


def _returns(code: CodeType) -> Iterator[list[ast.expr]]:
    """Yield the elements of each return statement of a function, without those of functions inside it."""
    try:
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(code))).body
    except (OSError, TypeError, ValueError, SyntaxError):
        return
    inside: list[ast.AST] = list(getattr(definition, "body", ()))
    while inside:
        node = inside.pop(0)
        if isinstance(node, ast.Return) and node.value is not None:
            yield node.value.elts if isinstance(node.value, ast.Tuple | ast.List) else [node.value]
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            inside.extend(ast.iter_child_nodes(node))


def _name(element: ast.expr) -> _Name:
    text = _text(element)
    words = {word.lower() for word in _WORD.findall(text)}
    is_loss, is_accuracy = not words.isdisjoint(_LOSSES), not words.isdisjoint(_ACCURACIES)
    return _Name(text, "" if is_loss == is_accuracy else "loss" if is_loss else "accuracy")


def _text(element: ast.expr) -> str:
    """Return the name of a value: ``correct`` for ``100.0 * correct.sum().item() / len(data)``."""
    text = ""
    match element:
        case ast.Name(id=name):
            text = name
        case ast.Subscript(slice=ast.Constant(value=str(key))):
            text = key
        case ast.Subscript(value=value):
            text = _text(value)
        case ast.Attribute(value=value, attr=name):
            text = _text(value) if name in _FORMS else name
        case ast.Call(func=ast.Attribute(attr=name) | ast.Name(id=name), args=[first, *_]) if name in _FORMS:
            text = _text(first)
        case ast.Call(func=function):
            text = _text(function)
        case ast.BinOp(left=left, op=ast.Div() | ast.Mult(), right=right):
            text = _text(right) if isinstance(left, ast.Constant) else _text(left)
    return text

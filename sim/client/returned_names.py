"""What the return statements of the user's ``train`` and ``test`` call the numbers that they return."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import CodeType
from typing import Any, NamedTuple

from sim.errors import some
from sim.metrics import is_better_smaller

_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")
_KINDS = {
    kind: frozenset(words.split())
    for kind, words in {
        "loss": "loss losses cost objective criterion entropy nll",
        "accuracy": "acc accs accuracy accuracies correct corrects",
        "score": "f r auc auroc auprc ap map iou miou dice jaccard precision recall sensitivity specificity bleu rouge "
        "meteor psnr ssim kappa mcc score fscore",
    }.items()
}
_ANY_SCORE = ("", "score", "scores")  # which may be an accuracy
# Functions and methods that change the form of a number, but not what it is.
_FORMS = frozenset(("float", "round", "sum", "mean", "average", "item", "cpu", "detach", "numpy", "tolist", "avg"))


class ReturnedName(NamedTuple):
    """What one element of a return statement is called.

    Attributes:
        text: its name, such as ``val_loss``; empty for an expression that has none.
        kind: ``loss``, ``accuracy`` or ``score`` (another number of which larger is better) if a word of the name says
            so, else empty.
    """

    text: str = ""
    kind: str = ""

    @property
    def is_exact(self) -> bool:
        """Whether the whole name says the kind, and not one word of several."""
        return self.text.lower() in ("loss", "acc", "accuracy")


Names = tuple[tuple[ReturnedName, ...], ...]  # of each return statement of a function


def names_of_numbers(
    returns: Names, count: int, positions: Sequence[int], defaults: Sequence[str], score: str = "accuracy"
) -> tuple[list[str] | None, tuple[str, ...]]:
    """Return what the numbers at some positions of ``count`` returned values are called, and a note if it is unusual.

    The words "loss" and "accuracy" in a return statement decide. Other numbers have the names that are expected in
    their places, or else their own; there is None if one has no name, or two have the same.

    Args:
        returns: what ``names_of_returns`` gives.
        defaults: what is expected: nothing, a score, a loss, or a loss and a score. No number is a loss whose name says
            that larger is better, and none a score of which smaller is better.
        score: what an accuracy is called.
    """
    names = [_names_of_all(returns, count)[position] for position in positions]
    called = [""] * len(names)
    for kind, usual in (("loss", "loss"), ("accuracy", score)):
        of_kind = [number for number, name in enumerate(names) if name.kind == kind]
        first = next((number for number in of_kind if names[number].is_exact), of_kind[0] if of_kind else None)
        for number in of_kind:
            called[number] = usual if number == first else names[number].text
    for number, name in enumerate(names):
        if called[number]:
            continue
        is_first = number == 0
        if is_first and "loss" in defaults and "loss" not in called and name.kind != "score":
            called[number] = "loss"
        elif score in defaults and score not in called and not is_better_smaller(name.text):
            # The only number, or one beside a loss.
            is_meant = len(names) == 1 or "loss" in called
            is_another = name.kind == "score" and (name.text.lower() not in _ANY_SCORE or (is_first and len(names) > 1))
            called[number] = score if is_meant and not is_another else name.text
        else:
            called[number] = name.text or ("loss" if "loss" in defaults and "loss" not in called else "")
    if "" in called or len(set(called)) < len(called):
        return None, ()
    if called == list(defaults[: len(called)]):
        return called, ()
    return called, (f"what it returns is recorded as {some(called, 5)}, after the names in its return statement",)


def _names_of_all(returns: Names, count: int) -> list[ReturnedName]:
    """Return the names of ``count`` returned elements; a name is empty where return statements differ."""
    found = [names for names in returns if len(names) == count]
    if not found:
        return [ReturnedName()] * count
    return [names[0] if len(set(names)) == 1 else _common(names) for names in zip(*found, strict=True)]


def _common(names: Sequence[ReturnedName]) -> ReturnedName:
    """Return what different names have in common, which may be their kind."""
    kinds = {name.kind for name in names}
    return ReturnedName("", kinds.pop()) if len(kinds) == 1 else ReturnedName()


def names_of_returns(function: Callable[..., Any]) -> Names:
    """Return the names in each return statement of a function that does not return only constants.

    Only the process in which a function was defined may know its source, as in a notebook. What has none, such as a
    lambda, has no names.
    """
    while isinstance(function, partial):
        function = function.func
    function = inspect.unwrap(function)
    if not inspect.isroutine(function):
        function = vars(type(function)).get("__call__", function)
    return _names_of(function)


_known: dict[CodeType, Names] = {}


def _names_of(function: Any) -> Names:
    code = getattr(function, "__code__", None)
    if not isinstance(code, CodeType):
        return ()
    if code not in _known:
        _known[code] = ()  # for a function that returns what it returns itself
        _known[code] = tuple(_all_names(function, code))
    return _known[code]


def _all_names(function: Any, code: CodeType) -> Iterator[tuple[ReturnedName, ...]]:
    nodes = [*_nodes(code)]
    assigned: dict[str, list[ast.expr]] = {}
    for node in nodes:
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            assigned.setdefault(node.targets[0].id, []).append(node.value)
    for node in nodes:
        if not isinstance(node, ast.Return) or node.value is None:
            continue
        if isinstance(node.value, ast.Tuple | ast.List):
            elements = node.value.elts
        else:
            values = assigned.get(node.value.id, []) if isinstance(node.value, ast.Name) else [node.value]
            several = [names for value in values for names in _several(value, function)]
            yield from several
            elements = [] if several else [node.value]
        if not all(isinstance(element, ast.Constant) for element in elements):
            yield tuple(map(_name, elements))


def _several(value: ast.expr, function: Any) -> list[tuple[ReturnedName, ...]]:
    """Return the names of a value that has several elements, or of what a function called there returns, if several."""
    if isinstance(value, ast.Tuple):
        return [tuple(map(_name, value.elts))]
    called: Any = None
    match value:
        case ast.Call(func=ast.Name(id=name)):
            called = function.__globals__.get(name)
        case ast.Call(func=ast.Attribute(value=ast.Name(id="self"), attr=name)):
            of_class = function.__qualname__.rpartition(".")[0]
            called = getattr(function.__globals__.get(of_class), name, None)
    return [names for names in _names_of(inspect.unwrap(called)) if len(names) > 1] if callable(called) else []


def _nodes(code: CodeType) -> Iterator[ast.AST]:
    """Yield the parts of a function's source, without those of functions inside it."""
    try:
        source = inspect.getsource(code)
        # A method is indented, but a comment in it may not be.
        tree = ast.parse(f"if True:\n{source}" if source[:1].isspace() else source)
    except (OSError, TypeError, ValueError, SyntaxError):
        return
    definition = tree.body[0].body[0] if isinstance(tree.body[0], ast.If) else tree.body[0]
    inside: list[ast.AST] = list(getattr(definition, "body", ()))
    while inside:
        node = inside.pop(0)
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            inside.extend(ast.iter_child_nodes(node))


def _name(element: ast.expr) -> ReturnedName:
    text = _text(element)
    words = {word.lower() for word in _WORD.findall(text)}
    kinds = [kind for kind, known in _KINDS.items() if not words.isdisjoint(known)]
    return ReturnedName(text, kinds[0] if len(kinds) == 1 else "")


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

"""What a file of the user's holds, read from its text: nothing is imported or executed."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

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
MODELS = "model", "net"
_BASES_OF_MODELS = "Module", "Sequential"
_NO_MODELS = "loss", "criterion", "metric", "datamodule"  # endings of classes that are PyTorch modules nevertheless


@dataclass(frozen=True)
class Option:
    """An argparse option, in the Python of its file.

    Attributes:
        kind: what argparse makes of a text by it; None for nothing.
        choices: the values that it may have; None for any.
        is_list: its value is a list.
        count: how many values that has; None for any number.
    """

    default: ast.expr
    kind: ast.expr | None = None
    choices: ast.expr | None = None
    is_list: bool = False
    count: int | None = None

    def value(self, variables: dict[str, Any]) -> Any:
        """Return the default as argparse gives it.

        Args:
            variables: those of the module, from which the Python is evaluated.

        Raises:
            Exception: whatever the Python raises, e.g. because it uses variables of a function.
        """
        value = _evaluated(self.default, variables)
        return self._converted(value, variables) if isinstance(value, str) else value

    def given(self, value: Any, variables: dict[str, Any]) -> Any:
        """Return what argparse would make of a value from the command line, where it is a text.

        Raises:
            ValueError: it is none of the choices, or of another number of values.
            Exception: whatever the Python raises.
        """
        if self.is_list:
            each = [self._converted(one, variables) for one in (value if isinstance(value, list) else [value])]
            self._check(each, variables)
            if self.count not in (None, len(each)):
                raise ValueError(f"{self.count} values are expected, not {len(each)}")
            return each
        found = self._converted(value, variables)
        self._check([found], variables)
        return found

    def _converted(self, value: Any, variables: dict[str, Any]) -> Any:
        kind = None if self.kind is None else _evaluated(self.kind, variables)
        if kind is None or (isinstance(value, bool) and kind is bool):
            return value
        return kind(str(value).lower() if isinstance(value, bool) else str(value))

    def _check(self, values: list[Any], variables: dict[str, Any]) -> None:
        if self.choices is None:
            return
        choices = list(_evaluated(self.choices, variables))
        if any(value not in choices for value in values):
            raise ValueError(f"one of {', '.join(map(str, choices))} is expected")


def _evaluated(node: ast.expr, variables: dict[str, Any]) -> Any:
    code = compile(ast.fix_missing_locations(ast.Expression(node)), "<argparse>", "eval")
    return eval(code, dict(variables))


@dataclass(frozen=True)
class ProgramFile:
    """A file of the user's.

    Attributes:
        names: what it defines at its top level, or imports from other files of the user's.
        library_names: what it imports from libraries.
        variables: those of them that are variables.
        arguments: its argparse options, by their names in the namespace.
        modules: the classes at its top level that may be its model: PyTorch modules that are no part of another one.
        methods: ``Class.method`` that may train or test, by their names, and what one must know to call them.
        functions: those that it defines at its top level, and the same of them.
        pairs: those of them that return several values.
        training_line: the line in which it trains when it is imported; None if it does not.
    """

    path: Path
    names: frozenset[str]
    library_names: frozenset[str]
    variables: frozenset[str]
    arguments: dict[str, Option]
    training_line: int | None
    modules: tuple[str, ...]
    methods: dict[str, Parameters]
    functions: dict[str, Parameters]
    pairs: frozenset[str]

    def parts(self) -> dict[str, str]:
        """Return dataset, model, train and test → the name that the file has for it, of those that it has.

        Data in two variables are both names, with a comma between them. What a library has is taken last.
        """
        found = {part: next((name for name in names if name in self.names), None) for part, names in PARTS.items()}
        if self.variables.issuperset(("train", "test")) and found["dataset"] is None:  # they are the data
            functions = {
                part: next((name for name in PARTS[part] if name in self.names and name not in ("train", "test")), None)
                for part in ("train", "test")
            }
            found |= {"dataset": "train,test", **functions}
        if found["model"] is None:  # a variable first, since its class may take arguments
            found["model"] = next((name for name in MODELS if name in self.variables), None)
        if found["model"] is None and len(self.modules) == 1:
            (found["model"],) = self.modules
        if found["dataset"] is None:
            found["dataset"] = self._data_in_variables()
        for part, names in PARTS.items():
            if found[part] is None and not (part == "model" and self.modules):  # it is one of these
                found[part] = next((name for name in names if name in self.library_names), None)
        return {part: name for part, name in found.items() if name is not None}

    def _data_in_variables(self) -> str | None:
        for pattern in _NAMES_OF_DATA.split():
            splits = [[pattern.format(split) for split in names] for names in _SPLITS]
            found = [next((name for name in names if name in self.variables), None) for names in splits]
            if None not in found:
                return ",".join(map(str, found))
        return next((name for name in _BOTH_SPLITS if name in self.variables), None)


def read(path: Path) -> ProgramFile | None:
    """Read a Python file; return None if there is none, or if it is not Python (its import will say so)."""
    own = _parsed(path)
    if own is None:
        return None
    alone, names = own.alone, list(_names(own.body, path))
    methods, functions, pairs = dict(alone.methods), dict(alone.functions), set(alone.pairs)
    for name in dict.fromkeys(each.name for each in names):
        found = _definition(name, path)
        if found is None or found[0] is alone:
            continue
        file, name_there = found
        methods |= {
            f"{name}.{method.partition('.')[2]}": parameters
            for method, parameters in file.methods.items()
            if method.partition(".")[0] == name_there
        }
        functions |= {name: file.functions[name_there]} if name_there in file.functions else {}
        pairs |= {name} if name_there in file.pairs else set()
    return replace(
        alone,
        names=frozenset(each.name for each in names if not each.of_library),
        library_names=frozenset(each.name for each in names if each.of_library),
        variables=frozenset(each.name for each in names if each.is_variable),
        methods=methods,
        functions=functions,
        pairs=frozenset(pairs),
    )


def read_alone(path: Path) -> ProgramFile | None:
    """Read a Python file as ``read`` does, without the names that it has and imports: each client asks for options."""
    parsed = _parsed(path)
    return None if parsed is None else parsed.alone


class _Parsed(NamedTuple):
    """A file of the user's as it is by itself.

    Attributes:
        body: its statements.
        imports: what it imports from other files of the user's: its name here, or *, its name there, and the file.
        alone: what it defines, without names.
    """

    body: list[ast.stmt]
    imports: list[tuple[str, str, Path]]
    alone: ProgramFile


def _parsed(path: Path) -> _Parsed | None:
    try:
        return _parsed_once(path, path.stat().st_mtime_ns)
    except (OSError, SyntaxError, ValueError, RecursionError):
        return None


@lru_cache(maxsize=256)
def _parsed_once(path: Path, modified_ns: int) -> _Parsed:
    tree = ast.parse(path.read_bytes())
    alone = ProgramFile(
        path,
        names=frozenset(),
        library_names=frozenset(),
        variables=frozenset(),
        arguments=_arguments(tree),
        training_line=_training_line(tree.body),
        modules=tuple(_modules(tree.body)),
        methods=dict(_methods(tree.body)),
        functions=_functions(tree.body),
        pairs=frozenset(_pairs(tree.body)),
    )
    return _Parsed(tree.body, list(_imports(tree.body, path)), alone)


def _definition(name: str, path: Path, seen: tuple[Path, ...] = ()) -> tuple[ProgramFile, str] | None:
    """Return the file of the user's that defines a function or class of the file at ``path``, and its name there."""
    parsed = _parsed(path) if path not in seen else None  # two files may import from each other
    if parsed is None:
        return None
    if any(isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name for node in parsed.body):
        return parsed.alone, name
    for alias, name_there, file in parsed.imports:
        if alias in (name, "*"):
            found = _definition(name if alias == "*" else name_there, file, (*seen, path))
            if found is not None:
                return found
    return None


def _modules(body: list[ast.stmt]) -> list[str]:
    """Return the classes that may be the model of a program: PyTorch modules that are no part and no loss of it."""
    found: dict[str, ast.ClassDef] = {}
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.lower().endswith(_NO_MODELS):
            bases = [ast.unparse(base) for base in node.bases if not ast.unparse(base).endswith("DataModule")]
            if any(base.endswith(_BASES_OF_MODELS) or base in found for base in bases):
                found[node.name] = node
    parts = {
        each.id
        for name, node in found.items()
        for each in ast.walk(node)
        if isinstance(each, ast.Name) and each.id != name
    }
    candidates = [name for name in found if name not in parts]
    losses = set(_classes_of_losses(body))
    return [name for name in candidates if name not in losses] or candidates  # model_with_loss = Net() is no loss


def _classes_of_losses(body: list[ast.stmt]) -> Iterator[str]:
    """Yield the classes whose objects the program calls a loss: ``criterion = NTXent(0.5)``."""
    for node in chain.from_iterable(map(ast.walk, body)):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and isinstance(node.value.func, ast.Name):
            names = [ast.unparse(target).lower() for target in node.targets]  # also self.loss_function
            if any(word in name for name in names for word in ("loss", "criterion")):
                yield node.value.func.id


class Parameters(NamedTuple):
    """The names of parameters without and with a default.

    Attributes:
        takes_epochs: a method takes the number of epochs itself.
    """

    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    takes_epochs: bool = False


class _Class(NamedTuple):
    """A class that may train or test.

    Attributes:
        is_model: its objects are the model: it is a PyTorch module.
        maker: the parameters of the class; None if another file says what they are.
        methods: its own ones and those of its bases in the same file.
    """

    is_model: bool
    maker: Parameters | None
    methods: dict[str, ast.FunctionDef]


def _methods(body: list[ast.stmt]) -> Iterator[tuple[str, Parameters]]:
    """Yield the methods of classes at the top level that may train or test: ``Trainer.fit``, and their parameters.

    The parameters are those of the class and of the method together. Of a PyTorch module, whose object is the model,
    they are those of the method, and ``train`` and ``eval`` are other things. A class from which another one of the
    file inherits is left out.
    """
    classes: dict[str, _Class] = {}
    inherited: set[str] = set()
    for node in body:
        if isinstance(node, ast.ClassDef):
            bases = [ast.unparse(base) for base in node.bases]
            inherited |= set(bases)
            classes[node.name] = _class_of(node, bases, [classes[base] for base in bases if base in classes])
    for name, each in classes.items():
        if each.maker is None or name in inherited:
            continue
        for method, function in each.methods.items():
            if each.is_model and method in ("train", "eval"):
                continue
            if method in (*PARTS["train"], *PARTS["test"], "training_step"):
                kinds = _kinds_of(function)
                own = _parameters(function, skipped=0 if "staticmethod" in kinds else 1)
                maker = Parameters() if kinds else each.maker  # those need no object
                required, optional = maker.required + own.required, maker.optional + own.optional
                takes_epochs = any("epochs" in parameter for parameter in (*own.required, *own.optional))
                yield f"{name}.{method}", Parameters(required, optional, takes_epochs)


def _class_of(node: ast.ClassDef, bases: list[str], known: list[_Class]) -> _Class:
    own = {
        each.name: each
        for each in node.body
        if isinstance(each, ast.FunctionDef) and _kinds_of(each) <= {"staticmethod", "classmethod"}
    }
    methods = {name: function for base in reversed(known) for name, function in base.methods.items()} | own
    if any(base.endswith(_BASES_OF_MODELS) for base in bases) or any(base.is_model for base in known):
        return _Class(True, Parameters(("self",)), methods)
    maker: Parameters | None = Parameters()
    if "__init__" in methods:
        maker = _parameters(methods["__init__"])
    elif any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        fields = [each for each in node.body if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)]
        names = [ast.unparse(each.target) for each in fields if each.value is None]
        maker = Parameters(tuple(name for name in names if name != "_"))
    elif len(known) < len([base for base in bases if base not in ("object", "ABC")]):
        maker = None
    return _Class(False, maker, methods)


def _kinds_of(method: ast.FunctionDef) -> set[str]:
    """Return the decorators that say what a method gets, such as ``staticmethod`` or ``abstractmethod``."""
    return {name for each in method.decorator_list if "method" in (name := ast.unparse(each))}


def _parameters(function: ast.FunctionDef, skipped: int = 1) -> Parameters:
    """Return the parameters of a function, without the first ones."""
    arguments = function.args
    names = [each.arg for each in [*arguments.posonlyargs, *arguments.args]]
    num_required = len(names) - len(arguments.defaults)
    by_name = list(zip([each.arg for each in arguments.kwonlyargs], arguments.kw_defaults, strict=True))
    required = [*names[skipped:num_required], *(name for name, default in by_name if default is None)]
    optional = [*names[max(skipped, num_required) :], *(name for name, default in by_name if default is not None)]
    return Parameters(tuple(required), tuple(optional))


def _functions(body: list[ast.stmt]) -> dict[str, Parameters]:
    return {each.name: _parameters(each, skipped=0) for each in body if isinstance(each, ast.FunctionDef)}


def _pairs(body: list[ast.stmt]) -> set[str]:
    return {each.name for each in body if isinstance(each, ast.FunctionDef) and _returns_several(each)}


def _returns_several(function: ast.FunctionDef) -> bool:
    """Return whether a function returns a pair, such as data for training and for a test, or more values."""
    returned = [each.value for each in ast.walk(function) if isinstance(each, ast.Return)]
    return any(isinstance(value, ast.Tuple) and len(value.elts) > 1 for value in returned)


class _Name(NamedTuple):
    name: str
    is_variable: bool = False
    of_library: bool = False


def _names(body: list[ast.stmt], path: Path, seen: tuple[Path, ...] = ()) -> Iterator[_Name]:
    """Return what statements at the top level of a file define or import; a module as such is no part of a program."""
    for node in body:
        match node:
            case ast.FunctionDef() | ast.ClassDef() | ast.AsyncFunctionDef():
                yield _Name(node.name)
            case ast.ImportFrom(names=[ast.alias(name="*")]):
                yield from _names_of_all(node, path, seen)
            case ast.ImportFrom():
                of_library = _own_file(node, path) is None
                yield from (_Name(alias.asname or alias.name, of_library=of_library) for alias in node.names)
            case ast.Assign():
                for target in node.targets:
                    elements = target.elts if isinstance(target, ast.Tuple | ast.List) else [target]
                    yield from (_Name(each.id, is_variable=True) for each in elements if isinstance(each, ast.Name))
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield _Name(name, is_variable=True)
            case ast.If() if not _is_main_guard(node):
                yield from _names([*node.body, *node.orelse], path, seen)
            case ast.With():
                yield from _names(node.body, path, seen)
            case ast.Try():
                bodies = node.body, *(handler.body for handler in node.handlers), node.orelse, node.finalbody
                yield from _names([each for body in bodies for each in body], path, seen)


def _own_file(node: ast.ImportFrom, path: Path) -> Path | None:
    """Return the file of the user's from which a file at ``path`` imports; None for a library."""
    folders = [path.parents[node.level - 1]] if 0 < node.level <= len(path.parents) else list(path.parents)
    for folder in folders:
        place = folder.joinpath(*(node.module or "").split("."))
        for file in (place.with_suffix(".py") if node.module else None, place / "__init__.py"):
            if file is not None and file.is_file():
                return file
    return None


def _names_of_all(node: ast.ImportFrom, path: Path, seen: tuple[Path, ...]) -> Iterator[_Name]:
    """Return the names that ``from module import *`` gives, if the module is a file of the user's."""
    file = _own_file(node, path)
    found = None if file is None or file in seen else _parsed(file)  # two files may do so with each other
    if file is not None and found is not None:
        yield from (each for each in _names(found.body, file, (*seen, path)) if not each.name.startswith("_"))


def _imports(body: list[ast.stmt], path: Path) -> Iterator[tuple[str, str, Path]]:
    """Yield what is imported from other files of the user's: its name here, or *, its name there, and the file."""
    for node in body:
        file = _own_file(node, path) if isinstance(node, ast.ImportFrom) else None
        if isinstance(node, ast.ImportFrom) and file is not None and file != path:
            yield from ((alias.asname or alias.name, alias.name, file) for alias in node.names)


def _is_main_guard(node: ast.If) -> bool:
    return any(isinstance(each, ast.Name) and each.id == "__name__" for each in ast.walk(node.test))


def _arguments(tree: ast.Module) -> dict[str, Option]:
    """Return the options of all ``add_argument`` calls, with the defaults that ``set_defaults`` gives."""
    found: dict[str, Option] = {}
    defaults: dict[str, ast.expr] = {}
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        if node.func.attr == "set_defaults":
            defaults |= {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg}
        if node.func.attr != "add_argument":
            continue
        flags = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        options = {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg}
        if not flags:
            continue
        name = next((flag for flag in flags if flag.startswith("--")), flags[0]).lstrip("-").replace("-", "_")
        name = _constant(options.get("dest"), name)
        action = _constant(options.get("action"), "store")
        default: ast.expr = ast.Constant({"store_true": False, "store_false": True}.get(action))
        count = _constant(options.get("nargs"), "?")
        is_list = action in ("append", "extend") or count != "?"
        count = count if action == "store" and isinstance(count, int) else None
        default = options.get("default", default)
        found[name] = Option(default, options.get("type"), options.get("choices"), is_list, count)
    return {
        **{name: replace(option, default=defaults.get(name, option.default)) for name, option in found.items()},
        **{name: Option(default) for name, default in defaults.items() if name not in found},
    }


def _is_constant(node: ast.expr) -> bool:
    try:
        ast.literal_eval(node)
    except (ValueError, TypeError, MemoryError, RecursionError):
        return False
    return True


def _constant(node: ast.expr | None, otherwise: Any) -> Any:
    return ast.literal_eval(node) if node is not None and _is_constant(node) else otherwise


def _training_line(body: list[ast.stmt], functions: dict[str, ast.stmt] | None = None) -> int | None:
    """Return the line at the top level that trains, outside of functions, classes and the ``__main__`` guard.

    It is a backward pass, or a call of a function of the file, without arguments or by the name ``main``, that leads to
    one. A call with arguments, such as ``fit(teacher)``, may be a part of what the file defines.
    """
    if functions is None:
        functions = {node.name: node for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and _is_main_guard(node):
            continue
        if isinstance(node, ast.If | ast.For | ast.While | ast.With | ast.Try):
            inner = [each for name in ("body", "orelse", "finalbody") for each in getattr(node, name, [])]
            line = _training_line(inner, functions)
            if line is not None:
                return line
            continue
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and isinstance(node.value.func, ast.Name):
            name, has_arguments = node.value.func.id, node.value.args or node.value.keywords
            if (name == "main" or not has_arguments) and _leads_to_training(name, functions):
                return node.lineno
        for each in ast.walk(node):
            if isinstance(each, ast.Call) and isinstance(each.func, ast.Attribute) and each.func.attr == "backward":
                return each.lineno
    return None


def _leads_to_training(name: str, functions: dict[str, ast.stmt]) -> bool:
    """Whether a function of a file has a backward pass, or calls one of its functions or classes that has."""
    pending = [name]
    for each in pending:
        if each not in functions:
            continue
        called = [node.func for node in ast.walk(functions[each]) if isinstance(node, ast.Call)]
        if any(isinstance(function, ast.Attribute) and function.attr == "backward" for function in called):
            return True
        names = {function.id for function in called if isinstance(function, ast.Name)}
        pending += sorted(names.difference(pending))
    return False

"""The user's own objects: imports ``package.module:name``, and selects the arguments that a function takes."""

from __future__ import annotations

import argparse
import builtins
import copy
import importlib
import inspect
import re
import sys
from collections.abc import Callable, ItemsView, Iterator, KeysView, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from importlib.machinery import (
    BYTECODE_SUFFIXES,
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    SourceFileLoader,
    SourcelessFileLoader,
)
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from sim import program_file
from sim.errors import ConfigError, PluginError, described, one_line, some
from sim.program_file import ProgramFile

# A file of this name beside the user's own is more often a leftover or an experiment than what an import of the name
# in them means; for all other names the user's file is meant, as in a script in that folder.
_LIBRARIES = sys.stdlib_module_names | {"flwr", "matplotlib", "numpy", "pandas", "ray", "sim", "torch", "torchvision"}

# What programs call the parameter for their own arguments.
ARGUMENTS = "args arguments config cfg options opts hparams hyperparameters params conf configuration"

# The package of the user's modules whose names a library has: datasets.py is sim.user_code.own.datasets.
_OWN = ModuleType(f"{__name__}.own")
_OWN.__path__ = []
sys.modules[_OWN.__name__] = _OWN


after_import: list[Callable[[ModuleType], object]] = []  # called with each file of the user's that was imported


def load(spec: Any, setting: str, *, callable_only: bool = True, folder: Path | None = None) -> Any:
    """Import the object ``package.module:name``; modules in the current folder are found, too.

    A file in the current folder is taken although a library has its name. Nobody but the user's own files gets it
    then: the folder is the last on ``sys.path``.

    Args:
        spec: its import path, or the object itself, which is returned.
        setting: the flag that named the object, for the error message.
        callable_only: whether the object must be a function or a class.
        folder: that of the user's files; the current folder for None.

    Raises:
        PluginError: the module or the name does not exist, the import raised, or the object cannot be called.
    """
    if not isinstance(spec, str):
        return spec
    module_name, _, name = spec.partition(":")
    used = _use_folder(folder)
    full_name = _full_name(module_name)
    file = None if module_name in sys.modules else file_of(module_name, folder)
    if file is not None and file.training_line is not None:
        raise PluginError(
            f"{setting} {spec}: {file.path.name} trains when it is imported (line {file.training_line}), in every "
            'process; put that under if __name__ == "__main__":'
        )
    try:
        # What is drawn at the top of the module is the same in each process.
        with nullcontext() if full_name in sys.modules else _same_random_numbers():
            module = importlib.import_module(full_name)
    except ModuleNotFoundError as error:
        place = f"in {used} or the installed packages"
        is_missing = error.name is not None and f"{full_name}.".startswith(f"{error.name}.")
        reason = f"no module named {module_name} {place}" if is_missing else f"its import failed: {error}"
        raise PluginError(f"{setting} {spec}: {reason}") from error
    except KeyboardInterrupt:
        raise
    except SystemExit as error:
        raise PluginError(
            f"{setting} {spec}: its import failed: {described(error)}; what ends the process, such as a parser with "
            'required options, belongs under if __name__ == "__main__":'
        ) from error
    except BaseException as error:
        raise PluginError(f"{setting} {spec}: its import failed: {described(error)}") from error
    try:
        found = module
        for part in name.split("."):
            found = getattr(found, part)
    except AttributeError:
        if module_name == "__main__":
            raise PluginError(
                f"{setting} {spec}: was given by a script or a notebook, which is not what is executed now: there, "
                "resume(run, …) and evaluate(run, …) take the same objects; commands need them in a module"
            ) from None
        raise PluginError(f"{setting} {spec}: {module_name} has no {name}; it has {_names_in(module)}") from None
    if callable_only and not callable(found):
        raise PluginError(f"{setting} {spec}: is of type {type(found).__name__}, which cannot be called")
    return found


def _names_in(module: ModuleType) -> str:
    """Return the names of a module, without what it imports if it has others."""
    public = {key: value for key, value in vars(module).items() if not key.startswith("_")}
    package = name_in_folder(module.__name__).partition(".")[0]

    def is_imported(value: Any) -> bool:
        if not (inspect.isroutine(value) or inspect.isclass(value)):
            return inspect.ismodule(value)
        return name_in_folder(getattr(value, "__module__", None) or "").partition(".")[0] != package

    return some([key for key, value in public.items() if not is_imported(value)] or list(public), 30) or "nothing"


def name_of(thing: Any) -> str:
    """Return ``module:name`` of an object that was given from Python, for records and messages."""
    name = getattr(thing, "__qualname__", type(thing).__qualname__)
    module = getattr(thing, "__module__", None) or type(thing).__module__
    return re.sub(r"[^A-Za-z0-9_.:]", "", f"{module}:{name.replace('<locals>.', '')}")


def shown_name(spec: Any) -> str:
    """Return the import path of an object, for messages; ``spec`` is that path or the object."""
    return spec if isinstance(spec, str) else name_of(spec)


def name_in_folder(module_name: str) -> str:
    """Return the name under which a module of the user's is found in its folder."""
    return module_name.removeprefix(f"{_OWN.__name__}.")


def file_of(module_name: str, folder: Path | None = None) -> ProgramFile | None:
    """Return what is in the user's file for a module, without importing it; None if it is no file of the user's."""
    try:
        path = (folder or Path.cwd()).joinpath(*module_name.split("."))
        candidates = (path.with_suffix(".py"), path / "__init__.py")
        found = next((file for file in candidates if file.is_file()), None)
    except (OSError, ValueError):  # the folder was removed, or a name of 300 letters
        return None
    return None if found is None else program_file.read(found)


class Arguments(argparse.Namespace):
    """The program's own arguments, as attributes and as a dict, since programs use both.

    Attributes:
        problems: why options of the program have no value, by their names.
    """

    __slots__ = ("problems",)
    problems: dict[str, str]

    def __getattr__(self, name: str) -> Any:
        problem = self.problems.get(name) if name != "problems" else None
        if problem is None:
            raise AttributeError(f"the program has no option {name}; --args {name}=VALUE gives it one")
        raise AttributeError(f"{problem}; --args {name}=VALUE gives it another one")

    def __getitem__(self, name: str) -> Any:
        return vars(self)[name]

    def __iter__(self) -> Iterator[str]:
        return iter(vars(self))

    def __len__(self) -> int:
        return len(vars(self))

    def get(self, name: str, default: Any = None) -> Any:
        """Return an argument, or the default if there is none."""
        return vars(self).get(name, default)

    def keys(self) -> KeysView[str]:
        """Return the names of the arguments."""
        return vars(self).keys()

    def items(self) -> ItemsView[str, Any]:
        """Return names and values."""
        return vars(self).items()


def arguments(given: Mapping[str, Any], *things: Any, known: Mapping[str, Any] | None = None) -> Any:
    """Return the program's own arguments for a parameter ``args``, ``config`` or the like.

    They are the defaults of the argparse options in the file. Without such options, it is the default of the parameter,
    or the object of its name at the top level of the module, such as ``config = {"lr": 0.1}``.

    Args:
        given: what ``--args`` says.
        things: functions and classes of the program.
        known: what the program may be told beside them; an object of its own goes without.

    Raises:
        PluginError: the type of an option does not take what was given.
    """
    values: dict[str, Any] = {}
    converted: dict[str, Any] = {name.replace("-", "_"): value for name, value in given.items()}
    problems: dict[str, str] = {}
    for thing in things:
        file = _source_of(thing)
        variables = getattr(sys.modules.get(getattr(inspect.unwrap(thing), "__module__", None) or ""), "__dict__", {})
        for name, option in ({} if file is None else file.arguments).items():
            try:
                if name in converted:
                    values[name] = converted[name] = option.given(converted[name], variables)
                else:
                    values[name] = option.value(variables)
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                if name in converted:
                    reason = str(error) if isinstance(error, ValueError) else described(error)
                    raise PluginError(f"--args {name}={converted[name]}: {one_line(reason, 200)}") from error
                assert file is not None
                problems[name] = f"the default of the option {name} in {file.path.name} raised {described(error)}"
    own = None if values else next((own for own in map(_own_settings, things) if own is not None), None)
    if own is None:
        made = Arguments(**{**values, **(known or {}), **converted})
        made.problems = problems
        return made
    if given:
        own = copy.copy(own)
        for name, value in given.items():
            if isinstance(own, MutableMapping):
                own[name] = value
            else:
                setattr(own, name, value)
    return own


def _own_settings(thing: Any) -> Any:
    """Return the default of a function's parameter for settings, or what the module has under the parameter's name."""
    module = sys.modules.get(getattr(thing, "__module__", None) or "")
    for name, parameter in parameters_of(thing).items() if callable(thing) else ():
        if name.lower() in ARGUMENTS.split():
            has_default = parameter.default is not parameter.empty
            found = parameter.default if has_default else getattr(module, name, None)
            if isinstance(found, Mapping) or not (found is None or callable(found) or isinstance(found, ModuleType)):
                return found
    return None


def _source_of(thing: Any) -> ProgramFile | None:
    try:
        path = inspect.getsourcefile(inspect.unwrap(thing) if callable(thing) else type(thing))
    except (TypeError, OSError, ValueError):
        return None
    return None if path is None else program_file.read_alone(Path(path))


def _same_random_numbers() -> AbstractContextManager[Any]:
    from sim.seeds import Purpose, seeded  # here, because commands that only read need no numpy

    return seeded(0, Purpose.DATA)


def _use_folder(wanted: Path | None) -> str | None:
    """Put a folder, or the current one, last on ``sys.path``, if it is not there; None if it was removed."""
    try:
        folder = str(wanted or Path.cwd())
    except FileNotFoundError:
        return None
    if folder not in sys.path:
        sys.path.append(folder)
    if _OWN.__path__ != [folder]:
        for name in [name for name in sys.modules if name.startswith(f"{_OWN.__name__}.")]:
            del sys.modules[name]  # of the folder before
        _OWN.__path__[:] = [folder]
        # The modules of the folder are loaded by _OwnLoader, also where Python has looked into it before.
        for path in [path for path in sys.path_importer_cache if _is_own(path)]:
            del sys.path_importer_cache[path]
        if _finder not in sys.path_hooks:
            sys.path_hooks.insert(0, _finder)
    return folder


def _is_own(path: str | None) -> bool:
    """Return whether a file or folder belongs to the user's folder, and to no library or environment inside it."""
    inside = [other for other in sys.path if other and other not in _OWN.__path__ and _contains(_OWN.__path__, other)]
    return path is not None and _contains(_OWN.__path__, path) and not _contains([*inside, _HERE], path)


_HERE = str(Path(__file__).parent)


def _contains(folders: Sequence[str], path: str) -> bool:
    return any(path == folder or path.startswith(folder.rstrip("/") + "/") for folder in folders)


def _full_name(name: str) -> str:
    """Return the name under which a module is imported: its own, unless a library has it and the user has the file."""
    path = Path(*_OWN.__path__, *name.split("."))
    try:
        is_file = path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()
    except OSError:  # a name of 300 letters
        is_file = False
    if not (_OWN.__path__ and is_file):
        return name
    top = name.partition(".")[0]
    known = sys.modules.get(top)
    if known is not None:
        places = [getattr(known, "__file__", None), *getattr(known, "__path__", [])]
    else:
        spec = find_spec(top)
        places = [] if spec is None else [spec.origin, *(spec.submodule_search_locations or [])]
    return name if any(_is_own(place) for place in places) else f"{_OWN.__name__}.{name}"


def _import(
    name: str,
    globals: Mapping[str, Any] | None = None,
    locals: Mapping[str, Any] | None = None,
    fromlist: Sequence[str] | None = (),
    level: int = 0,
) -> Any:
    """``__import__`` of the user's own files: ``import utils`` finds the file beside them before a library.

    The standard library and the libraries of every program are found first, if they have what is imported.
    """
    names = fromlist or ()
    full_name = name if level else _full_name(name)
    if full_name == name or full_name == (globals or {}).get("__name__"):  # datasets.py itself means the library
        return builtins.__import__(name, globals, locals, names, level)
    if name.partition(".")[0] in _LIBRARIES:
        library = builtins.__import__(name, globals, locals, names)
        if all(each == "*" or hasattr(library, each) for each in names):
            return library
    module = builtins.__import__(full_name, globals, locals, names or ("__name__",))
    return module if names else sys.modules[f"{_OWN.__name__}.{name.partition('.')[0]}"]


class _OwnLoader(SourceFileLoader):
    """Loads a file of the user's, whose imports then find the files beside it."""

    def exec_module(self, module: ModuleType) -> None:
        """Execute the file."""
        vars(module)["__builtins__"] = {**vars(builtins), "__import__": _import}
        super().exec_module(module)
        for function in after_import:
            function(module)


def _finder(path: str) -> FileFinder:
    """The entry of ``sys.path_hooks`` for the user's folder.

    Raises:
        ImportError: another folder.
    """
    if not (_is_own(path) and Path(path).is_dir()):
        raise ImportError(path)
    return FileFinder(
        path,
        (ExtensionFileLoader, EXTENSION_SUFFIXES),
        (_OwnLoader, SOURCE_SUFFIXES),
        (SourcelessFileLoader, BYTECODE_SUFFIXES),
    )


def parameters_of(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of ``function``; none for a builtin whose signature is unknown."""
    try:
        return _signature(function)
    except TypeError:  # an object without a hash cannot be a key of the cache
        return _signature.__wrapped__(function)


@lru_cache(maxsize=64)  # called for every client
def _signature(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except ValueError:
        return {}


def accepted(function: Callable[..., Any], offered: dict[str, Any]) -> dict[str, Any]:
    """Return those of the keyword arguments in ``offered`` that ``function`` takes."""
    return {key: value for key, value in offered.items() if takes(function, key)}


def takes(function: Callable[..., Any], name: str) -> bool:
    """Return whether ``function`` takes a keyword argument of this name."""
    parameters = parameters_of(function)
    if name in parameters and parameters[name].kind in (
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.KEYWORD_ONLY,
    ):
        return True
    return any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def check_arguments(
    function: Callable[..., Any], given: Mapping[str, Any], reserved: set[str], flag: str, name: str
) -> None:
    """Check arguments that the user gave for a function of a library against its signature.

    Args:
        reserved: parameters that the config sets, which the user must not give.
        flag: the flag that gave the arguments, for the error message.
        name: the name of the function in the error message.

    Raises:
        ConfigError: the function does not take an argument, or an argument has the wrong type or would be a function.
    """
    parameters = parameters_of(function)
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    plain = {
        key: p.annotation
        for key, p in parameters.items()
        if key not in reserved
        and (_words_of(p.annotation) or p.annotation is p.empty)
        and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    }
    for key, value in given.items():
        place = f"{flag} {key}={value}"
        is_taken = not _is_function(parameters[key].annotation) if key in parameters else open_ended
        if key in reserved or not is_taken:
            takes = f"takes these arguments: {', '.join(plain)}" if plain else "takes no arguments"
            raise ConfigError(f"{place}: {name} {takes}")
        words = _words_of(plain[key]) if key in plain else ""
        if words and not _fits(value, plain[key]):
            raise ConfigError(f"{place}: must be {words}")


_TYPE_WORDS = {float: "a number", int: "a whole number", bool: "true or false", str: "text"}


def _words_of(annotation: Any) -> str:
    """Return a type in words; the text is empty for types whose values cannot be given in a flag."""
    if get_origin(annotation) is Literal:
        return f"one of {', '.join(get_args(annotation))}"
    options = [option for option in get_args(annotation) or (annotation,) if option is not type(None)]
    return _TYPE_WORDS.get(options[0], "") if len(options) == 1 else ""


def _is_function(annotation: Any) -> bool:
    """Return whether a type is that of functions, perhaps or None, which cannot be given in a flag."""
    options = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    return all((get_origin(option) or option) is Callable for option in options if option is not type(None))


def _fits(value: Any, annotation: Any) -> bool:
    if get_origin(annotation) is Literal:
        return value in get_args(annotation)
    options = get_args(annotation) or (annotation,)
    return type(value) in options or (type(value) is int and float in options)

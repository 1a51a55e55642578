"""How a setting is declared, checked and read.

A setting is a dataclass field with a ``Setting`` in its metadata. Values from Python, from TOML files and from flags
pass the same check. Every error message names the place, the value and the valid choices.
"""

from __future__ import annotations

import math
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, Field, dataclass, field, fields
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from sim.disk import check_is_file
from sim.errors import ConfigError, RunFolderError, one_line

Scalar = bool | int | float | str
T = TypeVar("T")
IMPORT_PATH = re.compile(r"[^\W\d][\w.]*:[^\W\d][\w.]*(,[^\W\d]\w*)?")
# Counts fit into the 32-bit integers of the libraries below, and other whole numbers into the 64 bits of TOML and CSV.
MOST = 10**9
MOST_BITS = 64

# What int and float of Python also take, such as 1_0 and digits of other scripts, is more often a slip than meant.
_NUMBERS = {
    int: re.compile(r"[+-]?[0-9]+"),
    float: re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?"),
}


_PAIR = re.compile(r"""[^\s=]+=('[^']*'|"[^"]*"|[^\s'"]\S*)""")  # key=value, key='a text', key="a text"


@dataclass(frozen=True)
class Setting:
    """The help text and the rules of a setting; the dataclass field has its name, type and default."""

    help: str  # {built_in} stands for the value of the class's BUILT_IN
    group: str
    unit: str = ""
    low: float | None = None
    above: float | None = None
    high: float | None = None
    below: float | None = None
    choices: tuple[str, ...] = ()
    importable: bool = False  # package.module:name is also valid
    separator: str = ""  # joins several words after the flag; one word is expected without it
    joined: str = ""  # joins the words of a flag that may be given several times
    auto: bool = False  # "auto" is also valid; the program then chooses the value
    instead_of: str = ""  # the other setting, if only one of two settings may be given
    argument_of: str = ""  # the setting whose value takes these arguments
    belongs_to: tuple[str, tuple[str | None, ...]] | None = (
        None  # the other setting, and the values of it that use this one
    )

    @property
    def valid(self) -> str:
        """Return the valid values in words; the text is empty if all values of the type are valid."""
        if self.choices or self.importable:
            return ", ".join([*self.choices, *(["package.module:name"] if self.importable else [])])
        parts = [
            f"{word} {bound if isinstance(bound, int) else format(bound, 'g')}"
            for word, bound in (
                ("at least", self.low),
                ("above", self.above),
                ("at most", self.high),
                ("below", self.below),
            )
            if bound is not None
        ]
        return " and ".join(parts) + (", or auto" if self.auto else "")

    def admits(self, value: Any) -> bool:
        """Return whether ``value``, which must have the right type, is valid."""
        if self.choices or self.importable:
            return value in self.choices or (self.importable and bool(IMPORT_PATH.fullmatch(value)))
        return (
            (self.low is None or value >= self.low)
            and (self.above is None or value > self.above)
            and (self.high is None or value <= self.high)
            and (self.below is None or value < self.below)
        )


def setting(default: Any, help: str, group: str, **rules: Any) -> Any:
    """Declare a setting: a dataclass field with its default, help, group and rules (see ``Setting``)."""
    metadata = {"setting": Setting(help=help, group=group, **rules)}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def rules_of(config_field: Field[Any]) -> Setting:
    """Return the rules of a setting."""
    found: Setting = config_field.metadata["setting"]
    return found


def default_of(config_field: Field[Any]) -> Any:
    """Return the default of a setting."""
    if config_field.default_factory is not MISSING:
        return config_field.default_factory()
    return config_field.default


def flag_of(name: str) -> str:
    """Return the flag of a setting: ``num_clients`` → ``--num-clients``."""
    return "--" + name.replace("_", "-")


def given_as(name: str, value: Any) -> str:
    """Return a flag with its value, as it is given on the command line: ``--alpha 0.5``, ``--no-verbose``."""
    if isinstance(value, bool):
        return flag_of(name if value else f"no_{name}")
    if isinstance(value, dict):
        value = " ".join(f"{key}={each}" for key, each in value.items())
    return f"{flag_of(name)} {value}"


@cache
def _hints(config_type: type) -> dict[str, Any]:
    return get_type_hints(config_type)  # which takes milliseconds, and is asked for each setting


def type_of(config_type: type, name: str) -> tuple[type, bool]:
    """Return the type of a setting, and whether it may be None."""
    hint = _hints(config_type)[name]
    options = [option for option in get_args(hint) if option is not type(None)] if get_args(hint) else [hint]
    if getattr(hint, "__origin__", None) is dict:
        return dict, False
    return options[0], len(options) < len(get_args(hint))


_TYPE_WORDS = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    dict: "a table of key = value",
}


def check(config_type: type, config_field: Field[Any], value: Any, place: str) -> Any:
    """Check a value and return it with the type of the setting.

    Args:
        place: how the user wrote the setting and its value, for the error message, e.g. ``--lr 0``.

    Raises:
        ConfigError: the value has the wrong type or is not valid.
    """
    kind, optional = type_of(config_type, config_field.name)
    rules, place = rules_of(config_field), one_line(place)
    value = plain(value)
    if (value is None and optional) or (rules.auto and value == "auto"):
        return value
    if kind is float and type(value) is int and value.bit_length() <= MOST_BITS:
        value = float(value)
    if type(value) is not kind or (isinstance(value, float) and not math.isfinite(value)):
        raise ConfigError(f"{place}: must be {_TYPE_WORDS[kind]}{_valid_suffix(rules)}")
    if isinstance(value, dict):
        value = {plain(key): plain(entry) for key, entry in value.items()}
        for key, entry in value.items():
            _check_entry(key, entry, place)
        return value
    if isinstance(value, str) and not (_is_utf8(value) and "\0" not in value):
        raise ConfigError(f"{place}: must be text in UTF-8 without NUL, because config.toml holds it")
    if not rules.admits(value):
        raise ConfigError(f"{place}: must be {_valid_prefix(rules)}{rules.valid}")
    return value


def plain(value: Any) -> Any:
    """Return the plain value of a number of numpy's, a path or a member of an enumeration; others as they are."""
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if type(value).__module__ == "numpy" and getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()
    return value


def check_type(config_types: Sequence[type], name: str, value: Any, place: str) -> None:
    """Check that a value that was written to a config has the type of the setting; what it may be is not checked.

    Raises:
        RunFolderError: it has another type.
    """
    for config_type in config_types:
        if name in _hints(config_type):
            kind, _ = type_of(config_type, name)
            is_auto = value == "auto" and any(f.name == name and rules_of(f).auto for f in fields(config_type))
            if not (type(value) is kind or is_auto or (kind is float and type(value) is int)):
                raise RunFolderError(f"{place}: {name} = {shown(value)} is not {_TYPE_WORDS[kind]}")
            return


def shown(value: object) -> str:
    """Return ``repr(value)`` for an error message, also of what has none, such as a number of 5,000 digits."""
    try:
        return repr(value)
    except Exception:  # noqa: BLE001 - whatever a value of the user's raises
        return f"({type(value).__name__})"


def _check_entry(key: object, entry: Any, place: str) -> None:
    """Check one argument of a table of key = value.

    Raises:
        ConfigError: the key or the value cannot be passed on.
    """
    if not (isinstance(key, str) and key.isprintable()):
        raise ConfigError(f"{place}: the key {shown(key)} must be one line of text")
    finite = not isinstance(entry, float) or math.isfinite(entry)
    if type(entry) not in (bool, int, float, str) or not finite:
        raise ConfigError(f"{place}: the value of {key} must be a number, text, true or false")
    if type(entry) is int and entry.bit_length() > MOST_BITS:
        raise ConfigError(f"{place}: the value of {key} must be a number of at most {MOST_BITS} bits")
    if isinstance(entry, str) and not entry.isprintable():
        raise ConfigError(f"{place}: the value of {key} must be one line of text")


def arguments_of(
    kind: type[T], given: Mapping[str, Scalar], flag: str, name: str, *, args_flag: str | None = None
) -> T:
    """Return ``--dataset-args`` or ``--attack-args`` as the arguments of one data set or attack.

    Args:
        kind: a dataclass of settings.
        flag: ``--dataset`` or ``--attack``, for the error message.
        name: what that flag chooses.
        args_flag: the flag of the arguments, if it is not that flag with -args.

    Raises:
        ConfigError: there is no such argument, or its value is not valid.
    """
    args_flag = args_flag or f"{flag}-args"
    known = {config_field.name: config_field for config_field in fields(kind)}  # type: ignore[arg-type]
    for key, value in given.items():
        if key not in known:
            takes = f"takes {', '.join(known)}" if known else "takes no arguments"
            raise ConfigError(f"{args_flag} {key}={value}: {flag} {name} {takes}")
    return kind(**{key: check(kind, known[key], value, f"{args_flag} {key}={value}") for key, value in given.items()})


def _is_utf8(text: Any) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _valid_prefix(rules: Setting) -> str:
    return "one of " if rules.choices or rules.importable else ""


def _valid_suffix(rules: Setting) -> str:
    return f", {_valid_prefix(rules)}{rules.valid}" if rules.valid else ""


def parse_number(kind: type, text: str) -> Any:
    """Return the ``int`` or ``float`` that ``text`` is in ASCII digits; None if it is none.

    ``text`` of more than 4,300 digits is none, because Python does not convert it.
    """
    if _NUMBERS[kind].fullmatch(text):
        with suppress(ValueError):
            return kind(text)
    return None


def parse_scalar(text: str) -> Scalar:
    """Return the number, text or boolean that ``text`` is in TOML; if it is none of these, return ``text`` itself."""
    is_quoted = text[:1] in ("'", '"')
    if len(text.splitlines()) != 1 or ("_" in text and not is_quoted):  # another key of TOML, or the number 1_0
        return text
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):  # no TOML, a number of 5,000 digits, or brackets in brackets in …
        return text
    return value if type(value) in (bool, int, float, str) else text


def parse_flag(config_type: type, config_field: Field[Any], text: Any) -> Any:
    """Convert the text after a flag into the value of the setting.

    Args:
        text: the word after the flag, a list of ``key=value`` words, or a bool.

    Raises:
        ConfigError: the text does not have the type of the setting, or the value is not valid.
    """
    flag, rules = flag_of(config_field.name), rules_of(config_field)
    kind, _ = type_of(config_type, config_field.name)
    separator = rules.separator or rules.joined
    value: Any = separator.join(text) if separator and isinstance(text, list) else text
    takes_file = config_field.name == "run_config" and len(text) == 1 and "=" not in text[0]
    if takes_file and text[0].endswith(".toml"):
        value = flattened(read_table(Path(text[0]), flag))
    elif kind is dict:
        value = {}
        for word in _pairs(text, flag) if config_field.name == "run_config" else text:
            key, equals, right = word.partition("=")
            if not (key and equals):
                raise ConfigError(f"{flag} {word}: must be key=value")
            if key in value:
                raise ConfigError(f"{flag} {' '.join(text)}: gives {key} twice")
            value[key] = parse_scalar(right)
    elif kind in (int, float) and not (rules.auto and text == "auto"):
        value = parse_number(kind, text)
        if value is None:
            raise ConfigError(f"{flag} {text}: must be {_TYPE_WORDS[kind]}{_valid_suffix(rules)}")
    shown = " ".join(text) if isinstance(text, list) else text
    return check(config_type, config_field, value, f"{flag} {shown}".rstrip())


def _pairs(words: Sequence[str], flag: str) -> list[str]:
    """Return the ``key=value`` words of ``--run-config``, which ``flwr run`` takes as one text.

    Raises:
        ConfigError: there is something else.
    """
    text = " ".join(words)
    left = _PAIR.sub("", text).split()
    if left:
        raise ConfigError(f"{flag} {left[0]}: must be key=value, a text with spaces in quotation marks")
    return [pair.group() for pair in _PAIR.finditer(text)]


def flattened(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested table with keys such as ``outer.inner``, as Flower's run configs have them."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        found |= flattened(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def parsed_toml(path: Path) -> dict[str, Any]:
    """Return the content of a TOML file.

    Raises:
        OSError: it cannot be read.
        ValueError, RecursionError: it is no TOML or no UTF-8, has a number of 5,000 digits, or is nested too deeply.
    """
    return tomllib.loads(path.read_text(encoding="utf-8-sig"))  # Windows' editors begin a file with a mark


def read_table(path: Path, flag: str) -> dict[str, Any]:
    """Read a TOML file.

    Args:
        flag: the flag that named the file, for the error message.

    Raises:
        ConfigError: the file is missing or is not valid TOML.
    """
    try:
        check_is_file(path, or_pipe=True)
        return parsed_toml(path)
    except OSError as error:
        raise ConfigError(f"{flag} {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{flag} {path}: not valid TOML: it is not in UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{flag} {path}: not valid TOML: {error}") from None


def read_toml(config_type: type, path: Path, flag: str) -> dict[str, Any]:
    """Read settings from a TOML file and check each of them.

    Args:
        flag: the flag that named the file, for the error message.

    Raises:
        ConfigError: the file is missing or is not valid TOML, a key is unknown, or a value has the wrong type or is
            not valid.
    """
    table = read_table(path, flag)
    known = {f.name: f for f in fields(config_type)}
    unknown = sorted(set(table) - set(known))
    if unknown:
        raise ConfigError(f"{flag} {path}: unknown key {', '.join(unknown)}; the valid keys are {', '.join(known)}")
    return {
        name: check(config_type, known[name], value, f"{flag} {path}: {name} = {shown(value)}")
        for name, value in table.items()
    }

"""The settings of a config as flags of the command line.

The flags are made with argparse of the standard library, because its errors can be printed on one line. Libraries
that make flags from dataclasses print errors of several lines.
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from sim.config.choices import TRACKERS
from sim.config.fields import MOST, default_of, flag_of, parse_flag, parse_number, rules_of, type_of
from sim.config.presets import preset_names
from sim.config.program import program_parts
from sim.config.run_config import RunConfig, TrainingConfig
from sim.errors import ConfigError, one_line
from sim.metrics import is_target

C = TypeVar("C", bound=TrainingConfig)

# What may be the user's own, as package.module:name.
_PARTS = ("dataset", "model", "train", "test", "loss", "client", "client_fn", "strategy", "sampler")
_METAVARS = {int: "N", float: "X", str: "TEXT", dict: "KEY=VALUE"}


class _Store(argparse.Action):
    """Stores the value of a flag, and keeps those that a later one replaces, for a note."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        """Store a value, as argparse asks for it each time that the flag is given."""
        if option and isinstance(parser, Parser):
            parser.values.setdefault(self.option_strings[-1], []).append(
                " ".join(values) if isinstance(values, list) else str(values)
            )
        setattr(namespace, self.dest, values)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are raised as ConfigError with a message of one line.

    Attributes:
        add_flags: adds the flags of a command when it is the one that was given; to add those of all takes 0.1 s.
        values: flag → its values in the order in which they are given.
    """

    add_flags: Callable[[argparse.ArgumentParser], None] | None = None

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.values: dict[str, list[str]] = {}
        for name in (None, "store"):  # what argparse does with a flag of which nothing else is said
            self.register("action", name, _Store)

    def parse_known_args(self, *arguments: Any, **named: Any) -> Any:
        """Parse words as argparse does, which calls this for the command that they name."""
        add_flags, self.add_flags = self.add_flags, None
        if add_flags is not None:
            add_flags(self)
        return super().parse_known_args(*arguments, **named)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (see {self.prog} --help)")

    def parse_strictly(self, words: Sequence[str]) -> argparse.Namespace:
        """Parse the words of a command line.

        Raises:
            ConfigError: a word is unknown; the message names the most similar flags.
        """
        namespace: argparse.Namespace
        namespace, unknown = self.parse_known_args(_with_targets(words))
        if unknown:
            if unknown[0].startswith("--resume") and namespace.parser.prog.endswith(" server"):
                raise ConfigError("--resume: sim server begins a new run; only runs of sim run and sim app are resumed")
            flags = [flag for action in namespace.parser._actions for flag in action.option_strings]
            close = difflib.get_close_matches(unknown[0].split("=")[0], flags, n=3)
            hint = f"did you mean {' or '.join(close)}?" if close else "no such flag"
            given = unknown[0] if unknown[0] in words else unknown[0].replace("--target-metric", "--target", 1)
            raise ConfigError(f"{one_line(given, 200)}: {hint} ({namespace.parser.prog} --help lists all)")
        return namespace

    def replaced(self) -> list[str]:
        """Return a note for each flag that was given several values, as by the user of a script that gives one."""
        return [
            one_line(f"{flag} was given as {', '.join(values[:-1])} and as {values[-1]}; the last one counted", 200)
            for flag, values in self.values.items()
            if len(set(values)) > 1
        ]


def _with_targets(words: Sequence[str]) -> list[str]:
    """Return the words with ``--target-metric`` for a ``--target`` that is a comparison, such as ``mae<=0.2``."""
    found = list(words)
    for number, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if word == "--target" and _is_meant_as_target("".join(words[number + 1 : number + 2])):
            found[number] = "--target-metric"
        elif flag == "--target" and equals and _is_meant_as_target(value):
            found[number] = f"--target-metric={value}"
    return found


def _is_meant_as_target(value: str) -> bool:
    """Whether it is a comparison, perhaps a wrong one, or a fraction; and no column of a table, which has a name."""
    return (
        is_target(value)
        or any(sign in value for sign in "<>")
        or ("." in value and parse_number(float, value) is not None)
    )


def add_config(
    parser: argparse.ArgumentParser,
    config_type: type[TrainingConfig],
    *,
    without: Collection[str] = (),
    hidden: Collection[str] = (),
) -> None:
    """Add ``--config``, ``--preset`` and one flag for each setting, see ``add_settings``."""
    parser.add_argument("--config", metavar="FILE.toml", type=Path, help="file with settings; flags override it")
    if config_type is RunConfig:
        about = f"settings of a published experiment; --config and flags override them [{', '.join(preset_names())}]"
        parser.add_argument("--preset", metavar="NAME", help=about)
    add_settings(parser, config_type, without=without, hidden=hidden)


def add_settings(
    parser: argparse.ArgumentParser,
    config_type: type[Any],
    *,
    without: Collection[str] = (),
    hidden: Collection[str] = (),
) -> None:
    """Add one flag for each setting; the help of a flag gives the unit, the valid values and the default.

    Args:
        without: settings that have no flag.
        hidden: settings whose flag the help leaves out, because it is refused with a message of its own.
    """
    groups: dict[str, Any] = {}
    for config_field in (each for each in fields(config_type) if each.name not in without):
        rules, (kind, _) = rules_of(config_field), type_of(config_type, config_field.name)
        if rules.group not in groups:
            groups[rules.group] = parser.add_argument_group(rules.group)
        notes = [note for note in (rules.unit and f"in {rules.unit}", rules.valid) if note]
        default = default_of(config_field)
        if default not in (None, {}):
            notes.append(f"default {default:g}" if isinstance(default, float) else f"default {default}")
        built_in = getattr(config_type, "BUILT_IN", {}).get(config_field.name)
        text = rules.help.replace("{built_in}", str(built_in)) + (f" [{'; '.join(notes)}]" if notes else "")
        options: dict[str, Any] = {"dest": config_field.name, "default": argparse.SUPPRESS}
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        else:
            options["metavar"] = _METAVARS[kind]
            if rules.separator:
                options["nargs"] = "+"
            if rules.joined:
                options["action"] = "append"
            if kind is dict:
                options |= {"nargs": "+", "action": "extend"}  # a flag that is given twice adds to the first
        about = argparse.SUPPRESS if config_field.name in hidden else text.replace("%", "%%")
        groups[rules.group].add_argument(flag_of(config_field.name), help=about, **options)


def flags_given(config_type: type[Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the settings whose flags are on the command line.

    Raises:
        ConfigError: a value is not valid.
    """
    given = vars(arguments)
    return {f.name: parse_flag(config_type, f, given[f.name]) for f in fields(config_type) if f.name in given}


def settings_given(config_type: type[TrainingConfig], arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that the preset, the config file and the flags give.

    Raises:
        ConfigError: see ``TrainingConfig.given``; the value of a flag is not valid; or the default data set is asked
            for beside a program with data of its own, which a config takes in the place of a default.
    """
    preset = getattr(arguments, "preset", None)
    given = config_type.given(getattr(arguments, "config", None), preset=preset, **flags_given(config_type, arguments))
    if given.get("program") is not None and given.get("dataset") == config_type.dataset:
        parts = program_parts(given["program"], needs_model=False)
        if "dataset" in parts:
            others = " ".join(f"--{part} {name}" for part, name in parts.items() if part != "dataset")
            raise ConfigError(
                f"--dataset {given['dataset']}: --program {given['program']} has data of its own, {parts['dataset']}; "
                f"name its other parts instead: --dataset {given['dataset']} {others}"
            )
    return given


def config_from(config_type: type[C], arguments: argparse.Namespace) -> C:
    """Make the config that the command line describes.

    Raises:
        ConfigError: see ``settings_given``; or two values contradict each other.
    """
    return config_type(**settings_given(config_type, arguments))


def check_new_run(given: Mapping[str, Any]) -> None:
    """Check that no setting of a new run would be without effect, because all parts of its program are built in.

    Args:
        given: what ``settings_given`` returns; in Python, the user's own parts may follow later.

    Raises:
        ConfigError: one would be without effect.
    """
    own = {name for name in _PARTS if ":" in str(given.get(name, "")).removeprefix("torchvision:")}
    own |= {name for name in ("program", "app") if given.get(name) is not None}
    if given.get("args") and not own:
        raise ConfigError(
            f"--args {', '.join(given['args'])}: belong to a program or a function of yours, as --program names it"
        )
    if given.get("accuracy_in_percent") and own <= {"dataset", "model", "loss", "sampler"}:
        raise ConfigError("--accuracy-in-percent: belongs to a --train, a --test or a client of yours")
    form = given.get("data_form", TrainingConfig.data_form)
    if form != TrainingConfig.data_form and own.isdisjoint(("program", "dataset")):
        dataset = given.get("dataset", TrainingConfig.dataset)
        raise ConfigError(f"--data-form {form}: belongs to data of yours, not to --dataset {dataset}")
    if given.get("track") == "":
        raise ConfigError(f"--track '': must name one or more of {', '.join(TRACKERS)}; only --resume ends tracking so")


def whole_number(flag: str, text: str, most: int = MOST) -> int:
    """Parse a whole number from 1 to ``most``.

    Raises:
        ConfigError: the text is not such a number.
    """
    number = parse_number(int, text)
    if number is None or not 1 <= number <= most:
        raise ConfigError(f"{flag} {text}: must be a whole number, at least 1 and at most {most}")
    return int(number)

"""The user's own modules: found by their file, behind every library on sys.path, and able to import each other."""

from __future__ import annotations

import argparse
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from conftest import ONE_ACTOR
from sim import user_code
from sim.client.own_training import OwnTrain
from sim.errors import PluginError

Write = Callable[..., None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Write files into the current folder, which no test shares."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def write(**files: str) -> None:
        for name, text in files.items():
            path = tmp_path / f"{name.replace('_of_', '/')}.py"
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)

    yield write
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


WHERE = "def where():\n    return __file__\n"


@pytest.mark.parametrize("name", ["random", "torch", "sim", "datasets", "test", "statistics", "mine_alone"])
def test_a_file_of_the_users_wins_over_a_library_of_its_name(write: Write, tmp_path: Path, name: str) -> None:
    write(**{name: WHERE})
    found = user_code.load(f"{name}:where", "--train")
    assert Path(found()) == tmp_path / f"{name}.py"
    assert pickle.loads(pickle.dumps(found)) is found


def test_the_folder_is_last_and_no_library_imports_a_file_of_the_users(write: Write, tmp_path: Path) -> None:
    write(mine_last=WHERE, colorsys="raise SystemExit('the user file was imported')")
    sys.modules.pop("colorsys", None)
    user_code.load("mine_last:where", "--train")
    assert sys.path[-1] == str(tmp_path)
    import colorsys

    assert not Path(str(colorsys.__file__)).is_relative_to(tmp_path)


def test_files_of_the_users_import_each_other_as_in_a_script(write: Write) -> None:
    """By the names of libraries too, also in a function, and from packages; what a library alone has comes from it."""
    write(
        mine_all="import tomli_w, test, random, utils_mine\n"
        "from statistics import median, mine\nfrom experiments.models import shape\nfrom experiments import models\n"
        "def all():\n    from torch import nn\n    import tomli_w as later\n"
        "    return [tomli_w.name, test.name, random.Random.__name__, utils_mine.name, mine, shape, models.shape,\n"
        "            nn.Linear.__name__, later.name]\n",
        tomli_w="import tomli_w as library\nname = 'my writer', hasattr(library, 'dumps')\n",
        test="name = 'my test'\n",
        utils_mine="name = 'my utils'\n",
        statistics="def median(): ...\nmine = 'my statistics'\n",
        torch="raise SystemExit('a leftover')\n",
        random="raise SystemExit('a leftover')\n",
        experiments_of___init__="",
        experiments_of_models="from . import sizes\nshape = sizes.shape\n",
        experiments_of_sizes="shape = (3, 4)\n",
    )
    mine = "my writer", True
    expected = [mine, "my test", "Random", "my utils", "my statistics", (3, 4), (3, 4), "Linear", mine]
    assert user_code.load("mine_all:all", "--train")() == expected


def test_the_same_name_in_another_folder_is_another_module(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for number in range(2):
        write(**{f"folder{number}_of_mine_moved": f"import test\ndef number():\n    return {number}, test.number\n"})
        write(**{f"folder{number}_of_test": f"number = {number}\n"})
        monkeypatch.chdir(tmp_path / f"folder{number}")
        found.append(user_code.load("mine_moved:number", "--train")())
    assert found == [(0, 0), (1, 1)]


def test_an_environment_in_the_folder_is_no_code_of_the_users(write: Write, tmp_path: Path) -> None:
    write(mine_env=WHERE, venv_of_a_library="import tomli_w\nname = hasattr(tomli_w, 'dumps')\n", tomli_w="")
    sys.path.insert(0, str(tmp_path / "venv"))
    user_code.load("mine_env:where", "--train")
    import a_library  # type: ignore[import-not-found]

    assert a_library.name is True


@pytest.mark.parametrize("text", ["import nowhere_at_all", "1/0", "raise SystemExit(3)", "raise GeneratorExit", "x ="])
def test_an_import_that_fails_is_one_line(write: Write, text: str) -> None:
    write(mine_fails=text)
    with pytest.raises(PluginError, match=r"^--model mine_fails:Net: its import failed: ") as raised:
        user_code.load("mine_fails:Net", "--model")
    assert str(raised.value).isprintable()


FEW = ("--num-clients", "5", "--clients-per-round", "2", "--num-rounds", "1", "--local-epochs", "1")
TRAP = "raise SystemExit('the user file was imported')\n"


def test_a_file_that_ends_the_process_when_it_is_imported_says_where_that_belongs(write: Write) -> None:
    write(
        parses="import argparse\nparser = argparse.ArgumentParser()\nparser.add_argument('--dir', required=True)\n"
        "args = parser.parse_args([])\ndef train(net, loader): ...\n"
    )
    with pytest.raises(PluginError, match=r"its import failed: SystemExit: 2; .* belongs under if __name__"):
        user_code.load("parses:train", "--train")


@pytest.mark.ray
def test_files_of_usual_names_break_no_sweep_no_run_and_no_actor(sim: Any, tmp_path: Path) -> None:
    for name in ("random", "torch", "types", "numpy", "queue"):
        (tmp_path / f"{name}.py").write_text(TRAP)
    model = "import torch\ndef Net():\n    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(1024, 10))\n"
    (tmp_path / "datasets.py").write_text(model)
    few = (*FEW, *ONE_ACTOR, "--engine", "ray", "--model", "datasets:Net", "--vary", "lr=0.1", "--seeds", "1")
    result = sim("sweep", *few)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(("given", "expected"), [({}, 0.5), ({"lr": 2.0}, 2.0)])
def test_settings_that_are_a_default_stay_unless_some_are_given(given: dict[str, float], expected: float) -> None:
    seen = []
    settings = argparse.Namespace(lr=0.5)

    def train(net: nn.Module, loader: Any, cfg: Any = settings) -> None:
        seen.append(cfg.lr)

    OwnTrain(train, "--train own:train", args=argparse.Namespace(**given))(nn.Linear(1, 1), [], 1, torch.device("cpu"))
    assert seen == [expected]


_OPTIONS = """
import argparse, math

def yes(text):
    return text == "yes"

def train(net, loader, args):
    return args

def main():
    local = 1
    parser = argparse.ArgumentParser()
    parser.add_argument("--rate", type=float, default=1 / 8)
    parser.add_argument("--freeze", type=yes, default="no")
    parser.add_argument("--hidden", type=lambda text: [int(n) for n in text.split(",")], default="16,8")
    parser.add_argument("--root", default=math.sqrt(4))
    parser.add_argument("--steps", type=int)
    parser.add_argument("--quiet", action="store_true")
    parser.add_argument("--inside", default=local)
    parser.add_argument("--opt-name", choices=["sgd", "adam"], default="sgd")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1])
    parser.add_argument("--betas", type=float, nargs=2, default=(0.5, 0.75))
    parser.set_defaults(steps=7, name="run")
"""


def test_options_are_what_argparse_makes_of_them(write: Write) -> None:
    write(mine_options=_OPTIONS)
    train = user_code.load("mine_options:train", "--train")
    found = vars(user_code.arguments({}, train))
    defaults = {"rate": 0.125, "freeze": False, "hidden": [16, 8], "root": 2.0, "steps": 7, "quiet": False}
    assert found == {**defaults, "name": "run", "opt_name": "sgd", "sizes": [1], "betas": (0.5, 0.75)}
    more = {"freeze": "yes", "hidden": 3, "inside": 4, "more": "text", "rate": 1, "opt-name": "adam", "sizes": 2}
    given = vars(user_code.arguments(more, train))
    changed = {"freeze": True, "hidden": [3], "rate": 1.0, "opt_name": "adam", "sizes": [2]}
    assert given == {**found, **changed, "inside": 4, "more": "text"}
    assert type(given["rate"]) is float
    with pytest.raises(PluginError, match=r"^--args hidden=x: invalid literal for int"):
        user_code.arguments({"hidden": "x"}, train)
    with pytest.raises(PluginError, match=r"^--args opt_name=foo: one of sgd, adam is expected$"):
        user_code.arguments({"opt_name": "foo"}, train)
    assert user_code.arguments({"betas": ["0.5", 0.25]}, train).betas == [0.5, 0.25]
    for betas, count in ((0.5, 1), ([0.5, 0.25, 1], 3)):
        with pytest.raises(PluginError, match=f"^--args betas=.*: 2 values are expected, not {count}$"):
            user_code.arguments({"betas": betas}, train)


def test_an_option_without_a_value_says_why(write: Write) -> None:
    write(mine_options=_OPTIONS)
    made = user_code.arguments({}, user_code.load("mine_options:train", "--train"))
    again = pickle.loads(pickle.dumps(made))
    reason = "the default of the option inside in mine_options.py raised NameError: name 'local' is not defined"
    for arguments in (made, again):
        with pytest.raises(AttributeError, match=f"^{reason}; --args inside=VALUE gives it another one$"):
            _ = arguments.inside
        with pytest.raises(AttributeError, match=r"^the program has no option other; --args other=VALUE gives"):
            _ = arguments.other
        assert getattr(arguments, "other", 5) == 5


def test_objects_of_another_script_are_told_apart() -> None:
    with pytest.raises(PluginError, match=r"^--strategy __main__:S: was given by a script or a notebook, which is not"):
        user_code.load("__main__:S", "--strategy")

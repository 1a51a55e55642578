"""What the server's code keeps outside of its strategy: kept in checkpoints, or named where that is impossible."""

from __future__ import annotations

import importlib
import itertools
import json
import logging
import random
import sys
import threading
import types
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from flwr.server.strategy import FedAvg

from conftest import sha256
from sim import Run, resume, run_app
from sim.errors import StateError
from sim.run_folder.checkpoint import Checkpoint
from sim.server.server_variables import ServerVariables

pytestmark = pytest.mark.usefixtures("no_pictures")


class Phase(Enum):
    FIRST = 1
    LAST = 2


class Best(NamedTuple):
    round: int
    weights: list[np.ndarray]


@dataclass(frozen=True)
class Result:
    number: int
    values: list[float] = field(default_factory=list)


class Stopper:
    """An object that is called, as the usual EarlyStopping."""

    seen = 0

    def __init__(self) -> None:
        self.best, self.history, self.print = float("inf"), [], print

    def __call__(self, loss: float = 1.0) -> None:
        self.history.append(loss)
        self.best = min(self.best, loss)
        Stopper.seen += 1

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stopper) and (self.best, self.history) == (other.best, other.history)

    __hash__ = None  # type: ignore[assignment]


def _roundtrip(things: list[Any], fresh: list[Any]) -> None:
    """Keep what ``things`` have changed, as a file has it, and put it into the same things of a new process."""
    variables, strategy = ServerVariables(fresh), FedAvg()
    checkpoint = Checkpoint.of(1, [], FedAvg(), {}, {}, things[0].changed())
    checkpoint.variables = json.loads(json.dumps(checkpoint.variables))
    checkpoint.restore(strategy)
    variables.restore(checkpoint.kept_variables(variables.present()))


def _uses(value: Any) -> Callable[[], Any]:
    return lambda: value


@pytest.mark.parametrize(
    ("make", "change"),
    [
        (list, lambda v: v.append(1)),
        (set, lambda v: v.add("a")),
        (lambda: np.zeros(2), lambda v: v.__iadd__(1)),
        (lambda: np.zeros(2001), lambda v: v.__setitem__(1000, 1)),  # which its text does not show
        (lambda: np.ones(2, np.float64), lambda v: v.__iadd__(1e-12)),
        (lambda: torch.zeros(2), lambda v: v.add_(1)),
        (lambda: torch.zeros(2, dtype=torch.bfloat16), lambda v: v.add_(1)),
        (lambda: [np.zeros(2)], lambda v: v[0].__iadd__(1)),
        (dict, lambda v: v.update(a=np.ones(2), b=[True, None, 1.5])),
        (dict, lambda v: v.update({(1, "a"): 2, None: 3})),
        (dict, lambda v: v.update({0: np.zeros(1), "0": np.ones(1)})),
        (lambda: deque(maxlen=2), lambda v: v.extend([1, 2, 3])),
        (lambda: defaultdict(list), lambda v: v["a"].append(1)),
        (OrderedDict, lambda v: v.update(b=1, a=2)),
        (Counter, lambda v: v.update("aab")),
        (lambda: np.random.default_rng(0), lambda v: v.random(3)),
        (lambda: random.Random(0), lambda v: v.random()),
        (list, lambda v: v.extend([Path("a"), datetime(2026, 1, 2), torch.device("cpu"), Phase.LAST, 1j, range(3)])),
        (list, lambda v: v.append(Best(1, [np.ones(1)]))),
        (list, lambda v: v.append(Result(1, [0.5]))),
        (Stopper, lambda v: v(0.5)),
        (types.SimpleNamespace, lambda v: setattr(v, "best", 1.5)),
        (lambda: torch.nn.Linear(2, 2), lambda v: v.weight.data.add_(1)),
        (lambda: {"stopper": Stopper(), "loader": object()}, lambda v: v["stopper"](0.5)),
    ],
)
def test_what_code_changes_in_its_variables_is_kept(make: Callable[[], Any], change: Callable[[Any], Any]) -> None:
    torch.manual_seed(0)
    value = make()
    variables = ServerVariables([_uses(value)])
    assert variables.changed() == {}
    change(value)
    torch.manual_seed(0)
    again = make()
    _roundtrip([variables], [_uses(again)])
    assert _described(again) == _described(value)


def _described(value: Any) -> Any:
    match value:
        case np.random.Generator() | random.Random():
            return value.random()
        case torch.nn.Module():
            return {name: tensor.tolist() for name, tensor in value.state_dict().items()}
        case Stopper():
            return value.best, value.history
        case dict() if "loader" in value:
            return _described(value["stopper"])
        case np.ndarray():
            return value.dtype, value.tolist()
    return type(value), repr(value)


def test_variables_that_hold_other_objects_than_before_are_kept() -> None:
    """Objects that were made in a round, one that two variables hold, and one that was in another variable before."""

    def made() -> tuple[Callable[[], None], Callable[[], Any]]:
        first = [np.zeros(2)]
        best, last, result, count = first, first, None, 0

        def change() -> None:
            nonlocal best, last, result, count
            best = last = [np.ones(2)]
            result, count = Result(3, [1.0]), True
            change.calls = 1  # type: ignore[attr-defined]

        return change, lambda: (best, last, result, count, first, change)

    change, look = made()
    variables = ServerVariables([change, look])
    change()
    change_again, look_again = made()
    _roundtrip([variables], [change_again, look_again])
    best, last, result, count, first, changes = look_again()
    assert best is last
    assert best[0].tolist() == [1, 1]
    assert first[0].tolist() == [0, 0]
    assert (result, count, changes.calls) == (Result(3, [1.0]), True, 1)


def test_variables_of_an_imported_module_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_state.py").write_text("lr = .1\nother = 0\n\nclass Tracker:\n    seen = 0\n")
    (tmp_path / "own_server.py").write_text(
        """
import own_state

def use():
    import own_state as inner
    global later
    own_state.lr *= .5
    inner.Tracker.seen += 1
    later = 3
    own_state.added = 4
"""
    )
    monkeypatch.syspath_prepend(tmp_path)
    code: Any = importlib.import_module("own_server")
    used: Any = importlib.import_module("own_state")
    variables = ServerVariables([code.use])
    code.use()
    used.other = 5  # which the server's code does not name
    kept = variables.changed()
    assert {name.removeprefix("="): value for name, value in kept.items()} == {
        "own_state.lr": 0.05,
        "own_state.Tracker.seen": 1,
        "own_server.later": 3,
        "own_state.added": 4,
    }
    used.lr, used.Tracker.seen = 0.1, 0
    del code.later, used.added
    ServerVariables([code.use]).restore(kept)
    assert (used.lr, used.Tracker.seen, code.later, used.added) == (0.05, 1, 3, 4)
    del sys.modules["own_server"], sys.modules["own_state"]


def test_all_that_cannot_be_kept_is_named() -> None:
    count, numbers, lock, made, net = itertools.count(), (n for n in range(9)), threading.Lock(), None, None

    def use() -> None:
        nonlocal lock, made, net
        next(count)
        next(numbers)
        lock, made, net = threading.Lock(), Stopper(), torch.nn.Linear(1, 1)

    variables = ServerVariables([use])
    use()
    place = f"{__name__}.test_all_that_cannot_be_kept_is_named.<locals>.use."
    with pytest.raises(StateError) as error:
        variables.changed()
    assert sorted(str(error.value).replace(place, "").split(", ")) == [
        "count (count)",
        "lock (lock)",
        "made (Stopper)",
        "net (Linear)",
        "numbers (generator)",
    ]


def test_texts_in_an_array_are_told_apart() -> None:
    held = types.SimpleNamespace(names=np.array(["a", "b"]))
    variables = ServerVariables([_uses(held)])
    held.names = np.array(["a", "b"])
    assert variables.changed() == {}
    held.names[0] = "z"
    assert [value.tolist() for value in variables.changed().values()] == [["z", "b"]]


def test_what_code_only_reads_or_makes_again_is_no_obstacle() -> None:
    """Loggers, modules, functions, nets, locks, and what a program loads when it first needs it."""

    class Data(torch.utils.data.Dataset[int]):
        def __init__(self) -> None:
            self.items, self.lock = [1], threading.Lock()

    class Odd:
        def state_dict(self) -> Any:
            raise NotImplementedError

        load_state_dict = state_dict

    log, net, lock, data = logging.getLogger("x"), torch.nn.Linear(1, 1), threading.Lock(), None
    cache: dict[int, Any] = {}
    losses: list[float] = []
    held, odd = {"lock": lock, "data": Data()}, Odd()

    def use() -> None:
        nonlocal data
        log.warning("read")
        net(torch.zeros(1))
        data = data or Data()
        data.items.append(2)
        held["data"].items.append(2)
        assert odd is not None
        with lock:
            cache[0] = torch.utils.data.DataLoader([1]), 3
            cache[1] = np.ones(1)
        losses.append(1.0)

    variables = ServerVariables([use, test_what_code_only_reads_or_makes_again_is_no_obstacle])
    use()
    kept = {name.rpartition(".")[2]: value for name, value in variables.changed().items()}
    assert kept == {"cache": {1: np.ones(1)}, "losses": [1.0]}


class Holding(FedAvg):
    """A strategy with attributes of many kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.path, self.when, self.device = Path("a"), datetime(2026, 1, 2), torch.device("cpu")
        self.phase, self.result, self.log = Phase.FIRST, Result(0), logging.getLogger("a")
        self.counts, self.last, self.same = defaultdict(list), deque([1], 2), [0]
        self.also = self.same

    def change(self) -> None:
        self.path, self.when, self.device = Path("b/c"), datetime(2027, 1, 2, 3), torch.device("meta")
        self.phase, self.result = Phase.LAST, Result(1, [0.1])
        self.counts["a"].append(Best(1, []))
        self.last.extend([2, 3])
        self.same.append(1)


def test_attributes_of_a_strategy_that_have_a_plain_form_are_kept() -> None:
    held, again = Holding(), Holding()
    held.change()
    checkpoint = Checkpoint.of(1, [], held, {}, {})
    checkpoint.strategy = json.loads(json.dumps(checkpoint.strategy))
    checkpoint.restore(again)
    assert vars(again) == vars(held)
    assert [type(value) for value in vars(again).values()] == [type(value) for value in vars(held).values()]
    assert again.same is again.also
    assert again.counts["b"] == []
    assert again.last.maxlen == 2


def test_all_attributes_of_a_strategy_that_cannot_be_kept_are_named() -> None:
    held = Holding()
    held.lock, held.counts["a"] = threading.Lock(), [object()]  # type: ignore[attr-defined]
    with pytest.raises(StateError, match=r"^counts\.a\.0 \(object\), lock \(lock\)$"):
        Checkpoint.of(1, [], held, {}, {})


_SERVER = """
from collections import deque
import numpy as np
from flwr.common import ndarrays_to_parameters
from flwr.server import Server, ServerApp, ServerAppComponents, ServerConfig, SimpleClientManager
from flwr.server.strategy import FedAvg
from turns import rate

class Turns(SimpleClientManager):
    def __init__(self):
        super().__init__()
        self.turn, self.rng = 0, np.random.default_rng(5)

    def sample(self, num_clients, *arguments, **named):
        self.turn += 1
        return [self.clients[str((self.turn + number) % len(self.clients))] for number in range(num_clients)]

class Counting(Server):
    def fit(self, num_rounds, timeout):
        self.seen = []
        return super().fit(num_rounds, timeout)

class Stopper:
    def __init__(self):
        self.best, self.history = None, deque(maxlen=2)

    def __call__(self, loss):
        self.history.append(loss)
        self.best = np.minimum(loss, np.inf if self.best is None else self.best)

def server_fn(context):
    rate.value = 8.0
    stopper = Stopper()

    def evaluate(server_round, arrays, config):
        stopper(float(arrays[0].sum()))
        server.seen.append(server_round)
        rate.value *= 0.5
        metrics = {"best": float(stopper.best), "mean": sum(stopper.history), "seen": len(server.seen)}
        return 0.0, {**metrics, "drawn": server.client_manager().rng.random(), "rate": rate.value}

    class Scaling(FedAvg):
        def configure_fit(self, server_round, parameters, client_manager):
            rate.value += 1
            return super().configure_fit(server_round, parameters, client_manager)

    first = ndarrays_to_parameters([np.zeros(2)])
    strategy = Scaling(
        fraction_fit=0.3, fraction_evaluate=0, min_fit_clients=2, initial_parameters=first, evaluate_fn=evaluate
    )
    server = Counting(client_manager=Turns(), strategy=strategy)
    return ServerAppComponents(server=server, config=ServerConfig(num_rounds=4))

app = ServerApp(server_fn=server_fn)
"""

_CLIENT = """
import numpy as np
from flwr.client import ClientApp, NumPyClient

class Client(NumPyClient):
    def __init__(self, number):
        self.number = number

    def fit(self, arrays, config):
        return [arrays[0] - self.number - np.random.rand(2)], 1, {}

app = ClientApp(client_fn=lambda context: Client(context.node_config["partition-id"]).to_client())
"""

_PROJECT = """
[project]
name = "turns"
version = "1.0.0"
dependencies = []
[tool.flwr.app]
publisher = "tests"
[tool.flwr.app.components]
serverapp = "turns.server_app:app"
clientapp = "turns.client_app:app"
[tool.flwr.app.config]
"""


def test_what_a_client_manager_a_server_and_objects_hold_is_resumed_to_the_bit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The turn of the clients, generators, what an ``evaluate_fn`` writes into an object, and a module's variable."""
    folder = tmp_path / "app" / "turns"
    folder.mkdir(parents=True)
    for name, text in (("__init__", ""), ("rate", "value = 8.0"), ("server_app", _SERVER), ("client_app", _CLIENT)):
        (folder / f"{name}.py").write_text(text)
    (folder.parent / "pyproject.toml").write_text(_PROJECT)
    settings: dict[str, Any] = {"num_clients": 5, "engine": "inline", "results_dir": str(tmp_path / "results")}
    whole = run_app(folder.parent, name="whole", **settings)
    part = resume(run_app(folder.parent, name="part", num_rounds=2, **settings), num_rounds=4)
    assert _content(part) == _content(whole)
    clients = whole.clients()
    assert clients.groupby("round").client_id.agg(list).tolist() == [[1, 2], [2, 3], [3, 4], [0, 4]]
    assert "note" not in capsys.readouterr().err


def _content(run: Run) -> tuple[Any, ...]:
    return sha256(run.model_path), run.metrics().to_csv(), run.clients()[["round", "client_id"]].to_csv()


def test_a_list_that_a_strategy_and_a_function_share_is_one_list_again() -> None:
    def made() -> tuple[FedAvg, Callable[[], list[int]]]:
        history: list[int] = []
        strategy = FedAvg(on_fit_config_fn=lambda number: history.append(number) or {})  # type: ignore[func-returns-value]
        strategy.history = history  # type: ignore[attr-defined]
        return strategy, lambda: history

    (strategy, look), (again, look_again) = made(), made()
    variables, fresh = ServerVariables([strategy, look]), ServerVariables([again, look_again])
    strategy.on_fit_config_fn(1)  # type: ignore[misc]
    checkpoint = Checkpoint.of(1, [], strategy, {}, {}, variables.changed())
    checkpoint.restore(again)
    fresh.restore(checkpoint.kept_variables(fresh.present()))
    again.on_fit_config_fn(2)  # type: ignore[misc]
    assert again.history == look_again() == [1, 2]  # type: ignore[attr-defined]
    assert again.history is look_again()  # type: ignore[attr-defined]

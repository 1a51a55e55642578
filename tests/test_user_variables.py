"""What user code keeps in variables, and the generators that it makes for itself, are the same for each client."""

from __future__ import annotations

import array
import itertools
import pickle
import random
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ray import cloudpickle
from torch.utils.data import TensorDataset

from sim import RunConfig
from sim.data.items import Items
from sim.data.load_dataset import load_dataset, open_dataset
from sim.seeds import Purpose, sequence
from sim.user_objects import is_library, is_state
from sim.user_variables import UserVariables, changed_by

_SOURCE = """
import argparse, random
import numpy as np, torch

step, name, limits, names, rates, grows = 0, "first", (1, 2), {"a"}, {"all": [0.1]}, []
ready, cache, many, args = False, {}, [0] * 1001, argparse.Namespace(lr=0.1)
best = loaded = None
generators = [np.random.default_rng(1), np.random.RandomState(1), np.random.RandomState(np.random.PCG64(1)),
              random.Random(1), torch.Generator()]
shared, entropy = np.random.mtrand._rand, random.SystemRandom()

class Data:
    total = 0
    def __init__(self):
        self.drawn, self.noise = 0, np.random.default_rng(2)

data = Data()

def counter():
    calls = 0
    def count(seen=[]):
        nonlocal calls
        calls += 1
        seen.append(calls)
        count.last = calls
        return calls, len(seen), count.last
    count.last = 0
    return count

count = counter()

def use():
    global step, name, limits, ready, best, loaded
    best, loaded = (best or 0) + 1, loaded or object()
    step, name, limits, ready = step + 1, name + "!", (*limits, 3), True
    names.add(name); rates["all"].append(0.2); rates["more"] = 1; args.lr /= 2
    cache["data"] = data; many[0] += 1; grows.extend(range(2000))
    Data.total += 1; data.drawn += 1
    return [step, name, limits, sorted(names), str(rates), args.lr, Data.total, data.drawn, count(), len(grows), best]

def draw():
    numpy, legacy, other, python, pytorch = generators
    return [numpy.random(), legacy.random_sample(), other.random_sample(), python.random(),
            float(torch.rand((), generator=pytorch)), data.noise.random()]
"""
_FOUND = [1, "first!", (1, 2, 3), ["a", "first!"], "{'all': [0.1, 0.2], 'more': 1}", 0.05, 1, 1, (1, 1, 1), 2000, 1]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[types.ModuleType]:
    """A module of the user's that has just been imported."""
    made = types.ModuleType("of_the_user")
    made.__file__ = str(tmp_path / "of_the_user.py")
    monkeypatch.setitem(sys.modules, made.__name__, made)
    exec(_SOURCE, vars(made))
    return made


def test_each_client_finds_plain_variables_as_they_were_at_first(module: Any) -> None:
    variables = UserVariables()
    variables.renew()
    for client_id in range(3):
        with variables.initial(sequence(0, Purpose.FIT, 1, client_id)):
            assert module.use() == _FOUND
    assert (module.step, module.rates, module.args.lr, module.Data.total) == (0, {"all": [0.1]}, 0.1, 0)
    assert module.best is None
    assert module.loaded is not None
    assert (module.ready, module.cache, module.many[0]) == (True, {"data": module.data}, 3)
    assert variables.notes == [
        "clients change of_the_user.step, of_the_user.name, of_the_user.limits and 10 more, which each of them finds "
        "as it was at first",
        "clients keep in of_the_user.cache, of_the_user.ready what is not put back, because it is large or no plain "
        "value; a cache of data is fine there, but results that depend on the clients before differ with the number of "
        "processes",
    ]


def test_counters_and_bytes_begin_anew_for_each_client(module: Any) -> None:
    module.counts, module.places, module.table = itertools.count(3), [itertools.count(1, 2)], bytearray(2)
    table = module.table
    module.numbers = array.array("d", [0.5])
    variables = UserVariables()
    variables.renew()
    for client_id in range(3):
        with variables.initial(sequence(0, Purpose.FIT, 1, client_id)):
            assert [next(module.counts), next(module.counts), next(module.places[0])] == [3, 4, 1]
            assert module.numbers == array.array("d", [0.5])
            module.numbers[0] += 1
            module.numbers.append(2.0)
            module.table[1] += 7
            assert (module.table, table) == (b"\0\7", b"\0\7")


COUNTERS = """
import itertools

one = two = itertools.count()
untouched = {"a": itertools.count()}
pair = bytearray(2), 1

def number(ids=itertools.count()):
    pair[0][0] += 1
    return [next(one), next(two), next(ids), pair[0][0]]
"""


def test_a_counter_keeps_its_two_names_and_one_may_be_a_default(module: Any) -> None:
    exec(COUNTERS, vars(module))
    variables = UserVariables()
    variables.renew()
    for client_id in range(3):
        with variables.initial(sequence(0, Purpose.FIT, 1, client_id)):
            assert module.number() == [0, 1, 0, 1]
            assert module.one is module.two
    assert not any("untouched" in note for note in variables.notes)


EARLY_STOPPING = """
class EarlyStopping:
    {slots}
    def __init__(self):
        self.best, self.count, self.stop = 1e9, 0, False

    def __call__(self, loss):
        self.count = 0 if loss < self.best else self.count + 1
        self.best, self.stop = min(loss, self.best), self.count > 1

stopper = EarlyStopping()
"""


@pytest.mark.parametrize("slots", ["", "__slots__ = ('best', 'count', 'stop')"])
def test_a_flag_is_put_back_where_all_else_is(module: Any, slots: str) -> None:
    exec(EARLY_STOPPING.format(slots=slots), vars(module))
    variables = UserVariables()
    variables.renew()
    for client_id in range(2):
        with variables.initial(sequence(0, Purpose.FIT, 1, client_id)):
            assert (module.stopper.best, module.stopper.count, module.stopper.stop) == (1e9, 0, False)
            for _ in range(3):
                module.stopper(0.5)
            assert module.stopper.stop
    assert not module.stopper.stop
    (note,) = variables.notes
    assert note == (
        "clients change of_the_user.EarlyStopping.best, of_the_user.EarlyStopping.count, "
        "of_the_user.EarlyStopping.stop, which each of them finds as it was at first"
    )


@pytest.mark.parametrize(
    "average", ["[torch.zeros(2)]", "{'w': torch.zeros(2)}", "[np.zeros(2)]", "[{'w': torch.zeros(2)}]"]
)
def test_averages_of_weights_in_the_place_of_none_are_none_again(module: Any, average: str) -> None:
    variables = UserVariables()
    variables.renew(module)
    for client_id in range(2):
        with variables.initial(sequence(0, Purpose.FIT, 1, client_id)):
            assert module.best is None
            module.best = eval(average, vars(module))
    assert module.best is None
    assert variables.notes == ["clients change of_the_user.best, which each of them finds as it was at first"]


def test_small_objects_in_the_place_of_none_and_arrays_without_dimensions_are_put_back(module: Any) -> None:
    exec("class State:\n    def __init__(self): self.calls, self.sum = 0, torch.zeros(3)\n", vars(module))
    module.step, module.scale = torch.tensor(1.0), torch.nn.Parameter(torch.ones(2))
    variables = UserVariables()
    variables.renew(module)
    for client_id in range(2):
        with variables.initial(sequence(0, Purpose.FIT, 1, client_id)):
            assert (module.best, module.step.item(), module.scale.tolist()) == (None, 1.0, [1.0, 1.0])
            module.best = module.State()
            module.step += 1
            module.scale.data *= 2
    assert (module.best, module.step.item(), module.scale.tolist()) == (None, 1.0, [1.0, 1.0])
    (note,) = variables.notes
    assert note.startswith("clients change of_the_user.step, of_the_user.best, of_the_user.scale, which each")


GRAPHS = """
total, ready, losses, sums, mean = 0.0, False, [], {"loss": 0.0, "n": 0}, torch.zeros(())
weight = torch.nn.Parameter(torch.ones(2))

def add():
    global total, ready, best
    loss = (weight * 2).sum()
    found = [float(total), bool(ready), len(losses), float(sums["loss"]), sums["n"], float(mean), best is None]
    total, ready, best = total + loss, np.float64(1) > 0.5, loss if best is None else best + loss
    losses.append(loss)
    sums["loss"] += loss
    sums["n"] += 1
    mean.add_(loss)
    mean.backward()
    return found
"""


def test_numbers_become_numbers_again_where_clients_have_added_tensors_of_a_graph_to_them(module: Any) -> None:
    exec(GRAPHS, vars(module))
    mean = module.mean
    variables = UserVariables()
    variables.renew(module)
    for client_id in range(3):
        with variables.initial(sequence(0, Purpose.FIT, 1, client_id)):
            assert module.add() == [0, False, 0, 0, 0, 0, True]
    assert (module.total, module.ready, module.losses, module.sums) == (0, False, [], {"loss": 0, "n": 0})
    assert module.mean is mean
    assert (mean.item(), mean.requires_grad) == (0, False)
    (note,) = variables.notes
    assert note.endswith("which each of them finds as it was at first")


CONSTANTS = """
import enum
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

class Phase(enum.Enum):
    WARM = 1
    COLD = 2

class Rate(NamedTuple):
    lr: float
    steps: list

class History(list):
    pass

phase, path, amount, share, waited = Phase.WARM, Path("a"), Decimal(0), Fraction(0), timedelta(0)
rate, places, shape, dtype = Rate(0.1, []), range(3), torch.Size([1]), torch.float32
of_numpy, is_late = np.dtype("f4"), np.bool_(False)
words, history, phases = np.array(["a", "b"]), History(), []
history.best = 0

def rebind():
    global phase, path, amount, share, waited, rate, places, shape, dtype, of_numpy, is_late
    found = [phase.name, str(path), amount, share, waited, rate.lr, len(rate.steps), len(places), len(shape),
             str(dtype), str(of_numpy), bool(is_late), *words, len(history), history.best, len(phases)]
    phase, path, amount, share, waited = Phase.COLD, Path("b"), amount + 1, share + 1, waited + timedelta(1)
    rate.steps.append(1)
    rate, places, shape, dtype = rate._replace(lr=0.2), range(4), torch.Size([1, 1]), torch.float64
    of_numpy, is_late, words[0] = np.dtype("f8"), np.bool_(True), "z"
    history.append(0.5)
    history.best = 1
    phases.append(phase)
    return found
"""


def test_values_that_cannot_change_and_lists_of_own_classes_are_put_back(module: Any) -> None:
    exec(CONSTANTS, vars(module))
    variables = UserVariables()
    variables.renew(module)
    at_first = [
        "WARM",
        "a",
        0,
        0,
        module.timedelta(0),
        0.1,
        0,
        3,
        1,
        "torch.float32",
        "float32",
        False,
        "a",
        "b",
        0,
        0,
        0,
    ]
    for client_id in range(3):
        with variables.initial(sequence(0, Purpose.FIT, 1, client_id)):
            assert module.rebind() == at_first
    (note,) = variables.notes
    assert note.endswith("and 12 more, which each of them finds as it was at first")


def test_data_that_clients_put_in_the_place_of_others_stay_and_are_named(module: Any) -> None:
    module.train, module.pool = TensorDataset(torch.zeros(2, 1)), [module.data]
    at_first = module.train
    variables = UserVariables()
    variables.renew(module)
    later = TensorDataset(torch.ones(2, 1))
    for _ in range(2):
        with variables.initial(sequence(0, Purpose.FIT, 1, 0)):
            module.train = later
            module.pool.append(later)
    assert module.train is later
    assert module.pool == [module.data, later, later]
    assert [note[:56] for note in variables.notes] == ["clients keep in of_the_user.train, of_the_user.pool what"]
    module.train, module.pool[1:] = at_first, []
    with variables.initial(sequence(0, Purpose.FIT, 1, 0)):
        module.train = None
        module.pool.append(torch.nn.Linear(1, 1))
    assert module.train is at_first
    assert module.pool == [module.data]


def test_networks_that_the_server_has_put_into_variables_meanwhile_are_there_after_a_client(module: Any) -> None:
    module.net, module.nets = torch.nn.Linear(1, 1), [module.data]
    variables = UserVariables()
    variables.renew(module)
    at_first, of_server = module.net, torch.nn.Linear(1, 1)
    module.net = module.best = of_server
    module.nets.append(of_server)
    with variables.initial(sequence(0, Purpose.FIT, 1, 0)):
        assert (module.net, module.best, module.nets) == (at_first, None, [module.data])
        module.net = module.best = torch.nn.Linear(1, 1)
    assert (module.net, module.best, module.nets) == (of_server, of_server, [module.data, of_server])


def test_large_averages_of_weights_stay_and_are_named(module: Any) -> None:
    variables = UserVariables()
    variables.renew(module)
    with variables.initial(sequence(0, Purpose.FIT, 1, 0)):
        module.best = [torch.zeros(2**16), torch.zeros(1)]
    assert len(module.best) == 2
    (note,) = variables.notes
    assert note.startswith("clients keep in of_the_user.best what is not put back")


def test_what_the_server_changes_meanwhile_reaches_no_client_and_stays(module: Any) -> None:
    variables = UserVariables()
    variables.renew()
    module.use()
    with variables.initial(sequence(0, Purpose.FIT)):
        assert module.use() == _FOUND
    assert module.use()[:2] == [2, "first!!"]


def test_own_generators_draw_from_the_stream_of_the_client(module: Any) -> None:
    variables = UserVariables()
    variables.renew()
    before = random.Random(1).random(), np.random.default_rng(1).random()
    draws = {}
    global_state = np.random.get_state()[1].tolist()  # noqa: NPY002
    for client_id in (0, 1, 0):
        with variables.initial(sequence(0, Purpose.FIT, 1, client_id)):
            drawn = module.draw()
        assert draws.setdefault(client_id, drawn) == drawn
    assert len({number for drawn in draws.values() for number in drawn}) == 12
    assert (module.generators[3].random(), module.generators[0].random()) == before
    assert np.random.get_state()[1].tolist() == global_state  # noqa: NPY002


def test_functions_that_come_by_value_draw_the_same(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of a script do in another process, where the script is not imported."""
    variables = UserVariables()
    variables.renew()
    cloudpickle.register_pickle_by_value(module)
    there = pickle.loads(cloudpickle.dumps((module.use, module.draw)))
    monkeypatch.delitem(sys.modules, module.__name__)
    others = UserVariables()
    others.renew(*there)
    with variables.initial(sequence(0, Purpose.FIT)):
        expected = module.draw()
    for _ in range(2):
        with others.initial(sequence(0, Purpose.FIT)):
            assert there[0]() == _FOUND
            assert there[1]() == expected


def test_a_module_that_a_client_imports_is_as_new_for_the_next(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, module.__name__)
    variables = UserVariables()
    variables.renew()
    draws = []
    for _ in range(2):
        with variables.initial(sequence(0, Purpose.FIT)):
            if module.__name__ not in sys.modules:
                monkeypatch.setitem(sys.modules, module.__name__, module)
                variables.note(module)  # as the import of a file of the user's does
            draws.append(module.draw())
            assert module.use() == _FOUND
    assert draws[0] == draws[1]


def test_what_a_block_sets_is_named(module: Any) -> None:
    with changed_by(lambda: None) as names:
        module.step, module.new, module.Data.total = 5, object(), 0
        module.cache["data"] = 1
    assert names == ["of_the_user.step", "of_the_user.cache", "of_the_user.new"]


def test_load_data_is_called_in_each_process_if_it_sets_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = ["import numpy as np", "SIZE = None", "def load_data():", "    global SIZE", "    SIZE = 3"]
    lines += ["    x, y = np.ones((6, 3), np.float32), np.arange(6) % 2", "    return (x, y), (x, y)"]
    (tmp_path / "sets_size.py").write_text("\n".join(lines))
    (tmp_path / "sets_none.py").write_text("\n".join(line for line in lines if "SIZE" not in line))
    dataset = load_dataset(RunConfig(dataset="sets_size:load_data"))
    assert dataset.notes == (
        "--dataset sets_size:load_data sets sets_size.SIZE, so every process that executes clients calls it",
    )
    sys.modules["sets_size"].SIZE = None  # type: ignore[attr-defined]
    assert torch.equal(torch.from_numpy(open_dataset(dataset.source).train.batch[0].copy()), torch.ones(6, 3))  # type: ignore[union-attr]
    assert sys.modules["sets_size"].SIZE == 3  # type: ignore[attr-defined]
    assert load_dataset(RunConfig(dataset="sets_size:load_data")).notes == dataset.notes  # although it is 3 already
    assert load_dataset(RunConfig(dataset="sets_none:load_data")).source.program is None


_LOADS = """
import numpy as np
import torch
from sklearn.preprocessing import StandardScaler

rng, drawing, scaler = np.random.default_rng(0), torch.Generator().manual_seed(0), StandardScaler()
names, filled, calls = [], np.zeros(2), 0

def load_data():
    global calls
    calls += 1
    names.extend(["a", "b"])
    x = rng.normal(size=(6, 2)) + torch.rand(2, generator=drawing).numpy()
    filled[:] = x.mean(0)
    x = scaler.fit_transform(x).astype(np.float32)
    return (x, np.arange(6) % 2), (x, np.arange(6) % 2)
"""


def test_a_second_call_of_load_data_begins_as_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It draws the same, its lists do not grow, and what it fits or fills in place counts as set by it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loads.py").write_text(_LOADS)
    dataset = load_dataset(RunConfig(dataset="loads:load_data"))
    assert " sets loads." in dataset.notes[0]
    assert dataset.source.program is not None
    module: Any = sys.modules["loads"]
    filled = module.filled.copy()
    for _ in range(2):
        train = dataset.source.program.call().train
        assert np.array_equal(train[0], dataset.train.batch[0])  # type: ignore[union-attr]
        assert (module.names, module.calls, module.filled.tolist()) == (["a", "b"], 1, filled.tolist())


@pytest.mark.parametrize("line", ["scaler.fit([[1.0], [2.0]])", "filled[:] = 1", "weights.fill_(1)"])
def test_what_is_changed_in_place_is_named(line: str, module: Any) -> None:
    module.number, module.sparse = float("nan"), torch.eye(2).to_sparse()
    lines = (
        "from sklearn.preprocessing import StandardScaler\nscaler, filled, weights = StandardScaler(), np.ones(2) * 0, "
    )
    exec(f"{lines}torch.zeros(2)", vars(module))
    with changed_by(lambda: None) as names:
        pass
    assert names == []
    with changed_by(lambda: None) as names:
        exec(line, vars(module))
    assert names


def test_to_look_at_items_changes_no_counter_and_no_generator_of_theirs(module: Any) -> None:
    class Counted(torch.utils.data.Dataset[Any]):
        def __init__(self) -> None:
            self.drawn, self.rng = 0, np.random.default_rng(0)

        def __len__(self) -> int:
            return 40

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            self.drawn += 1
            module.step += 1
            return torch.tensor(self.rng.normal(size=3)), index % 2

    data = Counted()
    dataset = load_dataset(RunConfig(dataset="x:y"), lambda: (data, data))
    assert isinstance(dataset.train, Items)
    assert (dataset.train.labels is not None, dataset.input_shape, dataset.target_shape) == (True, (3,), ())
    assert len(dataset.fingerprint) == 64
    assert (data.drawn, module.step, data.rng.random()) == (0, 0, np.random.default_rng(0).random())


_MORE = """
import collections
import numpy as np, torch
mean, start, totals = torch.zeros(3), np.full(2, np.nan), np.float64(0)
seen, last, groups = collections.Counter("a"), collections.deque([1], 2), collections.defaultdict(list, a=[1])

class State:
    pass

state = State()

def use():
    global mean, totals, later
    mean = mean + 1
    start[:] = 3
    totals += 1
    seen.update("ab"); last.append(2); groups["b"].append(1)
    later = globals().get("later", 0) + 1
    use.calls = getattr(use, "calls", 0) + 1
    State.made = getattr(State, "made", 0) + 1
    state.count = getattr(state, "count", 0) + 1
    counts = [later, use.calls, State.made, state.count]
    return [mean.tolist(), float(totals), dict(seen), list(last), dict(groups), *counts]
"""


def test_so_it_finds_arrays_counters_and_what_was_not_there(module: Any) -> None:
    exec(_MORE, vars(module))
    variables = UserVariables()
    variables.renew()
    for client_id in range(2):
        with variables.initial(sequence(0, Purpose.FIT, 1, client_id)):
            found = module.use()
        assert found == [[1.0] * 3, 1.0, {"a": 2, "b": 1}, [1, 2], {"a": [1], "b": [1]}, 1, 1, 1, 1]
    assert (module.mean.tolist(), module.last.maxlen, module.groups.default_factory) == ([0.0] * 3, 2, list)
    assert np.isnan(module.start).all()
    assert not hasattr(module, "later")
    assert vars(module.state) == vars(module.use) == {}
    (note,) = variables.notes
    assert note.startswith("clients change of_the_user.mean, of_the_user.start, of_the_user.totals and 7 more, which")


def test_what_pip_has_installed_into_a_folder_is_no_code_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("installed", "written"):
        (tmp_path / name).mkdir()
        monkeypatch.syspath_prepend(str(tmp_path / name))
    (tmp_path / "installed" / "some_library-1.0.dist-info").mkdir()
    found = [is_library(str(tmp_path / name / "module.py")) for name in ("installed", "written")]
    assert found == [True, False]


class _WithSlots:
    __slots__ = ("data",)

    def __init__(self, data: Any) -> None:
        self.data = data


def test_what_is_removed_after_a_client_is_no_data_and_does_not_depend_on_the_order() -> None:
    _WithSlots.__module__ = "of_the_user"
    net, large = torch.nn.Linear(2, 2), TensorDataset(torch.zeros(3))
    assert is_state(_WithSlots(net))
    assert not is_state(_WithSlots(large))
    average = torch.zeros(40_000)
    for held in ({"average": average, "net": net}, {"net": net, "average": average}):
        assert is_state(held)
        assert is_state([held])
    assert not is_state({"one": average, "other": average, "net": net})  # too large for a copy

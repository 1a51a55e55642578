"""Data sets of the user's: what train reads of them is what they give, and what cannot be read is one line."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import MutableMapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from program_text import extended
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from sim import CentralizedConfig, DataError, PluginError, RunConfig, simulate, train_centralized
from sim.data.columns import Columns, leaves, target_of
from sim.data.items import Items, opened
from sim.data.load_dataset import load_dataset
from sim.data.loaders import ExampleLoader, _with_noise, resident, with_target
from sim.run_folder.folder import Run


class Points(Dataset[Any]):
    """Points whose first value says the class."""

    def __init__(self, count: int = 24, make: Any = None, breaks: int = -1) -> None:
        self.x = torch.randn(count, 3, generator=torch.Generator().manual_seed(count))
        self.make, self.breaks = make or (lambda x, y: (x, y)), breaks

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Any:
        if index == self.breaks:
            raise OSError("the file is truncated")
        return self.make(self.x[index], int(self.x[index, 0] > 0))


class Net(nn.Module):
    """A line."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x: Any) -> Any:
        """Return two scores."""
        return self.fc(x.float())


def _run(tmp_path: Path, data: Any, **settings: Any) -> Run:
    fixed: dict[str, Any] = {"num_clients": 2, "num_rounds": 1, "local_epochs": 1, "fraction_fit": 1.0}
    config = RunConfig(**fixed, **settings, partitioner="iid", engine="inline", results_dir=str(tmp_path / "results"))
    return simulate(config, model=Net, load_data=lambda: data)


class Attributes(dict[str, Any]):
    """A batch whose entries are attributes."""

    __getattr__ = dict.__getitem__


Pair = namedtuple("Pair", "first second")


@pytest.mark.parametrize(
    "make",
    [
        lambda x, y: (x, y),
        lambda x, y: [x.numpy(), float(y)],
        lambda x, y: (x, bool(y)),
        lambda x, y: {"x": x, "label": y},
        lambda x, y: (x, np.int64(y)),
        lambda x, y: ((x, [y]), y),
    ],
)
@pytest.mark.parametrize("form", ["columns", "items"])
def test_items_have_the_types_that_the_data_set_gives(form: str, make: Any) -> None:
    original = Points(make=make)
    split = resident(opened("--dataset", DataLoader(original, 4), form), torch.device("cpu"))
    positions = np.array([3, 5, 8])
    given = ExampleLoader(split, positions, None, training=True).dataset
    seen, expected = [given[number] for number in range(3)], [original[index] for index in positions]
    assert list(map(_kinds, seen)) == list(map(_kinds, expected))
    assert list(map(repr, seen)) == list(map(repr, expected))


def _kinds(item: Any) -> Any:
    if isinstance(item, dict):
        return type(item), {key: _kinds(value) for key, value in item.items()}
    return (type(item), [_kinds(each) for each in item]) if isinstance(item, list | tuple) else type(item)


@pytest.mark.parametrize("make", [lambda x, y: Attributes(x=x, label=y), lambda x, y: (Pair(x, x), y)])
def test_containers_of_other_classes_are_kept(make: Any, tmp_path: Path) -> None:
    def train(net: Any, loader: Any) -> None:
        for batch in loader:
            inputs, labels = (batch.x, batch.label) if isinstance(batch, Attributes) else (batch[0].first, batch[1])
            nn.functional.cross_entropy(net(inputs), labels).backward()

    def test(net: Any, loader: Any) -> float:
        return float(
            sum(isinstance(batch, Attributes) or batch[0].second is not None for batch in loader) / len(loader)
        )

    config = RunConfig(num_clients=2, num_rounds=1, engine="inline", results_dir=str(tmp_path))
    data = DataLoader(Points(make=make), 4), DataLoader(Points(make=make), 4)
    run = simulate(config, model=Net, train=train, test=test, load_data=lambda: data)
    assert run.rounds().test_accuracy.tolist() == [1, 1]


def test_tables_of_pandas_are_arrays(tmp_path: Path) -> None:
    points = Points()
    table, labels = pd.DataFrame(points.x.numpy()), pd.Series([points[index][1] for index in range(24)])
    given = _run(tmp_path, ((table, labels), (table, labels)), name="pandas").rounds().test_loss.tolist()
    arrays = (points.x.numpy(), labels.to_numpy())
    assert given == _run(tmp_path, (arrays, arrays), name="arrays").rounds().test_loss.tolist()


def test_tables_of_several_types_are_numbers_or_one_line(tmp_path: Path) -> None:
    points = Points()
    labels = [points[index][1] for index in range(24)]
    table = pd.DataFrame({"a": points.x[:, 0].numpy(), "b": pd.array([True, False] * 12), "c": points.x[:, 1].numpy()})
    columns = opened("train", (table, pd.Series(labels)), "auto")
    assert isinstance(columns, Columns)
    assert [array.dtype for array in leaves(columns.batch)] == [np.float32, np.int64]
    table["b"] = pd.Timestamp("2026-01-01")
    with pytest.raises(DataError, match=r"^train: has values of the type object, of which PyTorch makes no tensor$"):
        opened("train", (table, pd.Series(labels)), "auto")


def test_arrays_of_another_byte_order_keep_their_values_and_those_without_a_tensor_are_one_line() -> None:
    x, y = Points().x.numpy(), LABELS.numpy()
    for form in ("columns", "items"):
        split = resident(opened("train", (x.astype(">f4"), y.astype(">i8")), form), torch.device("cpu"))
        inputs, targets = next(iter(ExampleLoader(split, None, 24, training=False)))
        assert (inputs.tolist(), targets.tolist()) == (x.tolist(), y.tolist())
        assert (inputs.dtype, targets.dtype) == (torch.float32, torch.int64)
    for made in (x.astype(np.longdouble), x.astype(np.clongdouble)):
        with pytest.raises(DataError, match=f"^train: has values of the type {made.dtype}, of which PyTorch makes no "):
            opened("train", (made, y), "auto")


def test_items_of_a_tensor_dataset_are_tensors_and_keys_need_not_be_texts() -> None:
    items = opened("train", TensorDataset(Points().x, LABELS), "items")
    assert isinstance(items, Items)
    assert all(isinstance(each, torch.Tensor) for each in items.dataset[0])
    numbered = opened("train", Points(make=lambda x, y: {0: x, 1: y}), "auto")
    assert isinstance(numbered, Items)


def test_other_targets_and_noise_keep_the_class_of_a_batch() -> None:
    x = torch.ones(2, 3)
    for batch in (Attributes(x=x, label=LABELS[:2]), Pair(x, LABELS[:2]), (x, LABELS[:2]), [x, LABELS[:2]]):
        flipped, noisy = with_target(batch, lambda labels: labels + 1), _with_noise(batch, 0.5)
        assert type(flipped) is type(noisy) is type(batch)
        assert target_of(flipped).tolist() == [1, 1]
        assert target_of(noisy).tolist() == [0, 0]
        assert not torch.equal(noisy["x"] if isinstance(noisy, Attributes) else noisy[0], x)


def test_the_data_set_of_a_client_has_the_tensors_of_its_examples(tmp_path: Path) -> None:
    def counted(net: nn.Module, loader: Any) -> dict[str, float]:
        x, y = loader.dataset.tensors
        batches = list(loader)
        assert torch.equal(torch.cat([batch[0] for batch in batches]), x)
        assert torch.equal(torch.cat([batch[1] for batch in batches]), y)
        assert torch.equal(loader.dataset.targets, y)
        return {"loss": 0.0, "sum": float(y.sum())}

    data = TensorDataset(torch.arange(24.0).reshape(8, 3), torch.arange(8) % 2)
    one = {"num_clients": 2, "num_rounds": 1, "fraction_fit": 1.0, "engine": "inline", "partitioner": "size"}
    config = RunConfig(**one, partitioner_args={"partition_sizes": "3,5"}, results_dir=str(tmp_path))
    loaders = DataLoader(data, 2, shuffle=False), DataLoader(data, 2)
    metrics = simulate(config, model=Net, load_data=lambda: loaders, train=counted).metrics()
    sums = metrics[(metrics.name == "sum") & metrics.client_id.notna()].value
    assert sums.sum() == 4


def test_other_targets_never_reach_an_item_of_the_users() -> None:
    class Other(MutableMapping[str, Any]):
        def __init__(self) -> None:
            self.held = {"x": 1, "label": 0}

        __getitem__ = lambda self, key: self.held[key]  # noqa: E731
        __setitem__ = lambda self, key, value: self.held.__setitem__(key, value)  # noqa: E731
        __delitem__ = lambda self, key: self.held.__delitem__(key)  # noqa: E731
        __iter__ = lambda self: iter(self.held)  # noqa: E731
        __len__ = lambda self: len(self.held)  # noqa: E731

    item = Other()
    assert with_target(item, lambda label: label + 1)["label"] == 1
    assert item["label"] == 0


def test_clients_whose_loader_gives_no_batch_take_no_step(tmp_path: Path) -> None:
    run = _run(tmp_path, (DataLoader(Points(), 20, drop_last=True), DataLoader(Points(), 20)))
    first, last = run.rounds().test_loss
    assert first == pytest.approx(last)
    assert run.rounds().train_loss.isna().all()


def test_a_loader_that_gives_no_batch_trains_nothing_in_one_place_either(program: str) -> None:
    extended(program, "def load_data(): return DataLoader(trainset, 64, drop_last=True), testloader\n")
    rounds = train_centralized(CentralizedConfig(program=program, epochs=1)).rounds()
    assert rounds.test_loss[0] == rounds.test_loss[1]
    assert rounds.train_loss.isna().all()


COUNTING = """
import torch
from torch import nn

class Net(nn.Linear):
    calls = 0
    def __init__(self):
        super().__init__(4, 2)
    def forward(self, x):
        self.calls += 1
        return super().forward(x)

def load_data():
    data = torch.utils.data.TensorDataset(torch.ones(8, 4), torch.arange(8) % 2)
    return data, data

def test(net, loader):
    return {"loss": float(net.calls)}
"""


def test_the_net_that_is_trained_in_one_place_was_not_used_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_pictures: None
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "counting_calls.py").write_text(COUNTING)
    rounds = train_centralized(CentralizedConfig(program="counting_calls.py", epochs=1, batch_size=8)).rounds()
    assert rounds.test_loss.tolist() == [0, 1]


def test_labels_that_do_not_fit_are_named_in_one_place_too(program: str) -> None:
    extended(program, "def load_data(): return [(torch.ones(4), torch.tensor(-1))] * 4, testloader\n")
    with pytest.raises(DataError, match="labels are -1 … -1, but --model "):
        train_centralized(CentralizedConfig(program=program, epochs=1))


LABELS = torch.zeros(24, dtype=torch.int64)


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (DataLoader(Points(breaks=7)), Points(), "train: example 7 cannot be read: OSError: the file is truncated"),
        (DataLoader(Points(), None), Points(), "train: its DataLoader has batch_size=None, so that each item"),
        (
            TensorDataset(Points().x, LABELS),
            TensorDataset(Points().x, LABELS.clone().index_fill(0, torch.tensor([5]), 9)),
            "test labels are 0 … 9, but --model test_own_data:Net has 2 outputs, for 0 … 1",
        ),
        (TensorDataset(Points().x, LABELS - 1), Points(), "labels are -1 … -1, but --model "),
        (
            TensorDataset(Points().x, LABELS),
            TensorDataset(Points().x[:, :2], LABELS),
            "a test example is float32 [2], int64 [], and one for training float32 [3], int64 [], which the model or",
        ),
    ],
)
def test_what_cannot_be_read_or_trained_is_one_line(train: Any, test: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as raised:
        _run(tmp_path, (train, test), fraction_evaluate=0.0)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "results").exists()


def test_test_examples_of_another_form_are_tried_with_the_users_test(tmp_path: Path) -> None:
    def test(net: Any, loader: Any) -> float:
        return float(np.mean([net(x).shape[1] == 2 for x, _ in loader]))

    def run(x: torch.Tensor) -> Run:
        settings: Any = {"num_clients": 2, "num_rounds": 1, "engine": "inline", "partitioner": "iid"}
        data = TensorDataset(Points().x, LABELS), TensorDataset(x, LABELS)
        config = RunConfig(**settings, results_dir=str(tmp_path / "results"))
        return simulate(config, model=Net, test=test, load_data=lambda: data)

    with pytest.raises(
        PluginError, match=r"on the test examples; a test example is float32 \[2\], int64 \[\], and one"
    ):
        run(Points().x[:, :2])
    assert not (tmp_path / "results").exists()
    assert run(Points().x.double()).rounds().test_accuracy.tolist() == [1, 1]  # whose net takes them


def test_a_label_that_the_loss_ignores_is_no_class(tmp_path: Path) -> None:
    labels = LABELS.clone().index_fill(0, torch.tensor([5]), -100)
    _run(tmp_path, (TensorDataset(Points().x, labels), TensorDataset(Points().x, labels)))


def _floats(examples: Any) -> Any:
    x, y = zip(*examples, strict=True)
    return torch.stack(x), torch.tensor(y, dtype=torch.float32)


def test_a_criterion_fits_the_targets_that_a_collate_fn_makes(tmp_path: Path) -> None:
    """The data set has classes, and the batches have floats: cross-entropy would take eight examples for classes."""

    def train(net: Any, loader: Any, criterion: Any) -> float:
        x, y = next(iter(loader))
        assert (type(criterion).__name__, y.dtype) == ("BCEWithLogitsLoss", torch.float32)
        loss = criterion(net(x).squeeze(1), y)
        loss.backward()
        for parameter in net.parameters():
            parameter.data -= 0.1 * parameter.grad
        return float(loss)

    data = tuple(DataLoader(Points(), 8, collate_fn=_floats) for _ in range(2))
    settings: Any = {"num_clients": 2, "num_rounds": 1, "engine": "inline", "results_dir": str(tmp_path / "results")}
    run = simulate(
        RunConfig(**settings, partitioner="iid"), model=lambda: nn.Linear(3, 1), train=train, load_data=lambda: data
    )
    assert run.rounds().num_clients.tolist()[1:] == [1]


ONES, TWOS, THREES, FOURS = (np.full((4, 1), number, np.float32) for number in (1, 2, 3, 4))


def _pairs() -> Any:
    X_train, Y_train, X_test, Y_test = ONES, TWOS, THREES, FOURS  # noqa: N806
    return X_train, Y_train, X_test, Y_test


def _attributes() -> Any:
    data = SimpleNamespace(x=ONES, y=TWOS, x_val=THREES, y_val=FOURS)
    return [data.x, data.y, data.x_val, data.y_val]


def _of_scikit_learn() -> Any:
    x, x_te, y, y_te = ONES, TWOS, THREES, FOURS
    return x, x_te, y, y_te


def _unnamed() -> Any:
    return ONES, TWOS, THREES, FOURS[:]


@pytest.mark.parametrize(
    ("load_data", "train", "is_noted"),
    [
        (_pairs, [1, 2], False),
        (_attributes, [1, 2], False),
        (_of_scikit_learn, [1, 3], False),
        (_unnamed, [1, 3], True),
    ],
)
def test_names_say_which_of_four_arrays_of_one_shape_belong_together(
    load_data: Any, train: list[int], is_noted: bool
) -> None:
    dataset = load_dataset(RunConfig(dataset="own:load"), load_data)
    assert [column[0, 0] for column in dataset.train.batch] == train
    assert any("are taken for x_train, x_test, y_train, y_test" in note for note in dataset.notes) == is_noted

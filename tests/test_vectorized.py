"""Many clients in one computation give what one after another gives."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from program_text import extended
from safetensors.numpy import load_file
from torch import nn

from sim import Run, RunConfig
from sim.client.runtime import ClientRuntime, loss_of
from sim.client.torch_client import fit_settings
from sim.data.batches import DrawnBatch, Resident
from sim.data.columns import Columns
from sim.data.load_dataset import Examples
from sim.data.loaders import ResidentColumns
from sim.engine import vectorized
from sim.engine.client_execution import Worker
from sim.engine.interface import Chunk, Task
from sim.errors import ConfigError
from sim.setup import prepare
from sim.training import local
from sim.training.vectorized import Member, Trainer, drawn


def _distance(run: Run, other: Run) -> float:
    weights, others = load_file(run.model_path), load_file(other.model_path)
    return max(float(np.abs(weights[name] - others[name]).max()) for name in weights)


DECAYED = {"momentum": 0.9, "weight_decay": 0.1, "lr": 0.003}


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"partitioner": "linear", **DECAYED}, id="unequal"),
        pytest.param({"strategy": "fedprox", "augment": "crop-flip", "max_local_steps": 5}, id="proximal"),
        pytest.param({"strategy": "scaffold", "lr": 0.003, "momentum": 0.5}, id="scaffold"),
        pytest.param({"stragglers": 0.5, "lr": 0.003, "max_local_steps": None}, id="stragglers"),
        pytest.param({"clip_grad_norm": 0.5, "strategy": "fedprox", "lr": 0.01}, id="clipped"),
        *(
            pytest.param(settings, id=name, marks=pytest.mark.nightly)
            for name, settings in {
                "equal": {"partitioner": "iid", **DECAYED},
                "feddyn": {"strategy": "feddyn", "lr": 0.003},
                "fednova": {"strategy": "fednova", "strategy_args": {"mu": 0.1}, "lr": 0.003},
                "noise": {"feature_noise": 0.5, "lr": 0.003, "max_local_steps": 5},
                "adam": {"optimizer": "adam", "lr": 0.001, "strategy": "fedmedian"},
            }.items()
        ),
    ],
)
def test_two_rounds_end_within_1e_4_of_one_after_another(
    small: Callable[..., Run], settings: dict[str, object]
) -> None:
    """Small learning rates: with large ones, training doubles any rounding error every few steps.

    test_private_names.py has vectorized training on Ray.
    """
    # The smallest clients begin a second epoch, and the largest end in their first.
    shared = {"num_rounds": 2, "clients_per_round": 6, "local_epochs": 2, "max_local_steps": 12}
    shared |= {"partitioner": "linear", **settings}
    one, many = (
        small(name=name, local_training=name, **shared, **({"vectorized_clients": 4} if name == "vectorized" else {}))
        for name in ("sequential", "vectorized")
    )
    assert 0 < _distance(one, many) < 1e-4
    assert many.clients().vectorized_with.tolist() == [4, 4, 4, 4, 2, 2] * 2
    assert one.clients().vectorized_with.isna().all()
    assert np.abs(one.clients().loss - many.clients().loss).max() < 1e-4
    assert one.clients().num_examples.equals(many.clients().num_examples)
    assert one.clients().num_examples.nunique() > 1


@pytest.mark.parametrize(
    ("settings", "loss"),
    [
        pytest.param({"dataset": "fedprox-synthetic", "strategy": "fedprox"}, "cross_entropy", id="classes"),
        pytest.param({"dataset": "diabetes", "partitioner": "iid", "lr": 0.0001}, "mse", id="measurements"),
        pytest.param({"dataset": "columns:dicts", "model": "columns:WithDropout"}, "bce", id="dicts"),
        pytest.param({"dataset": "columns:measurements", "loss": "huber"}, "huber", id="in-order"),
        pytest.param(
            {"dataset": "wine", "model": "untidy:Scaled", "clip_grad_norm": 1.0, "partitioner": "iid"},
            "cross_entropy",
            id="scalar",
        ),
        pytest.param(
            {"dataset": "wine", "attack": "label-flip", "attack_share": 0.5, "partitioner": "iid"},
            "cross_entropy",
            id="flipped",
        ),
    ],
)
def test_any_columns_and_loss_end_within_1e_5_of_one_after_another(
    in_programs: None, small: Callable[..., Run], settings: dict[str, Any], loss: str
) -> None:
    shared = {"model": "Logistic", "num_rounds": 2, "clients_per_round": 5, "local_epochs": 2, "lr": 0.01, **settings}
    one, many = (
        small(name=name, local_training=name, **shared, **({"vectorized_clients": 3} if name == "vectorized" else {}))
        for name in ("sequential", "vectorized")
    )
    prepared = prepare.prepare(RunConfig(num_clients=10, **shared))
    assert loss_of(prepared.spec, prepared.dataset) == loss
    assert 0 <= _distance(one, many) < 1e-5
    assert _distance(one, small(name="seed", seed=1, local_training="sequential", **shared)) > 1e-4
    assert many.clients().vectorized_with.tolist() == [3, 3, 3, 2, 2] * 2
    assert one.clients().loss.tolist() == pytest.approx(many.clients().loss.tolist(), rel=1e-5)
    assert one.clients().num_examples.equals(many.clients().num_examples)


@pytest.mark.slow
def test_dropout_belongs_to_the_client_not_to_its_group(small: Callable[..., Run]) -> None:
    """Each client's masks come from a generator of its own, whoever is trained beside it."""
    settings = {"model": "SimpleCnn", "local_training": "vectorized", "num_rounds": 1, "max_local_steps": 4}
    pairs, fours = (small(name=f"by{count}", vectorized_clients=count, **settings) for count in (2, 4))
    assert _distance(pairs, fours) < 1e-5
    other = small(name="seed", vectorized_clients=4, seed=1, **settings)
    assert _distance(other, fours) > 1e-3


def test_dropout_keeps_the_right_share() -> None:
    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dropout = nn.Dropout(0.25)
            self.last = nn.Linear(1024, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.last(self.dropout(x.flatten(1)))
            return logits

    examples = Examples(np.zeros((4, 32, 32, 1), np.uint8), np.zeros(4, np.int64))
    split = Resident.of(examples, torch.device("cpu"))
    trainer = Trainer(Dropping(), split, 2, channels_last=False)
    assert trainer.masks == {"dropout.mask": (torch.Size([2, 1024]), 0.25)}
    members = [drawn(_loader(split), 1, 0, seed, torch.device("cpu")) for seed in (1, 2)]
    masks = trainer._drop(members)["dropout.mask"]
    assert masks.shape == (2, 2, 1024)
    assert masks.unique().tolist() == pytest.approx([0, 4 / 3])
    assert masks.mean().item() == pytest.approx(1, abs=0.05)
    assert not torch.equal(masks[0], masks[1])


@pytest.mark.parametrize("shape", [(), (3,)])
def test_targets_without_a_label_are_left_out_of_the_gradient(shape: tuple[int, ...]) -> None:
    """A class or three for each example. Of one client a batch has no label, and of the last one nothing has."""
    device, count = torch.device("cpu"), 12 * math.prod(shape)
    inputs, target = torch.arange(2.0 * count).view(12, *shape, 2) / 10, torch.arange(count).view(12, *shape) % 2
    target[::3], target[2:4], target[10:] = -100, -100, -100
    if shape:
        target[1, 1] = -100
    torch.manual_seed(0)
    net, split = nn.Linear(2, 2), ResidentColumns(Columns([inputs.numpy(), target.numpy()]), device)
    places = [[[0, 1], [2, 3], [4]], [[5, 6], [7, 8], [9]], [[10, 11]]]
    members = [Member([DrawnBatch(torch.tensor(p)) for p in batches], torch.Generator()) for batches in places]
    settings: dict[str, Any] = {"lr": 0.5, "momentum": 0.9}
    trainer = Trainer(net, split, 2, channels_last=False)
    stacked, losses = trainer.train([p.detach().numpy().copy() for p in net.parameters()], members, **settings)
    for k, batches in enumerate(places):
        alone = copy.deepcopy(net)
        loss = local.train(alone, [(inputs[p], target[p]) for p in batches], 1, device, **settings)
        for many, one in zip(stacked, alone.parameters(), strict=True):
            assert many[k].flatten().tolist() == pytest.approx(one.flatten().tolist(), abs=1e-6)
        assert (loss is None and math.isnan(losses[k])) or losses[k].item() == pytest.approx(loss, rel=1e-6)


def _loader(split: Resident) -> object:
    from sim.data.batches import Batches

    return Batches(split, None, 2, torch.device("cpu"), shuffle=True, channels_last=False)


def test_a_gpu_out_of_memory_halves_the_group(monkeypatch: pytest.MonkeyPatch) -> None:
    config = RunConfig(
        num_clients=6, local_training="vectorized", vectorized_clients=6, fraction_fit=1.0, max_local_steps=6
    )
    prepared = prepare.prepare(config)
    runtime = ClientRuntime(prepared.spec)
    settings = fit_settings(prepared.config, 1)
    chunk = Chunk(
        "fit", 1, [Task(i, {**settings, "local_epochs": 1}) for i in range(5)], prepared.initial_weights, True
    )
    whole, expected = vectorized.fit(runtime, chunk, 0)
    train, refused = Trainer.train, []

    def small_memory(self: Trainer, weights: object, members: list[object], **settings: object) -> object:
        if len(members) > 2:
            refused.append(len(members))
            raise torch.OutOfMemoryError("no more")
        return train(self, weights, members, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(Trainer, "train", small_memory)
    halved, total = vectorized.fit(runtime, chunk, 0)
    vectorized.fit(runtime, chunk, 0)
    assert refused == [5, 3], "the second time it begins with groups that fit"
    assert [result.vectorized_with for result in halved] == [2, 2, 1, 2, 2]
    assert [result.client_id for result in halved] == [0, 1, 2, 3, 4]
    assert [result.num_examples for result in halved] == [result.num_examples for result in whole]
    assert total.num_examples == expected.num_examples
    for mean, other in zip(total.mean(), expected.mean(), strict=True):
        assert np.abs(mean - other).max() < 1e-5


def test_what_cannot_be_stacked_is_refused(in_programs: None) -> None:
    for settings, reason in (
        ({"model": "untidy:WithOffset"}, "offset is a buffer"),
        ({"model": "untidy:Tied"}, "again.weight and block.weight are one parameter"),
        ({"model": "own:WithBatchNorm"}, "keeps buffers, such as BatchNorm's running statistics"),
        ({"train": "cifar:train"}, "--train cifar:train trains one client at a time"),
        ({"client": "own:Failing"}, "--client own:Failing trains one client at a time"),
        (
            {"dataset": "columns:dicts", "model": "columns:WithDropout", "data_form": "items"},
            "draws the examples of one",
        ),
        ({"dataset": "columns:dicts", "model": "columns:WithDropout", "loss": "columns:loss"}, "the mean of a batch"),
        (
            {"dataset": "wine", "feature_noise": 0.1, "num_clients": 5},
            "--feature-noise 0.1 is drawn for one client at a time",
        ),
        ({"dataset": "columns:dicts", "model": "columns:Recurrent"}, "columns:Recurrent cannot be stacked: "),
    ):
        with pytest.raises(ConfigError, match=reason):
            prepare.prepare(RunConfig(local_training="vectorized", **settings))  # type: ignore[arg-type]


def test_clients_with_settings_of_their_own_are_trained_one_after_another_with_a_note(
    caplog: pytest.LogCaptureFixture,
) -> None:
    prepared = prepare.prepare(RunConfig(num_clients=4, local_training="vectorized", vectorized_clients=2))
    tasks = [Task(i, {**fit_settings(prepared.config, 1), "lr": 0.1 * (i + 1), "max_steps": 1}) for i in range(2)]
    chunk = Chunk("fit", 1, tasks, prepared.initial_weights, True)
    worker = Worker(prepared.spec, 4, 0)
    assert [result.vectorized_with for _ in range(2) for result in worker.run(chunk).results] == [None] * 4
    note = "note: clients are trained one after another: clients get settings of their own: lr"
    assert [record.getMessage() for record in caplog.records if record.name == "sim"] == [note]


@pytest.mark.slow
def test_vectorized_training_that_fails_raises_where_asked_and_falls_back_once_where_auto(
    in_programs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RunConfig(num_clients=4, model="untidy:FailsTogether", local_training="vectorized", vectorized_clients=2)
    prepared = prepare.prepare(config)
    tasks = [Task(client_id, dict(fit_settings(prepared.config, 1))) for client_id in range(2)]
    chunk = Chunk("fit", 1, tasks, prepared.initial_weights, True)
    model = sys.modules["untidy"].FailsTogether
    monkeypatch.setattr(model, "fails", True)
    asked = Worker(prepared.spec, 4, 0).run(chunk)
    reason = "vectorized training failed: RuntimeError: no room for two"
    assert [result.error for result in asked.results] == [reason] * 2
    assert asked.total.num_examples == 0
    alone = Worker(replace(prepared.spec, vectorized_clients=1), 4, 0).run(chunk)
    auto, model.trainings = Worker(replace(prepared.spec, vectorized_only=False), 4, 0), 0
    for _ in range(2):
        found = auto.run(chunk)
        assert [(result.error, result.vectorized_with) for result in found.results] == [(None, None)] * 2
        assert model.trainings == 1
        assert all(map(np.array_equal, found.total.mean(), alone.total.mean()))


def test_auto_on_a_cpu_is_one_after_another() -> None:
    prepared = prepare.prepare(RunConfig())
    assert (prepared.config.local_training, prepared.spec.vectorized_clients) == ("sequential", 1)
    prepared = prepare.prepare(RunConfig(local_training="vectorized"))
    assert (prepared.config.vectorized_clients, prepared.spec.vectorized_clients) == (20, 20)


@pytest.mark.parametrize(
    ("settings", "clients"),
    [
        ({}, 25),
        ({"clients_per_round": 49}, 1),
        ({"clients_per_round": 59}, 30),
        ({"num_clients": 200, "clients_per_round": 120}, 50),
        ({"model": "Mlp"}, 1),
        ({"dataset": "breast-cancer"}, 25),
        ({"local_training": "sequential"}, 1),
    ],
)
def test_auto_on_a_cpu_trains_small_models_in_groups(
    settings: dict[str, Any], clients: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    given = {"model": "Logistic", "num_clients": 60, "clients_per_round": 50, "partitioner": "iid", **settings}
    assert prepare.prepare(RunConfig(**given)).spec.vectorized_clients == clients
    said = [record.getMessage() for record in caplog.records if record.name == "sim"]
    num_weights = 62 if "dataset" in settings else 10250
    expected = f"clients are trained in groups of {clients}, because Logistic has {num_weights} weights only"
    assert [line.partition(";")[0] for line in said if "trained" in line] == ([expected] if clients > 1 else [])


def test_clients_that_take_no_step_are_vectorized_with_the_others(program: str, small: Callable[..., Run]) -> None:
    extended(program, "def load_data(): return DataLoader(trainset, 8, drop_last=True), testloader\n")
    shared = {"program": program, "num_clients": 3, "clients_per_round": 3, "partitioner": "size", "max_local_steps": 9}
    shared["partitioner_args"] = {"partition_sizes": "4,9,20"}
    one, many = (small(name=name, local_training=name, **shared) for name in ("sequential", "vectorized"))
    assert 0 <= _distance(one, many) < 1e-5
    clients = many.clients()
    assert clients.loss.isna().tolist() == one.clients().loss.isna().tolist() == [True, False, False] * 2
    assert clients.vectorized_with.notna().all()

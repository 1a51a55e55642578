from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.common import Context, FitIns, RecordDict, ndarrays_to_parameters, parameters_to_ndarrays
from torch import nn

from sim import Run, RunConfig
from sim.client.runtime import ClientFn
from sim.client.torch_client import CifarClient
from sim.data.batches import Batches
from sim.data.load_dataset import Examples
from sim.setup import prepare
from sim.training import models
from sim.training.weights import get_weights, set_weights

FIT_CONFIG = {"local_epochs": 1, "batch_size": 2, "lr": 0.1, "momentum": 0.0, "weight_decay": 0.0}


def _client(num_train: int = 5, num_test: int = 3) -> CifarClient:
    rng = np.random.default_rng(0)
    examples = Examples(rng.integers(0, 256, (8, 16, 16, 1), np.uint8), np.arange(8) % 10)
    device = torch.device("cpu")
    train, test = (
        Batches(examples, np.arange(n), 4, device, shuffle=False, channels_last=True) for n in (num_train, num_test)
    )
    return CifarClient(models.Net((1, 16, 16)), train, test, device)


def test_fit_returns_new_weights_the_number_of_examples_and_the_mean_loss() -> None:
    client = _client()
    before = client.get_parameters({})
    for array in before:
        array.flags.writeable = False  # as they come from Ray's store
    after, num_examples, metrics = client.fit(before, FIT_CONFIG)
    assert num_examples == 5
    assert 2.0 < float(metrics["loss"]) < 2.6
    assert [a.shape for a in after] == [tensor.shape for tensor in client.net.state_dict().values()]
    assert not np.array_equal(after[0], before[0])


def test_evaluate_measures_the_clients_own_examples() -> None:
    client = _client()
    loss, num_examples, metrics = client.evaluate(client.get_parameters({}), {})
    assert (num_examples, set(metrics)) == (3, {"accuracy"})
    assert 2.0 < loss < 2.6
    assert _client(num_test=0).evaluate([], {}) == (0.0, 0, {})


def test_a_train_that_knows_nothing_of_the_proximal_term_gets_it() -> None:
    """The loss is Σ w, whose gradient is 1: w₁ = w₀ − η, and w₂ = w₁ − η (1 + μ (w₁ − w₀)) = w₀ − η (2 − η μ)."""
    client = _client()

    def train(net: nn.Module, loader: Any) -> None:
        optimizer = torch.optim.SGD(net.parameters(), lr=0.25)
        for _ in range(2):
            optimizer.zero_grad()
            torch.stack([parameter.sum() for parameter in net.parameters()]).sum().backward()
            optimizer.step()

    client.train = train
    before = [array.astype(float) for array in client.get_parameters({})]
    for mu in (0.0, 0.5):
        after = client.fit([array.astype(np.float32) for array in before], {**FIT_CONFIG, "proximal_mu": mu})[0]
        for w0, w2 in zip(before, after, strict=True):
            assert w2 == pytest.approx(w0 - 0.25 * (2 - 0.25 * mu), abs=1e-6)


def test_a_proximal_term_that_cannot_be_added_is_an_error() -> None:
    client = _client()

    def by_hand(net: nn.Module, loader: Any) -> None:
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.sub_(0.1)

    def put_anew(net: nn.Module, loader: Any) -> None:
        for module in net.modules():
            if isinstance(module, nn.Linear):
                module.bias = nn.Parameter(module.bias.detach() * 2)

    with_term = {**FIT_CONFIG, "proximal_mu": 0.1}
    client.train = by_hand
    client.fit(client.get_parameters({}), FIT_CONFIG)
    with pytest.raises(ValueError, match=r"^train took no step of an optimizer of torch.optim on the model"):
        client.fit(client.get_parameters({}), with_term)
    client.train = put_anew
    with pytest.raises(
        ValueError, match=r"^train puts new parameters in the place of fc1.bias, fc2.bias, fc3.bias, to"
    ):
        client.fit(client.get_parameters({}), with_term)
    client.train = lambda net, loader: None
    assert client.fit(client.get_parameters({}), with_term)[2] == {}


def test_weights_that_do_not_fit_are_named() -> None:
    net = models.Net()
    weights = get_weights(net)
    set_weights(net, [array + 1 for array in weights])
    assert np.array_equal(get_weights(net)[3], weights[3] + 1)
    with pytest.raises(ValueError, match="9 arrays for a model of 10"):
        set_weights(net, weights[:-1])
    with pytest.raises(ValueError, match=r"fc3.bias: shape \(1,\), the model has \(10,\)"):
        set_weights(net, [*weights[:-1], np.zeros(1, np.float32)])


def test_the_client_fn_is_flowers_and_holds_neither_data_nor_model(tmp_path: Path) -> None:
    config = RunConfig(num_clients=20, results_dir=str(tmp_path))
    prepared = prepare.prepare(config)
    client_fn = ClientFn(prepared.spec)
    assert len(pickle.dumps(client_fn)) < 2000
    context = Context(0, 0, {"partition-id": 7, "num-partitions": 20}, RecordDict(), {})
    result = client_fn(context).fit(FitIns(ndarrays_to_parameters(prepared.initial_weights), FIT_CONFIG))
    assert result.num_examples == prepared.partition.sizes[7]
    assert len(parameters_to_ndarrays(result.parameters)) == len(prepared.initial_weights)


def test_the_users_own_client_gets_loaders_and_arrays_that_it_may_write_to(
    small: Callable[..., Run], in_programs: None
) -> None:
    run = small(client="own:Tutorial", fraction_evaluate=0.5, num_rounds=3)
    rounds = run.rounds()
    assert rounds.train_loss.tolist()[1:] == [0.5] * 3
    assert rounds.eval_accuracy.tolist()[1:] == [0.75] * 3
    assert rounds.eval_loss.tolist()[1:] == [0.25] * 3


def test_flwrs_client_class_works_too(small: Callable[..., Run], in_programs: None) -> None:
    from safetensors.numpy import load_file

    one, two = (load_file(small(client="own:Plain", num_rounds=n, name=f"r{n}").model_path) for n in (1, 2))
    assert np.allclose(two["fc3.bias"], one["fc3.bias"] + 1, atol=1e-6)


def test_what_a_client_keeps_in_its_context_is_there_the_next_time(
    small: Callable[..., Run], in_programs: None
) -> None:
    clients = small(client="own:Counting", num_clients=6, clients_per_round=3, num_rounds=4).clients()
    calls = clients.groupby("client_id").cumcount() + 1
    assert clients.loss.tolist() == calls.tolist()
    assert calls.max() > 1

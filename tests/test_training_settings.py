"""Settings of the server and of the choice of clients: its learning rate, clients that drop out, seeds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from sim import ConfigError, Run, RunConfig, resume
from sim.seeds import Purpose, generator
from sim.setup.prepare import prepare

Small = Callable[..., Run]


def _weights(run: Run) -> dict[str, np.ndarray]:
    return load_file(run.model_path)


def _start(**settings: Any) -> dict[str, np.ndarray]:
    prepared = prepare(RunConfig(num_clients=10, clients_per_round=4, engine="inline", **settings))
    return dict(zip(prepared.layout.names, prepared.initial_weights, strict=True))


@pytest.mark.parametrize("strategy", ["fedavg", "fedmedian", "scaffold"])
def test_the_server_steps_by_its_learning_rate(small: Small, strategy: str) -> None:
    settings = {"num_rounds": 1, "strategy": strategy}
    made, half, start = small(name="one", **settings), small(name="half", server_lr=0.5, **settings), _start()
    whole, found = _weights(made), _weights(half)
    for name, before in start.items():
        assert found[name].dtype == before.dtype
        assert np.array_equal(found[name], before + 0.5 * (whole[name] - before)), name
        assert not np.array_equal(found[name], before)
    assert small(name="same", server_lr=1.0, **settings).model_path.read_bytes() == made.model_path.read_bytes()


@pytest.mark.parametrize(
    ("settings", "arguments"),
    [
        ({"strategy": "fedadam"}, {"strategy_args": {"eta": 0.02}}),
        ({"strategy": "fedavgm"}, {"strategy_args": {"server_learning_rate": 0.02}}),
        ({"strategy": "feddyn", "server_strategy": "fedyogi"}, {"server_args": {"eta": 0.02}}),
        ({"strategy": "fedbuff", "concurrency": 3}, {"strategy_args": {"server_lr": 0.02}}),
    ],
)
def test_a_strategy_with_a_rate_of_its_own_gets_that_of_the_server(
    small: Small, settings: dict[str, Any], arguments: dict[str, Any]
) -> None:
    flag, own = small(name="flag", server_lr=0.02, **settings), small(name="own", **settings, **arguments)
    assert flag.model_path.read_bytes() == own.model_path.read_bytes()
    assert own.model_path.read_bytes() != small(name="default", **settings).model_path.read_bytes()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"strategy": "fedadam", "strategy_args": {"eta": 0.1}},
            "--server-lr 0.5 and --strategy-args eta=0.1: give one of the two",
        ),
        (
            {"strategy": "scaffold", "server_strategy": "fedadam", "server_args": {"eta": 0.1}},
            "--server-lr 0.5 and --server-args eta=0.1: give one of the two",
        ),
        (
            {"strategy": "fedbuff", "strategy_args": {"server_lr": 0.1}},
            "--server-lr 0.5 and --strategy-args server_lr=0.1: give one of the two",
        ),
        (
            {"strategy": "fedasync"},
            "--server-lr 0.5: --strategy fedasync mixes each update by its own share; use --strategy-args alpha=0.5",
        ),
        (
            {"strategy": "qfedavg"},
            "--server-lr 0.5: --strategy qfedavg steps by --strategy-args client_learning_rate, which is --lr if not "
            "given",
        ),
        (
            {"strategy": "fedper", "server_strategy": "qfedavg"},
            "--server-lr 0.5: --server-strategy qfedavg steps by --server-args client_learning_rate, which is --lr if "
            "not given",
        ),
        (
            {"strategy": "own:Own"},
            "--server-lr 0.5: --strategy own:Own is your own, which takes its own steps; give it an argument for that",
        ),
    ],
)
def test_a_learning_rate_of_the_server_that_has_no_place(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        prepare(RunConfig(num_clients=10, clients_per_round=4, engine="inline", server_lr=0.5, **settings))
    assert str(error.value) == message


def test_the_seed_of_samples_changes_who_takes_part_and_nothing_else(small: Small) -> None:
    settings = {"fraction_evaluate": 0.3, "num_rounds": 3}
    plain, other = small(name="plain", **settings), small(name="other", sample_seed=7, **settings)
    chosen = [run.clients().groupby(["round", "phase"]).client_id.apply(list) for run in (plain, other)]
    assert not chosen[0].equals(chosen[1])
    # Partition and first weights are those of --seed.
    assert plain.rounds().test_loss[0] == other.rounds().test_loss[0]
    sizes = [
        run.clients().query("phase == 'fit'").set_index("client_id").num_examples.to_dict() for run in (plain, other)
    ]
    common = sizes[0].keys() & sizes[1].keys()
    assert common
    assert all(sizes[0][c] == sizes[1][c] for c in common)
    same = small(name="same", sample_seed=0, **settings)
    assert same.model_path.read_bytes() == plain.model_path.read_bytes()
    # Another seed with the same seed of samples: the same clients, on another partition.
    third = small(name="third", sample_seed=0, seed=3, **settings)
    assert third.clients().client_id.tolist() == plain.clients().client_id.tolist()
    assert third.rounds().test_loss[0] != plain.rounds().test_loss[0]


@pytest.mark.parametrize("settings", [{"sampler": "by-size"}, {"strategy": "fedbuff", "concurrency": 3}])
def test_samplers_draw_from_the_seed_of_samples(small: Small, settings: dict[str, Any]) -> None:
    runs = [small(name=f"r{n}", seed=seed, sample_seed=n, **settings) for n, seed in ((0, 0), (1, 0))]
    assert runs[0].clients().client_id.tolist() != runs[1].clients().client_id.tolist()
    plain = small(name="plain", **settings)
    assert plain.model_path.read_bytes() == runs[0].model_path.read_bytes()


def _drawn(server_round: int, client_id: int, share: float, seed: int = 0) -> bool:
    return bool(generator(seed, Purpose.CLIENT_DROPOUT, server_round, client_id).random() < share)


@pytest.mark.parametrize("strategy", ["fedavg", "fedmedian", "scaffold", "multikrum"])
def test_clients_drop_out_by_the_seed_and_are_no_failures(small: Small, strategy: str) -> None:
    arguments = {"strategy_args": {"num_nodes_to_select": 2}} if strategy == "multikrum" else {}
    run = small(client_dropout=0.5, num_rounds=4, strategy=strategy, **arguments)
    rounds, clients = run.rounds(), run.clients()
    assert clients.groupby("round").size().tolist() == [4] * 4
    expected = [
        "dropped" if _drawn(number, client_id, 0.5) else "ok"
        for number, client_id in zip(clients["round"], clients.client_id, strict=True)
    ]
    assert sorted(zip(clients["round"], clients.client_id, clients.status, strict=True)) == sorted(
        zip(clients["round"], clients.client_id, expected, strict=True)
    )
    assert {*expected} == {"dropped", "ok"}
    counts = clients.groupby("round").status.value_counts().unstack(fill_value=0)
    assert rounds.num_clients.tolist()[1:] == counts["ok"].tolist()
    assert rounds.num_dropped.tolist()[1:] == counts["dropped"].tolist()
    assert rounds.num_failures.tolist()[1:] == [0] * 4
    dropped = clients[clients.status == "dropped"]
    assert (dropped.bytes_up == 0).all()
    assert set(dropped.bytes_down) == set(clients[clients.status == "ok"].bytes_down)
    assert dropped[["num_examples", "loss", "seconds", "error"]].isna().all().all()


@pytest.mark.parametrize("sampler", ["round-robin", "by-size"])
def test_clients_that_a_sampler_has_chosen_drop_out_as_well(small: Small, sampler: str) -> None:
    clients = small(client_dropout=0.5, num_rounds=3, sampler=sampler).clients()
    expected = [
        "dropped" if _drawn(number, client_id, 0.5) else "ok"
        for number, client_id in zip(clients["round"], clients.client_id, strict=True)
    ]
    assert clients.status.tolist() == expected
    assert {*expected} == {"dropped", "ok"}


def test_a_round_without_any_client_left_keeps_the_model(small: Small) -> None:
    run = small(client_dropout=0.97, num_rounds=3)
    rounds = run.rounds()
    assert all(_drawn(n, c, 0.97) for n, c in zip(run.clients()["round"], run.clients().client_id, strict=True))
    assert rounds.num_clients.tolist()[1:] == [0, 0, 0]
    assert rounds.num_dropped.tolist()[1:] == [4, 4, 4]
    assert rounds.test_loss.nunique() == 1


@pytest.mark.usefixtures("in_programs")
def test_nothing_is_noted_of_a_strategy_whose_clients_all_dropped_out(small: Small) -> None:
    run = small(client_dropout=0.97, strategy="own:EachClientFedAvg")
    assert run.rounds().num_dropped.tolist()[1:] == [4, 4]
    assert "chose no clients" not in run.log_path.read_text()


def test_no_client_drops_out_unless_asked(small: Small) -> None:
    run = small()
    assert run.rounds().num_dropped.isna().all()
    assert set(run.clients().status) == {"ok"}


@pytest.mark.parametrize("devices", [None, "lognormal"])
def test_dropouts_are_the_same_after_a_resume(small: Small, devices: str | None) -> None:
    """test_engines.py has them on Ray."""
    settings = {"client_dropout": 0.4, "devices": devices, "server_lr": 0.7, "sample_seed": 5, "clip_grad_norm": 1.0}
    settings |= {"lr_warmup": 2, "num_rounds": 4}
    whole = small(name="whole", **settings)
    run = resume(small(name="stopped", **{**settings, "num_rounds": 2}), num_rounds=4)
    assert run.model_path.read_bytes() == whole.model_path.read_bytes()
    assert run.clients().status.tolist() == whole.clients().status.tolist()
    assert "dropped" in set(whole.clients().status)

"""Attacks: what attackers send, in exact numbers, who they are, and what of it is recorded."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from flwr.common import Context, NDArrays, RecordDict
from scipy.stats import norm
from torch import nn

from conftest import Sim, Small, sha256
from sim import RunConfig, resume
from sim.client.torch_client import fit_settings
from sim.config.fields import rules_of
from sim.data.columns import Columns
from sim.data.load_dataset import Examples
from sim.data.loaders import resident, with_flipped_classes
from sim.engine.client_execution import Worker
from sim.engine.inline import InlineDispatcher
from sim.engine.interface import Chunk, ClientResult, Task
from sim.errors import ConfigError
from sim.network.options import networked
from sim.seeds import Purpose, generator
from sim.server import strategy
from sim.server.attacks import ATTACKS, Attackers, attackers_of, z_max
from sim.server.prepared_run import Prepared, ProgramObjects
from sim.server.rounds import FinishedRound, RoundServer
from sim.setup.prepare import prepare
from sim.sweep.figure import results_figure, varied_number
from sim.training.weights import WeightLayout

# Four clients, of which two are attackers. Their shares of the examples differ, because means are weighted by them.
FOUR: dict[str, Any] = {
    "num_clients": 4,
    "clients_per_round": 4,
    "num_rounds": 1,
    "local_epochs": 1,
    "partitioner": "linear",
    "engine": "inline",
    "attack_share": 0.5,
}


def _examples(seed: int) -> tuple[np.ndarray, np.ndarray]:
    drawn = np.random.default_rng(seed)
    return drawn.normal(size=(40, 3)).astype(np.float32), drawn.integers(0, 3, 40)


def load_data() -> Any:
    return _examples(0), _examples(1)


def flipped_data() -> Any:
    inputs, classes = _examples(0)
    return (inputs, 2 - classes), _examples(1)


def dict_data() -> Any:
    return tuple({"x": inputs, "label": classes} for inputs, classes in (_examples(0), _examples(1)))


class Items(torch.utils.data.Dataset[Any]):
    """Random items, which cannot be columns."""

    def __init__(self, seed: int) -> None:
        self.inputs, self.targets = _examples(seed)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> Any:
        return torch.from_numpy(self.inputs[index]) + 0.001 * torch.rand(3), int(self.targets[index])


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.last(x)
        return logits


def _prepared(data: Callable[[], Any] = load_data, **settings: Any) -> Prepared:
    objects = ProgramObjects(model=Linear, load_data=data)
    return prepare(RunConfig(**{**FOUR, "dataset": "own:data", "model": "own:Linear", **settings}), objects)


def _trained(prepared: Prepared) -> list[ClientResult]:
    """Return what each client makes of the initial weights in round 1."""
    config = prepared.config
    tasks = [Task(client_id, dict(fit_settings(config, 1))) for client_id in range(config.num_clients)]
    worker = Worker(prepared.spec, config.num_clients, config.seed)
    return worker.run(Chunk("fit", 1, tasks, prepared.initial_weights, summed=False)).results


def _after_one_round(prepared: Prepared) -> NDArrays:
    rounds: list[FinishedRound] = []
    worker = Worker(prepared.spec, prepared.config.num_clients, prepared.config.seed)
    RoundServer(prepared, InlineDispatcher(worker), rounds.append).run()
    return rounds[-1].weights


def _expected(attack: str, arguments: Mapping[str, Any], before: NDArrays, trained: list[ClientResult]) -> NDArrays:
    """Return the weighted mean of what clients send, by the equations of the papers."""
    bad = attackers_of(RunConfig(**FOUR, attack=attack))
    assert len(bad) == 2
    found = []
    for position, w in enumerate(before):
        updates = {r.client_id: (r.weights or [])[position].astype(np.float64) - w for r in trained}
        own = np.array([updates[i] for i in bad])
        honest = np.array([updates[i] for i in updates if i not in bad])
        sent = {}
        for i in bad:
            if attack == "sign-flip":
                sent[i] = -arguments.get("scale", 1) * updates[i]
            elif attack == "alie":
                known = np.concatenate([own, honest]) if arguments.get("knowledge") == "all" else own
                mean = known.sum(0) / len(known)
                z = arguments.get("z", norm.ppf((4 - 2 - 1) / (4 - 2)))  # s = ⌊4/2 + 1⌋ − 2 = 1
                sent[i] = mean + z * np.sqrt(((known - mean) ** 2).sum(0) / len(known))
            else:
                sent[i] = -arguments.get("epsilon", 0.5) * (honest[0] + honest[1]) / 2
        weights = np.array([r.num_examples for r in trained], float)
        each = [w + sent.get(r.client_id, updates[r.client_id]) for r in trained]
        found.append(np.tensordot(weights, each, 1) / weights.sum())
    return found


@pytest.mark.parametrize(
    ("attack", "arguments"),
    [
        ("sign-flip", {}),
        ("sign-flip", {"scale": 3}),
        ("alie", {}),
        ("alie", {"z": 1.5}),
        ("alie", {"z": -1, "knowledge": "all"}),
        ("ipm", {}),
        ("ipm", {"epsilon": 2.0}),
    ],
)
@pytest.mark.parametrize("name", ["fedavg", "flwr.serverapp.strategy:FedAvg"])
def test_a_round_under_attack_is_what_the_equations_say(attack: str, arguments: dict[str, Any], name: str) -> None:
    prepared = _prepared(attack=attack, attack_args=arguments, strategy=name)
    trained = _trained(prepared)
    assert len({result.num_examples for result in trained}) == 4
    expected = _expected(attack, arguments, prepared.initial_weights, trained)
    for array, wanted in zip(_after_one_round(prepared), expected, strict=True):
        assert array.dtype == np.float32
        np.testing.assert_allclose(array, wanted, atol=1e-6, rtol=0)


def test_gaussian_noise_belongs_to_a_client_and_a_round() -> None:
    prepared = _prepared(attack="gaussian", attack_args={"sigma": 2}, seed=7)
    trained, before = _trained(prepared), prepared.initial_weights
    bad = attackers_of(prepared.config)
    drawn = {i: generator(7, Purpose.ATTACK, 1, i) for i in bad}
    total = sum(result.num_examples for result in trained)
    for position, array in enumerate(_after_one_round(prepared)):
        wanted = np.zeros(array.shape)
        for r in trained:
            own = drawn[r.client_id].normal(0, 2, array.shape) + before[position] if r.client_id in bad else None
            wanted += r.num_examples / total * ((r.weights or [])[position] if own is None else own)
        np.testing.assert_allclose(array, wanted, atol=1e-6, rtol=0)
    attackers = Attackers.of(prepared.config, prepared.layout)
    assert attackers is not None
    sent = []
    for number in (1, 2):
        results = [ClientResult(i, num_examples=1, weights=[*before]) for i in range(4)]
        attackers.forge(number, before, results)
        sent += [(results[i].weights or [])[0].tobytes() for i in bad]
    assert len(set(sent)) == 4


def test_only_what_attackers_have_trained_is_changed() -> None:
    """The second array is a counter, the third another name of the first."""
    layout = WeightLayout(["w", "count", "again"], (0,), (0,), {2: 0})
    config = RunConfig(num_clients=2, attack="sign-flip", attack_share=0.5)
    attackers = Attackers.of(config, layout)
    assert attackers is not None
    before = [np.array([1, 2], np.float16), np.array(5), np.array([1, 2], np.float16)]
    honest, bad = sorted(range(2), key=lambda i: i in attackers.ids)
    results = []
    for i in range(2):
        w = np.array([2, 4], np.float16)
        w.flags.writeable = False  # as Ray's are
        results.append(ClientResult(i, num_examples=1, weights=[w, np.array(9), w]))
    attackers.forge(1, before, results)
    assert [array.tolist() for array in results[honest].weights or []] == [[2, 4], 9, [2, 4]]
    assert [array.tolist() for array in results[bad].weights or []] == [[0, 0], 9, [0, 0]]
    assert (results[bad].weights or [])[0].dtype == np.float16


def test_z_is_that_of_the_paper() -> None:
    assert z_max(50, 24) == pytest.approx(norm.ppf(24 / 26))  # the paper's own example, s = 26 − 24
    assert z_max(20, 4) == pytest.approx(norm.ppf(9 / 16))
    assert z_max(20, 15) == z_max(20, 10) == pytest.approx(norm.ppf(9 / 10))
    assert [z_max(1, 1), z_max(2, 1), z_max(2, 2)] == [0, 0, 0]
    assert all(math.isfinite(z_max(n, m)) for n in range(1, 30) for m in range(1, n + 1))


@pytest.mark.parametrize("attack", ["alie", "ipm"])
def test_a_round_of_attackers_alone_and_of_none(attack: str) -> None:
    config = RunConfig(num_clients=10, attack=attack, attack_share=0.2)
    attackers = Attackers.of(config, WeightLayout(["w"], (0,), (0,), {}))
    assert attackers is not None
    before = [np.array([1.0], np.float32)]
    results = [ClientResult(i, num_examples=1, weights=[np.array([3.0], np.float32)]) for i in range(10)]
    alone = [results[i] for i in attackers.ids]
    attackers.forge(1, before, [r for r in results if r.client_id not in attackers.ids])
    assert all((r.weights or [])[0].tolist() == [3] for r in results)
    attackers.forge(1, before, alone)
    assert [(r.weights or [])[0].tolist() for r in alone] == [[3 if attack == "alie" else 0]] * 2


def test_attackers_follow_from_the_seed_and_those_of_a_small_share_are_among_those_of_a_large_one() -> None:
    found = {share: attackers_of(RunConfig(attack="ipm", attack_share=share)) for share in (0, 0.1, 0.29, 0.999)}
    assert [len(each) for each in found.values()] == [0, 10, 29, 99]
    assert set(found[0.1]) < set(found[0.29]) < set(found[0.999]) < set(range(100))
    assert list(found[0.29]) == sorted(found[0.29])
    assert attackers_of(RunConfig(attack="alie", attack_share=0.1)) == found[0.1]
    assert attackers_of(RunConfig(attack="ipm", attack_share=0.1, seed=1)) != found[0.1]
    assert attackers_of(RunConfig()) == ()


def test_a_share_of_zero_changes_no_bit() -> None:
    plain = _after_one_round(_prepared(attack=None, attack_share=0.2))
    zero = _after_one_round(_prepared(attack="sign-flip", attack_share=0))
    assert [a.tobytes() for a in zero] == [a.tobytes() for a in plain]


def test_flipped_labels_reach_the_training_of_attackers_alone() -> None:
    settings = {"partitioner": "iid", "fraction_evaluate": 1.0, "eval_share": 0.5}
    prepared = _prepared(attack="label-flip", **settings)
    honest, flipped = (
        _trained(_prepared(data, attack=None, attack_share=0.2, **settings)) for data in (load_data, flipped_data)
    )
    bad = attackers_of(prepared.config)
    for i, result in enumerate(_trained(prepared)):
        wanted = (flipped if i in bad else honest)[i]
        assert [a.tobytes() for a in result.weights or []] == [a.tobytes() for a in wanted.weights or []]
        assert result.loss == wanted.loss
    assert not np.array_equal((honest[0].weights or [])[0], (flipped[0].weights or [])[0])
    runtime = Worker(prepared.spec, 4, 0).torch_runtime
    client: Any = runtime.client(
        Context(run_id=0, node_id=bad[0], node_config={"partition-id": bad[0]}, state=RecordDict(), run_config={})
    )
    kept = torch.cat([classes for _, classes in client.numpy_client.test_loader])
    positions = np.sort(runtime._split_of(bad[0])[1])
    assert len(positions) == 5
    assert kept.tolist() == _examples(0)[1][positions].tolist(), "an attacker is honest when it evaluates"


@pytest.mark.parametrize("data", [load_data, dict_data, lambda: (Items(0), Items(1))], ids=["list", "dict", "items"])
def test_labels_are_flipped_in_every_form_of_data(data: Callable[[], Any]) -> None:
    prepared = _prepared(data, attack="label-flip", partitioner="iid")
    runtime = Worker(prepared.spec, 4, 0).torch_runtime
    classes = _examples(0)[1]
    for flipped in (False, True):
        loader = runtime.training_batches(runtime.train_indices(1), 4, flipped=flipped)
        found = [batch["label"] if isinstance(batch, dict) else batch[-1] for batch in loader]
        wanted = classes[runtime.train_indices(1)]
        assert sorted(torch.cat(found).tolist()) == sorted((2 - wanted if flipped else wanted).tolist())
    assert runtime.dataset.labels is not None
    assert runtime.dataset.labels.tolist() == classes.tolist()


def test_yes_and_no_are_exchanged() -> None:
    for target in (np.array([True, False]), np.array([1.0, 0.0], np.float32), np.array([[1], [0]])):
        split = resident(Columns([np.zeros((2, 1), np.float32), target]), torch.device("cpu"))
        batch = with_flipped_classes(split, 2).batch  # type: ignore[union-attr]
        assert batch[1].dtype == torch.from_numpy(target).dtype
        assert batch[1].flatten().tolist() == [0, 1]
        assert batch[0] is split.batch[0]  # type: ignore[union-attr]


def test_vectorized_clients_flip_as_others_do() -> None:
    settings = {"num_clients": 6, "clients_per_round": 6, "max_local_steps": 3, "attack": "label-flip"}
    weights = {}
    for training in ("sequential", "vectorized"):
        prepared = prepare(RunConfig(**settings, attack_share=0.34, local_training=training))
        weights[training] = _trained(prepared)
        assert len(prepared.spec.flipped_clients) == 2  # type: ignore[union-attr]
        assert isinstance(prepared.data.train, Examples)
    assert [r.vectorized_with for r in weights["vectorized"]] == [6] * 6
    for one, many in zip(weights["sequential"], weights["vectorized"], strict=True):
        distance = max(np.abs(a - b).max() for a, b in zip(one.weights or [], many.weights or [], strict=True))
        assert distance < 1e-4
    honest = _trained(prepare(RunConfig(**{**settings, "attack": None})))
    changed = [
        not np.array_equal((a.weights or [])[0], (b.weights or [])[0])
        for a, b in zip(honest, weights["sequential"], strict=True)
    ]
    assert tuple(np.flatnonzero(changed)) == attackers_of(prepared.config)


ASSUMED = [
    ("krum", 0.15, {"num_malicious_clients": 3, "num_clients_to_keep": 10}),
    ("krum", 0.6, {"num_malicious_clients": 12, "num_clients_to_keep": 8}),
    ("multikrum", 0.31, {"num_malicious_nodes": 7, "num_nodes_to_select": 10}),
    ("bulyan", 0.2, {"num_malicious_clients": 4}),
    ("fedtrimmedavg", 0.1, {"beta": 0.2}),
    ("fedtrimmedavg", 0.3, {"beta": 0.3}),
    ("fedtrimmedavg", 0.6, {"beta": 0.499}),
]


@pytest.mark.parametrize(("name", "share", "wanted"), ASSUMED)
def test_robust_strategies_expect_the_share(name: str, share: float, wanted: dict[str, Any]) -> None:
    def built(**settings: Any) -> strategy.BuiltStrategy:
        config = RunConfig(strategy=name, attack="ipm", attack_share=share, **settings)
        layout = WeightLayout(["w"], (0,), (0,), {})
        return strategy.build(config, [np.zeros(3, np.float32)], layout, lambda *_: (0.0, {}))

    made = vars(built().strategy)
    assert {key: made[key] for key in wanted} == wanted
    assert strategy.assumed(RunConfig(strategy="moon", server_strategy=name, attack="ipm", attack_share=share)) == {
        key: value for key, value in wanted.items() if value != 0.2
    }
    first = next(iter(wanted))
    given = 0.25 if first == "beta" else 2
    assert vars(built(strategy_args={first: given}).strategy)[first] == given


def test_every_name_is_an_attack_and_means_are_given_up_for_those_that_need_each_client() -> None:
    (field,) = (f for f in RunConfig.__dataclass_fields__.values() if f.name == "attack")
    assert rules_of(field).choices == tuple(ATTACKS)
    forging = {name: _prepared(attack=name).averages for name in ATTACKS}
    assert forging == {name: name == "label-flip" for name in ATTACKS}


ROBUST = ("krum", "multikrum", "fedmedian", "fedtrimmedavg", "bulyan", "fedadam", "qfedavg")


@pytest.mark.parametrize("name", ROBUST)
def test_every_kind_of_strategy_runs_under_attack(name: str) -> None:
    settings = {"num_clients": 8, "clients_per_round": 8, "partitioner": "iid", "strategy": name}
    weights = _after_one_round(
        _prepared(attack="sign-flip", attack_args={"scale": 1e4}, attack_share=0.125, **settings)
    )
    size = max(float(np.abs(array).max()) for array in weights)
    assert size < 2 or name == "qfedavg"  # adaptive ones step by eta, robust ones do not see it, q-FedAvg averages


BAD: list[tuple[dict[str, Any], str]] = [
    ({"attack": "ipm", "attack_share": 1}, "must be at least 0 and below 1"),
    ({"attack": "ipm", "attack_share": 0.001}, "--attack-share 0.001: picks none of 100 clients"),
    ({"attack": "nothing"}, "must be one of label-flip, sign-flip, gaussian, alie, ipm"),
    ({"attack_share": 0.3}, "--attack-share 0.3: belongs to --attack label-flip or"),
    ({"attack_args": {"z": 1}}, "--attack-args z: belong to --attack label-flip,"),
    ({"attack": "alie", "dp": "fixed"}, "--attack alie and --dp fixed: give one of the two"),
    ({"attack": "alie", "client_fn": "a:b"}, "--attack alie: has no effect with --client-fn; a Flower program"),
    ({"attack": "alie", "app": "folder"}, "--attack alie: has no effect with --app; a Flower program"),
]


@pytest.mark.parametrize(("settings", "line"), BAD)
def test_what_cannot_be_is_one_line(settings: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError, match=line) as raised:
        RunConfig(**settings)
    assert "\n" not in str(raised.value)


BAD_ARGUMENTS: list[tuple[str, dict[str, Any], str]] = [
    ("sign-flip", {"sigma": 1}, "--attack-args sigma=1: --attack sign-flip takes scale$"),
    ("sign-flip", {"scale": 0}, "--attack-args scale=0: must be above 0"),
    ("gaussian", {"sigma": "wide"}, "--attack-args sigma=wide: must be a number"),
    ("alie", {"knowledge": "some"}, "--attack-args knowledge=some: must be one of attackers, all"),
    ("ipm", {"epsilon": -1}, "--attack-args epsilon=-1: must be above 0"),
    ("label-flip", {"z": 1}, "--attack-args z=1: --attack label-flip takes no arguments"),
]


@pytest.mark.parametrize(("attack", "arguments", "line"), BAD_ARGUMENTS)
def test_arguments_are_checked_before_anything_starts(attack: str, arguments: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        _prepared(attack=attack, attack_args=arguments)


def test_what_does_not_fit_the_data_the_strategy_or_a_network_is_said_first(command: Sim) -> None:
    result = command("run", "--attack", "label-flip", "--dataset", "diabetes", "--engine", "inline")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "--attack label-flip: needs one class for each example, which --dataset diabetes does not" in result.stderr
    with pytest.raises(ConfigError, match=r"bulyan: needs at least 19 clients in a round against 4 .* not 12"):
        _prepared(
            attack="ipm", num_clients=20, clients_per_round=12, strategy="bulyan", attack_share=0.33, partitioner="iid"
        )
    with pytest.raises(
        ConfigError, match="--attack ipm: replaces the weights that attackers send, but the clients of sca"
    ):
        _prepared(attack="ipm", strategy="scaffold")
    assert _prepared(attack="label-flip", strategy="scaffold").averages
    with pytest.raises(ConfigError, match="--attack ipm: attacks are only simulated"):
        networked({"attack": "ipm"})


def test_a_run_records_its_attackers_and_continues_to_the_bit(small: Small) -> None:
    settings = {"attack": "alie", "attack_share": 0.3, "strategy": "krum"}
    whole = small(name="whole", **settings)
    attackers = json.loads(whole.environment_path.read_text())["attackers"]
    assert attackers == list(attackers_of(RunConfig(num_clients=10, attack="alie", attack_share=0.3)))
    log = whole.log_path.read_text()
    assert "--attack alie: 3 of 10 clients are attackers, which environment.json lists" in log
    assert "--strategy krum expects 0.3 of a round's clients to be attackers: num_malicious_clients=2" in log
    assert "none is left out" not in log  # of 4 clients in a round 2 are kept
    part = small(name="part", num_rounds=1, **settings)
    assert sha256(part.model_path) != sha256(whole.model_path)
    resume(part, num_rounds=2)
    assert sha256(part.model_path) == sha256(whole.model_path)
    assert json.loads(part.environment_path.read_text())["attackers"] == attackers


@pytest.mark.parametrize(("chosen", "name"), [("krum", "num_clients_to_keep"), ("multikrum", "num_nodes_to_select")])
def test_a_strategy_that_leaves_no_client_out_is_noted(chosen: str, name: str) -> None:
    config = RunConfig(num_clients=20, clients_per_round=10, strategy=chosen)
    assert list(strategy.notes_on_krum(config)) == [
        f"--strategy {chosen} takes the mean of the 10 clients that are closest to others, and a round has 10: none "
        f"is left out; give a smaller --strategy-args {name}"
    ]
    assert list(strategy.notes_on_krum(replace(config, strategy_args={name: 9}))) == []
    assert list(strategy.notes_on_krum(replace(config, clients_per_round=11))) == []


@pytest.mark.parametrize(("chosen", "name"), [("krum", "num_malicious_clients"), ("multikrum", "num_malicious_nodes")])
def test_more_attackers_than_a_strategy_can_leave_out_are_noted(chosen: str, name: str) -> None:
    config = RunConfig(num_clients=20, clients_per_round=12, strategy=chosen, strategy_args={name: 5})
    assert list(strategy.notes_on_krum(config)) == [
        f"--strategy {chosen} with {name}=5 needs at least 13 clients in a round (2·f + 3) to leave out attackers for "
        "certain, and a round has 12"
    ]
    assert list(strategy.notes_on_krum(replace(config, clients_per_round=13))) == []
    assert list(strategy.notes_on_krum(replace(config, strategy_args={name: 0}))) == []


def test_flipped_labels_change_the_weights(small: Small) -> None:
    """They are flipped where clients train, in test_engines.py in actors of Ray; other attacks happen in the server."""
    settings = {"strategy": "krum", "num_rounds": 1}
    flipped = small(name="flipped", attack="label-flip", attack_share=0.3, **settings)
    honest = small(name="honest", **settings)
    assert sha256(honest.model_path) != sha256(flipped.model_path)


def test_the_number_on_the_x_axis() -> None:
    def of(**values: list[Any]) -> str | None:
        return varied_number([dict(zip(values, each, strict=True)) for each in zip(*values.values(), strict=True)])

    assert of(strategy=["a", "a", "b", "b"], attack_share=[0.0, 0.1, 0.0, 0.1]) == "attack_share"
    assert of(alpha=[0.1, 0.1, 1.0], lr=[0.1, 0.2, 0.3]) == "lr"
    assert of(alpha=[0.1, 1.0], lr=[0.1, 0.2]) == "alpha"
    assert of(strategy=["a", "b"]) is None
    assert of(strategy=["a", "b"], alpha=[0.1, 0.1]) is None
    assert of(a=[True, False]) is None
    assert of(a=[1, 2], b=[1, 2], c=[1, 2]) is None
    assert varied_number([]) is None


def test_the_picture_has_a_line_for_each_strategy_and_a_band_over_seeds() -> None:
    rows = [("krum", share, seed, share + seed) for share in (0.2, 0.0) for seed in (0, 1)]
    rows += [("fedavg", share, 0, 0.5) for share in (0.0, 0.2)]
    runs = pd.DataFrame(rows, columns=["strategy", "attack_share", "seed", "final_accuracy"])
    axes = results_figure(runs, "attack_share", "strategy", "final_accuracy", "final accuracy (fraction)").axes[0]
    lines = [(line.get_label(), *np.asarray(line.get_xydata()).tolist()) for line in axes.lines]
    assert lines == [("krum", [0, 0.5], [0.2, 0.7]), ("fedavg", [0, 0.5], [0.2, 0.5])]
    sd = math.sqrt(0.5)
    edges = [np.unique(np.round(band.get_paths()[0].vertices[:, 1], 6)).tolist() for band in axes.collections]
    assert edges == [sorted(np.round([0.5 - sd, 0.7 - sd, 0.5 + sd, 0.7 + sd], 6).tolist()), [0.5]]
    assert (axes.get_xlabel(), axes.get_xscale(), axes.get_title()) == (
        "attack share",
        "linear",
        "mean ± sample sd of 1 to 2 seeds",
    )
    table = pd.DataFrame({"alpha": [0.1, 0.5, 10], "final_mae": [1.0, 2.0, 3.0]})
    wide = results_figure(table, "alpha", None, "final_mae", "mae").axes[0]
    assert wide.get_xscale() == "log"
    assert wide.get_legend() is None
    labels = wide.get_xticklabels() + wide.get_xticklabels(minor=True)
    assert [label.get_text() for label in labels] == ["0.1", "0.5", "10"]

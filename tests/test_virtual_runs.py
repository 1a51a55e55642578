"""Whole runs in virtual time: what is recorded, the same bits on any number of processes, resumed, and after faults."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from conftest import PROGRAMS, Sim, Small, sha256
from federation import Program, wait_until
from sim import Run, RunConfig, evaluate, resume, simulate
from sim.errors import ClientError, ConfigError, RunError, RunFolderError

pytestmark = pytest.mark.usefixtures("no_pictures")

SLOW_AND_FAST: dict[str, Any] = {"devices": "lognormal", "device_args": {"sigma": 1.0}}
ASYNCHRONOUS: dict[str, dict[str, Any]] = {
    "fedasync": {"strategy": "fedasync", "concurrency": 4, "num_rounds": 12},
    "fedbuff": {"strategy": "fedbuff", "strategy_args": {"buffer_size": 3}, "concurrency": 6, "num_rounds": 5},
}


def test_the_same_clients_are_chosen_with_and_without_devices(small: Small) -> None:
    assert sha256(small(name="plain").model_path) == sha256(small(name="timed", devices="uniform").model_path)


def test_clients_that_are_late_are_not_executed(small: Small) -> None:
    run = small(**SLOW_AND_FAST, over_select=2.0, num_rounds=3)
    clients, rounds = run.clients(), run.rounds()
    for number in (1, 2, 3):
        asked = clients[clients["round"] == number]
        taken, late = asked[asked.status == "ok"], asked[asked.status == "late"]
        assert (len(taken), len(late)) == (4, 4)
        assert set(late.virtual_end) == {taken.virtual_end.max()} == {rounds.virtual_seconds[number]}
        assert set(asked.virtual_start) == {rounds.virtual_seconds[number - 1]}
        assert late.seconds.isna().all()
    assert rounds.num_late.tolist()[1:] == [4, 4, 4]
    assert rounds.num_clients.tolist()[1:] == [4, 4, 4]
    assert rounds.num_failures.tolist()[1:] == [0, 0, 0]


def test_a_round_with_too_few_reports_is_void_and_repeated(small: Small) -> None:
    seconds = small(**SLOW_AND_FAST, num_rounds=4, name="all").clients()
    deadline = float((seconds.virtual_end - seconds.virtual_start).quantile(0.4))
    run = small(**SLOW_AND_FAST, deadline=deadline, min_reports=3, num_rounds=4, name="few")
    clients, rounds = run.clients(), run.rounds()
    for number, of_round in clients.groupby("round"):
        *void, last = [of_attempt.status.tolist() for _, of_attempt in of_round.groupby("virtual_start")]
        assert all(len(statuses) == 4 and statuses.count("void") < 3 and "ok" not in statuses for statuses in void)
        assert last.count("ok") >= 3
        assert last.count("void") == 0
        assert rounds.virtual_seconds[number] - rounds.virtual_seconds[number - 1] <= (len(void) + 1) * deadline + 1e-9
        assert rounds.num_late[number] == (of_round.status == "late").sum()
    assert (clients.status == "void").any()
    ok = clients[clients.status == "ok"]
    assert (ok.virtual_end - ok.virtual_start).max() <= deadline + 1e-9


def test_partial_work_limits_a_train_that_knows_no_steps(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROGRAMS)
    settings = {**SLOW_AND_FAST, "partial_work": True, "num_rounds": 1, "clients_per_round": 10, "local_epochs": 3}
    run = small(**settings, deadline=2.0, train="own:counting_train")
    clients = run.clients().set_index("client_id")
    taken = clients[clients.status == "ok"]
    steps = run.metrics().query("name == 'steps' and client_id == client_id").set_index("client_id").value
    full = np.ceil(taken.num_examples / 8) * 3
    assert (steps <= full).all()
    assert (steps < full).any()
    assert (taken.virtual_end <= 2.0).all()
    fednova = small(**settings, deadline=2.0, strategy="fednova", name="fednova")  # which counts the steps itself
    assert fednova.rounds().num_clients.tolist()[1:] == [len(taken)]


def own_part(partition_id: int, num_partitions: int) -> tuple[Any, Any]:
    """2, 4, 6 and 8 batches."""
    examples = TensorDataset(torch.zeros(8 * (partition_id + 1), 1), torch.zeros(8 * (partition_id + 1), 1))
    return DataLoader(examples, batch_size=4), DataLoader(examples)


def counted(net: nn.Module, loader: Any) -> dict[str, float]:
    return {"loss": 0.5, "num_steps": sum(1 for _ in loader)}


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_program_that_partitions_itself_says_how_many_steps_it_takes(tmp_path: Path, *, asynchronous: bool) -> None:
    config: dict[str, Any] = {"num_clients": 4, "clients_per_round": 4, "engine": "inline", "num_rounds": 4}
    config |= {"devices": "uniform", "device_args": {"seconds_per_step": 1.0}, "results_dir": str(tmp_path)}
    if asynchronous:
        config |= {"strategy": "fedbuff", "strategy_args": {"buffer_size": 4}, "client_steps": 5, "num_rounds": 1}
    else:
        config |= {"deadline": 5.5, "partial_work": True}
    objects = {"model": Scalar, "train": counted, "test": squared, "load_data": own_part}
    run = simulate(RunConfig(**config, local_epochs=1, loss="mse"), **objects)
    clients = run.clients()
    traffic = clients.virtual_download_seconds + clients.virtual_upload_seconds
    steps = (clients.virtual_end - clients.virtual_start - traffic).round(6).groupby(clients["round"]).apply(list)
    taken = run.metrics().query("name == 'num_steps' and client_id == client_id").groupby("round").value.apply(sorted)
    whole = [2.0, 4.0, 6.0, 8.0]
    if asynchronous:
        assert (steps.tolist(), taken.tolist()) == ([[5.0] * 4], [whole])
    else:
        # In the first round nobody knows; what a deadline has cut is no number of steps for the next one.
        assert steps.tolist() == [[1.0] * 4, *[[2.0, 4.0, 5.0, 5.0]] * 3]
        assert taken.tolist() == [whole, *[[2.0, 4.0, 5.0, 5.0]] * 3]


def test_fedbuff_with_equal_devices_is_fedavg(small: Small) -> None:
    """All clients train at the same time for equally long, and the buffer holds all of them."""
    everyone = {"partitioner": "iid", "clients_per_round": 10, "num_rounds": 3, "lr": 0.01}
    fedavg = small(**everyone, devices="uniform", name="fedavg")
    whole = {"buffer_size": 10, "weighting": "examples"}
    fedbuff = small(**everyone, strategy="fedbuff", strategy_args=whole, concurrency=10, name="fedbuff")
    for name, array in load_file(fedavg.model_path).items():
        assert load_file(fedbuff.model_path)[name] == pytest.approx(array, abs=1e-6)
    assert fedbuff.rounds().staleness_mean.tolist()[1:] == [0, 0, 0]
    assert fedbuff.rounds().virtual_seconds.tolist() == fedavg.rounds().virtual_seconds.tolist()


def test_fedbuff_steps_as_another_strategy_with_clients_of_ones_own(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(PROGRAMS)
    settings = {"client_fn": "client_fns:by_context", "num_clients": 4, "clients_per_round": 4, "num_rounds": 1}
    settings |= {"strategy": "fedbuff", "strategy_args": {"buffer_size": 4}, "results_dir": str(tmp_path)}
    made = []
    for name, arguments in (("fedavg", {}), ("fedavgm", {"server_learning_rate": 0.5, "server_momentum": 0.0})):
        run = simulate(RunConfig(**settings, server_strategy=name, server_args=arguments, name=name, engine="inline"))
        made.append(load_file(run.model_path)["array_1"])
    # Client i of 0 to 3 goes from 1 half of the way to i, and a little beyond.
    assert made[0] == pytest.approx(np.full(3, 1.25), abs=0.02)
    assert made[1] == pytest.approx((1 + made[0]) / 2, abs=1e-12)


class Scalar(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.w.expand(len(x), 1)


def towards_its_mean(net: Scalar, loader: Any, epochs: int) -> dict[str, float]:
    """One exact step towards the mean target of the client."""
    mean = torch.cat([y for _, y in loader]).double().mean()
    with torch.no_grad():
        net.w += 0.5 * (mean - net.w)
    return {"loss": float(mean), "target": float(mean)}


def squared(net: Scalar, loader: Any) -> tuple[float, float]:
    return float(net.w), 0.0


def numbers() -> tuple[Any, Any]:
    targets = torch.randn(200, 1, generator=torch.Generator().manual_seed(0))
    return TensorDataset(torch.zeros(200, 1), targets), TensorDataset(torch.zeros(4, 1), torch.zeros(4, 1))


@pytest.mark.parametrize("name", ASYNCHRONOUS)
def test_a_scalar_follows_the_equations(tmp_path: Path, name: str) -> None:
    config = RunConfig(
        **{**ASYNCHRONOUS[name], **SLOW_AND_FAST, "num_clients": 10, "engine": "inline", "name": name},
        partitioner="iid",
        batch_size=8,
        loss="mse",
        results_dir=str(tmp_path),
    )
    run = simulate(config, model=Scalar, train=towards_its_mean, test=squared, load_data=numbers)
    metrics = run.metrics()
    targets = metrics[metrics.name == "target"].groupby("client_id").value.first()
    versions = [1.0]
    for number, arrived in run.clients().groupby("round"):
        x, updates = versions[-1], []
        for client_id, staleness in zip(arrived.client_id, arrived.staleness, strict=True):
            begun = versions[number - 1 - staleness]
            trained = begun + 0.5 * (targets[client_id] - begun)
            updates.append((begun, trained, (1 + staleness) ** -0.5))
        if name == "fedasync":
            ((_, trained, factor),) = updates
            versions.append((1 - 0.6 * factor) * x + 0.6 * factor * trained)
        else:
            versions.append(x + sum(factor * (trained - begun) for begun, trained, factor in updates) / 3)
    assert run.clients().staleness.max() > 0
    assert run.rounds().test_loss.tolist() == pytest.approx(versions, abs=1e-12)


def test_what_stays_with_clients_is_resumed(small: Small) -> None:
    settings = {**ASYNCHRONOUS["fedbuff"], **SLOW_AND_FAST, "max_local_steps": 3, "fraction_evaluate": 0.5}
    settings |= {"local_parameters": "fc3.*", "server_strategy": "fedavgm"}
    whole = small(**settings, name="whole")
    half = small(**{**settings, "num_rounds": 2}, name="half")
    resumed = resume(half, num_rounds=5)
    assert sha256(resumed.model_path) == sha256(whole.model_path)
    assert resumed.metrics().equals(whole.metrics())
    files = [{path.name: sha256(path) for path in run.client_states_path.iterdir()} for run in (whole, resumed)]
    assert files[0] == files[1]  # those of the last two checkpoints, and of clients that were executed ahead


def test_an_evaluation_without_checkpoints_takes_the_states_of_the_last_version(small: Small) -> None:
    """Not those of clients that were executed ahead, whose updates have not arrived."""
    settings = {**ASYNCHRONOUS["fedbuff"], **SLOW_AND_FAST, "max_local_steps": 3, "local_parameters": "fc3.*"}
    settings["fraction_evaluate"] = 0.1
    kept, unkept = small(**settings, name="kept"), small(**settings, checkpoint_every=0, name="unkept")
    frame = evaluate(kept)
    assert evaluate(unkept).equals(frame)
    assert (frame.own_loss != frame.global_loss).sum() == (frame.num_rounds_trained > 0).sum()


def test_clients_that_are_evaluated_while_they_train_are_resumed(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a client left in an evaluation is there in its next training, whether that was executed ahead or not."""
    monkeypatch.chdir(PROGRAMS)
    settings = {**ASYNCHRONOUS["fedbuff"], **SLOW_AND_FAST, "max_local_steps": 1, "fraction_evaluate": 0.5}
    settings["client"] = "own:CountingBoth"
    whole = small(**settings, name="whole")
    resumed = resume(small(**{**settings, "num_rounds": 2}, name="half"), num_rounds=5)
    assert resumed.metrics().equals(whole.metrics())
    assert sha256(resumed.model_path) == sha256(whole.model_path)
    metrics = whole.metrics().query("phase == 'fit' and client_id == client_id")
    assert metrics[metrics.name == "evaluate"].value.max() > 1
    counts = metrics[metrics.name == "fit"].groupby("client_id").value.apply(list)
    assert all(values == list(range(1, len(values) + 1)) for values in counts)


def test_groups_that_a_resumed_run_would_not_make_again_are_noted(small: Small) -> None:
    settings = {**ASYNCHRONOUS["fedbuff"], "num_rounds": 1, "max_local_steps": 1}
    note = "note: a resumed run may differ in the last bits, because it trains other clients together"
    together = small(**settings, local_training="vectorized", name="together")
    assert note in together.log_path.read_text()
    assert together.clients().vectorized_with.max() > 1
    assert note not in small(**settings, name="alone").log_path.read_text()


def test_a_run_ends_where_nobody_trains(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROGRAMS)
    settings = {**ASYNCHRONOUS["fedbuff"], "client": "own:Lost", "on_client_error": "drop"}
    problem = r"client \d raised in round 2 \(fit\): MemoryError: all of them; so did the 5 clients before$"
    with pytest.raises(ClientError, match=problem):
        small(**settings)
    run = small(**{**settings, "num_rounds": 1}, name="resumed")
    with pytest.raises(ClientError, match=problem):
        resume(run, num_rounds=5)


@pytest.mark.parametrize("name", ["fedasync", pytest.param("fedbuff", marks=pytest.mark.ray)])
def test_asynchronous_runs_have_the_same_bits_everywhere(
    small: Small, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray gets clients ahead of their time in the same way for both; scripts/determinism.sh takes both."""
    monkeypatch.chdir(PROGRAMS)
    monkeypatch.setenv("DIED", str(tmp_path / "died"))
    settings = {**ASYNCHRONOUS[name], **SLOW_AND_FAST, "max_local_steps": 3, "fraction_evaluate": 0.2}
    inline = small(**settings, name="inline")
    expected = sha256(inline.model_path)
    half = small(**{**settings, "num_rounds": settings["num_rounds"] // 2}, name="half")
    resumed = resume(half, num_rounds=settings["num_rounds"])
    assert sha256(resumed.model_path) == expected
    columns = ["round", "client_id", "status", "virtual_start", "virtual_end", "staleness", "loss"]
    assert resumed.clients()[columns].equals(inline.clients()[columns])
    if name == "fedasync":
        return
    dying = small({"num_cpus": 2}, engine="ray", client="own:DyingOnce", **settings, name="dying")
    assert (tmp_path / "died").exists()
    assert sha256(dying.model_path) == expected


@pytest.mark.slow
def test_a_killed_asynchronous_run_is_resumed(command: Sim, tmp_path: Path) -> None:
    flags = ["--strategy", "fedbuff", "--strategy-args", "buffer_size=2", "--concurrency", "6", "--num-clients", "20"]
    flags += ["--devices", "lognormal", "--device-args", "sigma=1.0", "--engine", "inline", "--max-local-steps", "3"]
    process = Program(tmp_path, "killed", ["run", *flags, "--num-rounds", "1000", "--name", "killed"])
    table = tmp_path / "results" / "killed" / "rounds.csv"
    wait_until(lambda: not process.process.is_alive() or (table.exists() and table.read_text().count("\n") > 5))
    process.send(signal.SIGKILL)
    process.end()
    done = Run(tmp_path / "results" / "killed").last_checkpoint() or 0
    ended = command("run", "--resume", "results/killed", "--num-rounds", str(done + 4))
    assert ended.returncode == 0, ended.stderr
    whole = command("run", *flags, "--num-rounds", str(done + 4), "--name", "whole")
    assert whole.returncode == 0, whole.stderr
    assert sha256(tmp_path / "results/killed/model.safetensors") == sha256(tmp_path / "results/whole/model.safetensors")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--deadline 5", "--deadline 5.0: needs the virtual seconds of --devices, e.g. uniform"),
        (
            "--devices uniform --deadline 0.001",
            "--deadline 0.001: 0 of 100 clients can meet it, but --min-reports is 1",
        ),
        ("--devices uniform --partial-work", "--partial-work: needs --deadline or --deadline-quantile"),
        ("--devices uniform --over-select 9", "--over-select 9: asks 180 clients in a round, but there are 100"),
        (
            "--devices uniform --min-reports 21",
            "--min-reports 21: must be at most 20, the number of clients that train per round",
        ),
        ("--availability bernoulli", "--availability bernoulli: needs the virtual seconds of --devices"),
        ("--mode async", "--mode async: belongs to --strategy fedasync or fedbuff, not to fedavg"),
        ("--mode sync --strategy fedbuff", "--mode sync: --strategy fedbuff is asynchronous"),
        ("--strategy fedbuff --concurrency 101", "--concurrency 101: at most --num-clients 100"),
        ("--strategy fedbuff --deadline 5", "--deadline 5.0: belongs to --mode sync"),
        ("--strategy fedbuff --strategy-args alpha=1", "--strategy-args alpha=1: --strategy fedbuff takes buffer_size"),
        ("--strategy fedasync --strategy-args alpha=2", "--strategy-args alpha=2: must be above 0 and at most 1"),
        ("--strategy fedbuff --server-strategy krum", "--server-strategy krum: compares the weights of clients"),
        ("--strategy fedbuff --sampler oort", "--sampler oort: needs the results of a round before the next one"),
        ("--strategy fedbuff --dp fixed", "--dp fixed: needs all clients of a round at once"),
        ("--strategy fedbuff --attack ipm", "--attack ipm: needs all clients of a round at once"),
        (
            "--dp fixed --devices uniform --deadline 60 --min-reports 19",
            "--dp fixed: its noise is calibrated for the mean of 20 clients, of which clients that are late are left "
            "out; add --min-reports 20",
        ),
        ("--dp fixed --devices uniform --availability on-off", "of which clients that are offline are left out"),
        ("--sampler-args candidates=3", "--sampler-args candidates: --sampler uniform takes no arguments"),
        ("--devices uniform --client-steps 5", "--client-steps 5: belongs to --client-fn, and to a program that parti"),
        ("--client-steps 0", "--client-steps 0: must be at least 1"),
        ("--evaluate-every 2", "--evaluate-every 2: needs --fraction-evaluate above 0"),
        (
            "--devices uniform --strategy ditto --deadline 9 --partial-work",
            "--partial-work: clients of ditto take steps",
        ),
    ],
)
def test_what_cannot_work_is_one_line(command: Sim, tmp_path: Path, words: str, message: str) -> None:
    result = command("run", *words.split())
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert message in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.ray
def test_a_train_that_can_get_no_proximal_term_is_refused_before_the_run(command: Sim, tmp_path: Path) -> None:
    words = ("--strategy", "fedasync", "--strategy-args", "rho=0.1", "--train", "own:training_by_hand")
    result = command("run", *words, "--results-dir", str(tmp_path), cwd=PROGRAMS)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert result.stderr.startswith("sim: --train own:training_by_hand: took no step of an optimizer of torch.optim")
    assert not list(tmp_path.iterdir())


def test_a_warm_start_takes_its_own_steps_and_bytes(small: Small) -> None:
    """143 or 144 examples are 5 batches: one epoch in round 1, then one for the head and one for the body."""
    settings = {"partitioner": "iid", "batch_size": 32, "max_local_steps": 100, "strategy": "fedrep"}
    settings |= {
        "devices": "uniform",
        "device_args": {"seconds_per_step": 1.0, "download_mbps": 8.0, "upload_mbps": 8.0},
    }
    arguments = {"warm_start_rounds": 1, "head_epochs": 1}
    clients = small(**settings, strategy_args=arguments).clients()
    for phase, per_byte in (("download", "down"), ("upload", "up")):
        assert clients[f"virtual_{phase}_seconds"].tolist() == pytest.approx(
            (clients[f"bytes_{per_byte}"] / 1e6).tolist()
        )
    assert clients.groupby("round").bytes_down.nunique().tolist() == [1, 1]
    assert clients.bytes_down.nunique() == 2
    traffic = clients.virtual_download_seconds + clients.virtual_upload_seconds
    steps = (clients.virtual_end - clients.virtual_start - traffic).round(6)
    assert steps.groupby(clients["round"]).unique().map(list).to_dict() == {1: [5.0], 2: [10.0]}
    with pytest.raises(ConfigError, match=r"--deadline 6: 0 of 10 clients can meet it"):
        small(**settings, strategy_args=arguments, deadline=6.0)  # round 1 could be met


@pytest.mark.usefixtures("in_programs")
def test_a_round_without_clients_takes_no_virtual_time(small: Small) -> None:
    seconds = small(strategy="own:EverySecondRound", devices="uniform", num_rounds=3).rounds().virtual_seconds.tolist()
    assert seconds[0] == 0 < seconds[1] == seconds[2] < seconds[3]


def test_a_run_that_cannot_go_on_says_why(small: Small, tmp_path: Path) -> None:
    """Everybody goes offline after a second, which is too short for a client."""
    trace = tmp_path / "online.json"
    trace.write_text('{"0": {"active": [0], "inactive": [1], "finish_time": 10}}')
    online = {
        "availability": "trace",
        "availability_args": {"file": str(trace)},
        "device_args": {"seconds_per_step": 9.0},
    }
    with pytest.raises(
        RunError, match=r"round 1: was void 1000 times, .*of the last 4, 0 were late, 4 went offline and 0 dropped out"
    ):
        small(devices="uniform", **online)


FEDSCALE = {
    "capacity.json": '{"0": {"computation": 10, "communication": 9000}}',
    "online.json": '{"0": {"active": [0], "inactive": [1000], "finish_time": 2000}}',
    "own.csv": "seconds_per_step,download_mbps,upload_mbps\n0.1,10,10\n",
}


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize(
    ("settings", "changed"),
    [
        ({"devices": "fedscale:capacity.json:online.json"}, "capacity.json"),
        ({"devices": "fedscale:capacity.json:online.json"}, "online.json"),
        ({"devices": "own.csv"}, "own.csv"),
        (
            {"devices": "own.csv", "availability": "trace", "availability_args": {"file": "online.json"}},
            "online.json",
        ),
    ],
)
def test_files_of_devices_that_have_changed_do_not_fit(
    small: Small,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    changed: str,
    *,
    asynchronous: bool,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in FEDSCALE.items():
        Path(name).write_text(text)
    others = {"strategy": "fedbuff", "strategy_args": {"buffer_size": 2}} if asynchronous else {}
    run = small(**settings, **others, num_rounds=1, max_local_steps=1)
    text = FEDSCALE[changed]
    Path(changed).write_text(text.replace("10", "20", 1))
    with pytest.raises(RunFolderError, match=rf"checkpoints/1: does not fit: content of {changed} was \w+, is \w+$"):
        resume(run, num_rounds=2)
    Path(changed).unlink()
    with pytest.raises(ConfigError, match=rf"{changed}: No such file or directory"):
        resume(run, num_rounds=2)
    Path(changed).write_text(text)
    assert resume(run, num_rounds=2).last_checkpoint() == 2


def test_a_sampler_that_has_changed_is_noticed(small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its module is not in the folder where the run was started."""
    code = "from samplers import First\n\n\nclass Last(First):\n    pass\n"
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "last_sampler.py").write_text(code)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.chdir(PROGRAMS)
    run = small(sampler="last_sampler:Last", num_rounds=1)
    (folder / "last_sampler.py").write_text(code + "\n")
    with pytest.raises(RunFolderError, match=r"the code was changed after it was written: .*last_sampler\.py"):
        resume(run, num_rounds=2)

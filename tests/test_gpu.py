"""What needs a GPU of NVIDIA: the same bits on any number of processes, its memory, its errors, and its share.

    python -m pytest -m gpu

They are no part of CI, whose machines have none.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file

from conftest import PROGRAMS, Sim, Small, sha256
from sim import AppConfig, Run, RunConfig, evaluate, resume, simulate
from sim.errors import ConfigError
from sim.run_folder.records import RoundRecord

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU"),
]

SETTINGS: dict[str, Any] = {
    "num_clients": 20,
    "clients_per_round": 10,
    "num_rounds": 3,
    "local_epochs": 1,
    "fraction_evaluate": 0.3,
    "device": "cuda",
}


def _stop(record: RoundRecord) -> None:
    if record.round == 2:
        raise KeyboardInterrupt


def _fingerprint(run: Run) -> str:
    return sha256(run.model_path) + sha256(run.metrics_path)


def _weights(run: Run) -> list[np.ndarray[Any, Any]]:
    return list(load_file(run.model_path).values())


def _in_all_ways(results_dir: Path, **settings: Any) -> dict[str, str]:
    """Return the fingerprint of a run inline, on 2 processes that share the GPU, and on 4 and then 1."""
    common = {**SETTINGS, **settings, "results_dir": str(results_dir)}
    found = {"inline": _fingerprint(simulate(RunConfig(**common, engine="inline", name="inline")))}
    run = simulate(RunConfig(**common, num_gpus=0.5, name="2"), ray_init_args={"num_cpus": 2})
    found["2 processes"] = _fingerprint(run)
    config = RunConfig(**common, num_gpus=0.25, name="cut")
    with pytest.raises(KeyboardInterrupt):
        simulate(config, ray_init_args={"num_cpus": 4}, on_record=_stop)
    run = resume(Run(results_dir / "cut"), num_gpus=1.0, ray_init_args={"num_cpus": 1})
    found["4 processes, then 1"] = _fingerprint(run)
    return found


def _assert_one(found: dict[str, str]) -> None:
    assert len(set(found.values())) == 1, json.dumps(found, indent=1)


BUILT_IN: dict[str, dict[str, Any]] = {
    "SimpleCnn": {"model": "SimpleCnn", "local_training": "sequential"},
    "vectorized": {"model": "SimpleCnn", "local_training": "vectorized", "vectorized_clients": 5},
    "auto": {"vectorized_clients": 5},
    "ResNet18": {"model": "ResNet18", "local_training": "sequential", "max_local_steps": 2},
    "bf16": {"model": "SimpleCnn", "precision": "bf16", "local_training": "sequential"},
    "augmented": {
        "model": "SimpleCnn",
        "augment": "crop-flip",
        "vectorized_clients": 5,
        "optimizer": "adam",
        "lr": 0.001,
    },
    "scaffold": {"strategy": "scaffold", "lr": 0.02, "vectorized_clients": 5},
    "fedbn": {"strategy": "fedbn", "model": "own:WithBatchNorm", "lr": 0.02},
    "moon": {"strategy": "moon", "lr": 0.02},
    "fedrep": {"strategy": "fedrep", "lr": 0.02},
    "qfedavg": {"strategy": "qfedavg", "vectorized_clients": 5},
    "fedbuff": {"strategy": "fedbuff", "devices": "lognormal", "compress": {"up": "qsgd:4", "error_feedback": True}},
    "top-k": {"compress": {"up": "topk:0.1", "down": "fp16", "error_feedback": True}},
}


@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.usefixtures("no_pictures", "in_programs")
def test_the_same_seed_gives_the_same_bits(name: str, tmp_path: Path) -> None:
    _assert_one(_in_all_ways(tmp_path, **BUILT_IN[name]))


@pytest.mark.usefixtures("no_pictures")
def test_so_does_an_lstm(tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(20):
        (texts / f"{number}.txt").write_text(f"the quick brown fox {number} jumps over the lazy dog. " * 40)
    _assert_one(_in_all_ways(tmp_path, dataset="text", data_dir=str(texts), max_local_steps=10))


@pytest.mark.parametrize("name", sorted(path.stem for path in (PROGRAMS / "whole").glob("*.py")))
@pytest.mark.usefixtures("no_pictures")
def test_so_does_each_program(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROGRAMS / "whole")
    own = {"program": f"{name}.py", "batch_size": 2}  # one of the loaders drops what is no whole batch
    _assert_one(_in_all_ways(tmp_path, **own, partitioner="iid", fraction_evaluate=0.0))


SKLEARN_STYLE = """
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(8, 2)

    def forward(self, x):
        return self.out(x)


def load_data():
    x = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(x, (x[:, 0] > 0).long())
    return DataLoader(data, batch_size=10, shuffle=True), DataLoader(data, batch_size=50)


def train(net, loader, epochs):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(epochs):
        for x, y in loader:
            optimizer.zero_grad()
            F.cross_entropy(net(x.to(DEVICE)), y.to(DEVICE)).backward()
            optimizer.step()


def test(net, loader):
    guesses, labels = [], []
    for x, y in loader:
        guesses.append(net(x.to(DEVICE)).argmax(1).cpu().numpy())
        labels.append(y.numpy())
    return float((np.concatenate(guesses) == np.concatenate(labels)).mean())
"""


@pytest.mark.usefixtures("no_pictures")
def test_a_program_that_makes_arrays_of_its_labels_gets_them_as_from_its_own_loader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sklearn_style.py").write_text(SKLEARN_STYLE)
    monkeypatch.chdir(tmp_path)
    common = {**SETTINGS, "fraction_evaluate": 0.0, "program": "sklearn_style.py", "results_dir": str(tmp_path)}
    run = simulate(RunConfig(**common, engine="inline"))
    assert run.rounds().test_accuracy.iloc[-1] > 0.6


@pytest.mark.usefixtures("no_pictures")
def test_vectorized_training_differs_by_rounding_only(small: Small) -> None:
    common = {"model": "Net", "device": "cuda", "clients_per_round": 10, "max_local_steps": 10}
    one = small(**common, local_training="sequential", name="sequential")
    all_at_once = small(**common, local_training="vectorized", name="vectorized")
    assert all_at_once.clients().vectorized_with.max() == 10
    for first, second in zip(_weights(one), _weights(all_at_once), strict=True):
        assert np.abs(first - second).max() < 5e-3  # convolutions use TF32, which has 10 bits
    assert one.rounds().test_loss.tolist() == pytest.approx(all_at_once.rounds().test_loss.tolist(), rel=5e-3)


@pytest.mark.usefixtures("no_pictures")
def test_the_cpu_gives_nearly_the_same(small: Small) -> None:
    on_gpu = small(model="Net", device="cuda", name="gpu")
    on_cpu = small(model="Net", device="cpu", name="cpu")
    for first, second in zip(_weights(on_gpu), _weights(on_cpu), strict=True):
        assert np.abs(first - second).max() < 5e-3  # the GPU's convolutions use TF32


CLIENTS = '''
import torch
from sim.client.torch_client import TorchClient


class Numbered(TorchClient):
    """Knows its number."""

    def __init__(self, net, train_loader, test_loader, device, context):
        super().__init__(net, train_loader, test_loader, device)
        self.client_id = context.node_config["partition-id"]


class Breaking(Numbered):
    """Breaks the GPU of its process in client 3."""

    def fit(self, parameters, config):
        if self.client_id == 3:
            torch.zeros(1, device="cuda")[torch.tensor([5], device="cuda")].cpu()
        return super().fit(parameters, config)


class Large(Numbered):
    """Asks for more memory than the GPU has in client 3."""

    def fit(self, parameters, config):
        if self.client_id == 3:
            torch.zeros(1 << 42, device="cuda")
        return super().fit(parameters, config)


class Seeing(TorchClient):
    """Says which GPU it sees, and where its net is."""

    def fit(self, parameters, config):
        weights, count, metrics = super().fit(parameters, config)
        on_gpu = float(next(self.net.parameters()).is_cuda)
        return weights, count, {**metrics, "gpus": torch.cuda.device_count(), "on_gpu": on_gpu}
'''


@pytest.fixture
def clients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gpu_clients.py").write_text(CLIENTS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("clients")
def test_a_client_that_breaks_its_gpu_is_tried_again_and_dropped(small: Small) -> None:
    """Its process is replaced; the other clients of its chunk are trained again and reach the round."""
    common = {"client": "gpu_clients:Breaking", "device": "cuda", "clients_per_round": 10, "on_client_error": "drop"}
    run = small({"num_cpus": 2}, **common, engine="ray", num_gpus=0.5, max_retries=1)
    rounds, clients = run.rounds(), run.clients()
    assert rounds.num_failures.tolist()[1:] == [1, 1]
    failed = clients[clients.status != "ok"]
    assert set(failed.client_id) == {3}
    assert len(clients) == 20


@pytest.mark.usefixtures("clients")
def test_a_client_that_wants_more_memory_than_the_gpu_has_fails_alone(small: Small) -> None:
    common = {"client": "gpu_clients:Large", "device": "cuda", "clients_per_round": 10, "on_client_error": "drop"}
    on_ray = small({"num_cpus": 2}, **common, engine="ray", num_gpus=0.5, name="ray")
    inline = small(**common, engine="inline", name="inline")
    assert sha256(on_ray.model_path) == sha256(inline.model_path)
    failed = on_ray.clients().query("status != 'ok'")
    assert set(failed.client_id) == {3}
    assert failed.error.str.contains("OutOfMemoryError").all()


@pytest.mark.usefixtures("clients")
def test_clients_see_the_gpu_only_if_they_have_a_share_of_it(small: Small) -> None:
    common = {"client": "gpu_clients:Seeing", "engine": "ray", "num_rounds": 1}
    shared = small({"num_cpus": 4}, **common, num_gpus=0.25, name="shared").metrics()
    none = small({"num_cpus": 2}, **common, name="none").metrics()
    for metrics, expected in ((shared, 1.0), (none, 0.0)):
        seen = metrics[metrics.name.isin(["gpus", "on_gpu"]) & metrics.client_id.notna()]
        assert len(seen) == 8
        assert set(seen.value) == {expected}


def test_a_group_that_does_not_fit_is_halved(small: Small) -> None:
    common = {"model": "Net", "device": "cuda", "num_clients": 64, "clients_per_round": 64, "num_rounds": 1}
    whole = small(**common, local_training="vectorized", vectorized_clients=64, name="whole")
    total = torch.cuda.get_device_properties(0).total_memory
    peak = torch.cuda.max_memory_allocated()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(min(1.0, 0.6 * peak / total))
    try:
        halved = small(**common, local_training="vectorized", vectorized_clients=64, name="halved")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert whole.clients().vectorized_with.max() == 64
    assert halved.clients().vectorized_with.max() <= 32
    assert "the GPU's memory does not suffice for 64 vectorized clients" in halved.log_path.read_text()
    for first, second in zip(_weights(whole), _weights(halved), strict=True):
        assert np.abs(first - second).max() < 5e-3


def test_auto_lets_as_many_processes_share_the_gpu_as_fit(sim: Sim, tmp_path: Path) -> None:
    words = ("--num-gpus", "auto", "--local-training", "sequential", "--num-rounds", "1", "--model", "SimpleCnn")
    done = sim("run", *words, "--name", "auto", "--results-dir", str(tmp_path))
    assert done.returncode == 0, done.stderr
    run = Run(tmp_path / "auto")
    assert 0 < run.config()["num_gpus"] <= 0.5
    assert run.clients().actor.nunique() > 1


def test_size_says_what_of_the_gpu_a_process_needs(sim: Sim, tmp_path: Path) -> None:
    done = sim("size", "--device", "cuda", "--model", "SimpleCnn", "--results-dir", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "GPU memory" in done.stdout


def test_a_run_is_evaluated_exported_and_predicted_from(sim: Sim, tmp_path: Path) -> None:
    done = sim(
        "run",
        "--device",
        "cuda",
        "--num-gpus",
        "0.5",
        "--num-rounds",
        "1",
        "--final-evaluate",
        "--name",
        "r",
        "--results-dir",
        ".",
    )
    assert done.returncode == 0, done.stderr
    frame = evaluate(Run(tmp_path / "r"), fine_tune_epochs=1, engine="inline")
    assert isinstance(frame, pd.DataFrame)
    for words in (("evaluate", "r", "-o", "e.csv"), ("export", "r", "--format", "torch"), ("report", "r")):
        done = sim(*words)
        assert done.returncode == 0, (words, done.stderr)
    assert json.loads((tmp_path / "r" / "environment.json").read_text())["gpus"]


def test_a_centralized_run_gives_the_same_bits_twice(sim: Sim, tmp_path: Path) -> None:
    for name in ("a", "b"):
        words = ("--device", "cuda", "--epochs", "2", "--model", "SimpleCnn", "--name", name, "--results-dir", ".")
        done = sim("centralized", *words)
        assert done.returncode == 0, done.stderr
    assert sha256(tmp_path / "a" / "model.safetensors") == sha256(tmp_path / "b" / "model.safetensors")


@pytest.mark.parametrize("app", ["message_app", "stateful_app"])
@pytest.mark.usefixtures("no_pictures")
def test_a_flower_app_with_shares_of_the_gpu(app: str, tmp_path: Path) -> None:
    folder = tmp_path / app
    shutil.copytree(PROGRAMS / "apps" / app, folder)
    common = {"app": str(folder), "num_clients": 6, "results_dir": str(tmp_path)}
    inline = simulate(AppConfig(**common, engine="inline", name="inline"))
    shared = simulate(AppConfig(**common, num_gpus=0.5, name="ray"), ray_init_args={"num_cpus": 2})
    assert sha256(inline.model_path) == sha256(shared.model_path)


def test_more_than_the_machine_has_is_said_in_one_line(small: Small) -> None:
    with pytest.raises(ConfigError, match="num-gpus 100: this machine has"):
        small(engine="ray", num_gpus=100)

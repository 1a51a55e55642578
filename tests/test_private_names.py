"""A run without the names that the libraries do not promise, and without ``start_simulation``: the same bits."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch
from flwr.common import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from conftest import ONE_ACTOR, Sim, Small, sha256
from sim import private_names
from sim.errors import StateError
from sim.network import client
from sim.run_folder.encode_state import pack_record, unpack_record

FEW = ["run", "--num-clients", "10", "--clients-per-round", "4", "--num-rounds", "2", "--local-epochs", "1"]
FEW += ["--max-local-steps", "3", "--local-training", "vectorized", "--vectorized-clients", "3"]


@pytest.mark.ray
def test_hidden_names_and_no_start_simulation_change_no_bit(
    sim: Sim, small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clients are trained in groups, which thus give the same bits on both engines, too."""
    together = {"local_training": "vectorized", "vectorized_clients": 3}
    sums = {sha256(small(name="inline", **together).model_path)}  # the inline engine uses neither
    hidden = sim(*FEW, *ONE_ACTOR, "--name", "hidden", env={**os.environ, private_names.HIDDEN: "1"})
    assert hidden.returncode == 0, hidden.stderr
    assert "Traceback" not in hidden.stderr
    sums.add(sha256(tmp_path / "results" / "hidden" / "model.safetensors"))
    # A Flower that no longer has the function: the one file that names it is imported anew.
    monkeypatch.delattr("flwr.simulation.start_simulation")
    monkeypatch.delitem(sys.modules, "sim.engine.ray.start_simulation", raising=False)
    sums.add(sha256(small({"num_cpus": 1}, engine="ray", name="without", **together).model_path))
    assert len(sums) == 1


def test_no_name_is_found_while_all_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    assert private_names._find("ray._raylet", "Config") is not None
    assert private_names._find("ray._raylet", "NoSuchName") is None
    hooked = torch.ones(1, requires_grad=True)
    hooked.register_hook(abs)
    assert private_names.gradient_hooks(hooked) == ([abs], [])
    monkeypatch.setenv(private_names.HIDDEN, "1")
    assert private_names._find("ray._raylet", "Config") is None
    assert private_names.reread_ray_authentication() is False
    assert private_names.gradient_hooks(hooked) == ([], [])
    with pytest.raises(ValueError, match="cannot read the state of a client"):
        private_names.record_from_protobuf(b"")


def _state() -> RecordDict:
    return RecordDict(
        {
            "config": ConfigRecord({"text": "é\n", "bytes": b"\x00\xff", "yes": True, "list": [b"a", b""]}),
            "metrics": MetricRecord({"float": 0.1, "integers": [1, 2]}),
            "arrays": ArrayRecord([np.arange(6, dtype=np.float32).reshape(2, 3), np.array(7)]),
        }
    )


def test_the_state_of_a_client_survives_to_the_bit() -> None:
    assert unpack_record(pack_record(_state())) == _state()
    with pytest.raises(StateError, match="a client's state"):
        unpack_record(pack_record(_state())[:40])


def test_the_state_that_version_0_1_0_wrote_can_be_read() -> None:
    from flwr.common.serde import recorddict_to_proto

    content = np.frombuffer(recorddict_to_proto(_state()).SerializeToString(), np.uint8)
    assert unpack_record(content) == _state()


COMPILER_LATER = """
import importlib.util, inspect, sys
import torch
from sim.private_names import import_compiler_when_used

import_compiler_when_used()
net = torch.nn.Linear(2, 1)
optimizer = torch.optim.Adam(net.parameters())
def step(forward):
    optimizer.zero_grad()
    forward(torch.ones(1, 2)).sum().backward()
    optimizer.step()
step(net)
inspect.getmodule(step), importlib.util.find_spec("torch._dynamo"), hasattr(torch._dynamo, "__wrapped__")
print("torch._dynamo.eval_frame" in sys.modules)
step(%s)
import torch._dynamo.config
found = sys.modules["torch._dynamo"]
print("torch._dynamo.eval_frame" in sys.modules, type(found).__name__, found is torch._dynamo)
disabled = torch.optim.Optimizer.zero_grad.__wrapped__
print(getattr(disabled, "__dynamo_disable", None) is not disabled, optimizer.state[net.weight]["step"].item())
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("compiled", "hidden"),
    [("torch.compile(net, backend='eager')", ""), ("torch.compiler.disable(net.forward)", "1")],
)
def test_the_compiler_is_imported_when_something_is_compiled(compiled: str, hidden: str) -> None:
    """An optimizer alone needs it not. Afterwards PyTorch's own methods are as if it had been there from the first."""
    command = [sys.executable, "-c", COMPILER_LATER % compiled]
    environment = {**os.environ, private_names.HIDDEN: hidden}
    found = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert found.stdout.splitlines() == [str(bool(hidden)), "True module True", "True 2.0"]


def test_only_the_watch_of_a_closed_channel_is_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    """gRPC's watching thread raises an error where ``start_client`` has closed the channel before it looked."""
    reported: list[str] = []

    def report(args: threading.ExceptHookArgs) -> None:
        reported.append(str(args.exc_value))

    def watch_closed_channel() -> None:
        before = set(threading.enumerate())
        channel = grpc.insecure_channel("127.0.0.1:9")
        channel.close()
        channel.subscribe(print)
        for thread in set(threading.enumerate()) - before:
            thread.join()

    def use_closed_channel() -> None:
        raise ValueError("Cannot invoke RPC: Channel closed!")

    monkeypatch.setattr(threading, "excepthook", report)
    client._expect_closed_channel()
    watch_closed_channel()
    assert reported == []
    monkeypatch.setenv(private_names.HIDDEN, "1")
    watch_closed_channel()
    monkeypatch.delenv(private_names.HIDDEN)
    user_thread = threading.Thread(target=use_closed_channel)
    user_thread.start()
    user_thread.join()
    assert reported == ["Cannot invoke RPC: Channel closed!"] * 2

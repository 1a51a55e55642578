"""Trains the clients of a chunk in one computation, where the spec says so."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from flwr.common import NDArrays
from torch import Tensor

from sim.algorithms.algorithm import Exchange, GradientCorrection
from sim.client.runtime import ClientRuntime, message_of
from sim.client.torch_client import TRAIN_SETTINGS
from sim.engine.aggregation import NonFiniteError, WeightedSum
from sim.engine.interface import Chunk, ClientResult, Task
from sim.errors import some
from sim.seeds import Purpose, reseed, restored, sequence
from sim.training.step_hooks import Step, Steps
from sim.training.vectorized import Member, Trainer, drawn

_OWN_SETTINGS = ("local_epochs", "max_steps")  # which may differ from client to client


def reason_against(chunk: Chunk) -> str | None:
    """Say why the clients of ``chunk`` cannot be trained in one computation; None if they can."""
    if any("first_loss" in task.config for task in chunk.tasks):
        return "the strategy asks clients for the loss of the weights that they get"
    shared = [{k: v for k, v in task.config.items() if k not in _OWN_SETTINGS} for task in chunk.tasks]
    odd = next((each for each in shared if each != shared[0]), None)
    if odd is None:
        return None
    names = [name for name in sorted({*odd, *shared[0]}) if odd.get(name) != shared[0].get(name)]
    return f"clients get settings of their own: {some(names)}"


def fit(runtime: ClientRuntime, chunk: Chunk, seed: int) -> tuple[list[ClientResult], WeightedSum]:
    """Train the clients of ``chunk``, up to ``vectorized_clients`` of the spec at a time.

    Returns:
        Their results in order, with weights unless the chunk is summed; and the weighted sum.
    """
    results: list[ClientResult] = []
    total = WeightedSum(num_extras=chunk.num_extras)
    waiting = list(chunk.tasks)
    message = message_of(runtime.spec, runtime.shared_layout, chunk.server_round, chunk.untrained)
    bytes_up = message.num_bytes(chunk.weights, None)  # arrays of the same shapes, as they are
    while waiting:
        start = time.perf_counter()
        tasks, waiting = waiting[: runtime.vectorized_clients], waiting[runtime.vectorized_clients :]
        config = dict(tasks[0].config)  # of all, but for ``_OWN_SETTINGS``
        exchanges = [_exchange(runtime, chunk, task) for task in tasks]
        with restored():
            members = [
                _member(runtime, chunk, task, seed, exchange) for task, exchange in zip(tasks, exchanges, strict=True)
            ]
        settings: dict[str, Any] = {k: config[k] for k in TRAIN_SETTINGS if k in config and k != "max_steps"}
        trainer = runtime.trainer(int(config["batch_size"]))
        groups = _train(runtime, trainer, chunk.weights[: len(chunk.weights) - chunk.num_extras], members, settings)
        seconds = (time.perf_counter() - start) / len(tasks)
        sizes = [len(runtime.train_indices(task.client_id)) for task in tasks]
        position = 0
        for weights, losses in groups:
            count = len(losses)
            group = range(position, position + count)
            finite = torch.stack([torch.isfinite(w)[..., None].flatten(1).all(1) for w in weights]).all(0).tolist()
            if chunk.summed and runtime.algorithm is None:
                # A weight of 0 would not do: 0 × NaN is NaN.
                kept = weights if all(finite) else [w[torch.tensor(finite, device=w.device)] for w in weights]
                total.fold(_sum(kept, [sizes[i] for k, i in enumerate(group) if finite[k]]))
            for k, i in enumerate(group):
                client_id, loss = tasks[i].client_id, float(losses[k])
                if not finite[k]:
                    error = f"{NonFiniteError.__name__}: the model holds NaN or infinite weights"
                    results.append(ClientResult(client_id, seconds, error=error, vectorized_with=count))
                    continue
                exchange, result = exchanges[i], ClientResult(client_id, seconds, sizes[i])
                result.vectorized_with, result.bytes_up = count, bytes_up
                if not math.isnan(loss):  # as of a client without any label
                    result.loss, result.metrics = loss, {"loss": loss}
                if exchange is not None:
                    number = tasks[i].state_number or chunk.server_round
                    _finish(runtime, number, result, exchange, [w[k] for w in weights], members[i], config)
                    if chunk.summed:
                        total.add(result.weights or [], 1 if chunk.uniform else sizes[i])
                        result.weights = None
                elif not chunk.summed:
                    result.weights = [w[k].cpu().numpy() for w in weights]
                results.append(result)
            position += count
    return results, total


def _exchange(runtime: ClientRuntime, chunk: Chunk, task: Task) -> Exchange | None:
    """Return what a client begins with, if the run has an algorithm."""
    if runtime.algorithm is None:
        return None
    count = len(chunk.weights) - chunk.num_extras
    state = {} if task.state_round is None else runtime.states.read(task.client_id, task.state_round)

    def tensors(arrays: Sequence[Any]) -> list[Tensor]:
        return [torch.tensor(array, device=runtime.device) for array in arrays]

    own = {name: tensors(arrays) for name, arrays in state.items()}
    return Exchange(tensors(chunk.weights[:count]), tensors(chunk.weights[count:]), own)


def _finish(
    runtime: ClientRuntime,
    state_number: int,
    result: ClientResult,
    exchange: Exchange,
    trained: list[Tensor],
    member: Member,
    config: dict[str, Any],
) -> None:
    """Let the algorithm make what a client sends and keeps."""
    assert isinstance(runtime.algorithm, GradientCorrection)
    step = Step(float(config["lr"]), float(config.get("momentum") or 0.0))
    steps = Steps([[step] * len(member.batches)] * len(trained))
    update = runtime.algorithm.finish(exchange, trained, steps)
    result.metrics = {**result.metrics, **update.metrics}
    sent = [*(trained if update.shared is None else update.shared), *update.extras]
    result.weights = [tensor.cpu().numpy() for tensor in sent]
    state = {name: [tensor.cpu().numpy() for tensor in tensors] for name, tensors in exchange.state.items()}
    if state:
        runtime.states.write(result.client_id, state_number, state)
        result.wrote_state = True


def _member(runtime: ClientRuntime, chunk: Chunk, task: Task, seed: int, exchange: Exchange | None) -> Member:
    config: dict[str, Any] = dict(task.config)
    key = chunk.server_round, task.client_id, task.repeat
    dropout = int(sequence(seed, Purpose.DROPOUT, *key).generate_state(1)[0])
    reseed(seed, Purpose.FIT, *key)
    loader = runtime.training_batches(runtime.train_indices(task.client_id), int(config["batch_size"]))
    loader.noise = runtime.spec.noise_step * task.client_id
    member = drawn(loader, int(config["local_epochs"]), int(config.get("max_steps") or 0), dropout, runtime.device)
    if runtime.is_flipped(task.client_id):
        member = replace(member, flipped_classes=len(runtime.dataset.classes))
    if exchange is None:
        return member
    assert isinstance(runtime.algorithm, GradientCorrection)
    correction = runtime.algorithm.correction(exchange)
    return replace(member, constant=correction.constant, pull=correction.pull)


def _train(
    runtime: ClientRuntime, trainer: Trainer, weights: NDArrays, members: Sequence[Member], settings: dict[str, Any]
) -> list[tuple[list[Tensor], Tensor]]:
    """Train a group; where the GPU's memory does not suffice, each half of it, and from then on groups of that size."""
    try:
        stacked, losses = trainer.train(weights, members, **settings)
        return [(stacked, losses.cpu())]
    except torch.OutOfMemoryError:
        if len(members) == 1:
            raise
    torch.cuda.empty_cache()
    half = len(members) // 2
    logging.getLogger("sim").warning(
        "the GPU's memory does not suffice for %d vectorized clients; continuing with %d", len(members), half
    )
    runtime.vectorized_clients = min(runtime.vectorized_clients, half)
    parts = (members[:half], members[half:])
    return [group for part in parts for group in _train(runtime, trainer, weights, part, settings)]


def _sum(stacked: list[Tensor], sizes: list[int]) -> WeightedSum:
    """Σ nᵢ·wᵢ of a group, computed on its device."""
    if not sizes:
        return WeightedSum()
    counts = torch.tensor(sizes, dtype=torch.float32, device=stacked[0].device)
    sums = [torch.tensordot(counts.to(w.dtype), w, 1).cpu().numpy() for w in stacked]
    return WeightedSum(sum(sizes), sums, [array.dtype for array in sums])

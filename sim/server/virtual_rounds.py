"""Synchronous rounds in virtual time: who is online, chosen and done in time, and what the clock says afterwards."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from flwr.serverapp.strategy import Strategy as MessageStrategy

from sim.config.fields import MOST
from sim.config.run_config import RunConfig
from sim.engine.interface import Chunk, ClientResult, Task
from sim.errors import ConfigError, RunError
from sim.run_folder.records import ClientRecord
from sim.server.prepared_run import Prepared
from sim.server.round_schedule import RoundSchedule, scheduled
from sim.server.run_sampler import RunSampler
from sim.server.sampled_clients import SampledClients
from sim.server.samplers import Report
from sim.server.strategy import BuiltStrategy
from sim.server.traffic import Traffic
from sim.server.virtual_time import Participation, VirtualTime

_MOST_ATTEMPTS = 1000  # of one round


@dataclass(frozen=True)
class Planned:
    """What is left of a round's chunks, and what becomes of all clients that were asked.

    Attributes:
        schedule: None without devices, where all clients take part that do not drop out.
    """

    chunks: list[Chunk]
    schedule: RoundSchedule | None


class VirtualRounds:
    """The clock of a run, and the choice of its clients.

    Attributes:
        clients: what strategies sample from.
        now: virtual seconds since the start of the run.
    """

    def __init__(
        self, config: RunConfig, time: VirtualTime | None, sampler: RunSampler, clients: SampledClients, num_online: int
    ) -> None:
        """
        Args:
            time: None without devices.
            num_online: clients that must be online for a round to begin.
        """
        self.clients, self.now = clients, 0.0
        self._config, self._time, self._sampler, self._num_online = config, time, sampler, num_online
        self._last: list[Participation] = []  # the clients that were asked the last time
        self._shortened: set[int] = set()  # those of them that take fewer steps than they have

    @property
    def seconds(self) -> float | None:
        """Virtual seconds since the start of the run; None without devices."""
        return None if self._time is None else self.now

    def begin(self, server_round: int, attempt: int) -> None:
        """Let the strategy choose among the clients that are online; wait in virtual time until there are enough.

        Raises:
            RunError: they never are, or the round was void too often.
        """
        if attempt >= _MOST_ATTEMPTS:
            statuses = Counter(each.status for each in self._last)
            raise RunError(
                f"round {server_round}: was void {attempt} times, because fewer than --min-reports "
                f"{self._config.min_reports} clients finished; of the last {len(self._last)}, {statuses['late']} were "
                f"late, {statuses['offline']} went offline and {statuses['dropped']} dropped out"
            )
        if self._time is not None:
            self._time.begin_round(server_round)
            begun = self._time.when_online(self._num_online, self.now)
            if math.isinf(begun):
                whom = f"{self._num_online} clients are never online together"
                raise RunError(
                    f"round {server_round}: from {self.now:g} virtual seconds on, "
                    + ("no client is ever online" if self._num_online == 1 else whom)
                )
            self.now = begun
            self.clients.begin(server_round, attempt, self._time.online(self.now))
        else:
            self.clients.begin(server_round, attempt, np.arange(self._config.num_clients))

    def planned(self, chunks: Sequence[Chunk], dropped: Collection[int] = ()) -> Planned:
        """Return the clients that will finish, with the steps that they have time for; the clock moves on.

        Args:
            dropped: client_ids of those that send nothing back.
        """
        self.clients.end()
        time, config = self._time, self._config
        tasks = [task for chunk in chunks for task in chunk.tasks]
        if time is None or not tasks:
            return Planned(list(chunks), None)
        asked = [
            time.participation(task.client_id, self.now, time.steps(task.client_id, task.config)) for task in tasks
        ]
        schedule = scheduled(
            time,
            asked,
            len(tasks) if config.over_select == 1 else min(config.num_fit_clients, len(tasks)),
            deadline_seconds=config.deadline,
            deadline_quantile=config.deadline_quantile,
            partial_work=config.partial_work,
            dropped=dropped,
        )
        self.now, self._last = schedule.end, schedule.participations
        by_client = {each.client_id: each for each in schedule.taken}
        full = {each.client_id: each.steps for each in asked}
        self._shortened = {client_id for client_id, each in by_client.items() if each.steps < full[client_id]}
        left = []
        for chunk in chunks:
            kept = [
                _with_steps(task, by_client[task.client_id], full[task.client_id])
                for task in chunk.tasks
                if task.client_id in by_client
            ]
            if kept:
                left.append(replace(chunk, tasks=kept))
        return Planned(left, schedule)

    def is_void(self, planned: Planned) -> bool:
        """Whether too few clients finish."""
        return planned.schedule is not None and len(planned.schedule.taken) < self._config.min_reports

    def observe(self, server_round: int, schedule: RoundSchedule | None, succeeded: Sequence[ClientResult]) -> None:
        """Tell the sampler what clients reported."""
        took = {} if schedule is None else {each.client_id: each.end - each.start for each in schedule.taken}
        reports = [Report(r.client_id, r.num_examples, r.loss, took.get(r.client_id, 0.0)) for r in succeeded]
        self._sampler.observe(server_round, reports)
        if self._time is not None:
            told = told_steps(succeeded)
            self._time.told_steps.update({c: steps for c, steps in told.items() if c not in self._shortened})

    def state(self) -> dict[str, Any]:
        """Return what belongs to a checkpoint."""
        told = {} if self._time is None else self._time.told_steps
        return {"now": self.now, "sampler": self._sampler.state(), "told_steps": told}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take what ``state`` has returned."""
        self.now = float(state["now"])
        self._sampler.restore(state["sampler"])
        if self._time is not None:
            self._time.told_steps = dict(state["told_steps"])


def clock_of(prepared: Prepared) -> VirtualRounds:
    """Make the clock of a run."""
    config, strategy = prepared.config, prepared.strategy
    assert strategy is not None, "an app has no virtual time"
    sampler = RunSampler(config, prepared.known_sizes)
    num_online = num_waited_for(config, strategy)
    return VirtualRounds(config, time_of(prepared), sampler, SampledClients(config, sampler), num_online)


def num_waited_for(config: RunConfig, strategy: BuiltStrategy) -> int:
    """Return how many clients must be there before a round begins."""
    used: Any = strategy.strategy
    if not isinstance(used, MessageStrategy):
        return config.min_reports
    numbers = [config.num_asked_clients]
    while used is not None:  # one of these waits for ever where there are fewer
        numbers += [getattr(used, name, 0) for name in ("min_available_nodes", "min_train_nodes")]
        used = getattr(used, "strategy", None)  # in a wrapper for privacy
    return max(numbers)


def time_of(prepared: Prepared) -> VirtualTime | None:
    """Return how long clients work; None without devices."""
    if prepared.devices is None:
        return None
    strategy = prepared.strategy
    algorithm = None if strategy is None else strategy.algorithm
    sent = [*prepared.initial_weights, *([] if algorithm is None else algorithm.sent())]
    loader = None if prepared.dataset is None else getattr(prepared.dataset.train, "loader", None)
    return VirtualTime(
        prepared.config,
        prepared.devices,
        prepared.known_sizes,
        partial(Traffic(prepared).expected_bytes, sent),
        algorithm,
        eval_share=getattr(prepared.spec, "eval_share", 0.0),
        drops_last=bool(getattr(loader, "drop_last", False)),
    )


def told_steps(results: Sequence[ClientResult]) -> dict[int, int]:
    """Return the training steps that clients say they took, by client_id: their metric ``num_steps``."""
    found = {}
    for result in results:
        told = result.metrics.get("num_steps")
        if isinstance(told, int | float) and not isinstance(told, bool) and 1 <= told <= MOST:
            found[result.client_id] = int(told)
    return found


def with_virtual_time(records: Sequence[ClientRecord], participations: Sequence[Participation]) -> list[ClientRecord]:
    """Return the records of clients with their virtual seconds."""
    by_client = {each.client_id: each for each in participations}
    return [
        replace(record, **_columns(by_client[record.client_id])) if record.client_id in by_client else record
        for record in records
    ]


def not_used(planned: Planned, server_round: int, *, is_void: bool) -> list[ClientRecord]:
    """Return a record of each client whose update is not used: all of them, if the round is void."""
    asked = [] if planned.schedule is None else planned.schedule.participations
    return [unfinished(each, server_round) for each in asked if is_void or each.status != "ok"]


def unfinished(participation: Participation, server_round: int) -> ClientRecord:
    """Return the record of a client whose update is not used."""
    return ClientRecord(
        server_round,
        "fit",
        participation.client_id,
        num_examples=None,
        loss=None,
        accuracy=None,
        seconds=None,
        actor=None,
        vectorized_with=None,
        status="void" if participation.status == "ok" else participation.status,
        error=None,
        **_columns(participation),
        **dict(zip(("bytes_down", "bytes_up"), participation.bytes_sent, strict=True)),
    )


def check_deadline(config: RunConfig, time: VirtualTime, client_settings: Mapping[str, Any]) -> None:
    """Check that enough clients can meet the deadline at all.

    Args:
        client_settings: those of ``FitIns.config`` in the first round.

    Raises:
        ConfigError: they cannot.
    """
    if config.deadline is None:
        return
    for server_round in (config.num_rounds, 1):  # which differ after a warm start
        time.begin_round(server_round)
        _check_deadline(config.deadline, config, time, client_settings)


def _check_deadline(deadline: float, config: RunConfig, time: VirtualTime, client_settings: Mapping[str, Any]) -> None:
    able, fastest = 0, math.inf
    for client_id in range(config.num_clients):
        steps = time.steps(client_id, client_settings)
        due = time.participation(client_id, 0.0, min(1, steps) if config.partial_work else steps).due
        able, fastest = able + (due <= deadline), min(fastest, due)
        if able >= config.min_reports:
            return
    what = "a single step" if config.partial_work else "its round"
    raise ConfigError(
        f"--deadline {deadline:g}: {able} of {config.num_clients} clients can meet it, but --min-reports is "
        f"{config.min_reports}; the fastest one needs {fastest:.6g} virtual seconds for {what}"
    )


def _columns(participation: Participation) -> dict[str, Any]:
    return {
        "virtual_start": participation.start,
        "virtual_end": participation.end,
        "virtual_download_seconds": participation.download_seconds,
        "virtual_upload_seconds": participation.upload_seconds,
    }


def _with_steps(task: Task, participation: Participation, full_steps: int) -> Task:
    if participation.steps == full_steps:
        return task
    return replace(task, config={**task.config, "max_steps": participation.steps})

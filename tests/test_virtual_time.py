"""Virtual time: schedules computed by hand, samplers, and the equations of asynchronous strategies."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import pytest

from sim.config.run_config import RunConfig
from sim.devices.device import Device
from sim.engine.interface import ClientResult
from sim.errors import ConfigError
from sim.seeds import Purpose, generator
from sim.server.async_rules import Arrived, FedAsync, FedBuff, staleness_factor
from sim.server.async_schedule import AsyncSchedule, Start
from sim.server.round_schedule import RoundSchedule, scheduled
from sim.server.run_sampler import RunSampler
from sim.server.samplers import BySize, Oort, OortArguments, PowerOfChoice, Report, RoundRobin, sampler_of
from sim.server.samplers import PowerOfChoiceArguments as Candidates
from sim.server.virtual_rounds import told_steps
from sim.server.virtual_time import VirtualTime

# Seconds for 100 bytes down, 2, 4 and 10 steps, and 50 bytes up: 1 + 2 + 1, 2 + 2 + 1, and 0.5 + 2 + 2.
DEVICES = [Device(1.0, 100.0, 50.0), Device(0.5, 50.0, 50.0), Device(0.2, 200.0, 25.0)]
SIZES = [20, 40, 100]


@dataclass
class Windows:
    """Each client is online from one second to another, and never again."""

    windows: Mapping[int, tuple[float, float]] = field(default_factory=dict)
    num_clients: int = 3

    @property
    def is_always(self) -> bool:
        return not self.windows

    def online_until(self, client_id: int, at_seconds: float) -> float:
        begin, end = self.windows.get(client_id, (0.0, math.inf))
        return end if begin <= at_seconds < end else at_seconds

    def online_from(self, client_id: int, at_seconds: float) -> float:
        begin, end = self.windows.get(client_id, (0.0, math.inf))
        return max(begin, at_seconds) if at_seconds < end else math.inf

    def are_online(self, at_seconds: float) -> Any:
        return np.array([self.online_until(c, at_seconds) > at_seconds for c in range(self.num_clients)])


@dataclass
class Devices:
    availability: Windows
    devices: Sequence[Device] = tuple(DEVICES)

    def device(self, client_id: int) -> Device:
        return self.devices[client_id]


def virtual_time(windows: Mapping[int, tuple[float, float]] | None = None, **settings: Any) -> VirtualTime:
    devices: Any = Devices(Windows(windows or {}))
    config = RunConfig(**{"num_clients": 3, "batch_size": 10, "local_epochs": 1, "devices": "uniform", **settings})
    return VirtualTime(config, devices, SIZES, lambda _: (100, 50), eval_share=config.kept_share)


def round_of(time: VirtualTime, num_needed: int = 3, **rules: Any) -> RoundSchedule:
    asked = [time.participation(client_id, 10.0, time.steps(client_id, {})) for client_id in range(3)]
    return scheduled(time, asked, num_needed, **rules)


def ends(schedule: RoundSchedule) -> list[Any]:
    return [(each.status, pytest.approx(each.end - 10, abs=1e-12), each.steps) for each in schedule.participations]


def test_a_round_lasts_as_long_as_its_slowest_client() -> None:
    schedule = round_of(virtual_time())
    assert schedule.end == 15.0
    assert ends(schedule) == [("ok", 4.0, 2), ("ok", 5.0, 4), ("ok", 4.5, 10)]


def test_the_first_of_the_clients_that_were_asked_are_taken() -> None:
    schedule = round_of(virtual_time(), 2)
    assert schedule.end == 14.5
    assert ends(schedule) == [("ok", 4.0, 2), ("late", 4.5, 4), ("ok", 4.5, 10)]


def test_a_deadline_ends_a_round_without_the_clients_that_are_late() -> None:
    schedule = round_of(virtual_time(), deadline_seconds=4.6)
    assert schedule.end == pytest.approx(14.6, abs=1e-12)
    assert ends(schedule) == [("ok", 4.0, 2), ("late", 4.6, 4), ("ok", 4.5, 10)]
    # Two of three clients have finished after 4.5 seconds.
    schedule = round_of(virtual_time(), deadline_quantile=2 / 3)
    assert schedule.end == 14.5
    assert ends(schedule) == [("ok", 4.0, 2), ("late", 4.5, 4), ("ok", 4.5, 10)]


def test_with_partial_work_as_many_steps_are_taken_as_fit() -> None:
    # Client 1 needs 3 of 4.6 seconds for its traffic, and the rest is enough for 3 steps of 0.5 seconds.
    schedule = round_of(virtual_time(), deadline_seconds=4.6, partial_work=True)
    assert ends(schedule) == [("ok", 4.0, 2), ("ok", 4.5, 3), ("ok", 4.5, 10)]
    assert schedule.end == 14.5
    # Client 1 has no time for a step, client 0 for one of two, client 2 for two: 0.5 + 0.4 + 2.
    schedule = round_of(virtual_time(), deadline_seconds=3.0, partial_work=True)
    assert ends(schedule) == [("ok", 3.0, 1), ("late", 3.0, 4), ("ok", 2.9, 2)]
    assert schedule.end == 13.0


def test_a_client_that_goes_offline_drops_out_of_the_round() -> None:
    schedule = round_of(virtual_time({1: (0.0, 13.0)}))
    assert schedule.end == 14.5
    assert ends(schedule) == [("ok", 4.0, 2), ("offline", 3.0, 4), ("ok", 4.5, 10)]
    schedule = round_of(virtual_time({0: (0.0, 11.0), 1: (0.0, 13.0), 2: (0.0, 12.0)}))
    assert schedule.end == 13.0  # the server sees that the last one has left
    assert [status for status, _, _ in ends(schedule)] == ["offline"] * 3


def test_a_client_that_drops_out_has_trained_and_sends_nothing() -> None:
    schedule = round_of(virtual_time(), dropped={1})
    assert schedule.end == 14.5
    # Client 1 would have been done after 5 seconds, of which the upload takes one.
    assert ends(schedule) == [("ok", 4.0, 2), ("dropped", 4.0, 4), ("ok", 4.5, 10)]
    assert [each.bytes_sent for each in schedule.participations] == [(100, 50), (100, 0), (100, 50)]
    # If it is late, offline or not waited for, it is that.
    schedule = round_of(virtual_time(), dropped={1}, deadline_seconds=3.9)
    assert ends(schedule) == [("late", 3.9, 2), ("late", 3.9, 4), ("late", 3.9, 10)]
    assert ends(round_of(virtual_time({1: (0.0, 13.0)}), dropped={1}))[1] == ("offline", 3.0, 4)
    schedule = round_of(virtual_time(), dropped={0, 1, 2})
    assert schedule.end == 14.0
    assert ends(schedule) == [("dropped", 3.0, 2), ("dropped", 4.0, 4), ("dropped", 2.5, 10)]
    time = virtual_time()
    time.bytes_up = 0  # an upload that takes no time does not arrive either
    assert ends(round_of(time, dropped={1}))[1] == ("dropped", 4.0, 4)


def test_what_was_sent_until_a_client_left() -> None:
    time = virtual_time()
    at_work = time.participation(1, 10.0, 4)  # 2 seconds, 2 seconds and 1 second for 100 bytes, 4 steps and 50 bytes
    sent = [at_work.ended("late", 10 + seconds).bytes_sent for seconds in (0, 1, 3, 4.5, 5, 9)]
    assert sent == [(0, 0), (50, 0), (100, 0), (100, 25), (100, 50), (100, 50)]
    devices: Any = Devices(Windows(), [Device(0.5, math.inf, math.inf)] * 3)
    time = VirtualTime(RunConfig(num_clients=3, devices="uniform"), devices, SIZES, lambda _: (100, 50))
    at_work = time.participation(1, 10.0, 4)
    assert [at_work.ended("late", 10 + seconds).bytes_sent for seconds in (0, 1, 2)] == [(100, 0), (100, 0), (100, 50)]


def test_steps_follow_from_examples_and_settings() -> None:
    time = virtual_time(fraction_evaluate=1.0, eval_share=0.5, local_epochs=3)
    assert [time.steps(client_id, {}) for client_id in range(3)] == [3, 6, 15]  # half of the examples are kept
    assert [time.steps(2, {"batch_size": 20, "local_epochs": epochs}) for epochs in (1, 2)] == [3, 6]
    assert time.steps(2, {"max_steps": 7}) == 7
    limited = virtual_time(local_epochs=3, max_local_steps=4)  # an asynchronous schedule has no settings of a round
    assert [limited.steps(client_id, {}) for client_id in range(3)] == [4, 4, 4]
    assert limited.steps(2, {"max_steps": 2}) == 2
    assert virtual_time(client_steps=12, client_fn="own:client_fn", batch_size=None).steps(2, {}) == 12


def test_clients_say_how_many_steps_they_took() -> None:
    told: list[Any] = [7, 3.0, 0, True, math.inf, math.nan, "9"]
    results = [ClientResult(client_id, metrics={"num_steps": value}) for client_id, value in enumerate(told)]
    assert told_steps(results) == {0: 7, 1: 3}


def test_a_time_is_found_at_which_enough_clients_are_online() -> None:
    time = virtual_time({0: (5.0, 20.0), 1: (0.0, 8.0), 2: (10.0, 30.0)})
    assert [time.when_online(count, 1.0) for count in (1, 2, 3)] == [1.0, 5.0, math.inf]
    assert time.when_online(2, 8.0) == 10.0
    assert time.online(12.0).tolist() == [0, 2]


def versions(count: int, num_arrivals: int, **settings: Any) -> list[Any]:
    """Versions of the three devices, two of which work at a time."""
    windows = settings.pop("windows", None)
    time = virtual_time(windows, strategy="fedbuff", concurrency=2, sampler="round-robin", **settings)
    schedule = AsyncSchedule(time._config, time, RunSampler(time._config, SIZES), num_arrivals)
    return list(islice(schedule.versions(), count))


def seen(start: Start) -> tuple[int, int, int | None, str, float, float]:
    at_work = start.participation
    return start.client_id, start.version, start.staleness, at_work.status, at_work.start, at_work.end


def test_the_schedule_of_three_devices_with_a_version_per_update() -> None:
    made = versions(6, 1)
    assert [version.seconds for version in made] == [4.0, 5.0, 8.5, 9.0, 13.5, 13.5]
    assert [[seen(start) for start in version.ended] for version in made] == [
        [(0, 0, 0, "ok", 0.0, 4.0)],
        [(1, 0, 1, "ok", 0.0, 5.0)],
        [(2, 1, 1, "ok", 4.0, 8.5)],
        [(0, 2, 1, "ok", 5.0, 9.0)],
        [(1, 3, 1, "ok", 8.5, 13.5)],
        [(2, 4, 1, "ok", 9.0, 13.5)],  # at the same moment, but it began later
    ]
    assert [[start.client_id for start in version.at_work] for version in made] == [[1], [2], [0], [1], [2], []]


def test_the_schedule_of_three_devices_with_a_version_per_two_updates() -> None:
    made = versions(2, 2)
    assert [version.seconds for version in made] == [5.0, 9.0]
    assert [[seen(start) for start in version.ended] for version in made] == [
        [(0, 0, 0, "ok", 0.0, 4.0), (1, 0, 0, "ok", 0.0, 5.0)],
        [(2, 0, 1, "ok", 4.0, 8.5), (0, 1, 0, "ok", 5.0, 9.0)],
    ]


def test_updates_that_are_too_old_and_clients_that_leave_make_no_version() -> None:
    made = versions(2, 2, max_staleness=0)
    assert [[seen(start) for start in version.ended] for version in made] == [
        [(0, 0, 0, "ok", 0.0, 4.0), (1, 0, 0, "ok", 0.0, 5.0)],
        [(2, 0, 1, "late", 4.0, 8.5), (0, 1, 0, "ok", 5.0, 9.0), (1, 1, 0, "ok", 8.5, 13.5)],
    ]
    made = versions(1, 2, windows={1: (0.0, 3.0)})
    assert [seen(start) for start in made[0].ended] == [
        (1, 0, None, "offline", 0.0, 3.0),
        (0, 0, 0, "ok", 0.0, 4.0),
        (2, 0, 0, "ok", 3.0, 7.5),
    ]


def test_a_client_that_drops_out_of_an_asynchronous_run_makes_place_for_another() -> None:
    made = versions(6, 1, client_dropout=0.4)
    drawn = {
        (version, client): generator(0, Purpose.CLIENT_DROPOUT, version + 1, client).random() < 0.4
        for version in range(6)
        for client in range(3)
    }
    ended = [start for version in made for start in version.ended]
    dropped = [start for start in ended if start.participation.status == "dropped"]
    assert {(start.version, start.client_id) for start in dropped if not start.repeat} == {
        (start.version, start.client_id)
        for start in ended
        if not start.repeat and drawn[start.version, start.client_id]
    }
    assert 0 < len(dropped) < len(ended)
    for start in dropped:
        at_work = start.participation
        assert at_work.end == at_work.due - at_work.upload_seconds


def test_a_place_waits_until_a_client_comes_online() -> None:
    made = versions(2, 1, windows={0: (0.0, 100.0), 1: (6.0, 100.0), 2: (50.0, 60.0)})
    assert [seen(start) for version in made for start in version.ended] == [
        (0, 0, 0, "ok", 0.0, 4.0),
        (0, 1, 0, "ok", 4.0, 8.0),
    ]
    assert [seen(start)[:2] for start in made[1].at_work] == [(1, 1)]  # began at 6


def test_equal_devices_begin_together_with_the_newest_version() -> None:
    devices: Any = Devices(Windows(num_clients=4), [DEVICES[0]] * 4)
    config = RunConfig(num_clients=4, batch_size=10, local_epochs=1, strategy="fedbuff", concurrency=4)
    time = VirtualTime(config, devices, [20] * 4, lambda _: (100, 50))
    made = list(islice(AsyncSchedule(config, time, RunSampler(config, [20] * 4), 4).versions(), 3))
    assert [version.seconds for version in made] == [4.0, 8.0, 12.0]
    assert [[start.staleness for start in version.ended] for version in made] == [[0] * 4] * 3
    assert all(not version.at_work for version in made)


def test_staleness_counts_as_in_the_papers() -> None:
    assert [staleness_factor("polynomial", staleness, 0.5, 0) for staleness in (0, 3, 8)] == [1, 0.5, 1 / 3]
    assert [staleness_factor("hinge", staleness, 10, 4) for staleness in (0, 4, 5, 6)] == [1, 1, 1 / 11, 1 / 21]
    assert staleness_factor("constant", 7, 0.5, 4) == 1


def arrived(trained: float, begun: float, staleness: int, num_examples: int = 1, buffer: float = 0.0) -> Arrived:
    def arrays(value: float) -> list[Any]:
        return [np.array([value]), np.array([buffer])]

    return Arrived(arrays(trained), arrays(begun), staleness, num_examples)


def test_fedasync_mixes_one_update() -> None:
    newest = [np.array([1.0]), np.array([10.0])]
    (mixed, buffer) = FedAsync(alpha=0.6).mean(newest, [arrived(3.0, 0.5, 3, buffer=20.0)], {1})
    assert mixed[0] == pytest.approx(0.7 * 1.0 + 0.3 * 3.0, abs=1e-12)  # α_t = 0.6 · (1 + 3)^(−1/2)
    assert buffer[0] == pytest.approx(0.7 * 10 + 0.3 * 20, abs=1e-12)
    hinge = FedAsync(alpha=0.5, staleness="hinge", a=10.0, b=4.0)
    assert hinge.mean(newest, [arrived(3.0, 0.5, 6)], {1})[0][0] == pytest.approx(1 + 2 * 0.5 / 21, abs=1e-12)


def test_fedbuff_adds_the_scaled_mean_of_the_updates() -> None:
    newest, updates = (
        [np.array([5.0]), np.array([10.0])],
        [arrived(3.0, 1.0, 0, 10, 20.0), arrived(3.5, 4.5, 3, 30, 40.0)],
    )
    (stepped, buffer) = FedBuff(server_lr=0.5).mean(newest, updates, {1})
    assert stepped[0] == pytest.approx(5 + 0.5 * (1 * 2.0 + 0.5 * -1.0) / 2, abs=1e-12)
    assert buffer[0] == pytest.approx(30.0, abs=1e-12)  # the mean of what was sent, without server_lr and staleness
    weighted = FedBuff(weighting="examples", staleness="constant").mean(newest, updates, {1})
    assert weighted[0][0] == pytest.approx(5 + (10 * 2.0 + 30 * -1.0) / 40, abs=1e-12)
    assert weighted[1][0] == pytest.approx((10 * 20 + 30 * 40) / 40, abs=1e-12)


def test_a_mask_of_infinity_stays_as_it_is() -> None:
    mask = np.array([-np.inf, 0.0], np.float32)
    for rule in (FedAsync(), FedBuff()):
        assert rule.mean([mask], [Arrived([mask], [mask], 0, 1)] * 2, {0})[0].tolist() == [-np.inf, 0.0]


def rng() -> np.random.Generator:
    return np.random.default_rng(1)


def test_round_robin_goes_on_where_the_last_round_ended() -> None:
    sampler, everyone = RoundRobin(), np.arange(5)
    assert [list(sampler.sample(everyone, 2, 1, rng())) for _ in range(3)] == [[0, 1], [2, 3], [4, 0]]
    assert list(sampler.sample(np.array([0, 3, 4]), 2, 4, rng())) == [3, 4]


def test_sizes_decide_how_often_a_client_is_chosen() -> None:
    sampler, drawn = BySize(np.array([0, 100, 300])), np.random.default_rng(0)
    firsts = [sampler.sample(np.arange(3), 1, 1, drawn)[0] for _ in range(4000)]
    assert firsts.count(0) == 0
    assert firsts.count(2) / 4000 == pytest.approx(0.75, abs=0.03)
    assert sorted(sampler.sample(np.arange(3), 3, 1, drawn)) == [0, 1, 2]


def test_power_of_choice_takes_the_candidates_with_the_highest_loss() -> None:
    sampler = PowerOfChoice(np.array([10] * 5), Candidates(candidates=5))
    sampler.observe(1, [Report(c, 10, loss, 0.0) for c, loss in enumerate([0.5, 2.0, 1.0, 3.0])])
    assert sampler.sample(np.arange(5), 3, 2, rng()) == [4, 3, 1]  # 4 has never trained


def test_oort_prefers_high_losses_and_fast_clients() -> None:
    sampler = Oort(OortArguments(exploration=0.0, least_exploration=0.0, step=0.5, cutoff=1.0))
    losses, seconds = [1.0, 2.0, 3.0, 3.0], [1.0, 1.0, 1.0, 2.0]
    sampler.observe(1, [Report(c, 10, losses[c], seconds[c]) for c in range(4)])
    # |B| · loss is 10, 20, 30 and 30, scaled to 0, ½, 1 and 1; T is the median of the durations, 1 second, so that
    # client 3 counts (1 ÷ 2)². In round 2, √(0.1 · ln 2 ÷ 1) is added before that.
    bonus = math.sqrt(0.1 * math.log(2))
    assert sampler._scores([0, 1, 2, 3], 2) == pytest.approx(
        {0: bonus, 1: 0.5 + bonus, 2: 1 + bonus, 3: (1 + bonus) / 4}
    )
    assert list(sampler.sample(np.arange(4), 2, 2, rng())) == [2, 1]


def test_samplers_need_what_they_use() -> None:
    with pytest.raises(ConfigError, match="--sampler oort: needs the virtual seconds of --devices"):
        sampler_of(RunConfig(sampler="oort"), [1] * 100)
    with pytest.raises(ConfigError, match="--sampler by-size: nobody knows how many examples"):
        sampler_of(RunConfig(sampler="by-size"), [])
    with pytest.raises(ConfigError, match="--sampler-args d=3: --sampler power-of-choice takes candidates"):
        sampler_of(RunConfig(sampler="power-of-choice", sampler_args={"d": 3}), [1] * 100)
    with pytest.raises(ConfigError, match="--sampler-args d: --sampler round-robin takes no arguments"):
        sampler_of(RunConfig(sampler="round-robin", sampler_args={"d": 3}), [1] * 100)

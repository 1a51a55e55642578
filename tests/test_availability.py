"""When clients are online: exact times by hand, the same answers in any order, and the shares of time."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import Sim
from sim import RunConfig
from sim.devices.availability import Availability, Trace
from sim.devices.by_name import devices_of
from sim.devices.files import Periods, read_availability
from sim.devices.philox import key_of, uniforms_of_one
from sim.seeds import Purpose

HOUR = 3600


def availability(name: str | None, num_clients: int = 20, devices: str = "uniform", **arguments: Any) -> Availability:
    seed = arguments.pop("seed", 0)
    config = RunConfig(
        devices=devices, availability=name, availability_args=arguments, num_clients=num_clients, seed=seed
    )
    return devices_of(config).availability


def trace(tmp_path: Path, content: Any, num_clients: int = 1) -> Availability:
    path = tmp_path / "trace.json"
    path.write_text(json.dumps(content))
    return availability("trace", num_clients, file=str(path))


def online(made: Availability, at_seconds: float) -> list[bool]:
    return made.are_online(at_seconds).tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", [None, "always"])
def test_always(name: str | None) -> None:
    made = availability(name, 3)
    assert made.is_always
    assert (made.online_until(2, 5.0), made.online_from(2, 5.0), online(made, 5.0)) == (math.inf, 5.0, [True] * 3)


FAST = {
    "bernoulli": {"probability": 0.6, "slot_seconds": 100.0},
    "on-off": {"mean_on_seconds": 300.0, "mean_off_seconds": 200.0},
    "diurnal": {"hours_online": 8.0, "jitter_hours": 2.0},
}
TRACES = {
    "1": {"active": [10.5, 100], "inactive": [20.1, 300.3], "finish_time": 1000.1},
    "2": {"active": [0, 500.7], "inactive": [33.3, 777.7], "finish_time": 777.7},
}


@pytest.mark.parametrize("name", [*FAST, "trace"])
def test_answers_agree_to_the_last_bit_and_do_not_depend_on_the_order(tmp_path: Path, name: str) -> None:
    (tmp_path / "t.json").write_text(json.dumps(TRACES))
    arguments = {**FAST, "trace": {"file": str(tmp_path / "t.json")}}[name]
    asked, again = (availability(name, 20, **arguments) for _ in range(2))
    draw = random.Random(1)
    times = sorted(draw.uniform(0, 200_000) for _ in range(25))
    answers = {}
    for at in times:
        are = online(asked, at)
        for client_id in range(20):
            until, start = asked.online_until(client_id, at), asked.online_from(client_id, at)
            assert are[client_id] == (until > at) == (start == at)
            assert until >= at
            assert start >= at
            answers[client_id, at] = until, start
    questions = list(answers)
    draw.shuffle(questions)
    assert {question: (again.online_until(*question), again.online_from(*question)) for question in questions} == (
        {question: answers[question] for question in questions}
    )
    for client_id, at in questions[:200]:
        until, start = answers[client_id, at]
        for edge, before in ((until, True), (start, False)):
            if edge > at:  # it changes exactly there
                assert again.are_online(math.nextafter(edge, 0))[client_id] == before
                assert again.are_online(edge)[client_id] != before
                assert (again.online_until(client_id, edge) > edge) != before
    more = availability(name, 4000, **arguments)
    if name != "trace":  # whose clients draw an entry only if there are too few
        assert online(more, times[3])[:20] == online(again, times[3])
    assert not asked.is_always


def test_bernoulli_by_hand() -> None:
    key = key_of(5, Purpose.AVAILABILITY)
    made = availability("bernoulli", 3, probability=0.5, slot_seconds=10, seed=5)
    for client_id in range(3):
        slots = [uniforms_of_one(key, client_id, slot)[0] < 0.5 for slot in range(40)]
        assert [bool(made.are_online(10.0 * slot + 5)[client_id]) for slot in range(40)] == slots
        first, last = slots.index(True), slots.index(False, slots.index(True))
        assert made.online_from(client_id, 0) == 10 * first
        assert made.online_until(client_id, 10 * first + 3) == 10 * last
    rare = availability("bernoulli", 3, probability=0.0005, slot_seconds=1)
    found = rare.online_from(0, 0)
    assert not any(rare.are_online(at)[0] for at in range(int(found)))
    assert rare.are_online(found)[0]


def test_on_off_by_hand() -> None:
    key = key_of(5, Purpose.AVAILABILITY)
    made = availability("on-off", 30, mean_on_seconds=100, mean_off_seconds=300, seed=5)
    means = (300, 100)
    states = set()
    for client_id in range(30):
        is_on = uniforms_of_one(key, client_id, 0)[1] < 0.25
        states.add(is_on)
        end = 0.0
        for number in range(6):
            length = -means[is_on] * math.log(1 - uniforms_of_one(key, client_id, number)[0])
            middle, end = end + length / 2, end + length
            assert made.are_online(middle)[client_id] == is_on
            answer = made.online_until(client_id, middle) if is_on else made.online_from(client_id, middle)
            assert answer == pytest.approx(end)
            is_on = not is_on
    assert states == {True, False}


@pytest.mark.slow
def test_on_off_is_stationary_and_has_its_means() -> None:
    made = availability("on-off", 10_000, mean_on_seconds=400, mean_off_seconds=100)
    for at in (0.0, 57.0, 1000.0, 12_345.6):
        assert abs(made.are_online(at).mean() - 0.8) < 0.016
    starts = [made.online_from(c, made.online_until(c, 5_000.0)) for c in range(4_000)]
    lengths = np.array([made.online_until(c, start) - start for c, start in enumerate(starts)])
    assert np.quantile(lengths, 0.5) == pytest.approx(400 * math.log(2), rel=0.06)
    assert np.quantile(lengths, 0.95) == pytest.approx(400 * math.log(20), rel=0.06)


def test_one_question_at_a_late_time_is_that_of_many_before() -> None:
    """Several phases at once are summed as one after another are."""
    at_once, slowly = (availability("on-off", 3, mean_on_seconds=2, mean_off_seconds=3) for _ in range(2))
    late = 30_000.0
    for at in np.arange(0, late, 20.0).tolist():
        slowly.online_until(1, at)
    assert slowly.online_from(1, late) == at_once.online_from(1, late)
    assert at_once.are_online(late)[1] == (at_once.online_from(1, late) == late)
    assert at_once.online_until(1, late) == slowly.online_until(1, late)


def test_what_is_remembered_of_single_clients_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sim.devices.availability._MOST_REMEMBERED", 4)
    made: Any = availability("on-off", 100)
    first = [made.online_until(client_id, 9e4) for client_id in range(100)]
    assert len(made._alone) <= 4
    assert [made.online_until(client_id, 9e4) for client_id in range(100)] == first


def test_diurnal_is_the_night_of_the_time_zone() -> None:
    made = availability("diurnal", 2_400, hours_online=8, begin_hour=22, jitter_hours=0)
    zones = set()
    for client_id in range(2_400):
        end = made.online_until(client_id, made.online_from(client_id, 10 * 24 * HOUR))
        start = made.online_from(client_id, end) % (24 * HOUR) / HOUR
        zone = (22 - start) % 24
        assert zone == int(zone)
        zones.add(zone)
        assert end % (24 * HOUR) / HOUR == (start + 8) % 24
        assert made.online_until(client_id, end) == end
        assert made.online_from(client_id, end) == end + 16 * HOUR
    assert zones == set(range(24))
    for hour in range(0, 48, 5):
        assert abs(made.are_online(hour * HOUR).mean() - 1 / 3) < 0.05


def test_diurnal_begins_earlier_or_later_each_day() -> None:
    key = key_of(0, Purpose.AVAILABILITY)
    made = availability("diurnal", 5, hours_online=6, begin_hour=1.5, jitter_hours=3)
    for client_id in range(5):
        zone = math.floor(24 * uniforms_of_one(key, client_id, 0)[1])
        shifts = []
        for day in range(2, 100):
            shifts.append(3 * (2 * uniforms_of_one(key, client_id, day + 2)[0] - 1))
            start = (24 * day + 1.5 - zone + shifts[-1]) * HOUR
            assert made.online_from(client_id, (24 * day + 1.5 - zone - 3.01) * HOUR) == pytest.approx(start)
            assert made.online_until(client_id, start + 1) == pytest.approx(start + 6 * HOUR)
        assert -3 <= min(shifts) < -2.5
        assert 2.5 < max(shifts) <= 3


def test_traces_by_hand(tmp_path: Path) -> None:
    made = trace(tmp_path, {"a": {"active": [10, 50], "inactive": [20, 60], "finish_time": 100, "model": "CPH1801"}})
    assert [made.online_from(0, at) for at in (0, 10, 19.5, 20, 60, 99, 100, 205)] == [
        *(10, 10, 19.5, 50, 110, 110, 110, 210),
    ]
    assert [made.online_until(0, at) for at in (0, 10, 19.5, 20, 55, 60, 112, 1_000_015)] == [
        *(0, 20, 20, 20, 60, 60, 120, 1_000_020),
    ]
    assert [online(made, at)[0] for at in (9.9, 10, 19.9, 20, 110, 159.9, 160)] == [
        *(False, True, True, False, True, True, False),
    ]


def test_a_trace_goes_on_over_the_end_of_its_period(tmp_path: Path) -> None:
    made = trace(tmp_path, {"a": {"active": [0, 80], "inactive": [30, 100], "finish_time": 100}})
    assert [made.online_until(0, at) for at in (0, 29, 30, 85, 100, 185)] == [30, 30, 30, 130, 130, 230]
    assert [made.online_from(0, at) for at in (30, 79, 100, 131)] == [80, 80, 100, 180]
    assert [online(made, at)[0] for at in (99.5, 100, 129, 130, 180)] == [True, True, True, False, True]
    at_the_end = trace(tmp_path, {"a": {"active": [80], "inactive": [100], "finish_time": 100}})
    assert [at_the_end.online_until(0, at) for at in (80, 100, 199)] == [100, 100, 200]
    assert [online(at_the_end, at)[0] for at in (0, 80, 99.9, 100, 180)] == [False, True, True, False, True]


def test_intervals_are_joined_and_end_with_the_period(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    entries = {
        "joined": {"active": [50, 10, 20], "inactive": [70, 20, 30], "finish_time": 60},
        "whole": {"active": [0, 40], "inactive": [40, 99], "finish_time": 60},
        "never": {"active": [70, 5], "inactive": [80, 5], "finish_time": 60},
    }
    path.write_text(json.dumps(entries))
    read = read_availability(path, "file")
    assert read == (Periods((10, 50), (30, 60), 60), Periods((0,), (60,), 60), Periods((), (), 60))
    made = Trace(read, np.array([2, 0, 1]))
    assert online(made, 55) == [False, True, True]
    assert online(made, 65) == [False, False, True]
    assert (made.online_from(0, 3), made.online_until(0, 3)) == (math.inf, 3)
    assert (made.online_from(2, 61), made.online_until(2, 61)) == (61, math.inf)


def test_an_interval_that_rounding_makes_empty_later_is_the_last_one(tmp_path: Path) -> None:
    begin, end = 100_000.0, math.nextafter(100_000.0, math.inf)
    made = trace(tmp_path, {"a": {"active": [begin], "inactive": [end], "finish_time": 518_400}})
    assert (made.online_from(0, 3), made.online_until(0, begin)) == (begin, end)
    assert [made.online_from(0, at) for at in (end, 518_400.0, 1e9)] == [math.inf] * 3
    assert [online(made, at)[0] for at in (begin, end, 618_400.0)] == [True, False, False]


def test_the_availability_file_of_fedscale_is_taken_unless_another_is_given(tmp_path: Path) -> None:
    capacity, behaviour = tmp_path / "c.json", tmp_path / "b.json"
    capacity.write_text(json.dumps({"1": {"computation": 1, "communication": 1}}))
    behaviour.write_text(json.dumps({"8": {"active": [1], "inactive": [2], "finish_time": 10}}))
    name = f"fedscale:{capacity}:{behaviour}"
    assert online(availability(None, 3, name), 1.5) == [True] * 3
    assert online(availability(None, 3, name), 2.5) == [False] * 3
    assert availability("always", 3, name).is_always
    assert online(availability("bernoulli", 300, name), 2.5) == online(availability("bernoulli", 300), 2.5)


def test_clients_draw_an_entry_if_there_are_too_few(tmp_path: Path) -> None:
    entries = {str(n): {"active": [10 * n], "inactive": [10 * n + 10], "finish_time": 40} for n in range(4)}
    own = trace(tmp_path, entries, 4)
    assert [online(own, 10 * n + 5) for n in range(4)] == np.eye(4, dtype=bool).tolist()
    drawn = trace(tmp_path, entries, 8_000)
    counts = [drawn.are_online(10 * n + 5).sum() for n in range(4)]
    assert sum(counts) == 8_000
    np.testing.assert_allclose(counts, 2_000, atol=200)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("bernoulli", "p=1"), "--availability-args p=1: --availability bernoulli takes probability, slot_seconds"),
        (
            ("bernoulli", "probability=1"),
            "--availability-args probability=1: must be at least 1e-06 and at most 0.999999",
        ),
        (
            ("on-off", "mean_on_seconds=0"),
            "--availability-args mean_on_seconds=0: must be at least 1 and at most 1e+09",
        ),
        (("diurnal", "begin_hour=24"), "--availability-args begin_hour=24: must be at least 0 and below 24"),
        (
            ("diurnal", "hours_online=20", "jitter_hours=2"),
            "--availability-args hours_online=20 jitter_hours=2: hours_online + 2 × jitter_hours must be at most 23.9",
        ),
        (("always", "x=1"), "--availability-args x=1: --availability always takes no arguments"),
        (("trace", "path=a"), "--availability-args path=a: --availability trace takes file"),
        (("trace", "file=no.json"), "--availability-args file=no.json: no.json: No such file or directory"),
    ],
)
def test_wrong_arguments_are_told_in_one_line(command: Sim, words: tuple[str, ...], said: str) -> None:
    name, *arguments = words
    result = command("devices", "--devices", "uniform", "--availability", name, "--availability-args", *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"sim: {said}")
    assert result.stderr.count("\n") == 1


def test_a_trace_needs_a_file(command: Sim) -> None:
    result = command("devices", "--devices", "uniform", "--availability", "trace")
    assert (result.returncode, result.stderr) == (
        2,
        "sim: --availability trace: needs --availability-args file=FILE.json\n",
    )


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"active": [], "inactive": []}, "there is no finish_time"),
        ({"active": [], "inactive": [], "finish_time": 0}, "finish_time = 0: must be a number above 0"),
        (
            {"active": [], "inactive": [], "finish_time": 1e308},
            "finish_time = 1e+308: must be at least 0.001 and at most 1e+12",
        ),
        ({"inactive": [], "finish_time": 9}, '"active" must be a list of times in seconds'),
        ({"active": [1], "inactive": {}, "finish_time": 9}, '"inactive" must be a list of times in seconds'),
        (
            {"active": [1, 3], "inactive": [2], "finish_time": 9},
            '"active" has 2 times and "inactive" 1; each interval has one of both',
        ),
        (
            {"active": [1, 5], "inactive": [2, 4], "finish_time": 9},
            "interval 2 begins at active = 5 and ends before that, at inactive = 4",
        ),
        (
            {"active": [1, -5], "inactive": [2, 4], "finish_time": 9},
            'time 2 of "active" = -5: must be a number of seconds, at least 0 and at most 1e+12',
        ),
        (
            {"active": [1], "inactive": [None], "finish_time": 9},
            'time 1 of "inactive" = None: must be a number of seconds, at least 0 and at most 1e+12',
        ),
    ],
)
def test_wrong_entries_are_told(command: Sim, tmp_path: Path, entry: Any, said: str) -> None:
    good = {"active": [1], "inactive": [2], "finish_time": 9}
    (tmp_path / "b.json").write_text(json.dumps({"0": good, "17": entry}))
    (tmp_path / "c.json").write_text(json.dumps({"0": {"computation": 1, "communication": 1}}))
    for words, place in (
        (("fedscale:c.json:b.json",), "--devices fedscale:c.json:b.json"),
        (
            ("uniform", "--availability", "trace", "--availability-args", "file=b.json"),
            "--availability-args file=b.json",
        ),
    ):
        result = command("devices", "--devices", *words)
        assert (result.returncode, result.stdout) == (2, "")
        assert result.stderr == f'sim: {place}: b.json: entry "17": {said}\n'


@pytest.mark.usefixtures("pictures")
def test_sim_devices_shows_the_share_of_time_online(command: Sim, tmp_path: Path) -> None:
    entries = {
        "1": {"active": [0], "inactive": [10_800], "finish_time": 43_200},
        "2": {"active": [0], "inactive": [21_600], "finish_time": 43_200},
    }
    (tmp_path / "b.json").write_text(json.dumps(entries))
    few = ("--num-clients", "2", "--clients-per-round", "1", "--steps", "1", "--model-bytes", "1")
    words = ("--availability", "trace", "--availability-args", "file=b.json")
    result = command("devices", "--devices", "uniform", *few, *words, "--hours", "36")
    assert result.returncode == 0, result.stderr
    row = next(line.split() for line in result.stdout.splitlines() if "online" in line)
    assert row == ["share", "of", "36", "hours", "online", "0.25", "0.25", "0.25", "0.5", "0.5"]

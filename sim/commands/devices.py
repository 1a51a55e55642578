"""The command ``sim devices``: the devices of the clients, when they are online, and how long a round will take."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sim.commands.output import picture_path, print_table, write_picture
from sim.config.fields import MOST, parse_number
from sim.config.flags import config_from, whole_number
from sim.config.run_config import RunConfig
from sim.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.table import Table

    from sim.devices.availability import Availability
    from sim.devices.device import DeviceTable

_QUANTILES = {"min": 0.0, "10 %": 0.1, "median": 0.5, "90 %": 0.9, "max": 1.0}
_MOST_HOURS = 24 * 366
_MOST_POINTS = 2000  # of a curve; the picture is only about 1000 pixels wide
_SAMPLE_SECONDS = 300.0
_MOST_SAMPLES = 20_000_000  # clients × times
_LOG_RATIO = 5  # of the largest to the smallest value, from which on the axis is logarithmic


@dataclass(frozen=True)
class _Work:
    """What a client does in a round.

    Attributes:
        num_steps: training steps of each client, float64 [num_clients].
        num_bytes: that it downloads and uploads.
        words: the same for the user.
    """

    num_steps: NDArray[np.float64]
    num_bytes: tuple[int, int]
    words: str


@dataclass(frozen=True)
class _Online:
    """Who is online, at times with equal distances.

    Attributes:
        hours: the times, float64 [num_times].
        of_time: share of the clients that are online at each time, float64 [num_times].
        of_client: share of the times at which each client is online, float64 [num_clients].
    """

    hours: NDArray[np.float64]
    of_time: NDArray[np.float64]
    of_client: NDArray[np.float64]


def devices(arguments: argparse.Namespace) -> None:
    """``sim devices``: print a table of the devices and draw them."""
    config = config_from(RunConfig, arguments)
    hours = _hours(arguments.hours)
    steps = _count("--steps", arguments.steps, MOST)
    model_bytes = _count("--model-bytes", arguments.model_bytes, 10**15)
    picture = picture_path(arguments.output)
    from sim.devices.by_name import devices_of
    from sim.devices.round_seconds import expected_median, expected_rank

    made = devices_of(config)  # so that what is wrong is said at once
    decided, work = _work(config, steps, model_bytes)
    if (decided.num_clients, decided.batch_size) != (config.num_clients, config.batch_size):
        made = devices_of(decided)
    table, online = made.table(), _online(made.availability, made.num_clients, hours)
    seconds = table.seconds(work.num_steps, *work.num_bytes)
    print_table(_quantile_table(table, online, seconds, hours))
    if len(table.kinds) > 1:
        for number, kind in enumerate(table.kinds):
            print(f"{kind or '(no kind)':15} {(table.kind == number).sum()} clients")
    num = decided.num_fit_clients
    median, slowest = expected_median(seconds, num), expected_rank(seconds, num, num)
    print(f"round           {num} of {made.num_clients} clients; {work.words}")
    print(f"median client   {_number(median)} s expected")
    print(f"slowest client  {_number(slowest)} s expected")
    write_picture(picture, _figure(table, online, seconds, {"median": median, "slowest": slowest}, num))


def _hours(text: str) -> float:
    hours: float | None = parse_number(float, text)
    if hours is None or not 0 < hours <= _MOST_HOURS:
        raise ConfigError(f"--hours {text}: must be a number above 0 and at most {_MOST_HOURS}")
    return hours


def _count(flag: str, text: str | None, most: int) -> int | None:
    return None if text is None else whole_number(flag, text, most)


def _work(config: RunConfig, steps: int | None, model_bytes: int | None) -> tuple[RunConfig, _Work]:
    """Return the config with what was left open decided, and what each client does.

    Raises:
        UsageError: data, partition or model are needed for it, and do not work.
    """
    decided, num_bytes = config, (model_bytes or 0,) * 2
    num_steps = np.full(config.num_clients, float(steps or 0))
    if steps is None or model_bytes is None:
        from sim.client.torch_client import fit_settings
        from sim.server.virtual_rounds import time_of
        from sim.setup.prepare import prepare

        try:
            prepared = prepare(config)
        except UsageError as error:
            raise UsageError(f"{error}; with --steps and --model-bytes, no data and no model are needed") from None
        decided, time = prepared.config, time_of(prepared)
        assert time is not None, "the config has devices"
        if model_bytes is None:
            num_bytes = time.bytes_down, time.bytes_up
        if steps is None:
            settings = fit_settings(decided, 1) if prepared.dataset is not None else {}
            num_steps = np.array([float(time.steps(c, settings)) for c in range(decided.num_clients)])
    low, high = int(num_steps.min()), int(num_steps.max())
    counted = f"{low} step{'s' * (low > 1)}" if low == high else f"{low} to {high} steps"
    down, up = num_bytes
    sent = f"{down:,} bytes down and up" if down == up else f"{down:,} bytes down and {up:,} up"
    return decided, _Work(num_steps, num_bytes, f"{counted}; {sent}")


def _online(availability: Availability, num_clients: int, hours: float) -> _Online:
    most = max(24, _MOST_SAMPLES // num_clients)
    num_times = min(most, max(24, round(hours * 3600 / _SAMPLE_SECONDS)))
    times = (np.arange(num_times) + 0.5) * (hours * 3600 / num_times)
    of_time, counts = np.zeros(num_times), np.zeros(num_clients)
    for number, at_seconds in enumerate(times.tolist()):
        are = availability.are_online(at_seconds)
        of_time[number] = are.mean()
        counts += are
    return _Online(times / 3600, of_time, counts / num_times)


def _quantile_table(table: DeviceTable, online: _Online, seconds: NDArray[np.float64], hours: float) -> Table:
    from rich.table import Table

    from sim.devices.device import BYTES_OF_MBIT

    made = Table("of the clients", *_QUANTILES, box=None)
    for column in made.columns[1:]:
        column.justify = "right"
    for name, values in (
        ("seconds per step", table.seconds_per_step),
        ("download Mbit/s", table.download_bytes_per_second / BYTES_OF_MBIT),
        ("upload Mbit/s", table.upload_bytes_per_second / BYTES_OF_MBIT),
        (f"share of {hours:g} hours online", online.of_client),
        ("seconds per round", seconds),
    ):
        # A value of a client each, because there is nothing between a number and an infinite one.
        found = np.quantile(values, list(_QUANTILES.values()), method="inverted_cdf")
        made.add_row(name, *map(_number, found.tolist()))
    return made


def _number(value: float) -> str:
    return f"{value:,.0f}" if 1000 <= value < 1e15 else f"{value:.4g}"


def _figure(
    table: DeviceTable, online: _Online, seconds: NDArray[np.float64], expected: dict[str, float], num_sampled: int
) -> Figure:
    from matplotlib.figure import Figure

    from sim.devices.device import BYTES_OF_MBIT

    figure = Figure(figsize=(10, 7), layout="constrained")
    speed, bandwidth, availability, rounds = figure.subplots(2, 2).ravel()
    _draw_shares(speed, {"": table.seconds_per_step}, "training step (seconds)")
    links = {
        "download": table.download_bytes_per_second / BYTES_OF_MBIT,
        "upload": table.upload_bytes_per_second / BYTES_OF_MBIT,
    }
    _draw_shares(bandwidth, links, "bandwidth (Mbit/s)")
    availability.plot(online.hours, online.of_time, linewidth=1.5)
    availability.set_xlabel("virtual time (hours)")
    availability.set_ylabel("share of clients online")
    availability.set_xlim(0, online.hours[-1] + online.hours[0])
    _draw_shares(rounds, {"": seconds}, "download, training and upload of a client in a round (seconds)")
    for (name, value), style in zip(expected.items(), ("--", ":"), strict=True):
        label = f"{name} of {num_sampled} clients, expected: {_number(value)} s"
        rounds.axvline(value, linestyle=style, color="black", label=label)
    rounds.legend(frameon=False, fontsize="small", loc="upper center", bbox_to_anchor=(0.5, 1.16))
    for axes in figure.axes:
        axes.set_ylim(-0.02, 1.02)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _draw_shares(axes: Axes, curves: dict[str, NDArray[np.float64]], label: str) -> None:
    """Draw the cumulative distribution of values; infinite ones are to the right of the picture."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    every: list[Any] = []
    for name, values in curves.items():
        finite = np.sort(values[np.isfinite(values)])
        if not finite.size:
            continue
        every.extend((finite[0], finite[-1]))
        shares = np.arange(1, finite.size + 1) / len(values)
        chosen = np.unique(np.linspace(0, finite.size - 1, _MOST_POINTS).astype(np.int64))
        xs, ys = np.append(finite[0], finite[chosen]), np.append(0.0, shares[chosen])
        axes.plot(xs, ys, drawstyle="steps-post", linewidth=1.8, label=name or None)
    if every and max(every) >= _LOG_RATIO * min(every):
        axes.set_xscale("log")
        few = max(every) < 1000 * min(every)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))  # without the powers of 10
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(label)
    axes.set_ylabel("share of clients with at most this")
    if len(curves) > 1 and every:
        axes.legend(frameon=False)

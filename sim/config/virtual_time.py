"""The settings of devices, virtual time and traffic."""

from __future__ import annotations

from dataclasses import dataclass

from sim.config.choices import ASYNCHRONOUS, AVAILABILITIES, SAMPLERS
from sim.config.fields import MOST, setting
from sim.config.training_config import TrainingConfig

VIRTUAL_TIME, TRAFFIC = "virtual time", "traffic"


@dataclass(frozen=True, kw_only=True)
class VirtualTimeConfig(TrainingConfig):
    """What a run simulates beside the training: how fast clients are, when they are there, and what they send."""

    devices: str | None = setting(
        None,
        "devices of the clients, from which virtual seconds are computed: uniform, lognormal, flash (Yang et al. "
        "2021), fedscale:FILE or fedscale:FILE:FILE (capacity and availability, Lai et al. 2022), or a table as "
        "FILE.csv or FILE.json; if not given, uniform for fedasync and fedbuff, and no virtual time for others",
        VIRTUAL_TIME,
        separator=":",
    )
    device_args: dict[str, bool | int | float | str] = setting(
        {},
        "arguments of the devices, e.g. seconds_per_step=0.1 sigma=0.5",
        VIRTUAL_TIME,
        argument_of="devices",
    )
    availability: str | None = setting(
        None,
        "when clients are online; always if not given, or as the availability file of fedscale says",
        VIRTUAL_TIME,
        choices=AVAILABILITIES,
    )
    availability_args: dict[str, bool | int | float | str] = setting(
        {},
        "arguments of the availability, e.g. probability=0.8, or mean_on_seconds=3600 mean_off_seconds=600",
        VIRTUAL_TIME,
        argument_of="availability",
    )
    client_steps: int | None = setting(
        None,
        "training steps of a client of --client-fn per round, for its virtual seconds; a client that returns the "
        "metric num_steps takes as many the next time; 1 if not given",
        VIRTUAL_TIME,
        unit="steps",
        low=1,
        high=MOST,
    )
    sampler: str = setting(
        "uniform",
        "how the clients of a round are chosen among those that are online: power-of-choice (Cho et al. 2020) and "
        "oort (Lai et al. 2021) prefer clients with a high loss",
        VIRTUAL_TIME,
        choices=SAMPLERS,
        importable=True,
    )
    sampler_args: dict[str, bool | int | float | str] = setting(
        {}, "arguments of the sampler, e.g. candidates=20", VIRTUAL_TIME, argument_of="sampler"
    )
    over_select: float = setting(
        1.0,
        "how many times as many clients as a round needs are asked; the first ones that finish are averaged",
        VIRTUAL_TIME,
        low=1,
        high=100,
    )
    deadline: float | None = setting(
        None,
        "virtual seconds after which a round ends without the clients that are late",
        VIRTUAL_TIME,
        unit="seconds",
        above=0,
        high=1e12,
    )
    deadline_quantile: float | None = setting(
        None,
        "the same as a quantile of the times that the clients of a round need, e.g. 0.8",
        VIRTUAL_TIME,
        above=0,
        high=1,
        instead_of="deadline",
    )
    partial_work: bool = setting(
        False,
        "clients that would be late take as many steps as fit, as FedProx assumes (Li et al. 2020)",
        VIRTUAL_TIME,
    )
    min_reports: int = setting(
        1,
        "clients that must finish; a round with fewer is void and repeated with other clients",
        VIRTUAL_TIME,
        low=1,
        high=MOST,
    )
    mode: str = setting(
        "auto",
        "sync waits for the clients of a round; async makes a new version of the model whenever enough clients have "
        "finished, and starts another client for each; auto takes async for fedasync and fedbuff",
        VIRTUAL_TIME,
        choices=("auto", "sync", "async"),
    )
    concurrency: int | None = setting(
        None,
        "number of clients that train at the same time in mode async; the clients per round if not given",
        VIRTUAL_TIME,
        low=1,
        high=MOST,
        belongs_to=("strategy", ASYNCHRONOUS),
    )
    max_staleness: int | None = setting(
        None,
        "versions after which the result of a client is no longer used in mode async; any number if not given",
        VIRTUAL_TIME,
        unit="versions",
        low=0,
        high=MOST,
        belongs_to=("strategy", ASYNCHRONOUS),
    )
    compress: dict[str, bool | int | float | str] = setting(
        {},
        "how updates (up) and weights (down) are compressed, e.g. up=topk:0.01 down=fp16: topk:SHARE, qsgd:BITS, int8, "
        "fp16, bf16, sign or none; error_feedback=true adds what was lost to the client's next update",
        TRAFFIC,
    )

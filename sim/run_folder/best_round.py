"""Which round was the best one by the validation, and whether the run has waited long enough for a better one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sim.metrics import MetricName, named, shown


@dataclass
class BestRound:
    """The best round so far.

    Attributes:
        metric: by which rounds are compared.
        patience: validations without a better value after which the run ends; None for any number.
        round: the first round with the best value; None if nothing was measured yet.
        value: of the metric in it.
        num_worse: validations since then.
    """

    metric: MetricName
    patience: int | None = None
    round: int | None = None
    value: float | None = None
    num_worse: int = 0

    def see(self, number: int, value: float | None) -> bool:
        """Take the validation of a round; return whether it is the best one so far. NaN and None are never better."""
        known = None if value is None or math.isnan(value) else value
        is_better = known is not None and (
            self.value is None or (known < self.value if self.metric.smaller_is_better else known > self.value)
        )
        if is_better:
            self.round, self.value, self.num_worse = number, known, 0
        else:
            self.num_worse += 1
        return is_better

    @property
    def is_over(self) -> bool:
        """Whether the run ends without waiting for a better round."""
        return self.patience is not None and self.num_worse >= self.patience

    @property
    def in_words(self) -> str:
        """What is known of the best round, in words."""
        if self.round is None or self.value is None:
            return f"{self.metric.name} of the validation was never a number"
        return f"{self.metric.name} {shown(self.value)} of the validation in round {self.round}"


def metric_of_validation(config: Mapping[str, Any], measured: Sequence[str]) -> MetricName:
    """Return the metric by which rounds are compared.

    Args:
        measured: names of what the validation measures, in its order.
    """
    text = config.get("validation_metric")
    if text is None:
        text = "accuracy" if "accuracy" in measured else next((n for n in measured if n != "loss"), "loss")
    metric = MetricName.parse(text, "--validation-metric")
    return metric if metric.name != text else named(text, config)

"""The validation of the global model, and the weights of the round that was best in it."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from flwr.common import NDArrays

from sim.engine.central_evaluation import CentralTest
from sim.engine.interface import Dispatcher
from sim.errors import RunError, one_line
from sim.metrics import MetricName
from sim.run_folder.best_round import BestRound, metric_of_validation
from sim.run_folder.records import MetricRecord, RoundRecord
from sim.server.prepared_run import Prepared
from sim.server.results import numbers_of, test_records


class Validation:
    """Tests the global model on the examples that are held out.

    Attributes:
        best: the best round so far; None before the first validation.
    """

    def __init__(self, prepared: Prepared, dispatcher: Dispatcher) -> None:
        """
        Args:
            prepared: of a run that holds examples out.
        """
        self._config = vars(prepared.config)
        self._test = CentralTest(dispatcher, prepared.validation_slices, validates=True)
        self._num_examples = len(prepared.partition.validation)
        self.best: BestRound | None = None
        self._weights: NDArrays = []

    @property
    def is_over(self) -> bool:
        """Whether the run ends, because no round was better for as long as its patience."""
        return self.best is not None and self.best.is_over

    @property
    def best_weights(self) -> tuple[int, NDArrays] | None:
        """The best round and its weights; None if nothing was measured yet."""
        return None if self.best is None or self.best.round is None else (self.best.round, self._weights)

    def measure(self, record: RoundRecord, weights: NDArrays) -> tuple[RoundRecord, list[MetricRecord]]:
        """Validate the weights of a round; return its record and rows of ``metrics.csv``.

        Raises:
            RunError: the user's ``test`` raised, or does not measure the metric of the validation.
        """
        number, start = record.round, time.perf_counter()
        loss, metrics = self._test(number, weights, {})
        numbers = {name: value for name, value in numbers_of(metrics).items() if name != "loss"}
        if not math.isnan(loss):
            numbers = {"loss": loss, **numbers}
        if self.best is None:
            metric = metric_of_validation(self._config, list(numbers))
            if metric.name not in numbers:
                raise RunError(
                    f"round {number}: --validation-metric {one_line(metric.name, 60)}: the validation measured "
                    f"{one_line(', '.join(numbers), 200) or 'nothing'}"
                )
            self.best = BestRound(metric, self._config["patience"])
        if self.best.see(number, numbers.get(self.best.metric.name)):
            self._weights = weights
        accuracy = numbers.get("accuracy")
        return replace(
            record,
            validation_loss=None if math.isnan(loss) else loss,
            validation_accuracy=None if accuracy is None or math.isnan(accuracy) else accuracy,
            validation_seconds=time.perf_counter() - start,
        ), test_records(number, "validation", self._num_examples, loss, numbers)

    def state(self, server_round: int) -> dict[str, Any]:
        """Return what belongs to the checkpoint of a round, which has the weights of that round itself."""
        best = self.best
        if best is None:
            return {}
        return {
            "metric": best.metric.name,
            "smaller_is_better": best.metric.smaller_is_better,
            "round": best.round,
            "value": best.value,
            "num_worse": best.num_worse,
            "weights": [] if best.round == server_round else list(self._weights),
        }

    def restore(self, state: Mapping[str, Any], weights: NDArrays) -> None:
        """Take what ``state`` has returned.

        Args:
            weights: of the checkpoint.
        """
        if state:
            metric = MetricName(state["metric"], state["smaller_is_better"])
            counted = (state["round"], state["value"], state["num_worse"])
            self.best = BestRound(metric, self._config["patience"], *counted)
            self._weights = list(state["weights"]) or weights

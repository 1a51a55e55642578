"""The settings that say when the model is measured, on what, and when a run ends early."""

from __future__ import annotations

from dataclasses import dataclass

from sim.config.fields import MOST, flag_of, setting
from sim.config.virtual_time import VirtualTimeConfig
from sim.errors import ConfigError
from sim.metrics import MetricName, Target

EVALUATION = "evaluation"


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig(VirtualTimeConfig):
    """How a run measures the model: the central test, and the clients' own evaluation."""

    fraction_evaluate: float = setting(
        0.0, "fraction of the clients that evaluate the new model in a round", EVALUATION, low=0, high=1
    )
    eval_share: float = setting(
        0.2,
        "fraction of a client's examples (rounded down) that it keeps for its own evaluation; used only if "
        "--fraction-evaluate is above 0, with --final-evaluate, or for a train that takes a loader for validation",
        EVALUATION,
        low=0,
        below=1,
    )
    validation_share: float = setting(
        0.0,
        "fraction of the training examples (rounded down) that is held out before they are assigned to clients; the "
        "model is tested on it whenever it is tested on the test examples",
        EVALUATION,
        low=0,
        below=1,
    )
    validation_metric: str | None = setting(
        None,
        "metric of the validation by which rounds are compared, as NAME, NAME:min or NAME:max; if not given, accuracy, "
        "or else the first metric, or else the loss",
        EVALUATION,
    )
    patience: int | None = setting(
        None,
        "end the run when the metric of the validation was not better for so many validations",
        EVALUATION,
        unit="validations",
        low=1,
        high=MOST,
    )
    final_evaluate: bool = setting(
        False,
        "evaluate the model after the last round on the examples that each client kept, on all clients",
        EVALUATION,
    )
    evaluate_every: int = setting(
        1,
        "rounds between two evaluations by clients; the last round always has one",
        EVALUATION,
        low=1,
        high=MOST,
    )
    test_every: int = setting(
        1,
        "rounds between two central tests; the first and the last round are always tested",
        EVALUATION,
        low=1,
        high=MOST,
    )
    target_accuracy: float | None = setting(
        None, "stop when the test accuracy, a fraction, reaches this value", EVALUATION, above=0, high=1
    )
    target_metric: str | None = setting(
        None,
        "stop when a metric of the central test reaches a value, e.g. mae<=0.2 or auroc>=0.9; --target does the same",
        EVALUATION,
        instead_of="target_accuracy",
    )

    def _check_evaluation(self) -> None:
        """Check these settings beside each other.

        Raises:
            ConfigError: two of them contradict each other, or a value would be without effect.
        """
        Target.of(vars(self))
        if self.validation_metric is not None:
            MetricName.parse(self.validation_metric, "--validation-metric")
        for name in ("validation_metric", "patience"):
            value = getattr(self, name)
            if value is not None and not self.validation_share:
                raise ConfigError(f"{flag_of(name)} {value}: needs --validation-share above 0, e.g. 0.1")
        if self.evaluate_every > 1 and not self.fraction_evaluate:
            raise ConfigError(f"--evaluate-every {self.evaluate_every}: needs --fraction-evaluate above 0")
        if (self.fraction_evaluate or self.final_evaluate) and not self.eval_share:
            which = f"fraction-evaluate {self.fraction_evaluate:g}" if self.fraction_evaluate else "final-evaluate"
            raise ConfigError(f"--eval-share 0: must be above 0, because --{which} needs examples to evaluate on")

    @property
    def kept_share(self) -> float:
        """Return the fraction of a client's examples that it keeps for its own evaluation."""
        return self.eval_share if self.fraction_evaluate or self.final_evaluate else 0.0

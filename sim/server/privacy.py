"""What differential privacy has cost so far: ε of the rounds done, by the accountant of Flower's extra ``dp``."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from sim.algorithms.algorithm import Algorithm
from sim.config.run_config import RunConfig
from sim.engine.interface import ClientResult
from sim.run_folder.folder import Run

DELTA = 1e-5  # unless --dp-args target_delta says otherwise


class Privacy:
    """Accounts for the noise of ``--dp fixed``, or asks a strategy of the user's that has an accountant.

    The accountant (Rényi differential privacy, Mironov 2017) knows no amplification by sampling, as Flower's own use of
    it. Its bound holds for clients that all have the same weight; with others there is no ε.
    """

    def __init__(self, config: RunConfig, kept: Any, algorithm: Algorithm | None) -> None:
        """
        Args:
            kept: the strategy as it is built, with its wrapper; or the dict with it that a checkpoint holds.
            algorithm: what the strategy works with, which may give all clients the same weight.
        """
        self._strategy = strategy = kept["strategy"] if isinstance(kept, dict) else kept
        self._weighs_alike = algorithm is not None and algorithm.weighting == "uniform"
        self._num_clients = config.num_clients
        self._delta = float(config.dp_args.get("target_delta", DELTA))
        self._noise_multiplier = 0.0
        if config.dp == "fixed":
            self._noise_multiplier = float(getattr(strategy, "noise_multiplier", 0.0))
        self._has_equal_weights = True
        self._is_adaptive = config.dp == "adaptive"

    def restore(self, run: Run, server_round: int) -> None:
        """Go on after a round of ``run``; without ε where clients of a round had different weights."""
        if server_round and self._noise_multiplier > 0 and not self._weighs_alike:
            clients = run.clients()
            clients = clients[(clients["round"] <= server_round) & (clients.phase == "fit") & (clients.status == "ok")]
            self._has_equal_weights = bool((clients.groupby("round").num_examples.nunique() <= 1).all())

    def spent(self, server_round: int, clients: Sequence[ClientResult]) -> dict[str, float]:
        """Return ``{"epsilon": ε}`` after a round; nothing where nobody knows it.

        Args:
            clients: those whose updates were averaged in the round.
        """
        own = getattr(self._strategy, "privacy_spent", None)
        if callable(own) and (spent := own()) is not None:
            return {"epsilon": float(spent.epsilon)}
        if self._is_adaptive:
            self._is_adaptive = False  # said once
            self._note("the noise of --dp adaptive follows the clipping norm of the next round, not that of the round")
        if self._noise_multiplier <= 0 or not self._has_equal_weights:
            return {}
        if not self._weighs_alike and len({client.num_examples for client in clients}) > 1:
            self._has_equal_weights = False
            self._note("clients have different numbers of examples, and the bound holds for equal weights")
            return {}
        epsilon = _epsilon(self._noise_multiplier, server_round, self._num_clients, self._delta)
        if epsilon is None:
            self._noise_multiplier = 0.0
            self._note("Flower's extra dp is not installed (pip install 'flwr[dp]')")
            return {}
        return {"epsilon": epsilon}

    def _note(self, reason: str) -> None:
        logging.getLogger("sim").warning("note: no epsilon in metrics.csv, because %s", reason)


def _epsilon(noise_multiplier: float, num_rounds: int, num_clients: int, delta: float) -> float | None:
    """Return ε after releases that are all alike; None where the accountant is not installed."""
    try:
        from flwr.serverapp import (
            GaussianPrivacyEvent,
            NeighboringRelation,
            PrivacyConfig,
            RdpAccountant,
            SamplingMethod,
        )

        accountant = RdpAccountant(
            PrivacyConfig(
                target_delta=delta,
                population_size=num_clients,
                neighboring_relation=NeighboringRelation.ADD_OR_REMOVE_ONE,
                sampling_method=SamplingMethod.NO_AMPLIFICATION,
            )
        )
    except ImportError:  # dp-accounting, or a Flower before 1.42
        return None
    accountant.compose(GaussianPrivacyEvent(noise_multiplier, 1, num_clients), num_rounds)
    return float(accountant.get_privacy_spent().epsilon)

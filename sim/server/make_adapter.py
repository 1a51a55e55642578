"""The strategy of a run → what the round loop knows of it."""

from __future__ import annotations

from flwr.server.client_manager import ClientManager
from flwr.serverapp.strategy import Strategy as MessageStrategy

from sim.server.adapter import StrategyAdapter
from sim.server.fit_ins_strategies import FitInsAdapter
from sim.server.message_to_fit_ins import MessageToFitInsAdapter
from sim.server.prepared_run import Prepared
from sim.server.strategy import BuiltStrategy


def adapter_of(prepared: Prepared, built: BuiltStrategy, client_manager: ClientManager) -> StrategyAdapter:
    """Return the adapter of a strategy of either form.

    Args:
        built: of this run, as ``prepared.strategy`` is.
    """
    sends_settings = prepared.dataset is not None
    may_skip = not sends_settings or ":" in prepared.config.strategy  # the user's own
    if isinstance(built.strategy, MessageStrategy):
        names, sizes = prepared.layout.names, prepared.partition.sizes
        return MessageToFitInsAdapter(
            built,
            names,
            prepared.config,
            client_manager,
            sizes,
            sends_settings=sends_settings,
            may_skip=may_skip,
        )
    return FitInsAdapter(
        built,
        prepared.config,
        client_manager,
        prepared.partition.sizes,
        sends_settings=sends_settings,
        trained=prepared.layout.trained,
        may_skip=may_skip,
    )

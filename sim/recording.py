"""The run folder while a run goes on: opened, filled by the round loop, left whole however the run ends."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from flwr.common import NDArrays
from flwr.server import SimpleClientManager
from flwr.server.client_manager import ClientManager

from sim import environment, plots, runlog
from sim.client import Workbench, workbench
from sim.engine.contract import OpenDispatcher
from sim.interrupts import uninterrupted
from sim.preparation import Prepared, fit_config
from sim.records import ClientRecord, RoundRecord
from sim.rounds import RoundServer
from sim.rundir import Run, RunWriter

OnRecord = Callable[[RoundRecord], None]


class Session:
    """One run under way: its config, its folder, and the weights of its last whole round."""

    def __init__(self, prepared: Prepared, on_record: OnRecord | None) -> None:
        self.config = config = prepared.config
        self.prepared = prepared
        self.weights = prepared.initial_weights
        self._on_record = on_record
        self._writer = RunWriter(config.results_dir, config.name, config.to_toml(), clients=True)

    @property
    def run(self) -> Run:
        """The run's folder."""
        return self._writer.run

    def adopt(self, prepared: Prepared) -> None:
        """Take another config before the first round, when only the clients could tell what was left open."""
        self.config, self.prepared, self.weights = prepared.config, prepared, prepared.initial_weights
        self._writer.write(self.run.config_path, self.config.to_toml().encode())
        self._draw_partition()

    def server(self, open_dispatcher: OpenDispatcher, client_manager: ClientManager | None = None) -> RoundServer:
        """Make the round loop that fills this folder."""
        prepared, config = self.prepared, self.config
        return RoundServer(
            client_manager=client_manager or SimpleClientManager(),
            strategy=prepared.chosen.strategy,
            averages=prepared.chosen.averages,
            buffers=prepared.buffers if prepared.chosen.adaptive else (),
            initial_weights=prepared.initial_weights,
            open_dispatcher=open_dispatcher,
            central_test=prepared.central_test,
            fit_config=partial(fit_config, config),
            on_round=self._on_round,
            on_client_error=config.on_client_error,
            seed=config.seed,
            chunk_size=config.vectorized_clients,
            sizes=prepared.partition.sizes,
        )

    def _on_round(self, record: RoundRecord, clients: list[ClientRecord], weights: NDArrays) -> None:
        with uninterrupted():  # the tables and the weights stay at the same round
            self._writer.append(record, clients)
            self.weights = weights
        if self._on_record is not None:
            self._on_record(record)

    def _draw_partition(self) -> None:
        dataset, dealt = self.prepared.dataset, self.prepared.partition
        counts = dealt.label_counts(dataset.train.labels, len(dataset.classes))
        figure = plots.partition_figure(counts, dataset.classes)
        self._writer.write(self.run.partition_path, plots.render(figure, "png"))

    def open(self, surroundings: dict[str, Any]) -> None:
        """Write what is known before the first round."""
        write_environment(self._writer, surroundings)
        self._draw_partition()

    def close(self) -> None:
        """Write the pictures and the weights of the last whole round."""
        finish(self._writer, workbench(self.prepared.program), self.weights)


@contextmanager
def recorded(prepared: Prepared, on_record: OnRecord | None = None, **surroundings: Any) -> Iterator[Session]:
    """Open the run folder for what is inside; whatever ends that, the folder holds all whole rounds.

    Args:
        on_record: called with the record of each round after it is on disk.
        surroundings: more entries of ``environment.json``.

    Raises:
        RunFolderError: it exists or cannot be written.
    """
    session = Session(prepared, on_record)
    try:
        session.open(surroundings)
        with runlog.captured(session.run.log_path, show=session.config.verbose):
            for note in _notes(prepared):
                logging.getLogger("sim").warning("note: %s", note)
            yield session
    finally:
        session.close()


def _notes(prepared: Prepared) -> Iterator[str]:
    config = prepared.config
    num_examples = len(prepared.dataset.train)
    left_over = num_examples - len(prepared.partition.indices)
    if left_over:
        yield f"{config.partitioner} leaves {left_over} of {num_examples} examples to no client"
    if prepared.buffers:
        yield (
            f"{config.model} keeps running statistics (BatchNorm), which clients with few classes spoil for each "
            "other; GroupNorm is the usual choice (Hsieh et al. 2020)"
        )


def write_environment(writer: RunWriter, surroundings: dict[str, Any] | None = None) -> None:
    """Write ``environment.json``."""
    text = json.dumps({**environment.describe(), **(surroundings or {})}, indent=2) + "\n"
    writer.write(writer.run.environment_path, text.encode())


def finish(writer: RunWriter, bench: Workbench, weights: NDArrays) -> None:
    """Write the pictures and the weights of the last whole round, however the run ended."""
    from safetensors.numpy import save

    writer.close()
    run = writer.run
    curves = plots.curves_of([run])
    for quantity, path in (("accuracy", run.accuracy_path), ("loss", run.loss_path)):
        writer.write(path, plots.render(plots.curves_figure(curves, [quantity]), "png"))
    names = list(bench.net.state_dict())
    # safetensors sorts by dtype and name, so the order of the state_dict is kept beside the arrays.
    content = save(dict(zip(names, weights, strict=True)), metadata={"state_dict": json.dumps(names)})
    writer.write(run.model_path, content)

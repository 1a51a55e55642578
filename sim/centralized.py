"""The tutorial's first half: the same model, data, ``train`` and ``test`` in one place, without clients."""

from __future__ import annotations

import time
from collections.abc import Callable

from sim import user_code
from sim.client.runtime import ClientSpec, get_weights, workbench
from sim.config.run_config import CentralizedConfig
from sim.data import examples
from sim.errors import RunError
from sim.run_folder import log
from sim.run_folder.folder import Run
from sim.run_folder.records import RoundRecord
from sim.run_folder.writer import RunWriter
from sim.seeds import Purpose, seeded
from sim.setup import dry_run
from sim.setup.prepare import check_device, fresh_weights, program_parts, train_settings
from sim.setup.session import finish, write_environment


def train_centralized(config: CentralizedConfig, *, on_record: Callable[[RoundRecord], None] | None = None) -> Run:
    """Train on all the data and return the run folder; its rounds are epochs, row 0 is before training.

    ``train`` is called once an epoch, so an optimizer's buffers start anew with each.

    Raises:
        UsageError: the config, the data or the user's modules do not work; nothing was written.
    """
    check_device(config)
    dataset = examples.load(config)
    program = ClientSpec(**program_parts(config, dataset))
    weights = fresh_weights(program)
    bench = workbench(program)
    dry_run.check_user_code(bench, weights, train_settings(config, 1, config.epochs))
    writer = RunWriter.create(config.results_dir, config.name, config.to_toml(), clients=False)
    loader = bench.training_batches(None, config.batch_size)
    try:
        write_environment(writer)
        with log.captured(writer.run.log_path, show=config.verbose):
            for epoch in range(config.epochs + 1):
                start = time.perf_counter()
                train_loss = fit_seconds = None
                if epoch > 0:
                    taken = user_code.accepted(bench.train, train_settings(config, epoch, config.epochs))
                    bench.renew()
                    try:
                        with seeded(config.seed, Purpose.CENTRALIZED, epoch):
                            train_loss = bench.train(bench.net, loader, 1, bench.device, **taken)
                    except Exception as error:
                        raise RunError(f"epoch {epoch}: train raised {type(error).__name__}: {error}") from error
                    fit_seconds = time.perf_counter() - start
                tested = time.perf_counter()
                with seeded(config.seed, Purpose.TEST, epoch):
                    sums = bench.central_test()
                end = time.perf_counter()
                record = RoundRecord(
                    epoch,
                    train_loss=None if train_loss is None else float(train_loss),
                    test_loss=sums.loss / sums.num_examples,
                    test_accuracy=sums.num_correct / sums.num_examples,
                    fit_seconds=fit_seconds,
                    test_seconds=end - tested,
                    round_seconds=end - start,
                )
                writer.append(record)
                weights = get_weights(bench.net)
                if on_record is not None:
                    on_record(record)
    finally:
        finish(writer, bench, weights)
    return writer.run

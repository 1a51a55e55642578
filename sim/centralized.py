"""The tutorial's first half: the same model, data, ``train`` and ``test`` in one place, without clients."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

from sim.client.own_training import OwnTrain
from sim.client.runtime import ClientRuntime, ClientSpec, build_net
from sim.client.torch_client import train_settings
from sim.config.run_config import CentralizedConfig
from sim.data.defaults import decided
from sim.data.load_dataset import load_dataset
from sim.errors import RunError, described
from sim.run_folder import log as run_log
from sim.run_folder.callbacks import Callback, Callbacks, OnRecord, check_callbacks
from sim.run_folder.folder import Run
from sim.run_folder.progress import live_line
from sim.run_folder.records import MetricRecord, RoundRecord
from sim.run_folder.writer import RunWriter
from sim.seeds import Purpose, seeded
from sim.server.results import test_records
from sim.setup import dry_run
from sim.setup.prepare import check_device, resolved, settings_without_effect, spec_parts
from sim.setup.run_session import finish, write_environment
from sim.tracking.by_name import check_trackers, trackers_of
from sim.training.device import computing_as_before, notes_on_precision
from sim.training.local import means
from sim.training.weights import get_weights


@computing_as_before()
def train_centralized(
    config: CentralizedConfig, *, on_record: OnRecord | None = None, callbacks: Sequence[Callback] = ()
) -> Run:
    """Train on all the data and return the run folder; its rounds are epochs, round 0 is before training.

    ``train`` is called once per epoch, so that the buffers of an optimizer start anew with each.

    Args:
        on_record: called with the record of each epoch after it is on disk.
        callbacks: told of each epoch and of the end, as ``simulate`` tells of rounds.

    Raises:
        UsageError: the config, the data or the user's modules do not work; nothing was written.
        RunError: ``train``, ``test`` or a callback raised; the epochs that were done are on disk.
    """
    check_callbacks(callbacks)
    check_trackers(config.track)
    check_device(config)
    dataset = load_dataset(config)
    config, notes = decided(config, dataset)
    unused = [*settings_without_effect(config)]
    unused += notes_on_precision(config.precision, config.device) if config.train is None else ()
    config = resolved(config, dataset)
    spec = ClientSpec(**spec_parts(config, dataset))
    runtime = ClientRuntime(spec)
    weights = get_weights(runtime.net)
    dry_run.check_fit_of(spec, dataset, build_net(spec, dataset), config.dataset)
    tried = dry_run.check_user_code(spec, weights, train_settings(config, 1, config.epochs))
    writer = RunWriter.create(config.results_dir, config.name, config.to_toml(), clients=False)
    trackers, told = Callbacks(trackers_of(config.track), writer.run), Callbacks(callbacks, writer.run)
    try:
        try:
            write_environment(writer)
            with (
                live_line(on_record, config.epochs, "epoch") as on_epoch,
                run_log.captured(writer.run.log_path, show=config.verbose),
            ):
                run_log.say((*config.program_notes, *dataset.notes, *notes, *tried.notes, *unused))
                for epoch in range(config.epochs + 1):
                    trackers.before_round(epoch)
                    told.before_round(epoch)
                    record, metrics = _epoch(runtime, config, epoch)
                    writer.append(record, metrics=metrics)
                    weights = get_weights(runtime.net, runtime.weight_names)
                    trackers.after_round(record, (), metrics)
                    if on_epoch is not None:
                        on_epoch(record)
                    told.after_round(record, (), metrics)
        finally:
            finish(writer, config, runtime.weight_names, weights)
    except BaseException as error:
        trackers.at_end(error)
        told.at_end(error)
        raise
    else:
        trackers.at_end(None)
        told.at_end(None)
    finally:
        writer.release()
    return writer.run


def _epoch(runtime: ClientRuntime, config: CentralizedConfig, epoch: int) -> tuple[RoundRecord, list[MetricRecord]]:
    """Train for one epoch, except in epoch 0, and test."""
    start = time.perf_counter()
    fit_seconds = None
    trained: dict[str, float] = {}
    if epoch > 0:
        loader = runtime.training_batches(None, config.batch_size)
        settings: dict[str, Any] = dict(train_settings(config, epoch, config.epochs))
        if isinstance(runtime.train, OwnTrain) and runtime.train.validates is not None:
            settings["validation_loader"] = runtime.test_batches()
        if isinstance(runtime.train, OwnTrain):
            settings["first_epoch"] = epoch
        runtime.reset_net()
        try:
            with seeded(config.seed, Purpose.CENTRALIZED, epoch):
                returned = runtime.train(runtime.net, loader, 1, runtime.device, **settings)
                if returned is not None:  # as where a loader with drop_last gives no batch
                    trained = returned if isinstance(returned, dict) else {"loss": float(returned)}
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise RunError(f"epoch {epoch}: train raised {described(error)}") from error
        fit_seconds = time.perf_counter() - start
    test_start = time.perf_counter()
    with seeded(config.seed, Purpose.TEST, epoch) as stream:
        loss, metrics = means([runtime.central_test(stream)])
    end = time.perf_counter()
    num_examples = len(runtime.dataset.train)
    rows = [MetricRecord(epoch, "fit", None, num_examples, name, value) for name, value in trained.items()]
    rows += test_records(epoch, "test", runtime.dataset.num_test_examples, loss, metrics)
    record = RoundRecord(
        epoch,
        train_loss=trained.get("loss"),
        test_loss=None if math.isnan(loss) else loss,
        test_accuracy=metrics.get("accuracy"),
        fit_seconds=fit_seconds,
        test_seconds=end - test_start,
        round_seconds=end - start,
        test_metrics=metrics,
    )
    return record, rows

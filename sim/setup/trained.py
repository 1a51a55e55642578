"""A run folder → its trained model, rebuilt from the config of the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from flwr.common import NDArrays
from torch import nn

from sim.algorithms.by_name import ALGORITHMS
from sim.algorithms.local_parameters import local_names
from sim.client.runtime import ClientSpec, build_net, facts_of
from sim.config.fields import flag_of, read_toml
from sim.config.run_config import CentralizedConfig, RunConfig, TrainingConfig, config_type_of
from sim.data.defaults import decided
from sim.data.load_dataset import Dataset, load_dataset
from sim.data.loaders import example_batch
from sim.engine.aggregation import NonFiniteError, check_finite
from sim.errors import RunFolderError, one_line
from sim.run_folder import checkpoint as checkpoints
from sim.run_folder.folder import Run
from sim.run_folder.weights_file import read_model, round_of
from sim.setup.observed_call import Inputs, inputs_in_test
from sim.setup.prepare import spec_parts
from sim.setup.resume import changed_code
from sim.training import models
from sim.training.losses import inputs_and_target
from sim.training.weights import Weights, get_weights, set_weights, state_of


@dataclass(frozen=True)
class TrainedModel:
    """The model that a run has trained.

    Attributes:
        net: with its weights, on the CPU; None for a Flower program's, which only the program itself can build.
        spec: what its clients were; None where ``net`` is.
        maker: what made ``net``, with all arguments.
        weights: name → array, in the order of the ``state_dict``.
        number: the round after which the model had these weights; epochs are counted like rounds.
        notes: what the user should know, one line each.
    """

    config: TrainingConfig
    dataset: Dataset | None
    net: nn.Module | None
    spec: ClientSpec | None
    maker: Any
    weights: dict[str, Any]
    number: int
    notes: tuple[str, ...]

    @property
    def is_made_already(self) -> bool:
        """Whether the program names a module, and not what makes one."""
        return bool(self.maker.args) and isinstance(self.maker.args[0], nn.Module)

    @classmethod
    def of(cls, run: Run, *, best: bool = False) -> TrainedModel:
        """Rebuild the model of a run, and read its weights.

        They are those of ``model.safetensors``; a run that was killed has none, and then those of its last checkpoint.

        Args:
            best: take the weights of the best round by the validation instead.

        Raises:
            UsageError: something that the model is made of is missing, damaged, or does not fit the weights.
        """
        config = _config_of(run)
        names, weights, number, notes = _read_best(run) if best else _read(run)
        if isinstance(config, RunConfig) and config.has_own_data:
            flag = flag_of("app" if config.app is not None else "client_fn")
            notes.append(f"the model is that of {flag}, which only the program itself can build")
            all_names = names or [f"array_{position}" for position in range(len(weights))]
            return cls(config, None, None, None, None, dict(zip(all_names, weights, strict=True)), number, tuple(notes))
        dataset = load_dataset(config)
        config, _ = decided(config, dataset)
        spec = ClientSpec(**spec_parts(config, dataset))
        net = build_net(spec, dataset)
        own = list(state_of(net))
        check_weights(run.model_path if names else run.path, weights, get_weights(net), own, names)
        set_weights(net, weights)
        if isinstance(config, RunConfig):
            chosen = ALGORITHMS.get(config.strategy)
            default = chosen.LOCAL if chosen else ""
            kept = local_names(net, config.local_parameters, default, config.strategy)
            if kept:
                warm = min(int(config.strategy_args.get("warm_start_rounds", 0)), number)
                values = f"the averages of round {warm}" if warm else "their initial values"
                notes.append(f"{one_line(', '.join(kept), 200)} stay with each client, and have {values}")
        maker = models.maker(config.model, facts_of(dataset), config.model_args, config.args)
        named = dict(zip(own, weights, strict=True))
        return cls(config, dataset, net.eval(), spec, maker, named, number, tuple(notes))

    @cached_property
    def inputs(self) -> Inputs:
        """What the model is called with for two examples, by position and by name: in ``test``, or as the batch says.

        Of a batch without a target, all of it.
        """
        assert self.dataset is not None
        assert self.spec is not None
        observed = inputs_in_test(self.spec, self.config.results_dir)
        if observed is not None:
            return observed
        batch = example_batch(self.dataset.train, 2)
        try:
            inputs, named, _ = inputs_and_target(batch)
        except ValueError:
            if isinstance(batch, Mapping):
                return (), dict(batch)
            return tuple(batch) if isinstance(batch, list | tuple) else (batch,), {}
        return inputs, named


def _config_of(run: Run) -> TrainingConfig:
    if run.is_central:
        return CentralizedConfig(**read_toml(CentralizedConfig, run.config_path, "the run's"))
    values = read_toml(RunConfig, run.config_path, "the run's")
    config_type = config_type_of(values)
    return config_type(**config_type.layered([values]))


def _read(run: Run) -> tuple[list[str], Weights, int, list[str]]:
    """Return the names and the weights of a run, their round, and notes; a checkpoint has no names.

    Raises:
        RunFolderError: there are none, or they are damaged.
    """
    rounds = run.rounds()
    number = int(rounds["round"].max()) if len(rounds) else 0
    notes, names = [], list[str]()
    checkpoint = None
    with suppress(RunFolderError):  # it is needed only where there is no model
        checkpoint, _ = checkpoints.read_last(run)
    if run.model_path.exists():
        names, weights = read_model(run.model_path)
    elif checkpoint is not None:
        weights, number = checkpoint.weights, checkpoint.round
    else:
        raise RunFolderError(f"{run.path}: has neither model.safetensors nor a checkpoint that could be read")
    if not run.is_done():
        notes.append(f"the run is not done: the model is that after {number} of {run.num_rounds}")
    # What the model is made of is there, or it could not be rebuilt.
    changed = changed_code(checkpoint.code, with_missing=False) if checkpoint is not None else ""
    if changed:
        notes.append(f"the code was changed after the run: {changed}")
    return names, weights, number, notes


def _read_best(run: Run) -> tuple[list[str], Weights, int, list[str]]:
    """Return the same as ``_read`` for the best round by the validation.

    Raises:
        RunFolderError: the run has none, or its file is missing, damaged, or of another round.
    """
    found = None if run.is_central else run.best()
    if found is None:
        raise RunFolderError(f"{run.path}: --best: has no validation; that needs a run with --validation-share")
    if found.round is None:
        raise RunFolderError(f"{run.path}: --best: {found.in_words}")
    names, weights = read_model(run.best_path)
    if round_of(run.best_path) != found.round:
        raise RunFolderError(
            f"{run.best_path}: is not of round {found.round}, the best one in rounds.csv; --resume makes it anew"
        )
    return names, weights, found.round, [f"the model is the best one: {found.in_words}"]


def check_weights(
    place: Path, weights: NDArrays, like: NDArrays, names: Sequence[str], stored: Sequence[str] = ()
) -> None:
    """Check that weights are those of a model.

    Args:
        names: of the model's own ``state_dict``.
        stored: the names that were read; none for a checkpoint.

    Raises:
        RunFolderError: they are of another model, or damaged.
    """
    kinds, expected = ([(array.shape, array.dtype) for array in arrays] for arrays in (weights, like))
    if kinds != expected or list(stored or names) != list(names):
        raise RunFolderError(f"{place}: does not fit: its weights are of another model")
    try:
        check_finite(weights, like, names)
    except NonFiniteError as error:
        raise RunFolderError(f"{place}: damaged: {error}") from None

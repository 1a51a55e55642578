"""Which settings a Flower program uses: it has data, model and training of its own."""

from __future__ import annotations

from dataclasses import fields

from sim.config.training_config import TrainingConfig
from sim.config.virtual_time import VirtualTimeConfig

_USED_BY_APPS = (
    "app",
    "run_config",
    "num_clients",
    "num_rounds",
    "target_accuracy",
    "target_metric",
    "accuracy_in_percent",
    "num_cpus",
    "num_gpus",
    "engine",
    "ray_address",
    "niceness",
    "torch_threads",
    "on_client_error",
    "checkpoint_every",
    "keep_checkpoints",
    "max_retries",
    "client_timeout",
    "seed",
    "name",
    "results_dir",
    "verbose",
    "track",
)
# A Flower program → the settings that it uses; it has its own instead of the others.
USED_BY = {
    "app": _USED_BY_APPS,
    "client_fn": (
        *(name for name in _USED_BY_APPS if name != "app"),
        "client_fn",
        "fraction_fit",
        "clients_per_round",
        "fraction_evaluate",
        "test_every",
        "evaluate_every",
        "local_epochs",
        "batch_size",
        "lr",
        "momentum",
        "weight_decay",
        "model",
        "model_args",
        "args",
        "strategy",
        "strategy_args",
        "server_lr",
        "server_strategy",
        "server_args",
        "client_dropout",
        "sample_seed",
        "dp",
        "dp_args",
        *(each.name for each in fields(VirtualTimeConfig) if each.name not in {f.name for f in fields(TrainingConfig)}),
    ),
}

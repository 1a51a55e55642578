"""The names that settings choose from, and which data sets read a folder."""

from __future__ import annotations

from sim.errors import ConfigError

DATASETS = (
    "digits",
    "imagefolder",
    "synthetic",
    "cifar10",
    "cifar100",
    "mnist",
    "fashion-mnist",
    "breast-cancer",
    "wine",
    "diabetes",
    "fedprox-synthetic",
    "text",
    "csv",
    "leaf",
)
MODELS = ("auto", "Net", "SimpleCnn", "ResNet18", "Mlp", "Logistic", "CharLstm")
PARTITIONERS = (
    "auto",
    "iid",
    "dirichlet",
    "inner-dirichlet",
    "shard",
    "pathological",
    "linear",
    "square",
    "exponential",
    "natural",
    "grouped-natural",
    "continuous",
    "distribution",
    "size",
    "size-to-id",
    "quantity",
)
# Those that look at a column of the examples.
WITH_COLUMN = (
    "auto",
    "dirichlet",
    "inner-dirichlet",
    "shard",
    "pathological",
    "natural",
    "grouped-natural",
    "continuous",
    "distribution",
)
# Those that draw from a Dirichlet distribution.
WITH_ALPHA = ("auto", "dirichlet", "inner-dirichlet", "quantity")
ALGORITHMS = (
    "scaffold",
    "fednova",
    "feddyn",
    "moon",
    "ditto",
    "fedper",
    "fedrep",
    "fedbn",
    "lg-fedavg",
    "fedbabu",
    "apfl",
    "pfedme",
)
STRATEGIES_OF_FLOWER = (
    "fedavg",
    "fedprox",
    "fedavgm",
    "fedadam",
    "fedadagrad",
    "fedyogi",
    "fedmedian",
    "fedtrimmedavg",
    "krum",
    "multikrum",
    "bulyan",
    "qfedavg",
)
ASYNCHRONOUS = ("fedasync", "fedbuff")
STRATEGIES = (*STRATEGIES_OF_FLOWER, *ALGORITHMS, *ASYNCHRONOUS)
AVAILABILITIES = ("always", "bernoulli", "on-off", "diurnal", "trace")
SAMPLERS = ("uniform", "by-size", "power-of-choice", "oort", "round-robin")
TRACKERS = ("tensorboard", "mlflow", "wandb", "wandb:offline")
ATTACKS = ("label-flip", "sign-flip", "gaussian", "alie", "ipm")

# Settings that a resumed run may change: they change no bit of a round, or only the number of rounds.
CHANGEABLE = (
    "num_rounds",
    "target_accuracy",
    "target_metric",
    "patience",
    "num_cpus",
    "num_gpus",
    "engine",
    "ray_address",
    "niceness",
    "checkpoint_every",
    "keep_checkpoints",
    "on_client_error",
    "max_retries",
    "client_timeout",
    "verbose",
    "track",
)

# Data sets that have no folder, and what those that need one find in it; the others may be given one.
_WITHOUT_FOLDER = ("digits", "synthetic", "breast-cancer", "wine", "diabetes", "fedprox-synthetic")
_IN_FOLDER = {
    "imagefolder": "train/<class>/* and test/<class>/*",
    "text": "texts as *.txt",
    "csv": "train.csv and test.csv",
    "leaf": "LEAF's data/all_data/*.json, or train/*.json and test/*.json",
}
WITHOUT_IMAGES = ("breast-cancer", "wine", "diabetes", "fedprox-synthetic", "text", "csv", "leaf")
PLOT_STYLES = ("screen", "paper")
# 3.25 and 6.75 inches are the columns of ICML; they also fit those of ACM (3.33 and 7.0) and IEEE (3.5 and 7.16).
COLUMN_INCHES = {"single": 3.25, "double": 6.75}


def trackers(track: str | None) -> tuple[str, ...]:
    """Return the names in ``--track``, which are separated by commas.

    Raises:
        ConfigError: one is unknown, or a program is named twice.
    """
    names = tuple(name.strip() for name in (track or "").split(",") if name.strip())
    for name in names:
        if name not in TRACKERS:
            raise ConfigError(f"--track {track}: {name}: must be one of {', '.join(TRACKERS)}")
    libraries = [name.partition(":")[0] for name in names]
    for library in libraries:
        if libraries.count(library) > 1:
            raise ConfigError(f"--track {track}: names {library} twice")
    return names


def check_data_settings(dataset: str, data_dir: str | None, target: str | None, image_size: int | None) -> None:
    """Check that a data set has what it needs, and nothing that would be without effect.

    Raises:
        ConfigError: it has not.
    """
    if dataset in _IN_FOLDER and data_dir is None:
        raise ConfigError(f"--dataset {dataset} needs --data-dir, a folder with {_IN_FOLDER[dataset]}")
    if dataset in _WITHOUT_FOLDER and data_dir is not None:
        raise ConfigError(f"--data-dir {data_dir}: --dataset {dataset} does not read a folder")
    if dataset == "csv" and target is None:
        raise ConfigError("--dataset csv needs --target, the column that is predicted")
    if dataset in WITHOUT_IMAGES and image_size is not None:
        raise ConfigError(f"--image-size {image_size}: --dataset {dataset} has no images that could be scaled")

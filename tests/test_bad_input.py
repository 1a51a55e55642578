"""Every mistake a user can make: one line, exit code 2, nothing written."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import AS_OWNER, PROGRAMS, Sim
from sim import RunConfig, simulate


def _images(root: Path) -> Path:
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for number in range(6):
                Image.new("RGB", (32, 32), (number, 2, 3)).save(root / split / name / f"{number}.png")
    return root


def _broken_image(root: Path) -> None:
    path = _images(root) / "train" / "dog" / "3.png"
    path.write_bytes(path.read_bytes()[:40])


def _class_in_one_split(root: Path) -> None:
    (_images(root) / "test" / "emu").mkdir()
    Image.new("RGB", (32, 32)).save(root / "test" / "emu" / "0.png")


def _class_without_images(root: Path) -> None:
    (_images(root) / "train" / "emu").mkdir()
    (root / "train" / "emu" / "notes.txt").write_text("none yet")


def _without_test(root: Path) -> None:
    (_images(root) / "test").rename(root / "exam")


def _empty(root: Path) -> None:
    (root / "train").mkdir(parents=True)


def _broken_link(root: Path) -> None:
    (_images(root) / "train" / "cat" / "lost.png").symlink_to("nowhere.png")


def _broken_tiff(root: Path) -> None:
    path = _images(root) / "train" / "dog" / "3.tiff"
    Image.new("RGB", (4, 4)).save(path)
    content = bytearray(path.read_bytes())
    content[72] = 5  # the place of the pixels is a fraction, for which Pillow raises a TypeError
    path.write_bytes(content)


def _one_class(root: Path) -> None:
    for split in ("train", "test"):
        (root / split / "cat").mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(root / split / "cat" / "0.png")


def _a_file(root: Path) -> None:
    root.write_text("not a folder")


FOLDERS: dict[str, tuple[Callable[[Path], object] | None, str]] = {
    "missing": (None, "photos/train: No such file or directory; a folder with train/<class>/*"),
    "a file": (_a_file, "photos/train: Not a directory"),
    "empty": (_empty, "train/ has no class folders"),
    "without test": (_without_test, "photos/test: No such file or directory"),
    "broken link": (_broken_link, "train/cat/lost.png: No such file or directory; repair or remove that file"),
    "broken image": (_broken_image, "train/dog/3.png: not a complete image in a known format; repair or remove"),
    "broken TIFF": (_broken_tiff, "train/dog/3.tiff: not a complete image in a known format; repair or remove"),
    "class in one split": (_class_in_one_split, "class emu is in test/ only; both splits need every class"),
    "class without images": (_class_without_images, "train/emu has no images; known endings are .jpg"),
    "one class": (_one_class, "only one class, cat; at least two are needed"),
}


INLINE = ["--engine", "inline"]  # what is checked is the same, without the seconds that Ray takes to start


def _check(result: subprocess.CompletedProcess[str], message: str, folder: Path) -> None:
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("sim: ")
    assert message in line
    assert not (folder / "results").exists()


IN_PHOTOS = ["run", *INLINE, "--dataset", "imagefolder", "--data-dir", "photos", "--num-clients", "5"]


@pytest.mark.parametrize("kind", FOLDERS)
def test_data_folders(command: Sim, tmp_path: Path, kind: str) -> None:
    make, message = FOLDERS[kind]
    if make is not None:
        make(tmp_path / "photos")
    _check(command(*IN_PHOTOS), message, tmp_path)


def test_a_data_folder_that_cannot_be_read(sim: Sim, tmp_path: Path) -> None:
    locked = _images(tmp_path / "photos") / "train" / "cat"
    locked.chmod(0)
    result = sim(*IN_PHOTOS, prefix=AS_OWNER)
    locked.chmod(0o755)
    _check(result, "photos/train/cat: Permission denied", tmp_path)


FLAGS = {
    "--num-client 3": "--num-client: did you mean --num-clients",
    "--frobnicate": "--frobnicate: no such flag (sim run --help lists all)",
    "zzz": "zzz: no such flag",
    "--dataset cifar": "--dataset cifar: must be one of digits, imagefolder, synthetic, cifar10",
    "--model Nett": "--model Nett: must be one of auto, Net, SimpleCnn, ResNet18, Mlp, Logistic, CharLstm, package.",
    "--strategy fedsgd": "--strategy fedsgd: must be one of fedavg, fedprox, fedavgm, fedadam",
    "--strategy bulyan --clients-per-round 2": "--strategy bulyan: needs at least 3 clients in a round against 0",
    "--target accuracy>0.7": "--target-metric accuracy>0.7: must be NAME<=NUMBER or NAME>=NUMBER",
    "--target 0.7": "--target-metric 0.7: must be NAME<=NUMBER or NAME>=NUMBER",
    "--program my-train.py": "my-train is no name that Python can import; use a link to it, such as my_train",
    "--program 1.py": "--program 1.py: 1 is no name that Python can import; use a link to it, such as _1",
    "--partitioner shards": "--partitioner shards: must be one of auto, iid, dirichlet, inner-dirichlet",
    "--engine dask": "--engine dask: must be one of ray, inline",
    "--device tpu": "--device tpu: must be one of auto, cpu, cuda",
    "--on-client-error retry": "--on-client-error retry: must be one of stop, drop",
    "--lr fast": "--lr fast: must be a number, above 0",
    "--lr 0": "--lr 0: must be above 0",
    "--num-rounds 2.5": "--num-rounds 2.5: must be a whole number, at least 1",
    "--num-rounds 0": "--num-rounds 0: must be at least 1",
    "--num-clients 0": "--num-clients 0: must be at least 1",
    "--num-clients -4": "--num-clients -4: must be at least 1",
    "--local-epochs 0": "--local-epochs 0: must be at least 1",
    "--batch-size 0": "--batch-size 0: must be at least 1",
    "--clients-per-round 0": "--clients-per-round 0: must be at least 1",
    "--min-partition-size 0": "--min-partition-size 0: must be at least 1",
    "--torch-threads 0": "--torch-threads 0: must be at least 1",
    "--image-size 0": "--image-size 0: must be at least 1",
    "--seed -1": "--seed -1: must be at least 0",
    "--alpha 0": "--alpha 0: must be above 0",
    "--fraction-fit 1.5": "--fraction-fit 1.5: must be above 0 and at most 1",
    "--fraction-fit 0": "--fraction-fit 0: must be above 0 and at most 1",
    "--fraction-evaluate -0.1": "--fraction-evaluate -0.1: must be at least 0 and at most 1",
    "--eval-share 1": "--eval-share 1: must be at least 0 and below 1",
    "--fraction-fit 0.001": "--fraction-fit 0.001: picks none of 100 clients; at least 0.01 picks one",
    "--fraction-evaluate 0.001": "--fraction-evaluate 0.001: picks none of 100 clients; at least 0.01 picks one",
    "--fraction-evaluate 0.5 --eval-share 0": "--eval-share 0: must be above 0, because --fraction-evaluate 0.5",
    "--fraction-fit 0.1 --clients-per-round 3": "--fraction-fit 0.1 and --clients-per-round 3: give one of the two",
    "--clients-per-round 101": "--clients-per-round 101: must be at most --num-clients 100",
    "--num-clients 1438": "1438: 1437 training examples are too few for 1 per client; at most 1437 clients",
    "--min-partition-size 15": "are too few for 15 per client; at most 95 clients",
    "--num-clients 10 --alpha 0.0001": "--partitioner dirichlet: The max number of attempts (10) was reached",
    "--num-gpus 0.5": "--num-gpus 0.5: this machine has 0 GPUs; at most 0",
    "--num-gpus 1.5": "--num-gpus 1.5: above 1 it must be a whole number",
    "--num-gpus -1": "--num-gpus -1: must be at least 0",
    "--num-cpus 4096": "--num-cpus 4096: this machine has ",
    "--num-cpus 0": "--num-cpus 0: must be at least 0.01",
    "--device cuda": "--device cuda: PyTorch sees no GPU; choose auto or cpu",
    "--dataset imagefolder": "--dataset imagefolder needs --data-dir, a folder with train/<class>/*",
    "--data-dir photos": "--data-dir photos: --dataset digits does not read a folder",
    "--num-classes 3": "--num-classes 3: belongs to --dataset synthetic, not to digits",
    "--image-size 8": "--model Net: does not take images of (1, 8, 8)",
    "--strategy-args eta": "--strategy-args eta: must be key=value",
    "--strategy-args eta=1": "--strategy-args eta=1: fedavg takes these arguments",
    "--image-size 2000000": "--image-size 2000000: must be at least 1 and at most 1024",
    "--strategy-args tau=nan": "--strategy-args tau=nan: the value of tau must be a number",
    "--momentum 0.5 --optimizer adam": "--momentum 0.5: belongs to --optimizer sgd, not to adam",
    "--num-clients 10 --fraction-evaluate 0.1 --alpha 0.0001": "--partitioner iid works",
    "--strategy-args on_fit_config_fn=abc": "--strategy-args on_fit_config_fn=abc: fedavg takes these arguments",
    "--strategy multikrum --strategy-args weighted_by_key=foo": "weighted_by_key=foo: must be num-examples or loss",
    "--strategy bulyan --strategy-args to_keep=2": "--strategy-args to_keep=2: must be at least 0 and at most 1",
    "--strategy fedprox --strategy-args proximal_mu=-1": "--strategy-args proximal_mu=-1: must be at least 0",
    "--strategy fedadam --strategy-args beta_1=1": "--strategy-args beta_1=1: must be at least 0 and below 1",
    "--strategy qfedavg --strategy-args client_learning_rate=0": "client_learning_rate=0: must be above 0",
    "--strategy fedadam --strategy-args eta=big": "--strategy-args eta=big: must be a number",
    "--metric loss": "--metric loss: must be one of accuracy, top5, f1, auroc, mae, rmse, r2, perplexity",
    "--metric r2": "--metric r2: cannot be computed from outputs of (2, 10) and targets of (2,); one of accuracy",
    "--loss mse": "--loss mse: cannot be computed from outputs of (2, 10) and targets of (2,); one of c",
    "--dataset wine --partitioner iid --num-clients 10 --loss bce": "--loss bce: cannot be computed from",
    "--attack-share 0.1": "--attack-share 0.1: belongs to --attack label-flip or sign-flip or gaussian or alie or ipm",
    "--validation-share 0.1 --validation-metric f1": "--validation-metric f1: must be one of loss, accuracy",
    "--name a/b": "--name a/b: must be at most 100 letters",
    "--config absent.toml": "--config absent.toml: No such file or directory",
}


def _run(words: str) -> list[str]:
    engine = [] if words.startswith(("--engine", "--num-cpus", "--num-gpus", "--device")) else INLINE
    return ["run", *engine, *words.split()]


@pytest.mark.parametrize("words", FLAGS)
def test_flags_and_values(command: Sim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    # without a GPU, wherever the tests run
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    _check(command(*_run(words)), FLAGS[words], tmp_path)


def test_flags_and_values_in_a_process_of_its_own(sim: Sim, tmp_path: Path) -> None:
    words = "--num-clients 10 --alpha 0.0001"
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    _check(sim(*_run(words), env=environment), FLAGS[words], tmp_path)


CONFIGS = {
    "lr = 0.1\nepochs = 3": "unknown key epochs; the valid keys are dataset, dataset_args,",
    'num_clients = "many"': "num_clients = 'many': must be a whole number, at least 1",
    "num_clients = 1e2": "num_clients = 100.0: must be a whole number",
    "verbose = 1": "verbose = 1: must be true or false",
    "strategy_args = 3": "strategy_args = 3: must be a table of key = value",
    "lr = -1": "lr = -1: must be above 0",
    "lr = ": "config.toml: not valid TOML",
    "model = 'x'\nmodel = 'y'": "config.toml: not valid TOML",
}


@pytest.mark.parametrize("text", CONFIGS)
def test_config_files(command: Sim, tmp_path: Path, text: str) -> None:
    (tmp_path / "config.toml").write_text(text)
    _check(command("run", "--config", "config.toml"), CONFIGS[text], tmp_path)


PLUGINS = {
    "--model nowhere:Net": "--model nowhere:Net: no module named nowhere in",
    "--model faulty:Nett": "--model faulty:Nett: faulty has no Nett; it has not_callable, model_none, ",
    "--model broken_import:Net": "its import failed: No module named 'nothing_of_that_name'",
    "--model faulty:not_callable": "--model faulty:not_callable: is of type int, neither a class, a function nor a",
    "--model faulty:model_none": "--model faulty:model_none: returned NoneType, not a torch.nn.Module",
    "--model faulty:model_shape": "the output for two images has the shape (2, 7), not (2, 10)",
    "--model faulty:model_raises": "OSError: weights.pt is missing",
    "--model faulty:model_needs_more": "its parameter depth is none that can be given without --model-args depth=…; ",
    "--model cifar:Net": "--model cifar:Net: does not take images of (1, 32, 32)",
    "--train faulty:train_generator": "returned a generator, which has trained nothing",
    "--train faulty:train_raises": "raised KeyError: 'optimizer'",
    "--test faulty:test_nothing": "returned NoneType; accuracy, (loss, accuracy), (loss, dict of metrics) or dict of",
    "--test faulty:test_percent": "returned accuracy 100; a fraction 0–1 is expected; --accuracy-in-percent is for",
    "--client faulty:NotAClient": "--client faulty:NotAClient: cannot be made",
    "--client faulty:WrongReturn": "fit must return (list of arrays, int, dict), not (list, str, dict)",
    "--train builtins:max": "--train builtins:max: has no parameter for the model, such as net or model",
    "--strategy builtins:dict": "made a dict, not a flwr.server.strategy.Strategy",
    "--client faulty:Greedy": "missing 1 required positional argument: 'passport'",
    "--strategy faulty:NotAStrategy": "made a NotAStrategy, not a flwr.server.strategy.Strategy",
    "--strategy faulty:NeedyStrategy": "cannot be made: TypeError",
}


@pytest.mark.parametrize("words", PLUGINS)
def test_modules_of_the_users_own(command: Sim, tmp_path: Path, words: str) -> None:
    result = command("run", *INLINE, *words.split(), "--results-dir", str(tmp_path / "results"), cwd=PROGRAMS)
    _check(result, PLUGINS[words], tmp_path)


def test_modules_of_the_users_own_in_a_process_of_its_own(sim: Sim, tmp_path: Path) -> None:
    words = "--client faulty:WrongReturn"
    result = sim("run", *INLINE, *words.split(), "--results-dir", str(tmp_path / "results"), cwd=PROGRAMS)
    _check(result, PLUGINS[words], tmp_path)


def test_an_existing_run_is_refused(command: Sim, tmp_path: Path) -> None:
    note = tmp_path / "results" / "mine" / "note.txt"
    note.parent.mkdir(parents=True)
    note.touch()
    result = command("run", "--name", "mine")
    assert result.returncode == 2
    assert result.stderr == "sim: --name mine: results/mine exists; choose another name\n"
    assert list((tmp_path / "results").rglob("*")) == [note.parent, note]


def test_a_results_folder_that_cannot_be_written_is_refused(sim: Sim, command: Sim, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    result = sim("run", "--results-dir", "locked/results", prefix=AS_OWNER)
    locked.chmod(0o755)
    _check(result, "--results-dir locked/results: cannot be written: Permission denied", locked)
    (tmp_path / "file").write_text("")
    _check(command("run", "--results-dir", "file"), "--results-dir file: cannot be written", tmp_path)
    (tmp_path / "link").symlink_to("absent")
    _check(command("run", *INLINE, "--results-dir", "link"), "--results-dir link: is not a folder", tmp_path)


OTHERS = {
    "": "the following arguments are required: COMMAND",
    "train": "invalid choice: 'train'",
    "centralized --epochs 0": "--epochs 0: must be at least 1",
    "centralized --num-clients 3": "--num-clients: did you mean",
    "partition --num-clients 5000": "at most 1437 clients",
    "partition -o table.xls": "-o table.xls: the ending must be one of .png, .svg, .pdf",
    "plot": "the following arguments are required: RUN",
    "plot ''": "run '': must be the name of a run, the path of a run, or a folder of runs",
    "export ''": "run '': must be the name of a run or the path of one",
    "plot nothing": "run nothing: neither a run in results nor a path to one",
    "plot foreign": "run foreign: foreign is neither a run (it has no config.toml) nor a folder of runs; ",
    "plot damaged": "damaged has no rounds.csv",
    "plot damaged -o p.gif": "-o p.gif: the ending must be one of .png, .svg, .pdf",
    "plot damaged -o absent/p.png": "-o absent/p.png: there is no folder absent",
    "plot damaged --x time": "argument --x: invalid choice: 'time'",
    "list --target accuracy>=0.5": "--target: did you mean",
    "list --results-dir absent": "--results-dir absent: No such file or directory",
}


@pytest.mark.parametrize("words", OTHERS)
def test_the_other_commands(command: Sim, tmp_path: Path, words: str) -> None:
    (tmp_path / "foreign").mkdir()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "config.toml").write_text("seed = 1\n")
    _check(command(*shlex.split(words)), OTHERS[words], tmp_path)
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--loss", "measures:raises"], "--loss measures:raises: raised ValueError: no; it got outputs of (2, 10) and"),
        (["--loss", "measures:nothing"], "--loss measures:nothing: gives None; a tensor of one number is expected"),
        (["--loss", "measures:each"], "--loss measures:each: gives tensor(["),
        (["--loss", "measures:without_gradient"], "its result has no gradient, so that nothing would be learnt"),
        (["--loss", "measures:missing"], "--loss measures:missing: measures has no missing"),
        (["--metric", "measures:raises"], "--metric measures:raises: raised ValueError: no; it got outputs of (64,"),
        (["--metric", "measures:each"], "one number is expected for each"),
        (["--metric", "../measures:each"], "--metric ../measures:each: must be one of accuracy, top5"),
    ],
)
def test_losses_and_metrics_of_the_users_own_are_tried_before_the_run(
    words: list[str], message: str, command: Sim, tmp_path: Path
) -> None:
    results = tmp_path / "results"
    done = command(
        "run", *words, "--num-clients", "4", "--engine", "inline", "--results-dir", str(results), cwd=PROGRAMS
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert message in done.stderr
    assert not results.exists()


def test_a_metric_that_needs_several_classes_is_tried_on_more_than_the_first_examples(
    in_programs: None, tmp_path: Path
) -> None:
    """The first two examples of the data are of one class."""
    images = np.zeros((40, 8, 8, 1), np.uint8)
    data = images, np.arange(40) // 20
    settings: dict[str, Any] = {"metric": "measures:of_two_classes", "results_dir": str(tmp_path), "num_clients": 2}
    config = RunConfig(num_rounds=1, fraction_fit=1, partitioner="iid", engine="inline", model="Logistic", **settings)
    run = simulate(config, load_data=lambda: (data, data))
    assert run.metrics().query("phase == 'test'").value.tolist()[-1] == 0.5

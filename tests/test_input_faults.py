"""Input that is odd, hostile or huge: one line that names it, or it works; nothing is dropped without a word."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.table import Table

from conftest import Small
from sim import cli, simulate
from sim.commands.output import print_table
from sim.config.fields import parse_scalar
from sim.config.run_config import CentralizedConfig, RunConfig
from sim.errors import ConfigError, SimError, many_lines
from sim.run_folder import plots
from sim.run_folder.folder import Run
from sim.run_folder.records import RoundRecord, columns
from sim.run_folder.writer import RunWriter

HUGE = "1" + "0" * 30
RUN = ("run", "--engine", "inline")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _refused(result: Any, folder: Path, *parts: str) -> None:
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1), result.stderr[-500:]
    assert result.stderr.startswith("sim: ")
    assert result.stderr[:-1].isprintable()
    assert len(result.stderr) < 3000
    for part in parts:
        assert part in result.stderr
    assert not (folder / "results").exists()


TOML = {
    "lr = 1" + "0" * 400: "lr = 1000",
    "seed = " + "1" * 5000: "not valid TOML",
    "seed = 0x" + "f" * 5000: "seed = (int): must be",
    "strategy_args = {a = " + "[" * 3000 + "]" * 3000 + "}": "not valid TOML",
    'results_dir = "a\\u0000b"': "without NUL",
    'data_dir = "a\\u0000b"': "without NUL",
    'strategy_args = {eta = "a\\nb"}': "the value of eta must be one line of text",
    'strategy_args = {"a\\nb" = 1}': "must be one line of text",
    "strategy_args = {eta = 1" + "0" * 30 + "}": "the value of eta must be a number of at most 64 bits",
    '"a\\u001b[31mb" = 1': "unknown key a\\x1b[31mb",
}


@pytest.mark.parametrize("text", TOML, ids=range(len(TOML)))
def test_values_of_a_file_that_no_setting_takes(command: Any, folder: Path, text: str) -> None:
    (folder / "c.toml").write_text(text)
    _refused(command(*RUN, "--config", "c.toml"), folder, "--config c.toml", TOML[text])


FLAGS = {
    "--results-dir r\udcff": "--results-dir r\\udcff: must be text in UTF-8",
    "--num-rounds 1_0": "--num-rounds 1_0: must be a whole number",
    "--num-rounds ٣": "--num-rounds ٣: must be a whole number",
    "--lr 1_0.5": "--lr 1_0.5: must be a number",
    "--lr ٣": "--lr ٣: must be a number",
    "--seed " + "1" * 5000: "characters left out",
    "--strategy fedadam --strategy-args eta=1_0": "--strategy-args eta=1_0: must be a number",
    "--strategy fedadam --strategy-args eta=" + "[" * 3000: "must be a number",
    "--strategy fedadam --strategy-args eta=0.5 eta=0.1": "--strategy-args eta=0.5 eta=0.1: gives eta twice",
    "--strategy fedadam --strategy-args eta=0.5 --strategy-args eta=0.1": "gives eta twice",
    "--partitioner iid --alpha 0.01": "--alpha 0.01: belongs to --partitioner auto or dirichlet or inner-dirichlet",
    "--partitioner shard --alpha 0.5": "--alpha 0.5: belongs to --partitioner auto or dirichlet or inner-dirichlet",
    "--local-training sequential --vectorized-clients 3": "belongs to --local-training vectorized or auto",
    "--lr 1e308": "--lr 1e308: must be above 0 and at most 1e+38",
    "--model " + "a" * 300 + ":Net": "aaa:Net: no module named aaa",
    "--model " + "a." * 3000 + "a:Net": "--model a.a.a",
    "--args a=1": "--args a: belong to a program or a function of yours, as --program names it",
    "--model torchvision:resnet18 --args a=1": "--args a: belong to a program or a function of yours",
    "--accuracy-in-percent": "--accuracy-in-percent: belongs to a --train, a --test or a client of yours",
    "--data-form items": "--data-form items: belongs to data of yours, not to --dataset digits",
    "--track=": "--track '': must name one or more of tensorboard, mlflow, wandb, wandb:offline; only --resume ends",
    "--results-dir=": "--results-dir '': must be the name of a folder; . is the current one",
    "--metric accuracy,f1,accuracy:min": "--metric accuracy,f1,accuracy:min: names accuracy twice",
    "--metric ,": "--metric ,: has an empty name beside a comma",
    "--sampler power-of-choice --sampler-args candidates=101": "candidates=101: must be at least 20, the clients",
    "--sampler power-of-choice --sampler-args candidates=19": "and at most --num-clients 100",
    "--max-staleness 0": "--max-staleness 0: belongs to --strategy fedasync or fedbuff, not to fedavg",
    "--ray-address auto": "--ray-address auto: belongs to --engine ray, not to inline",
}


@pytest.mark.parametrize("words", FLAGS, ids=range(len(FLAGS)))
def test_values_of_flags_that_mean_nothing_or_would_be_dropped(command: Any, folder: Path, words: str) -> None:
    _refused(command(*RUN, *words.split()), folder, FLAGS[words])


def test_settings_without_effect_are_noted(small: Small, capsys: pytest.CaptureFixture[str]) -> None:
    """They may come from a preset, a sweep or the config of an older run, so that they are no errors."""
    small(
        dataset="wine",
        augment="crop-flip",
        partitioner="iid",
        eval_share=0.4,
        keep_checkpoints=5,
        checkpoint_every=0,
        max_retries=3,
        num_cpus=0.5,
        lr_schedule="step",
        lr_milestones="2,3",
        vectorized_clients=4,
    )
    assert [line for line in capsys.readouterr().err.splitlines() if "has no effect" in line] == [
        "sim: note: --vectorized-clients 4 has no effect, because clients are trained one after another",
        "sim: note: --eval-share 0.4 has no effect without --fraction-evaluate or --final-evaluate; each client trains "
        "on all its examples",
        "sim: note: --augment crop-flip has no effect, because the data are not kept as images with classes",
        "sim: note: --max-retries 3 has no effect on --engine inline, which is one process",
        "sim: note: --num-cpus 0.5 has no effect on --engine inline, which is one process",
        "sim: note: --keep-checkpoints 5 has no effect, because --checkpoint-every is 0",
        "sim: note: --lr-schedule step has no effect, because its first step is after round 2 of 2",
    ]
    small(eval_share=0.4, fraction_evaluate=0.5, lr_schedule="step", lr_step_every=1)
    assert capsys.readouterr().err == ""


def test_a_newline_does_not_begin_another_argument(command: Any, folder: Path) -> None:
    words = ("--strategy", "fedadam", "--strategy-args", "eta=0.5\nrest = 7")
    _refused(command(*RUN, *words), folder, "eta=0.5 rest = 7: the value of eta must be one line of text")


COUNTS = ("batch-size", "local-epochs", "max-local-steps", "num-examples", "torch-threads", "num-rounds", "num-clients")
MORE_COUNTS = ("clients-per-round", "min-partition-size", "checkpoint-every", "max-retries", "client-timeout", "seed")


@pytest.mark.parametrize("flag", [*COUNTS, *MORE_COUNTS, "vectorized-clients"])
def test_a_count_that_no_machine_can_reach(command: Any, folder: Path, flag: str) -> None:
    dataset = ("--dataset", "synthetic") if flag == "num-examples" else ()
    _refused(command(*RUN, *dataset, f"--{flag}", HUGE), folder, f"--{flag} {HUGE}: must be ", "at most")


OTHERS = {
    "sweep --vary args.lr=0.1,0.2": "--args lr: belong to a program or a function of yours",
    "sweep --vary alpha=1 --data-form items": "--data-form items: belongs to data of yours",
    "scale --args a=1": "--args a: belong to a program or a function of yours",
    f"sweep --seeds {HUGE}": "--seeds 1000",
    "sweep --seeds " + "1" * 5000: "--seeds 111",
    "sweep --seeds 60000 --vary lr=0.1,0.2": "120000 runs, at most 100000",
    f"sweep --jobs {HUGE}": "--jobs 1000",
    f"scale --num-clients {HUGE}": "--num-clients 1000",
    f"scale --cell-timeout {HUGE}": "--cell-timeout 1000",
    f"plot x -o {'b/' * 3000}x.png": "-o b/b/",
    f"centralized --epochs {HUGE}": "--epochs 1000",
}


@pytest.mark.parametrize("words", OTHERS, ids=range(len(OTHERS)))
def test_a_count_of_another_command(command: Any, folder: Path, words: str) -> None:
    _refused(command(*words.split()), folder, OTHERS[words])


def test_arguments_that_are_given_in_two_places_are_merged(command: Any, folder: Path) -> None:
    words = ("--strategy", "fedadam", "--strategy-args", "eta=0.5", "--strategy-args", "tua=0.1")
    # The first is valid, and the second has a slip, so that both were read.
    _refused(command(*RUN, *words), folder, "--strategy-args tua=0.1: fedadam takes these arguments")


def test_a_setting_of_another_choice_goes_with_that_choice() -> None:
    """A later layer that makes the choice drops what belonged to the old one, as for the arguments of a strategy."""
    layered = RunConfig.layered([{"partitioner": "dirichlet", "alpha": 0.1}, {"partitioner": "iid"}])
    assert layered == {"partitioner": "iid"}
    kept = RunConfig.layered([{"partitioner": "dirichlet", "alpha": 0.1}, {"partitioner": "inner-dirichlet"}])
    assert kept == {"partitioner": "inner-dirichlet", "alpha": 0.1}


def test_a_config_is_written_without_the_settings_that_have_no_effect() -> None:
    assert "alpha" not in RunConfig(partitioner="iid").to_toml()
    assert "alpha = 0.5" in RunConfig().to_toml()
    assert CentralizedConfig(optimizer="adam").to_toml().count("momentum") == 0


def test_a_number_of_python_that_cannot_be_shown() -> None:
    for name in ("lr", "seed", "num_gpus"):
        with pytest.raises(SimError, match=rf"{name} = \(int\): must be"):
            RunConfig(**{name: 16**5000})


def test_a_file_with_the_mark_of_windows_editors(folder: Path) -> None:
    (folder / "c.toml").write_bytes(b"\xef\xbb\xbflr = 0.25\r\n")
    assert RunConfig.load("c.toml").lr == 0.25


@pytest.mark.usefixtures("pictures")
def test_the_config_of_a_run_with_the_mark_of_windows_editors_or_without_settings(command: Any, folder: Path) -> None:
    run = _record(folder / "results")
    run.config_path.write_bytes(b"\xef\xbb\xbf" + run.config_path.read_bytes())
    assert run.num_rounds == 1
    assert command("list").stdout.splitlines()[1].split()[:2] == ["good", "1/1"]
    assert command("run", "--resume", "good").stderr.startswith(f"sim: {run.path} has no checkpoint to resume from")
    run.config_path.write_text("")
    for words in (("list",), ("plot", "good"), ("report", "good"), ("export", "good"), ("run", "--resume", "good")):
        place = "results/good" if words == ("list",) else run.path
        assert command(*words).stderr == f"sim: {place} is not a run: config.toml: is damaged: it has no settings\n"


def test_the_default_fraction_picks_at_least_one_client() -> None:
    assert [RunConfig(num_clients=n).num_fit_clients for n in (1, 4, 5, 10)] == [1, 1, 1, 2]
    with pytest.raises(ConfigError, match="picks none"):
        RunConfig(num_clients=4, fraction_fit=0.2)


def test_texts_of_arguments() -> None:
    texts = {"1": 1, "1.5": 1.5, "true": True, '"1"': "1", "'a_b'": "a_b", "a_b": "a_b", "1_0": "1_0", "": ""}
    assert {text: parse_scalar(text) for text in texts} == texts
    assert parse_scalar("1\nb = 2") == "1\nb = 2"


def _record(root: Path, name: str = "good") -> Run:
    writer = RunWriter.create(str(root), name, RunConfig(num_rounds=1).to_toml(), clients=True)
    for number in range(2):
        writer.append(RoundRecord(number, test_accuracy=0.25 * number, test_loss=1.0, round_seconds=1.0))
    writer.close()
    writer.release()
    return writer.run


COMMAS = "," * (len(columns(RoundRecord)) - 1)
DAMAGE: dict[str, Callable[[Run], object]] = {
    "num_rounds is a text": lambda run: run.config_path.write_text('num_rounds = "x"\n'),
    "target_accuracy is a text": lambda run: run.config_path.write_text('num_rounds = 1\ntarget_accuracy = "x"\n'),
    "arguments are no table": lambda run: run.config_path.write_text("num_rounds = 1\npartitioner_args = 3\n"),
    "nested TOML": lambda run: run.config_path.write_text("x = " + "[" * 5000),
    "bytes": lambda run: run.rounds_path.write_bytes(bytes(range(128, 256))),
    "empty": lambda run: run.rounds_path.write_bytes(b""),
    "a row of commas": lambda run: run.rounds_path.open("a").write(COMMAS + "\n"),
    "round 1.5": lambda run: run.rounds_path.write_text(run.rounds_path.read_text().replace("\n1,", "\n1.5,")),
    "round 1e22": lambda run: run.rounds_path.write_text(run.rounds_path.read_text().replace("\n1,", "\n1" + "0" * 22)),
    "a folder": lambda run: (run.rounds_path.unlink(), run.rounds_path.mkdir()),
    "no table": lambda run: run.rounds_path.unlink(),
    "a pipe": lambda run: (run.rounds_path.unlink(), os.mkfifo(run.rounds_path)),
    "a device": lambda run: (run.rounds_path.unlink(), run.rounds_path.symlink_to("/dev/zero")),
    "a pipe for the metrics": lambda run: (
        run.rounds_path.write_text("round\n1\n"),
        run.metrics_path.unlink(),
        os.mkfifo(run.metrics_path),
    ),
    "no settings": lambda run: run.config_path.write_text("# nothing\n"),
}


@pytest.mark.slow
@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_run_does_not_hide_the_others(command: Any, folder: Path, damage: str) -> None:
    _record(folder / "results")
    DAMAGE[damage](_record(folder / "results", "bad"))
    listed = command("list")
    assert (listed.returncode, listed.stderr.count("\n")) == (0, 1), listed.stderr
    assert [line.split()[:2] for line in listed.stdout.splitlines()[1:]] == [["good", "1/1"]]
    reported = command("report", "results")
    assert (reported.returncode, reported.stderr.count("\n")) == (0, 1), reported.stderr
    assert "results/bad" in reported.stderr
    for words in (("report", "bad"), ("plot", "bad")):
        result = command(*words)
        assert (result.returncode, result.stderr.count("\n")) == (2, 1), result.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("run --config zero.toml", "--config zero.toml: is no file"),
        ("run --devices zero.csv", "--devices zero.csv: zero.csv: is no file"),
        ("run --devices fedscale:zero.json", "--devices fedscale:zero.json: zero.json: is no file"),
        ("run --devices pipe.csv", "--devices pipe.csv: pipe.csv: is no file, and it is read more than once"),
        ("devices --devices fedscale:pipe.txt", "--devices fedscale:pipe.txt: pipe.txt: is no file, and it is read mo"),
        ("run --dataset text --data-dir .", "--data-dir: pipe.txt: is no file; repair or remove that file"),
        ("run --dataset leaf --data-dir .", "--data-dir: data/all_data/pipe.json: is no file; repair or remove that"),
        ("plot bad", "results/bad/rounds.csv: cannot be read: is no file"),
        ("run --resume bad --num-rounds 2", "results/bad/rounds.csv: is no file"),
    ],
)
def test_what_would_be_read_for_ever(command: Any, folder: Path, words: str, said: str) -> None:
    for ending in ("toml", "csv", "json"):
        (folder / f"zero.{ending}").symlink_to("/dev/zero")
    (folder / "data" / "all_data").mkdir(parents=True)
    for name in ("pipe.csv", "pipe.txt", "data/all_data/pipe.json"):
        os.mkfifo(folder / name)
    if "bad" in words:
        few = {"num_clients": 2, "num_rounds": 1, "max_local_steps": 1}
        run = simulate(RunConfig(**few, engine="inline", name="bad"))
        run.rounds_path.unlink()
        os.mkfifo(run.rounds_path)
        said = f"{folder}/{said}"
    result = command(*words.split())
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert result.stderr.startswith(f"sim: {said}")


def test_only_damaged_runs_are_an_error(command: Any, folder: Path) -> None:
    for name in ("a", "b"):
        DAMAGE["bytes"](_record(folder / "results", name))
    result = command("report", "results")
    assert (result.returncode, result.stderr.count("\n")) == (2, 2)


def test_odd_names_beside_a_run(command: Any, folder: Path) -> None:
    """A checkpoint called ², a link to itself, and a name with an escape sequence, which must not reach the screen."""
    run = _record(folder / "results")
    (run.checkpoints_path / "²").mkdir(parents=True)
    (folder / "results" / "loop").symlink_to("loop")
    run.path.rename(folder / "results" / "go\x1b[31mod\udcff")
    result = command("list")
    assert (result.returncode, result.stderr) == (0, "")
    assert "go\\x1b[31mod\\udcff" in result.stdout
    for words in (("plot", "a" * 300), ("report", "a" * 300), ("run", "--resume", "a" * 300), ("plot", "loop")):
        result = command(*words)
        assert (result.returncode, result.stderr.count("\n")) == (2, 1), result.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("pictures")
def test_a_run_of_another_version_can_be_read(command: Any, folder: Path) -> None:
    """Columns that it does not have are missing values, and columns that only it has are kept."""
    run = _record(folder / "results")
    run.rounds_path.write_text("round,test_accuracy,test_loss,new_column\n0,0.5,1.0,a\n1,0.75,0.5,b\n")
    run.clients_path.write_text("round,client_id,together\n1,3,2\n")
    rounds, clients = run.rounds(), run.clients()
    assert list(rounds.columns) == [*columns(RoundRecord), "new_column"]
    assert rounds.new_column.tolist() == ["a", "b"]
    assert rounds.checkpoint_seconds.isna().all()
    assert rounds.checkpoint_seconds.dtype == "float64"
    assert (clients.vectorized_with.tolist(), clients.status.isna().tolist()) == ([2], [True])
    for words in (("list",), ("plot", "good"), ("plot", "good", "--x", "seconds"), ("report", "good")):
        result = command(*words)
        assert (result.returncode, result.stderr) == (0, ""), result.stderr


def test_names_are_no_formula_no_markup_and_none_is_left_out() -> None:
    names = ["$5 to $10", "$\\frac$", "_noise", "[red]", "a\nb\x1b[31m", "\udcff", "图"]
    figure = plots.partition_figure(np.ones((3, len(names)), np.int64), names)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert plots.render(figure, "svg").startswith(b"<?xml")
    legend = figure.axes[0].get_legend()
    assert legend is not None
    shown = ["$5 to $10", "$\\frac$", "_noise", "[red]", "a b\\x1b[31m", "\\udcff", "图"]
    assert [text.get_text() for text in legend.get_texts()] == shown


def test_a_table_shows_brackets_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(Table("[red]", "[/x]", ":smile:", box=None))
    assert capsys.readouterr().out.split() == ["[red]", "[/x]", ":smile:"]


def test_an_ascii_terminal_gets_characters_that_it_has(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    _record(folder / "results", "one")
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "ascii"))
    assert cli.main(["list"]) == 0
    print("accuracy 0.5 · 0.1 ± 0.2 – ü…")
    sys.stdout.flush()
    assert raw.getvalue().endswith(b"accuracy 0.5 - 0.1 +- 0.2 - \\xfc...\n")


def test_a_traceback_is_bounded_and_reaches_no_terminal_unescaped() -> None:
    text = "Traceback:\n    raise\x1b[31m\nError: " + "x" * 50_000_000 + "\n" * 500
    shown = many_lines(text)
    assert shown.startswith("Traceback:\n    raise\\x1b[31m\nError: xxx")
    assert len(shown) < 5000
    assert "lines left out" in shown


@pytest.mark.slow
def test_streams_that_cannot_be_written(folder: Path) -> None:
    _record(folder / "results")
    python = f"{sys.executable} -m sim list"
    for shell, code in ((">&- 2>&- <&-", 0), ("> /dev/full", 1), ("| true", 0)):
        result = subprocess.run(f"{python} {shell}", shell=True, capture_output=True, text=True, check=False)
        assert (result.returncode, "Traceback" in result.stderr) == (code, False), result.stderr

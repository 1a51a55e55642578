"""Input that is odd, hostile or huge: one line that names it, or it works; nothing is dropped without a word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sim.config.fields import parse_scalar
from sim.config.run_config import CentralizedConfig, RunConfig
from sim.errors import ConfigError, SimError

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
    "--partitioner iid --alpha 0.01": "--alpha 0.01: belongs to --partitioner dirichlet or inner-dirichlet, not to iid",
    "--partitioner shard --alpha 0.5": "--alpha 0.5: belongs to --partitioner dirichlet or inner-dirichlet",
    "--local-training sequential --vectorized-clients 3": "belongs to --local-training vectorized or auto",
    "--ray-address auto": "--ray-address auto: belongs to --engine ray, not to inline",
}


@pytest.mark.parametrize("words", FLAGS, ids=range(len(FLAGS)))
def test_values_of_flags_that_mean_nothing_or_would_be_dropped(command: Any, folder: Path, words: str) -> None:
    _refused(command(*RUN, *words.split()), folder, FLAGS[words])


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
    f"sweep --seeds {HUGE}": "--seeds 1000",
    "sweep --seeds " + "1" * 5000: "--seeds 111",
    "sweep --seeds 60000 --vary lr=0.1,0.2": "120000 runs, at most 100000",
    f"sweep --jobs {HUGE}": "--jobs 1000",
    f"scale --num-clients {HUGE}": "--num-clients 1000",
    f"scale --cell-timeout {HUGE}": "--cell-timeout 1000",
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


def test_the_default_fraction_picks_at_least_one_client() -> None:
    assert [RunConfig(num_clients=n).num_fit_clients for n in (1, 4, 5, 10)] == [1, 1, 1, 2]
    with pytest.raises(ConfigError, match="picks none"):
        RunConfig(num_clients=4, fraction_fit=0.2)


def test_texts_of_arguments() -> None:
    texts = {"1": 1, "1.5": 1.5, "true": True, '"1"': "1", "'a_b'": "a_b", "a_b": "a_b", "1_0": "1_0", "": ""}
    assert {text: parse_scalar(text) for text in texts} == texts
    assert parse_scalar("1\nb = 2") == "1\nb = 2"

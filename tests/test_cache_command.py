"""``sim cache``: what is listed, what is removed, and what a running process keeps."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import AS_OWNER, Sim, made_once
from sim import RunConfig
from sim.data import cache, partition
from sim.data.cache import Entry, clear, entries
from sim.data.load_dataset import load_dataset

CONFIG = RunConfig(dataset="synthetic", num_examples=20, num_clients=2, fraction_fit=1.0, image_size=8, alpha=50)
CODE = (  # what another process does
    "from sim.config.run_config import RunConfig; from sim.data import partition; "
    "from sim.data.load_dataset import load_dataset; config = RunConfig(dataset='synthetic', num_examples=20, "
    "num_clients=2, fraction_fit=1.0, image_size=8, alpha=50)"
)
DATA = "synthetic image_size=8 num_classes=10 num_examples=20"
PARTITION = "dirichlet alpha=50.0 min_partition_size=1 partition_by=label seed=0 num_clients=2"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("SIM_CACHE", str(folder))
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    return folder


def _make_in_another_process(folder: Path) -> None:
    words = [sys.executable, "-c", f"{CODE}; partition.assign(load_dataset(config), config)"]
    subprocess.run(words, env={**os.environ, "SIM_CACHE": str(folder)}, check=True)


@pytest.fixture
def made(own_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A data set and a partition in the cache, which no process uses; they were used 400 and 3 days ago."""
    shutil.copytree(made_once(tmp_path_factory, "entries", _make_in_another_process), own_cache, dirs_exist_ok=True)
    folders = [next((own_cache / kind).iterdir()) for kind in ("data", "partition")]
    for folder, days in zip(folders, (400, 3), strict=True):
        used_at = time.time() - days * 24 * 3600
        os.utime(folder, (used_at, used_at))
    return folders


def make() -> None:
    partition.assign(load_dataset(CONFIG), CONFIG)


@pytest.mark.slow
def test_the_list_says_what_entries_are(made: list[Path], command: Sim, own_cache: Path) -> None:
    for folder in made:
        os.utime(folder, (0, 0))
    done = command("cache", "list")
    assert (done.returncode, done.stderr) == (0, "")
    _, *rows, place, last = done.stdout.splitlines()
    assert place == f"cache           {own_cache}"
    sizes = [sum(path.stat().st_size for path in folder.iterdir()) for folder in made]
    assert last == f"entries         2, {sum(sizes) / 1024:.1f} KiB"
    wanted = [
        [f"{folder.parent.name}/{folder.name}", *what.split(), *f"{size / 1024:.1f} KiB 1970-01-01 00:00".split()]
        for folder, what, size in zip(made, (DATA, PARTITION), sizes, strict=True)
    ]
    assert [row.split() for row in rows] == wanted


@pytest.mark.slow
def test_only_old_entries_are_removed(made: list[Path], command: Sim) -> None:
    for words in (("list",), ("clear",)):
        done = command("cache", *words, "--older-than", "30")
        assert (done.returncode, done.stderr) == (0, "")
        assert f"data/{made[0].name}" in done.stdout
        assert made[1].name not in done.stdout
    assert done.stdout.splitlines()[-1].startswith("removed         1, ")
    assert [folder.is_dir() for folder in made] == [False, True]
    assert command("cache", "clear", "--older-than", "2.5").stdout.splitlines()[-1].startswith("removed         1, ")
    assert [path.name for kind in made for path in kind.parent.iterdir()] == []
    assert command("cache", "list").stdout.splitlines()[-1] == "entries         0, 0 B"


@pytest.mark.slow
def test_what_a_running_process_uses_is_kept(made: list[Path], command: Sim) -> None:
    words = [sys.executable, "-c", f"{CODE}; load_dataset(config); print(flush=True); input()"]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"\n"
    assert time.time() - made[0].stat().st_mtime < 24 * 3600  # it was used now
    done = command("cache", "clear")
    assert done.returncode == 0
    rows = {line.split()[0].partition("/")[0]: line for line in done.stdout.splitlines()}
    assert rows["data"].endswith("a running process uses it")
    assert not rows["partition"].endswith("it")
    assert [folder.is_dir() for folder in made] == [True, False]
    process.communicate(b"\n")
    assert command("cache", "clear").stdout.splitlines()[-1].startswith("removed         1, ")
    assert not made[0].exists()


@pytest.mark.slow
def test_what_other_users_make_or_keep_to_themselves_is_left_out(made: list[Path], sim: Sim, own_cache: Path) -> None:
    (own_cache / "data" / ".making-0").mkdir(mode=0)
    made[0].chmod(0)
    for words, last in ((["list"], "entries         1, "), (["clear"], "removed         1, ")):
        done = sim("cache", *words, prefix=AS_OWNER)
        assert (done.returncode, done.stderr) == (
            0,
            f"sim: note: the cached {made[0]} cannot be read: Permission denied\n",
        )
        assert done.stdout.splitlines()[-1].startswith(last)
    made[0].chmod(0o755)
    assert [folder.is_dir() for folder in made] == [True, False]


def test_a_process_that_makes_an_entry_again_uses_the_new_one(own_cache: Path) -> None:
    make()
    (data, other) = entries() if entries()[0].folder.parent.name == "data" else reversed(entries())
    for entry in (data, other):
        assert clear(entry).problem == "a running process uses it"
    for path in data.folder.iterdir():
        path.unlink()
    data.folder.rmdir()
    make()
    assert clear(data).problem == "a running process uses it"
    assert len(load_dataset(CONFIG).train) == 20


@pytest.mark.slow
def test_a_process_keeps_a_bounded_number_of_entries(own_cache: Path) -> None:
    dataset = load_dataset(CONFIG)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for seed in range(100):
        partition.assign(dataset, RunConfig(**{**vars(CONFIG), "seed": seed}))
    assert len(list(Path("/proc/self/fd").iterdir())) - before <= 64
    found = [clear(Entry(folder, {}, 0, 0.0)) for folder in (own_cache / "partition").iterdir()]
    assert sum(entry.removed for entry in found) == 36  # the first ones


def test_a_number_that_user_code_has_closed_is_not_closed_again(own_cache: Path, tmp_path: Path) -> None:
    folder = load_dataset(CONFIG).folder
    number, _ = cache._USED[folder]
    kept = os.open(folder, os.O_RDONLY)  # lest the new folder gets the number of the old one on the disk
    other = os.open(tmp_path, os.O_RDONLY)
    os.dup2(other, number)  # closes it, and gives the number to another file
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    load_dataset(CONFIG)
    assert os.path.samestat(os.fstat(number), tmp_path.stat())
    for each in (kept, other, number):
        os.close(each)


@pytest.mark.parametrize("text", ["-1", "two", "nan", "1e9", ""])
def test_wrong_days(text: str, command: Sim) -> None:
    done = command("cache", "list", f"--older-than={text}")
    message = f"sim: --older-than {text}: must be a number of days, at least 0 and at most 36500\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", message)


def test_wrong_words(command: Sim) -> None:
    done = command("cache", "empty")
    assert done.returncode == 2
    assert done.stderr.startswith("sim: argument what: invalid choice: 'empty' (choose from ")


def test_an_entry_that_cannot_be_removed_is_said(tmp_path: Path) -> None:
    gone = Entry(tmp_path / "cache" / "data" / "0123", {}, 0, 0.0)
    assert clear(gone).problem == "No such file or directory"
    assert not clear(gone).removed

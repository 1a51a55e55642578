"""Which files of the current folder are the program's, and that each client finds them as they are there."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from program_text import extended, run

from conftest import sha256
from sim.client import own_files
from sim.client.own_folder import OwnFolder, OwnFolderSpec
from sim.user_code import load


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with a model, code, data, a link that leads nowhere, and the folder of the runs."""
    monkeypatch.chdir(tmp_path)
    for name in ("best.pt", "prog.py", "data/a.csv", "models/old/first.pt", "results/rounds.csv", ".git/index"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("before")
    (tmp_path / "nowhere").symlink_to("missing")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "to_a.csv").symlink_to("data/a.csv")
    return tmp_path


@pytest.fixture
def folder(project: Path) -> Iterator[OwnFolder]:
    made = OwnFolder(OwnFolderSpec(project / "results", written=frozenset({"best.pt"})))
    yield made
    made.remove()


def _content(folder: Path) -> dict[str, str]:
    """What programs read in a folder: each file that there is."""
    paths = [*folder.rglob("*"), *folder.joinpath("results").iterdir(), *folder.joinpath(".git").iterdir()]
    return {str(path.relative_to(folder)): path.read_text() for path in paths if path.is_file()}


def test_files_of_another_run_in_the_current_folder_are_not_the_programs(tmp_path: Path) -> None:
    with own_files.noted(tmp_path, tmp_path / "results") as names:
        for name in ("runs/one/environment.json", "runs/one/checkpoints/state.json", "best.pt"):
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}")
    assert names == ["best.pt"]


def test_a_file_that_appears_while_flower_clients_are_executed_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(own_files, "_said", [])
    for number in range(3):
        with own_files.new_files_noted():
            Path("results").mkdir(exist_ok=True)  # no file
            if number:
                Path(f"checkpoint-{number}.pt").write_text("")
        assert len(caplog.records) == min(number, 1)
    assert caplog.records[0].getMessage().startswith("note: checkpoint-1.pt appeared in the current folder while a cl")


def test_the_dry_run_writes_into_a_copy_of_what_a_link_leads_to(project: Path) -> None:
    with own_files.trial_folder(project / "results"):
        assert Path("to_a.csv").read_text() == "before"
        Path("to_a.csv").write_text("of the dry run")
        made = Path.cwd()
    assert (project / "data/a.csv").read_text() == "before"
    assert not made.exists()


def test_each_client_finds_the_files_as_they_are_in_the_current_folder(project: Path, folder: OwnFolder) -> None:
    before = _content(project)

    def add() -> None:
        for name in ("new.pt", "models/new.pt", "models/old/new.pt", "other/new.pt"):
            Path(name).parent.mkdir(exist_ok=True)
            Path(name).write_text("of a client")

    def change() -> None:
        for name in ("best.pt", "models/old/first.pt", "to_a.csv"):
            Path(name).write_text("longer than before")
        Path("data/a.csv").rename("data/b.csv")

    def remove() -> None:
        for name in ("best.pt", "nowhere", "prog.py", "data/a.csv"):
            Path(name).unlink()
        Path("data").rmdir()

    def replace_by_folders() -> None:
        for name in ("best.pt", "prog.py"):
            Path(name).unlink()
            Path(name).mkdir()

    def replace_folders_by_files() -> None:
        shutil.rmtree("models")
        Path("models").write_text("of a client")

    def same_length() -> None:
        Path("best.pt").write_text("BEFORE")

    places = set()
    for client in (add, change, remove, replace_by_folders, replace_folders_by_files, same_length, add):
        with folder.entered() as place:
            places.add(place)
            assert Path.cwd() == place != project
            assert _content(place) == before
            assert {path.name for path in place.iterdir()} == {path.name for path in project.iterdir()}
            client()
            assert _content(place) != before
        assert Path.cwd() == project
        assert _content(project) == before
    assert len(places) == 1, "it is not made anew for each client"
    folder.remove()
    assert not places.pop().exists()


def test_a_client_finds_what_the_server_has_written_meanwhile(project: Path, folder: OwnFolder) -> None:
    for number in range(20):  # within the same milliseconds, too
        for name in ("best.pt", "data/a.csv"):
            (project / name).write_text(f"round {number % 10}")
        (project / f"new{number}").write_text("")
        with folder.entered() as place:
            assert _content(place) == _content(project)
    (project / "new3").unlink()
    (project / "data/a.csv").unlink()
    (project / "data").rmdir()
    with folder.entered() as place:
        assert _content(place) == _content(project)


def test_a_client_that_removes_its_folder_leaves_the_next_one_another(project: Path, folder: OwnFolder) -> None:
    for _ in range(2):
        with folder.entered() as place:
            assert _content(place) == _content(project)
            shutil.rmtree(place)


def test_what_is_large_or_shared_is_a_link(project: Path) -> None:
    (project / "a_large.bin").write_bytes(b"x" * 101)
    (project / "small.bin").write_bytes(b"x" * 60)
    (project / "z_too_much.bin").write_bytes(b"x" * 60)
    folder = OwnFolder(OwnFolderSpec(project / "results", most_copied_bytes=100))
    for _ in range(3):  # what is forgotten and copied again counts once
        with folder.entered() as place:
            links = {path.name for path in place.iterdir() if path.is_symlink()}
            assert links == {"a_large.bin", "z_too_much.bin", "prog.py", "results", ".git", "nowhere", "loop"}
            Path("small.bin").write_bytes(b"")
            Path("best.pt").unlink()
    folder.remove()


def test_what_is_large_and_written_by_clients_is_a_copy(project: Path) -> None:
    (project / "models/old/large.bin").write_bytes(b"x" * 101)
    folder = OwnFolder(OwnFolderSpec(project / "results", frozenset({"models/old/large.bin"}), most_copied_bytes=100))
    for _ in range(2):
        with folder.entered():
            assert Path("models/old/large.bin").stat().st_size == 101
            Path("models/old/large.bin").write_bytes(b"")
    assert (project / "models/old/large.bin").stat().st_size == 101
    folder.remove()


@pytest.mark.parametrize(("most_entries", "is_link"), [(10, True), (11, False)])
def test_folders_below_many_entries_are_links(project: Path, most_entries: int, is_link: bool) -> None:
    """The folder has nine entries, data and models have one each."""
    folder = OwnFolder(OwnFolderSpec(project / "results", most_entries=most_entries))
    with folder.entered() as place:
        assert not (place / "models").is_symlink()
        assert (place / "models/old").is_symlink() == is_link
    folder.remove()


def test_a_fork_of_a_client_leaves_the_folder(folder: OwnFolder) -> None:
    with folder.entered() as place:
        child = os.fork()
        if child == 0:
            folder.remove()
            os._exit(0)
        os.waitpid(child, 0)
        assert (place / "best.pt").exists()


def test_a_file_that_clients_write_only_at_times_is_said_once(
    folder: OwnFolder, caplog: pytest.LogCaptureFixture
) -> None:
    for names in ([], ["best.pt"], ["models/old/first.pt"], ["later.pt"]):
        with folder.entered():
            for name in names:
                Path(name).write_text("of a client")
    (note,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert note.startswith(
        "note: a client has written models/old/first.pt into the current folder; each client does so in a "
    )


BEST_OF_SOME = """
import os

def train(net, trainloader, epochs):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    net.load_state_dict(torch.load("best.pt"))
    if os.path.exists("new.pt"):
        raise RuntimeError("of another client")
    size = 0
    for x, y in trainloader:
        optimizer.zero_grad()
        criterion(net(x), y).backward()
        optimizer.step()
        size += len(y)
    if size > 2:  # not in the dry run
        for name in ("best.pt", "new.pt"):
            torch.save(net.state_dict(), name)
"""


@pytest.mark.ray
def test_what_is_saved_only_at_times_reaches_no_other_client(program: str) -> None:
    """Neither in one process nor in two; the user's own run of the program has left one of the files."""
    extended(program, BEST_OF_SOME)
    net = load(f"{program.removesuffix('.py')}:net", "--model")
    torch.save({name: torch.ones_like(value) for name, value in net.state_dict().items()}, "best.pt")
    of_user = sha256(Path("best.pt"))
    runs = [run(program), run(program, "ray", num_cpus=1)]
    assert len({sha256(each.model_path) for each in runs}) == 1
    assert runs[1].clients().actor.nunique() == 2
    for each in runs:
        assert each.clients().error.isna().all()
        assert "note: a client has written best.pt, new.pt into the current folder" in each.log_path.read_text()
    assert not Path("new.pt").exists()
    assert sha256(Path("best.pt")) == of_user

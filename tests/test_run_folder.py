from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from sim.errors import RunFolderError, WriteError
from sim.run_folder import writer
from sim.run_folder.folder import Run, list_runs, open_run
from sim.run_folder.records import ClientRecord, MetricRecord, RoundRecord, columns, read_frame
from sim.run_folder.writer import RunWriter, check_folder, is_unbegun, locked_folder, remove_run

ROUND = RoundRecord(1, num_clients=3, num_failures=0, train_loss=0.1 + 0.2, fit_seconds=1.5)
CLIENT = ClientRecord(1, "fit", 7, None, None, None, 0.5, 0, None, "failed", 'ValueError: a "b",\nc')


def _writer(root: Path, name: str | None = "one") -> RunWriter:
    return RunWriter.create(str(root), name, "seed = 3\n", clients=True)


def test_the_columns_are_the_documented_ones() -> None:
    assert ",".join(columns(RoundRecord)) == (
        "round,num_clients,num_failures,train_loss,test_loss,test_accuracy,eval_loss,eval_accuracy,"
        "eval_accuracy_p10,eval_accuracy_p25,eval_accuracy_p50,eval_accuracy_p75,eval_accuracy_p90,eval_accuracy_worst10,"
        "fit_seconds,broadcast_seconds,train_seconds,wait_seconds,return_seconds,aggregate_seconds,test_seconds,eval_seconds,round_seconds,"
        "checkpoint_seconds,virtual_seconds,bytes_down,bytes_up,num_late,num_offline,staleness_mean,num_dropped,validation_loss,validation_accuracy,validation_seconds"
    )
    assert ",".join(columns(ClientRecord)) == (
        "round,phase,client_id,num_examples,loss,accuracy,seconds,actor,vectorized_with,status,error,virtual_start,"
        "virtual_end,virtual_download_seconds,virtual_upload_seconds,staleness,bytes_down,bytes_up"
    )


def test_rounds_are_on_disk_before_the_next_one_and_read_back_exactly(tmp_path: Path) -> None:
    writer = _writer(tmp_path)
    writer.append(RoundRecord(0, test_loss=2.0))
    writer.append(ROUND, [CLIENT])
    rounds, clients = writer.run.rounds(), writer.run.clients()  # while the writer is open
    assert rounds["round"].tolist() == [0, 1]
    assert rounds.train_loss[1] == 0.1 + 0.2
    assert rounds.num_clients.isna().tolist() == [True, False]
    assert rounds.test_accuracy.isna().all()
    assert (clients.error[0], clients.client_id[0], clients.status[0]) == (CLIENT.error, 7, "failed")
    assert clients.num_examples.isna().all()
    assert (
        writer.run.rounds_path.read_text().splitlines()[2]
        == "1,3,0,0.30000000000000004" + 5 * "," + 6 * "," + "1.5,,,,,,,,," + 10 * ","
    )
    writer.close()


def test_short_rounds_share_a_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sim.run_folder.writer._UNSYNCED_SECONDS", 1000.0)
    writer = _writer(tmp_path)
    synced: list[int] = []
    monkeypatch.setattr("os.fsync", synced.append)
    counts = []
    for number, due in enumerate([False, False, True, False]):
        writer.append(RoundRecord(number), sync=due)
        counts.append(len(synced))
    assert counts == [3, 3, 6, 6]  # three tables
    writer.sync()
    assert len(synced) == 9
    assert writer.run.rounds()["round"].tolist() == [0, 1, 2, 3]
    writer.close()


def test_an_existing_name_is_refused_and_its_folder_is_unchanged(tmp_path: Path) -> None:
    _writer(tmp_path).close()
    before = sorted(path.stat().st_mtime_ns for path in (tmp_path / "one").iterdir())
    with pytest.raises(RunFolderError, match=r"--name one: .*/one exists; choose another name"):
        _writer(tmp_path)
    assert sorted(path.stat().st_mtime_ns for path in (tmp_path / "one").iterdir()) == before


@pytest.mark.parametrize("left", [[], [".config.toml-a1b2"]], ids=["nothing", "half a config"])
def test_the_name_of_a_run_that_was_killed_before_its_config_is_free(tmp_path: Path, left: list[str]) -> None:
    (tmp_path / "one").mkdir()
    for name in left:
        (tmp_path / "one" / name).write_text("seed")
    check_folder(str(tmp_path), "one")
    writer = _writer(tmp_path)
    assert writer.run.config() == {"seed": 3}
    with pytest.raises(RunFolderError, match="exists; choose another name"):
        check_folder(str(tmp_path), "one")


def test_a_signal_while_a_folder_is_made_leaves_it_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def locked(folder: Path) -> int:
        signal.raise_signal(signal.SIGINT)
        return original(folder)

    original = writer._locked
    monkeypatch.setattr(writer, "_locked", locked)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it in the background
    try:
        with pytest.raises(KeyboardInterrupt):
            RunWriter.create(str(tmp_path), "cut", "seed = 0\n", clients=True)
    finally:
        signal.signal(signal.SIGINT, before)
    left = {path.name for path in (tmp_path / "cut").iterdir()}
    assert left == {"config.toml", "rounds.csv", "clients.csv", "metrics.csv"}


def test_a_folder_with_something_else_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "mine.txt").touch()
    for take in (_writer, lambda root: check_folder(str(root), "one")):
        with pytest.raises(RunFolderError, match="exists; choose another name"):
            take(tmp_path)
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["mine.txt"]


def test_a_run_is_recognized_at_every_moment_of_its_removal(tmp_path: Path) -> None:
    """A sweep that is killed meanwhile must not refuse the folder at its next start."""
    run = _writer(tmp_path).run
    run.checkpoints_path.mkdir()
    run.model_path.touch()
    seen = []

    def listen(event: str, _: object) -> None:
        if listening and event in ("os.remove", "os.rmdir") and run.path.exists():
            seen.append(run.config_path.exists() or is_unbegun(run.path))

    listening = [True]
    sys.addaudithook(listen)
    remove_run(run)
    listening.clear()
    assert (len(seen), all(seen), run.path.exists()) == (7, True, False)


def test_runs_without_a_name_get_different_folders(tmp_path: Path) -> None:
    names = {_writer(tmp_path, None).run.name for _ in range(3)}
    assert len(names) == 3


def test_a_file_is_written_completely_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = _writer(tmp_path)
    writer.write(writer.run.model_path, b"old")
    monkeypatch.setattr(os, "fsync", _fail)
    with pytest.raises(WriteError, match=r"model.safetensors: cannot be written: disk"):
        writer.write(writer.run.model_path, b"new")
    assert writer.run.model_path.read_bytes() == b"old"
    assert [path.name for path in writer.run.path.iterdir() if path.name.startswith(".")] == []


def _fail(_: int) -> None:
    raise OSError(28, "disk")


def test_who_locks_a_folder_removes_what_killed_processes_had_begun_there(tmp_path: Path) -> None:
    names = [".sweep.csv-5zq4qhpt", ".model.safetensors-a_b1c2d3", "sweep.csv", ".hidden", ".my.file-named-by-a-user"]
    for name in names:
        (tmp_path / name).touch()
    with locked_folder(tmp_path):
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[2:])


def test_a_run_is_found_by_name_and_by_path(tmp_path: Path) -> None:
    run = _writer(tmp_path).run
    assert open_run("one", str(tmp_path)).path == run.path
    assert open_run(str(run.path), "nowhere").path == run.path
    assert [found.name for found in list_runs(str(tmp_path))] == ["one"]
    assert run.config() == {"seed": 3}
    with pytest.raises(RunFolderError, match=r"run two: neither a run in .* existing runs: one"):
        open_run("two", str(tmp_path))


def test_a_damaged_folder_is_an_error(tmp_path: Path) -> None:
    run = _writer(tmp_path).run
    run.rounds_path.write_text("a,b\n1,2\n")
    with pytest.raises(RunFolderError, match=r"rounds.csv: has no column round"):
        run.rounds()
    run.config_path.write_text("seed = ")
    with pytest.raises(RunFolderError, match=r"is not a run: config.toml"):
        Run(run.path).config()
    run.clients_path.unlink()
    with pytest.raises(RunFolderError, match=r"has no clients.csv"):
        run.clients()


def test_a_metric_may_be_called_like_a_missing_value(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text(
        "round,phase,client_id,num_examples,name,value\n1,test,,5,NA,0.5\n1,test,,5,None,0.25\n1,fit,3,5,f1,\n"
    )
    frame = read_frame(path, MetricRecord)
    assert frame["name"].tolist() == ["NA", "None", "f1"]
    assert frame["client_id"].isna().tolist() == [True, True, False]

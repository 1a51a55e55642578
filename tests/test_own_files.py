"""Which files of the current folder are the program's, and that the dry run leaves them as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from sim.client import own_files


def test_files_of_another_run_in_the_current_folder_are_not_the_programs(tmp_path: Path) -> None:
    with own_files.noted(tmp_path, tmp_path / "results") as names:
        for name in ("runs/one/environment.json", "runs/one/checkpoints/state.json", "best.pt"):
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}")
    assert names == ["best.pt"]


def test_a_file_that_appears_only_while_clients_are_executed_is_said_once(
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


def test_the_dry_run_writes_into_a_copy_of_what_a_link_leads_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("real.txt").write_text("5")
    Path("count.txt").symlink_to("real.txt")
    Path("loop").symlink_to("loop")
    with own_files.trial_folder(tmp_path / "results"):
        assert Path("count.txt").read_text() == "5"
        Path("count.txt").write_text("6")
    assert Path("real.txt").read_text() == "5"

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

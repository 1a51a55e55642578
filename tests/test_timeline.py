"""The timeline: bars of exact length, versions, clients that were not used, and which rounds and clients are shown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from conftest import Sim, Small
from sim import Run, RunConfig, timeline_figure
from sim.run_folder import timeline
from sim.run_folder.records import ClientRecord, RoundRecord
from sim.run_folder.writer import RunWriter

# round, client_id, status, start, end, download and upload seconds, staleness
Row = tuple[int, int, Any, float, float, float, float, int | None]
SYNCHRONOUS: list[Row] = [
    (1, 7, "ok", 0.0, 4.0, 0.5, 1.5, None),
    (1, 3, "late", 0.0, 4.0, 0.5, 1.5, None),
    (2, 3, "ok", 4.0, 10.0, 1.0, 2.0, None),
    (2, 9, "offline", 4.0, 5.0, 1.0, 2.0, None),
]
ASYNCHRONOUS: list[Row] = [
    (1, 0, "ok", 0.0, 2.0, 0.5, 0.5, 0),
    (2, 1, "ok", 0.0, 5.0, 1.0, 1.0, 1),
    (2, 2, "ok", 2.0, 5.0, 1.0, 1.0, 0),
    (3, 0, "ok", 4.5, 9.0, 0.25, 0.5, 1),
]


def _run(root: Path, name: str, rows: Sequence[Row], ends: Sequence[float | None]) -> Run:
    writer = RunWriter.create(str(root), name, RunConfig(num_rounds=len(ends)).to_toml(), clients=True)
    writer.append(RoundRecord(0, virtual_seconds=None if ends[0] is None else 0.0))
    for number, end in enumerate(ends, start=1):
        clients = [
            ClientRecord(
                number, "fit", client_id, 5, None, None, None, 0, None, status, None, start, stop, down, up, late
            )
            for round_number, client_id, status, start, stop, down, up, late in rows
            if round_number == number
        ]
        writer.append(RoundRecord(number, virtual_seconds=end), clients)
    writer.close()
    return writer.run


def _bars(figure: Figure) -> dict[str, list[tuple[float, float, float]]]:
    """Row, left and right end of each bar, by its colour and hatch."""
    found: dict[str, list[tuple[float, float, float]]] = {}
    for patch in _axes(figure).patches:
        x, y, width, height = patch.get_bbox().bounds  # type: ignore[attr-defined]
        name = patch.get_hatch() or str(patch.get_facecolor()[:3])
        found.setdefault(name, []).append((round(y + height / 2), float(x), float(x + width)))
    return found


def _axes(figure: Figure) -> Axes:
    (axes,) = figure.axes
    return axes


def _legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def _labels(figure: Figure) -> list[str]:
    return [text.get_text() for text in _axes(figure).get_yticklabels()]


def _ends(figure: Figure) -> list[float]:
    return [float(segment[0][0]) for segment in _axes(figure).collections[0].get_segments()]  # type: ignore[attr-defined]


def test_the_bars_of_synchronous_rounds(tmp_path: Path) -> None:
    figure = timeline_figure(_run(tmp_path, "one", SYNCHRONOUS, [4.0, 10.0]))
    download, compute, upload, late, offline = _bars(figure).values()
    assert _labels(figure) == ["3", "7", "9"]
    assert download == [(1, 0, 0.5), (0, 4, 5)]
    assert compute == [(1, 0.5, 2.5), (0, 5, 8)]
    assert upload == [(1, 2.5, 4), (0, 8, 10)]
    assert late == [(0, 0, 4)]
    assert offline == [(2, 4, 5)]
    assert _ends(figure) == [4, 10]
    assert _axes(figure).get_xlabel() == "virtual seconds"
    assert _axes(figure).get_title() == "one: rounds 1 to 2"
    assert _legend(figure) == [
        "download",
        "compute",
        "upload",
        "late, update not used",
        "went offline, no update",
        "end of a round",
    ]


def test_the_bars_of_versions_that_end_later_are_cut_off(tmp_path: Path) -> None:
    run = _run(tmp_path, "one", ASYNCHRONOUS, [2.0, 5.0, 9.0])
    download, compute, upload = _bars(timeline_figure(run, first_rounds=2)).values()
    assert download == [(0, 0, 0.5), (1, 0, 1), (2, 2, 3), (0, 4.5, 4.75)]
    assert compute == [(0, 0.5, 1.5), (1, 1, 4), (2, 3, 4), (0, 4.75, 5)]
    assert upload == [(0, 1.5, 2), (1, 4, 5), (2, 4, 5), (0, 5, 5)]
    figure = timeline_figure(run, first_rounds=1)
    assert _labels(figure) == ["0", "1"]
    assert _legend(figure) == ["download", "compute", "upload", "new version"]
    figure = timeline_figure(run, first_rounds=100)
    assert _ends(figure) == [2, 5, 9]
    assert _legend(figure)[3:] == ["idle, or at work when the run ended", "new version"]


def test_so_many_rounds_are_shown_that_there_are_at_most_40_clients(tmp_path: Path) -> None:
    rows: list[Row] = [
        (number, 15 * (number - 1) + client, "ok", 4.0 * (number - 1), 4.0 * number, 1.0, 1.0, None)
        for number in (1, 2, 3)
        for client in range(15)
    ]
    run = _run(tmp_path, "one", rows, [4.0, 8.0, 12.0])
    figure = timeline_figure(run)
    assert _axes(figure).get_title() == "one: rounds 1 to 2"
    assert _labels(figure) == [str(client_id) for client_id in range(30)]
    figure = timeline_figure(run, first_rounds=3)
    assert _axes(figure).get_title() == "one: rounds 1 to 3; 40 of 45 clients"
    assert _labels(figure) == [str(client_id) for client_id in range(40)]


def test_so_many_rounds_are_shown_that_clients_have_20_bars(tmp_path: Path) -> None:
    rows: list[Row] = [(number, 0, "ok", number - 1.0, number, 0.1, 0.1, 0) for number in range(1, 31)]
    figure = timeline_figure(_run(tmp_path, "one", rows, [float(number) for number in range(1, 31)]))
    assert _axes(figure).get_title() == "one: rounds 1 to 20"
    assert len(_axes(figure).patches) == 3 * 20


@pytest.mark.usefixtures("pictures")
def test_the_command_draws_one_run_with_virtual_time(command: Sim, tmp_path: Path) -> None:
    _run(tmp_path / "results", "one", SYNCHRONOUS, [4.0, 10.0])
    _run(tmp_path / "results", "without", [], [None])
    result = command("plot", "one", "--timeline", "--first-rounds", "1", "-o", "one.svg")
    assert (result.returncode, result.stdout) == (0, "picture         one.svg\n")
    for words, wrong in (
        (
            ["without", "--timeline"],
            "--timeline: without has no virtual_seconds above 0 in rounds.csv; only runs with --devices have virtual "
            "time",
        ),
        (["one", "without", "--timeline"], "--timeline: draws one run, not 2: one, without"),
        (["one", "--first-rounds", "1"], "--first-rounds: only with --timeline"),
        (["one", "--timeline", "--x", "bytes"], "--x bytes: not with --timeline, which draws when clients worked"),
        (["one", "--timeline", "--metric", "f1"], "--metric f1: not with --timeline, which draws when clients worked"),
        *(
            (
                ["one", "--timeline", "--first-rounds", text],
                f"--first-rounds {text}: must be a whole number, at least 1 and at most 1000000000",
            )
            for text in ("0", "1.5", "x", "", "99999999999999999999")
        ),
    ):
        result = command("plot", *words, "-o", "no.svg")
        assert (result.returncode, result.stdout, result.stderr) == (2, "", f"sim: {wrong}\n")
        assert not (tmp_path / "no.svg").exists()


@pytest.mark.usefixtures("pictures")
def test_a_run_leaves_a_timeline_if_it_has_virtual_time(small: Small) -> None:
    settings = {"devices": "lognormal", "device_args": {"sigma": 1.0}}
    run = small(**settings, over_select=2.0, name="rounds")
    assert run.timeline_path.read_bytes().startswith(b"\x89PNG")
    assert _ends(timeline_figure(run)) == run.rounds().virtual_seconds.tolist()[1:]
    versions = small(**settings, strategy="fedbuff", strategy_args={"buffer_size": 2}, name="versions")
    assert versions.timeline_path.read_bytes().startswith(b"\x89PNG")
    assert not small(name="plain").timeline_path.exists()


@pytest.mark.usefixtures("pictures")
def test_a_picture_that_cannot_be_drawn_is_a_note_and_the_model_is_written(
    small: Small, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(run: Run) -> Figure:
        raise ValueError("Axis limits cannot be NaN or Inf")

    monkeypatch.setattr(timeline, "timeline_figure", fail)
    run = small(devices="uniform", name="run")
    assert capsys.readouterr().err == (
        "sim: note: the picture timeline.png could not be drawn: ValueError: Axis limits cannot be NaN or Inf\n"
    )
    assert run.is_done()
    assert run.loss_path.exists()
    assert not run.timeline_path.exists()

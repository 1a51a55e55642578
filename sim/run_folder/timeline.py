"""Draws when the clients of a run worked in virtual time; it opens no window and writes no file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from sim.errors import ConfigError, one_line
from sim.run_folder.figure import Figure
from sim.run_folder.folder import Run

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

_MAX_CLIENTS = 40
_MAX_BARS_PER_CLIENT = 20  # mean over the clients; more could not be told apart
_PHASES = {"download": "C9", "compute": "C0", "upload": "C1"}
# Status → the words for it, and its hatches.
_NOT_USED = {
    "late": ("late, update not used", "////"),
    "offline": ("went offline, no update", "...."),
    "dropped": ("dropped out, no update", "oo"),
    "void": ("update of a void round", "xxxx"),
    "failed": ("failed", "\\\\\\\\"),
}


def has_virtual_time(run: Run) -> bool:
    """Return whether a round of a run has taken virtual time.

    Raises:
        RunFolderError: ``rounds.csv`` is damaged or missing.
    """
    return bool(run.rounds()["virtual_seconds"].max() > 0)


def timeline_figure(run: Run, first_rounds: int | None = None) -> Figure:
    """Draw a row for each client of the first rounds, with bars for its downloads, computations and uploads.

    White is the time in which a client does nothing for the run. Where an update was not used, the whole time of the
    client is one grey bar. Clients that were still at work when an asynchronous run ended are in no table, and have no
    bar.

    Args:
        first_rounds: how many rounds are shown; as many as can be read if it is None. Of more than 40 clients, those
            that begin first are shown.

    Raises:
        ConfigError: the run has no virtual time.
        RunFolderError: a table of the run is damaged or missing.
    """
    if not has_virtual_time(run):
        raise ConfigError(
            f"--timeline: {one_line(run.name)} has no virtual_seconds above 0 in rounds.csv; only runs with --devices "
            "have virtual time"
        )
    rounds, clients = run.rounds(), run.clients()
    rounds = rounds[(rounds["round"] > 0) & rounds["virtual_seconds"].notna()]
    bars = clients[(clients["phase"] == "fit") & clients["virtual_start"].notna() & clients["virtual_end"].notna()]
    bars = bars.sort_values(["virtual_start", "client_id"], kind="stable")
    ends = rounds["virtual_seconds"].to_numpy(float)
    num_rounds = _readable(bars, ends) if first_rounds is None else min(first_rounds, len(ends))
    end = float(ends[num_rounds - 1])
    bars = bars[bars["virtual_start"] < end]
    all_ids = bars["client_id"].drop_duplicates()
    ids = sorted(all_ids.iloc[:_MAX_CLIENTS])
    bars = bars[bars["client_id"].isin(ids)]

    figure = Figure(figsize=(10, 1.8 + 0.2 * max(len(ids), 3)), layout="constrained")
    axes = figure.subplots()
    handles = _draw_bars(axes, bars, {client_id: row for row, client_id in enumerate(ids)}, end)
    is_asynchronous = bars["staleness"].notna().any()
    if is_asynchronous and num_rounds == len(ends):
        handles.append(Patch(facecolor="white", edgecolor="#8a8a8a", label="idle, or at work when the run ended"))
    lines: dict[str, Any] = {"color": "black", "linewidth": 0.8 if num_rounds <= _MAX_CLIENTS else 0.4, "alpha": 0.6}
    axes.vlines(ends[:num_rounds], 0, 1, transform=axes.get_xaxis_transform(), zorder=0.5, **lines)
    handles.append(Line2D([], [], label="new version" if is_asynchronous else "end of a round", **lines))
    shown = "round 1" if num_rounds == 1 else f"rounds 1 to {num_rounds}"
    of_all = f"; {len(ids)} of {len(all_ids)} clients" if len(ids) < len(all_ids) else ""
    axes.set_title(f"{one_line(run.name, 60)}: {shown}{of_all}", fontsize="medium")
    axes.set_xlabel("virtual seconds")
    axes.set_ylabel("client")
    axes.set_xlim(0, end)
    axes.set_yticks(range(len(ids)), [str(client_id) for client_id in ids], fontsize="small")
    axes.set_ylim(max(len(ids), 1) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right"]].set_visible(False)
    num_columns = len(handles) if len(handles) <= 6 else 4
    figure.legend(handles=handles, loc="outside lower center", ncols=num_columns, frameon=False, fontsize="small")
    return figure


def _readable(bars: pd.DataFrame, ends: np.ndarray[Any, np.dtype[np.float64]]) -> int:
    """Return the largest number of rounds, at least 1, that has few enough clients and bars."""
    num_bars = np.searchsorted(bars["virtual_start"].to_numpy(float), ends)
    first_starts = bars.drop_duplicates("client_id")["virtual_start"].to_numpy(float)
    num_clients = np.searchsorted(first_starts, ends)
    fits = (num_clients <= _MAX_CLIENTS) & (num_bars <= _MAX_BARS_PER_CLIENT * num_clients)
    return int(np.flatnonzero(fits)[-1]) + 1 if fits.any() else 1


def _draw_bars(axes: Axes, bars: pd.DataFrame, rows: dict[int, int], end: float) -> list[Any]:
    """Draw the bars, which are cut off at ``end``, and return what belongs into a legend."""
    handles: list[Any] = []
    used = bars[bars["status"] == "ok"]
    start, stop = (used[name].to_numpy(float) for name in ("virtual_start", "virtual_end"))
    down, up = (used[f"virtual_{name}_seconds"].fillna(0).to_numpy(float) for name in ("download", "upload"))
    edges = np.minimum(end, [start, start + down, np.maximum(start + down, stop - up), stop])
    places = used["client_id"].map(rows).to_numpy(int)
    for number, (phase, color) in enumerate(_PHASES.items()):
        axes.barh(places, edges[number + 1] - edges[number], left=edges[number], height=0.7, color=color)
        handles.append(Patch(color=color, label=phase))
    for status, (words, hatch) in _NOT_USED.items():
        part = bars[bars["status"] == status]
        if not len(part):
            continue
        style: dict[str, Any] = {"facecolor": "#e4e4e4", "edgecolor": "#8a8a8a", "hatch": hatch, "linewidth": 0.5}
        start = part["virtual_start"].to_numpy(float)
        width = np.minimum(end, part["virtual_end"].to_numpy(float)) - start
        axes.barh(part["client_id"].map(rows).to_numpy(int), width, left=start, height=0.7, **style)
        handles.append(Patch(label=words, **style))
    return handles

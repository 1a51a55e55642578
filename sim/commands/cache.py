"""The command ``sim cache``: what is in the cache, and what to remove of it."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from sim.commands.output import print_table
from sim.config.fields import parse_number
from sim.disk import shown_bytes
from sim.errors import ConfigError, RunError, one_line

if TYPE_CHECKING:
    from sim.data.cache import Entry

_DAY_SECONDS = 24 * 3600
_MOST_DAYS = 36_500
# Of a key: checksums, forms, and what is said twice.
_HIDDEN = ("format", "files", "labels", "content", "loaders", "forms", "classes", "flwr-datasets", "num_partitions")


def cache(arguments: argparse.Namespace) -> None:
    """``sim cache``: list the entries of the cache, or remove those that no running process uses."""
    days = 0.0
    if arguments.older_than is not None:
        days = parse_number(float, arguments.older_than)
        if days is None or not (math.isfinite(days) and 0 <= days <= _MOST_DAYS):
            raise ConfigError(
                f"--older-than {arguments.older_than}: must be a number of days, at least 0 and at most {_MOST_DAYS}"
            )
    from sim.data.cache import cache_folder, clear, entries
    from sim.run_folder.log import notes

    latest = time.time() - days * _DAY_SECONDS
    with notes():
        found = entries()
    chosen = [entry for entry in found if not days or entry.used_at <= latest]
    if arguments.what == "clear":
        chosen = [clear(entry) for entry in chosen]
    if chosen:
        _print(chosen)
    print(f"cache           {cache_folder()}")
    _report(chosen, "removed" if arguments.what == "clear" else "entries")


def _print(chosen: Sequence[Entry]) -> None:
    from rich.table import Table

    with_kept = any(entry.problem for entry in chosen)
    table = Table("entry", "what it is", "size", "last use", *(["kept because"] if with_kept else []), box=None)
    table.columns[2].justify = "right"
    for entry in chosen:
        cells = [
            f"{one_line(entry.folder.parent.name)}/{one_line(entry.folder.name)}",
            described(entry.key),
            shown_bytes(entry.num_bytes),
            datetime.fromtimestamp(entry.used_at).strftime("%Y-%m-%d %H:%M"),
        ]
        table.add_row(*cells, *([entry.problem] if with_kept else []))
    print_table(table)


def described(key: dict[str, Any]) -> str:
    """Return what an entry of the cache is, in one line, from its key."""
    arguments = key.get("arguments", {})
    known = {**(arguments if isinstance(arguments, dict) else {}), **key}
    name = known.get("dataset") or known.get("partitioner") or "of your own program"
    hidden = (*_HIDDEN, "dataset", "partitioner", "arguments")
    parts = [f"{each}={value}" for each, value in known.items() if value is not None and each not in hidden]
    return one_line(" ".join([str(name), *parts]), 200)


def _report(chosen: Sequence[Entry], word: str) -> None:
    """Print a last line on the entries that were listed or removed.

    Raises:
        RunError: some could not be removed, and no running process uses them.
    """
    counted = [entry for entry in chosen if entry.removed or word == "entries"]
    print(f"{word:15} {len(counted)}, {shown_bytes(sum(entry.num_bytes for entry in counted))}")
    failed = [entry for entry in chosen if entry.problem and entry.problem != "a running process uses it"]
    if failed:
        raise RunError(
            f"{len(failed)} of {len(chosen)} entries cannot be removed, first {failed[0].folder}: {failed[0].problem}"
        )

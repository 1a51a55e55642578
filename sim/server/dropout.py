"""Clients that were chosen for training and send nothing back, by ``--client-dropout``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from sim.config.run_config import RunConfig
from sim.engine.interface import Chunk
from sim.run_folder.records import ClientRecord
from sim.seeds import Purpose, generator


def dropouts(config: RunConfig, server_round: int, client_ids: Iterable[int], repeat: int = 0) -> frozenset[int]:
    """Return which of the clients send nothing back.

    Each is drawn from the stream of (seed, round, client), so that it depends on no other client.

    Args:
        repeat: how often the round was void before, or the client had begun with this version before.
    """
    share = config.client_dropout
    if not share:
        return frozenset()
    streams = ((c, generator(config.seed, Purpose.CLIENT_DROPOUT, server_round, c, repeat)) for c in client_ids)
    return frozenset(client_id for client_id, stream in streams if stream.random() < share)


def without(chunks: Sequence[Chunk], dropped: frozenset[int]) -> list[Chunk]:
    """Return the chunks without the clients that drop out, which need not be executed."""
    left = [replace(chunk, tasks=[t for t in chunk.tasks if t.client_id not in dropped]) for chunk in chunks]
    return [chunk for chunk in left if chunk.tasks]


def dropout_record(server_round: int, client_id: int, bytes_down: int | None) -> ClientRecord:
    """Return the record of a client that sends nothing back, in a run without virtual time.

    Args:
        bytes_down: what it was sent; None where that is not counted.
    """
    return ClientRecord(
        server_round,
        "fit",
        client_id,
        num_examples=None,
        loss=None,
        accuracy=None,
        seconds=None,
        actor=None,
        vectorized_with=None,
        status="dropped",
        error=None,
        bytes_down=bytes_down,
        bytes_up=None if bytes_down is None else 0,
    )

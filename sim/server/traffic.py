"""What the server sends to the clients of a simulation, and how many bytes go to and fro."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from flwr.common import NDArrays

from sim.client.runtime import message_of
from sim.compression.message import Message, expected_bytes
from sim.engine.interface import Chunk
from sim.run_folder.records import Phase
from sim.seeds import Purpose, generator
from sim.server.prepared_run import Prepared


class Traffic:
    """Encodes the weights of chunks, and counts bytes."""

    def __init__(self, prepared: Prepared) -> None:
        self._spec, self._layout, self._seed = prepared.spec, prepared.layout, prepared.config.seed
        self._untrained = frozenset() if prepared.strategy is None else prepared.strategy.view.untrained
        self._encoded: dict[tuple[int, int], tuple[NDArrays, NDArrays]] = {}  # of the last chunks

    def expected_bytes(self, weights: NDArrays, server_round: int) -> tuple[int, int]:
        """Return how many bytes a client that trains gets and sends, before it has done anything.

        Args:
            weights: what the server sends, with what an algorithm adds.
        """
        return expected_bytes(weights, self._spec.compression, self._message(server_round, self._untrained))

    def bytes_down(self, chunk: Chunk) -> int:
        """Return how many bytes each client of a chunk gets."""
        return self._message_of(chunk).num_bytes(chunk.weights, self._spec.compression.down)

    def sent(self, phase: Phase, chunks: Sequence[Chunk]) -> Sequence[Chunk]:
        """Return chunks with the weights that clients make of what the server sends.

        The server encodes each version of the weights once: those that a round makes for the evaluation in it and for
        the training in the next one.
        """
        codec = self._spec.compression.down
        if codec is None:
            return chunks
        encoded: dict[tuple[int, int], tuple[NDArrays, NDArrays]] = {}
        sent = []
        for chunk in chunks:
            version = chunk.server_round - (phase == "fit")
            others = [weights for (its_version, _), (weights, _) in encoded.items() if its_version == version]
            # A strategy may send different weights to different clients.
            number = next((i for i, weights in enumerate(others) if weights is chunk.weights), len(others))
            key = version, number
            if key not in encoded:
                known = self._encoded.get(key)
                if known is not None and known[0] is chunk.weights:
                    encoded[key] = known
                else:
                    rng = generator(self._seed, Purpose.COMPRESS_DOWN, *key)
                    encoded[key] = chunk.weights, self._message_of(chunk).received(chunk.weights, codec, rng)
            sent.append(replace(chunk, weights=encoded[key][1]))
        self._encoded = encoded
        return sent

    def _message_of(self, chunk: Chunk) -> Message:
        return self._message(chunk.server_round, chunk.untrained)

    def _message(self, server_round: int, untrained: frozenset[int]) -> Message:
        return message_of(self._spec, self._layout, server_round, untrained)

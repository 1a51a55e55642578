"""The sampler of a run: it may be the user's own, so that what it answers is checked, and its calls are seeded."""

from __future__ import annotations

import operator
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from logging import ERROR
from typing import Any

from flwr.common import log

from sim.config.run_config import RunConfig
from sim.errors import RunError, described, many_lines
from sim.process_settings import restored_settings
from sim.seeds import Purpose, generator, seeded
from sim.server.samplers import ClientIds, Report, Sizes, sampler_of


class RunSampler:
    """Chooses the clients of a run."""

    def __init__(self, config: RunConfig, sizes: Sequence[int] | Sizes) -> None:
        """See ``sampler_of``.

        Args:
            sizes: examples of each client; empty where nobody knows.
        """
        self._sampler = sampler_of(config, sizes)
        self._seed, self._name, self._is_own = config.seed_of_samples, config.sampler, ":" in config.sampler

    def sample(
        self, candidates: ClientIds, num_clients: int, server_round: int, number: int, attempt: int = 0
    ) -> list[int]:
        """Return the ids of that many different clients.

        Args:
            candidates: those that are online, in ascending order, int64 [C].
            num_clients: at most C.
            number: of the random numbers, with ``attempt``.

        Raises:
            RunError: the sampler raises, or returns something else.
        """
        rng = generator(self._seed, Purpose.SAMPLER, number, attempt)
        if not self._is_own:
            return list(self._sampler.sample(candidates, num_clients, server_round, rng))
        with self._calling("sample", server_round, number, attempt):
            # A copy, because it may shuffle them in place.
            returned = list(self._sampler.sample(candidates.copy(), num_clients, server_round, rng))
        place = f"round {server_round}: --sampler {self._name}"
        if len(returned) != num_clients:
            raise RunError(f"{place}: sample returned {len(returned)} clients instead of {num_clients}")
        offered = set(candidates.tolist())
        chosen: dict[int, None] = {}
        for value in returned:
            try:
                client_id = operator.index(value)
            except TypeError:
                raise RunError(f"{place}: sample returned {value!r}, which is no client id") from None
            if client_id not in offered or client_id in chosen:
                reason = " twice" if client_id in chosen else f", which is not among the {len(offered)} candidates"
                raise RunError(f"{place}: sample returned client {client_id}{reason}")
            chosen[client_id] = None
        return list(chosen)

    def observe(self, server_round: int, reports: Sequence[Report]) -> None:
        """Take what clients reported after a round.

        Raises:
            RunError: the sampler raises.
        """
        observe: Callable[..., Any] | None = getattr(self._sampler, "observe", None)
        if observe is not None:
            with self._calling("observe", server_round, server_round, 0):
                observe(server_round, reports)

    def state(self) -> dict[str, Any]:
        """Return what belongs to a checkpoint."""
        return {name: value for name, value in vars(self._sampler).items() if self._is_own or not name.startswith("_")}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take what ``state`` has returned."""
        vars(self._sampler).update(state)

    @contextmanager
    def _calling(self, call: str, server_round: int, number: int, attempt: int) -> Iterator[None]:
        """Seed the global generators for a call of the user's code, and name it if it raises."""
        try:
            with restored_settings(), seeded(self._seed, Purpose.SAMPLER, number, attempt, 1):
                yield
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            log(ERROR, "--sampler %s, round %s:\n%s", self._name, server_round, many_lines(traceback.format_exc()))
            raise RunError(f"round {server_round}: --sampler {self._name}: {call} raised {described(error)}") from error

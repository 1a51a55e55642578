"""``--track wandb``: a run of Weights & Biases; with ``wandb:offline`` in ``wandb/`` of the run folder alone."""

from __future__ import annotations

import io
import logging
import os
import re
import secrets
from contextlib import redirect_stderr
from typing import TYPE_CHECKING, Any

from sim.errors import ConfigError, described
from sim.reaper import SESSION_VARIABLE
from sim.run_folder.folder import Run
from sim.tracking.tracker import Tracker, keep_id, known_id, pictures_of, settings_of

if TYPE_CHECKING:
    from wandb.sdk.wandb_run import Run as WandbRun

os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # of its own errors, to its maker

_FINISH_SECONDS = 120.0  # the longest that the end of a run waits for a server that does not answer
_INTERRUPTED = 130


class WandbTracker(Tracker):
    """Numbers of each round, the config, pictures as images, and the model as an artifact."""

    def __init__(self, *, offline: bool) -> None:
        self._offline = offline
        self._run: WandbRun | None = None
        self._round = 0

    def begin(self, run: Run, number: int) -> int:
        """Create a run of W&B, or continue the one of an earlier process; its server says what it has."""
        import wandb

        # The process of W&B serves this one to its end, also for runs of the user's own, and then ends by itself: it
        # does not belong to what a run ends. What calls this puts the environment back.
        os.environ.pop(SESSION_VARIABLE, None)
        known = known_id(run, "wandb")
        arguments: dict[str, Any] = {"mode": "offline"} if self._offline else {"resume": "allow"}
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or re.sub(r"[^\w.-]", "-", run.path.parent.name),
            name=os.environ.get("WANDB_NAME") or run.name,
            id=known or secrets.token_hex(4),
            dir=str(run.path) if self._offline else os.environ.get("WANDB_DIR", str(run.path)),
            config=settings_of(run),
            reinit="create_new",  # a run of the user's own in this process goes on
            settings=wandb.Settings(silent=True, console="off", finish_timeout=_FINISH_SECONDS),
            **arguments,
        )
        keep_id(run, "wandb", self._run.id)
        if not self._offline and self._run.url:
            logging.getLogger("sim").info("--track wandb: %s", self._run.url)
        if known is None:
            return -1
        return number - 1 if self._offline else self._run.starting_step - 1

    def log(self, number: int, numbers: dict[str, float]) -> None:
        """Log the numbers of a round; W&B ignores a round that is repeated after a resume."""
        assert self._run is not None
        self._run.log(numbers, step=number)
        self._round = number

    def end(self, run: Run, error: BaseException | None) -> None:
        """Log pictures and the model, and end."""
        import wandb

        assert self._run is not None
        images = {f"pictures/{path.stem}": wandb.Image(str(path)) for path in pictures_of(run)}
        if images:
            self._run.log(images, step=self._round)
        if run.model_path.exists():
            model = wandb.Artifact(f"model-{self._run.id}", type="model")
            model.add_file(str(run.model_path), policy="immutable")  # without a copy of it in the user's home
            self._run.log_artifact(model)
        interrupted = isinstance(error, KeyboardInterrupt)
        self._run.finish(exit_code=0 if error is None else _INTERRUPTED if interrupted else 1)


def check() -> None:
    """Check that the user is logged in, because the question for a key would come in the middle of a run.

    Raises:
        ConfigError: the user is not, or the server does not answer.
    """
    import wandb

    if os.environ.get("WANDB_MODE", "online") != "online":
        return
    try:
        with redirect_stderr(io.StringIO()):  # it prints what it raises
            is_logged_in = wandb.login(prompt=False)
    except Exception as error:  # noqa: BLE001 - whatever W&B and the libraries below it raise
        raise ConfigError(f"--track wandb: {described(error)}; --track wandb:offline needs no server") from None
    if not is_logged_in:
        raise ConfigError("--track wandb: nobody is logged in; use wandb login, WANDB_API_KEY or --track wandb:offline")

"""``--track tensorboard``: event files in ``tensorboard/`` of the run folder, written by torch.utils.tensorboard.

TensorBoard has no place for models; that of the run is ``model.safetensors`` in its folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from sim.run_folder.folder import Run
from sim.run_folder.log import quiet
from sim.tracking.tracker import Tracker, pictures_of, settings_of

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoardTracker(Tracker):
    """Scalars of each round; config, pictures and hyper-parameters as TensorBoard shows them."""

    def __init__(self) -> None:
        self._writer: SummaryWriter | None = None
        self._round = 0
        self._last: dict[str, float] = {}

    def begin(self, run: Run, number: int) -> int:
        """Open an event file; events of rounds that are repeated after a resume are hidden."""
        from torch.utils.tensorboard import SummaryWriter

        last = _last_round(run.tensorboard_path) if number else -1
        self._writer = SummaryWriter(str(run.tensorboard_path), purge_step=min(last + 1, number) or None)
        config = run.config_path.read_text(encoding="utf-8")
        self._writer.add_text("config", f"```toml\n{config}\n```", number)
        return last

    def log(self, number: int, numbers: dict[str, float]) -> None:
        """Write the numbers of a round."""
        assert self._writer is not None
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, number)
        self._writer.flush()
        self._round, self._last = number, numbers

    def end(self, run: Run, error: BaseException | None) -> None:
        """Write the pictures and, with the numbers of the last round, the hyper-parameters."""
        assert self._writer is not None
        for path in pictures_of(run):
            with Image.open(path) as image:
                self._writer.add_image(path.stem, np.asarray(image.convert("RGB")), self._round, dataformats="HWC")
        results = {
            f"final/{name}": value for name, value in self._last.items() if name.startswith(("test/", "evaluate/"))
        }
        if results:
            settings: dict[str, Any] = settings_of(run)
            # It writes one more file, beside the first one instead of into a folder that would be shown as a run.
            self._writer.add_hparams(settings, results, run_name=".", global_step=self._round)
        self._writer.close()


def _last_round(folder: Path) -> int:
    """Return the last round in the event files of an earlier process; -1 if there are none."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    if not folder.is_dir():
        return -1
    events = EventAccumulator(str(folder), size_guidance={"scalars": 1, "images": 1, "tensors": 1})
    with quiet("tensorboard", show=False):  # it says that a run was resumed before
        events.Reload()
    name = "seconds/round"  # has a value in each round
    return int(events.Scalars(name)[-1].step) if name in events.Tags()["scalars"] else -1

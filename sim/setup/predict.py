"""Image files → the classes that a trained model sees in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from sim.data.batches import DrawnBatch, pixels
from sim.data.load_dataset import Examples
from sim.data.sources.image_folder import read_image
from sim.errors import DataError, PluginError
from sim.process_settings import restored_settings
from sim.run_folder.folder import Run
from sim.setup.trained import TrainedModel
from sim.training.models import try_out

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # channels → what Pillow calls them


@dataclass(frozen=True)
class Prediction:
    """What a model sees in an image.

    Attributes:
        size: (width, height) of the file, in pixels.
        resized_to: the same as the model got it; None if nothing was changed.
        classes: (name, probability), the most probable first; probabilities of all classes add up to 1.
    """

    path: Path
    size: tuple[int, int]
    resized_to: tuple[int, int] | None
    classes: list[tuple[str, float]]


def predict(run: Run, trained: TrainedModel, paths: Sequence[Path]) -> list[Prediction]:
    """Predict the classes of images, which are converted and resized as those of the run's data set.

    Raises:
        DataError: a file cannot be read, or the data set of the run has no images with classes.
        PluginError: the model gives something else than one number per class.
    """
    dataset, net = trained.dataset, trained.net
    if dataset is None or net is None:
        raise DataError(f"{run.path}: {trained.notes[-1]}, so that it cannot be called")
    name = trained.config.dataset
    if not isinstance(dataset.train, Examples) or dataset.image_shape is None:
        raise DataError(f"{run.path}: --dataset {name} has no images that could be made from files")
    channels, height, width = dataset.image_shape
    if channels not in _MODES:
        raise DataError(f"{run.path}: images of --dataset {name} have {channels} channels; only 1, 3 and 4 can be read")
    images = [read_image(path, _MODES[channels]) for path in paths]
    found = []
    with restored_settings():
        for path, image in zip(paths, images, strict=True):
            fits = image.size == (width, height)
            scaled = image if fits else image.resize((width, height), Image.Resampling.BILINEAR)
            array = torch.from_numpy(np.array(scaled).reshape(1, height, width, channels)).permute(0, 3, 1, 2)
            inputs = pixels(array, DrawnBatch(torch.arange(1)), channels_last=False)
            outputs = try_out(net, (inputs,), {}, f"--model {trained.config.model}")
            shape = tuple(getattr(outputs, "shape", ()))
            if shape != (1, len(dataset.classes)):
                raise PluginError(
                    f"--model {trained.config.model}: the output for one image has the shape {shape}, not "
                    f"(1, {len(dataset.classes)}), one number per class"
                )
            # Of logits and of their log-softmax, which models for --loss nll return, this is the same.
            probabilities = torch.softmax(outputs[0].double(), 0)
            order = probabilities.argsort(descending=True, stable=True).tolist()
            classes = [(dataset.classes[number], float(probabilities[number])) for number in order]
            found.append(Prediction(path, image.size, None if fits else (width, height), classes))
    return found

"""What changes local training besides the plain loop: optimizers, schedules, precision, augmentation."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sim import CentralizedConfig, ConfigError, Run, RunConfig
from sim.data.batches import Batches
from sim.data.load_dataset import Examples
from sim.training import local
from sim.training.device import notes_on_precision

CPU = torch.device("cpu")
BATCH = [(torch.tensor([[2.0]]), torch.tensor([1]))]


def _linear() -> nn.Linear:
    net = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        net.weight.fill_(1.0)
    return net


@pytest.mark.parametrize(("optimizer", "decayed"), [("adam", 0.0), ("adamw", 0.1 * 0.5)])
def test_the_first_step_of_adam_has_the_size_of_the_learning_rate(optimizer: str, decayed: float) -> None:
    net = _linear()
    local.train(net, BATCH, 1, CPU, lr=0.1, weight_decay=0.5, optimizer=optimizer)
    # Kingma and Ba 2015: m/√v is ±1 at the first step; AdamW shrinks the weight by lr · decay apart from that.
    # Adam adds decay · w = 0.5 to the gradients 1 and −1, which keeps their signs.
    assert net.weight.flatten().tolist() == pytest.approx([1 - 0.1 - decayed, 1 + 0.1 - decayed], abs=1e-5)


def test_the_number_of_steps_is_limited_across_epochs() -> None:
    steps = []

    class Counting:
        def __iter__(self):  # type: ignore[no-untyped-def]
            for batch in BATCH * 3:
                steps.append(1)
                yield batch

    local.train(_linear(), Counting(), 4, CPU, lr=0.1, max_steps=5)
    assert len(steps) == 5
    local.train(_linear(), Counting(), 2, CPU, lr=0.1)
    assert len(steps) == 11


def test_bf16_computes_in_bf16_and_keeps_float32_weights() -> None:
    seen = []
    net = _linear()
    net.register_forward_hook(lambda *call: seen.append(call[2].dtype))
    local.train(net, BATCH, 1, CPU, lr=0.1, precision="bf16")
    local.train(net, BATCH, 1, CPU, lr=0.1)
    assert seen == [torch.bfloat16, torch.float32]
    assert net.weight.dtype == torch.float32


def test_a_processor_without_instructions_for_bf16_is_noted() -> None:
    instructions = set(Path("/proc/cpuinfo").read_text().split())
    is_without = platform.machine() == "x86_64" and not {"avx512_bf16", "amx_bf16"} & instructions
    notes = [*notes_on_precision("bf16", "cpu")]
    assert len(notes) == is_without
    assert all(note.startswith("--precision bf16: this processor (") for note in notes)
    assert [*notes_on_precision("fp32", "cpu")] == []


def test_learning_rates_of_a_run() -> None:
    decayed = RunConfig(lr=0.5, lr_decay=0.9)
    assert [decayed.lr_in(r, 30) for r in (1, 2, 3)] == pytest.approx([0.5, 0.45, 0.405])
    cosine = RunConfig(lr=0.5, lr_schedule="cosine")
    assert [cosine.lr_in(r, 4) for r in (1, 2, 3, 4)] == pytest.approx(
        [0.5 * (1 + math.cos(math.pi * k / 4)) / 2 for k in range(4)]
    )


@pytest.mark.parametrize(
    ("settings", "rates"),
    [
        ({"lr_schedule": "step", "lr_step_every": 2}, [0.8, 0.8, 0.08, 0.08, 0.008, 0.008]),
        ({"lr_schedule": "step", "lr_milestones": "1, 4", "lr_gamma": 0.5}, [0.8, 0.4, 0.4, 0.4, 0.2, 0.2]),
        ({"lr_warmup": 4}, [0.2, 0.4, 0.6, 0.8, 0.8, 0.8]),
        ({"lr_warmup": 1}, [0.8] * 6),
        # The warm-up ends in round 2, where the cosine over the last 5 rounds begins.
        (
            {"lr_warmup": 2, "lr_schedule": "cosine"},
            [0.4, *(0.8 * (1 + math.cos(math.pi * k / 5)) / 2 for k in range(5))],
        ),
        # The steps are after rounds 3 and 6 with a warm-up, too, and the decay counts from round 1.
        (
            {"lr_warmup": 2, "lr_schedule": "step", "lr_step_every": 3, "lr_gamma": 0.5, "lr_decay": 0.9},
            [0.4, 0.72, 0.648, 0.2916, 0.26244, 0.236196],
        ),
    ],
)
def test_warm_up_and_steps_of_the_learning_rate(settings: dict[str, Any], rates: list[float]) -> None:
    config = RunConfig(lr=0.8, num_rounds=6, **settings)
    assert [config.lr_in(r, 6) for r in range(1, 7)] == pytest.approx(rates, rel=1e-12)
    central = CentralizedConfig(lr=0.8, epochs=6, **settings)
    assert [central.lr_in(e, 6) for e in range(1, 7)] == pytest.approx(rates, rel=1e-12)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr_schedule": "step"}, "--lr-schedule step: needs --lr-step-every, e.g. 10, or --lr-milestones, e.g. 10,20"),
        ({"lr_step_every": 2}, "--lr-step-every 2: belongs to --lr-schedule step, not to constant"),
        (
            {"lr_schedule": "step", "lr_step_every": 2, "lr_milestones": "3"},
            "--lr-step-every 2 and --lr-milestones 3: give one of the two",
        ),
        *(
            (
                {"lr_schedule": "step", "lr_milestones": text},
                f"--lr-milestones {text}: must be whole numbers from 1 to 1000000000 in ascending order, e.g. 10,20",
            )
            for text in ("20,10", "3,3", "0", "2,", "1.5", "ten")
        ),
        ({"lr_warmup": 31}, "--lr-warmup 31: must be at most --num-rounds 30"),
        (
            {"clip_grad_norm": 1.0, "train": "own:train"},
            "--clip-grad-norm 1: belongs to the built-in training, but --train own:train takes its own steps; clip "
            "there with torch.nn.utils.clip_grad_norm_",
        ),
        (
            {"clip_grad_norm": 1.0, "client": "own:Client"},
            "--clip-grad-norm 1: belongs to the built-in training, but --client own:Client takes its own steps",
        ),
    ],
)
def test_what_a_learning_rate_and_a_clipped_gradient_need(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        RunConfig(**settings)
    assert str(error.value) == message


def test_epochs_of_a_centralised_run_bound_its_warm_up() -> None:
    with pytest.raises(ConfigError, match="--lr-warmup 3: must be at most --epochs 2"):
        CentralizedConfig(lr_warmup=3)


@pytest.mark.parametrize(
    ("settings", "weights"),
    [
        # The gradient of the loss is (½, −½) · 2 = (1, −1): its norm √2 is scaled down to ½.
        ({"clip_grad_norm": 0.5}, [1 - 0.1 * 0.5 / math.sqrt(2), 1 + 0.1 * 0.5 / math.sqrt(2)]),
        ({"clip_grad_norm": 1.5}, [1 - 0.1, 1 + 0.1]),
        ({}, [1 - 0.1, 1 + 0.1]),
    ],
)
def test_a_long_gradient_is_scaled_down(settings: dict[str, Any], weights: list[float]) -> None:
    net = _linear()
    local.train(net, BATCH, 1, CPU, lr=0.1, **settings)
    assert net.weight.flatten().tolist() == pytest.approx(weights, abs=1e-6)


def test_the_settings_reach_the_clients(small: Callable[..., Run]) -> None:
    plain = small(name="plain", max_local_steps=4).rounds().train_loss
    for number, settings in enumerate(
        (
            {"optimizer": "adam", "lr": 0.001},
            {"lr_decay": 0.01},
            {"lr_schedule": "cosine"},
            {"max_local_steps": 1},
            {"precision": "bf16"},
            {"augment": "crop-flip"},
            {"lr_schedule": "step", "lr_step_every": 1},
            {"lr_warmup": 2, "lr_decay": 0.5},
            {"clip_grad_norm": 0.1},
        )
    ):
        changed = small(name=f"r{number}", **{"max_local_steps": 4, **settings}).rounds().train_loss
        # a schedule begins with the second round
        assert changed[2] != plain[2], settings
        begins_alike = {"lr_decay", "lr_schedule"} & settings.keys() and "lr_warmup" not in settings
        assert (changed[1] == plain[1]) == bool(begins_alike), settings


def _augmented(images: np.ndarray, seed: int = 0) -> np.ndarray:
    torch.manual_seed(seed)
    loader = Batches(
        Examples(images, np.zeros(len(images), np.int64)),
        None,
        len(images),
        CPU,
        shuffle=False,
        channels_last=True,
        augment="crop-flip",
    )
    ((batch, _),) = loader
    return ((batch + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def test_an_augmented_image_is_a_crop_of_its_mirrored_padding() -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 12, 10, 3), dtype=np.uint8)
    padded = np.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0)), mode="reflect")
    found = set()
    for image, wide in zip(_augmented(images), padded, strict=True):
        crops = {
            (down, right, flip): wide[down : down + 12, right : right + 10][:, :: -1 if flip else 1]
            for down in range(9)
            for right in range(9)
            for flip in (False, True)
        }
        (key,) = [key for key, crop in crops.items() if np.array_equal(crop, image)]
        found.add(key)
    assert len(found) > 30
    assert {flip for _, _, flip in found} == {False, True}
    assert {down for down, _, _ in found} == set(range(9))


def test_augmentation_is_for_training_only_and_follows_the_seed(small: Callable[..., Run]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (8, 12, 12, 1), dtype=np.uint8)
    assert np.array_equal(_augmented(images, 1), _augmented(images, 1))
    assert not np.array_equal(_augmented(images, 1), _augmented(images, 2))
    plain, augmented = (
        small(name=name, augment=name, fraction_evaluate=1.0, lr=1e-30, num_rounds=1, max_local_steps=4).rounds()
        for name in ("none", "crop-flip")
    )
    assert plain.eval_loss[1] == augmented.eval_loss[1]
    assert plain.test_loss[1] == augmented.test_loss[1]
    assert plain.train_loss[1] != augmented.train_loss[1]

"""Noise on the inputs of each client's training batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from conftest import Sim, Small
from sim import RunConfig
from sim.data.batches import Batches
from sim.data.columns import Columns, LoaderSettings
from sim.data.load_dataset import Examples
from sim.data.loaders import ExampleLoader, ResidentColumns
from sim.errors import ConfigError
from sim.setup.prepare import prepare

CPU = torch.device("cpu")
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 6, 4, 3), dtype=np.uint8)


def _batches(noise: float, augment: str = "none") -> list[Tensor]:
    """Return the images of one pass in batches of 3 and 2, in 0…1, drawn from the seed 7."""
    torch.manual_seed(7)
    examples = Examples(IMAGES, np.arange(5))
    loader = Batches(examples, None, 3, CPU, shuffle=True, channels_last=True, augment=augment)
    loader.noise = noise
    return [(images + 1) / 2 for images, _ in loader]


def test_the_noise_of_a_batch_of_images_is_drawn_from_a_seed_of_the_clients_stream() -> None:
    noisy = _batches(0.25)
    torch.manual_seed(7)
    order = torch.randperm(5)
    plain = torch.from_numpy(IMAGES).permute(0, 3, 1, 2) / 255
    for batch, chosen in zip(noisy, order.split(3), strict=True):
        drawing = torch.Generator().manual_seed(int(torch.randint(2**63 - 1, ())))
        normal = torch.randn((len(chosen), 3, 6, 4), generator=drawing)
        assert torch.allclose(batch, plain[chosen] + 0.25 * normal, atol=1e-6)


@pytest.mark.parametrize("augment", ["none", "crop-flip"])
def test_each_pass_has_noise_of_its_own_and_the_images_stay(augment: str) -> None:
    noisy, again, plain = (torch.cat(_batches(noise, augment)) for noise in (0.1, 0.1, 0.0))
    assert torch.equal(noisy, again)
    assert not torch.equal(noisy, plain)
    loader = Batches(Examples(IMAGES, np.arange(5)), None, 5, CPU, shuffle=False, channels_last=False)
    loader.noise = 0.1
    (first,), (second,) = ([images for images, _ in loader] for _ in range(2))
    assert not torch.equal(first, second)
    assert loader.dataset.tensors[0].min() >= -1


def test_without_noise_only_the_order_is_drawn() -> None:
    _batches(0.0)
    after = torch.get_rng_state()
    torch.manual_seed(7)
    torch.randperm(5)
    assert torch.equal(torch.get_rng_state(), after)


@pytest.mark.parametrize("form", ["list", "dict"])
def test_noise_is_added_to_floating_point_inputs_alone(form: str) -> None:
    parts = {"x": np.ones((4, 2), np.float64), "tokens": np.arange(4), "y": np.full(4, 0.5, np.float32)}
    columns = Columns(parts if form == "dict" else list(parts.values()), loader=LoaderSettings(shuffle=False))
    loader = ExampleLoader(ResidentColumns(columns, CPU), None, 2, training=True)
    loader.noise = 0.5
    torch.manual_seed(3)
    (batch,) = loader.with_batch_size(4)
    x, tokens, y = batch.values() if form == "dict" else batch
    torch.manual_seed(3)
    torch.empty((), dtype=torch.int64).random_()  # a DataLoader draws a seed for its processes
    assert torch.equal(x, 1 + 0.5 * torch.randn(4, 2).double())
    assert tokens.tolist() == [0, 1, 2, 3]
    assert y.tolist() == [0.5] * 4


def test_the_noise_grows_from_0_at_the_first_client_and_is_for_training_only(small: Small, no_pictures: None) -> None:
    settings = {"num_clients": 3, "clients_per_round": 3, "num_rounds": 1, "lr": 1e-30, "fraction_evaluate": 1.0}
    settings["max_local_steps"] = 4
    plain, noisy = (small(name=f"noise{noise:g}", feature_noise=noise, **settings) for noise in (0.0, 0.4))
    assert prepare(RunConfig(num_clients=3, fraction_fit=1.0, feature_noise=0.4)).spec.noise_step == 0.2
    losses, others = (run.clients().set_index(["phase", "client_id"]).loss for run in (plain, noisy))
    assert (losses["evaluate"] == others["evaluate"]).all()
    assert (losses["fit"] == others["fit"]).tolist() == [True, False, False]
    assert plain.rounds().test_loss.equals(noisy.rounds().test_loss)


def test_noise_that_would_be_without_effect_is_refused_in_one_line(command: Sim, tmp_path: object) -> None:
    with pytest.raises(ConfigError, match=r"--feature-noise 0.1: needs at least 2 clients, because the first one adds"):
        prepare(RunConfig(num_clients=1, feature_noise=0.1))
    (tmp_path / "play.txt").write_text("to be or not to be\n" * 60)  # type: ignore[operator]
    words = ("--dataset", "text", "--data-dir", ".", "--dataset-args", "sequence_length=10", "--engine", "inline")
    ended = command("run", *words, "--feature-noise", "0.1")
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1] == (
        "sim: --feature-noise 0.1: noise is added to floating-point numbers, but the inputs of --dataset text have none"
    )
    assert not (tmp_path / "results").exists()  # type: ignore[operator]

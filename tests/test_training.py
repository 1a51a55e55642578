from __future__ import annotations

import copy
import math
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sim.config.run_config import RunConfig
from sim.data.batches import Batches
from sim.data.load_dataset import Examples, load_dataset
from sim.training import local
from sim.training.device import computing_as_before, varying_operations
from sim.training.losses import LOSSES, in_rows
from sim.training.models import Mlp
from sim.training.weights import WeightLayout, view_weights

CPU = torch.device("cpu")


def _linear() -> nn.Linear:
    net = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        net.weight.zero_()
    return net


BATCH = [(torch.tensor([[2.0]]), torch.tensor([1]))]


def test_one_step_of_sgd_by_hand() -> None:
    net = _linear()
    loss = local.train(net, BATCH, 1, CPU, lr=0.1)
    # softmax is (½, ½), so the gradient of the weights is (½ − 0, ½ − 1) · 2 = (1, −1)
    assert net.weight.flatten().tolist() == pytest.approx([-0.1, 0.1])
    assert loss == pytest.approx(math.log(2))


def test_momentum_and_weight_decay_by_hand() -> None:
    net = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        net.weight.fill_(1.0)
    local.train(net, BATCH, 1, CPU, lr=0.1, weight_decay=0.5)
    assert net.weight.flatten().tolist() == pytest.approx([1 - 0.1 * 1.5, 1 - 0.1 * (-0.5)])
    net = _linear()
    local.train(net, BATCH, 2, CPU, lr=0.1, momentum=0.9)
    p = 1 / (1 + math.exp(0.4))  # of class 0 after the first step, logits (−0.2, 0.2)
    assert net.weight[0, 0].item() == pytest.approx(-0.1 - 0.1 * (0.9 + 2 * p))


def test_the_proximal_term_pulls_towards_the_start() -> None:
    free, held = _linear(), _linear()
    local.train(free, BATCH, 2, CPU, lr=0.1)
    local.train(held, BATCH, 2, CPU, lr=0.1, proximal_mu=4.0)
    p = 1 / (1 + math.exp(0.4))
    assert free.weight[0, 0].item() == pytest.approx(-0.1 - 0.2 * p)
    # the first step starts at w₀, the second adds μ (w − w₀) = 4 · (−0.1) to the gradient
    assert held.weight[0, 0].item() == pytest.approx(-0.1 - 0.1 * (2 * p - 0.4))


def test_means_are_weighted_by_examples_not_by_batches() -> None:
    net = _linear()
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[0.0], [1.0]]))
    batches = [
        (torch.tensor([[0.0], [0.0], [0.0]]), torch.tensor([0, 1, 1])),
        (torch.tensor([[5.0]]), torch.tensor([0])),
    ]
    loss, accuracy = local.test(net, batches, CPU)
    wrong = math.log(1 + math.exp(5))
    assert loss == pytest.approx((3 * math.log(2) + wrong) / 4)
    assert accuracy == 0.25


NONE = -100  # no label
# p(class 1) = 3/4 everywhere; a batch without any label must not make a mean NaN.
BATCHES_WITHOUT_LABELS = {
    "classes": [([[0.0, math.log(3)]] * 2, targets) for targets in ([1, NONE], [NONE, NONE], [0, 1], [NONE, 1])],
    "sequences": [
        ([[[0.0, math.log(3)]] * 3] * 2, targets) for targets in ([[1, NONE, NONE], [0, 1, 1]], [[NONE] * 3] * 2)
    ],
}


@pytest.mark.parametrize("kind", BATCHES_WITHOUT_LABELS)
def test_targets_without_a_label_are_left_out_of_all_means(kind: str) -> None:
    batches = [(torch.tensor(x), torch.tensor(y)) for x, y in BATCHES_WITHOUT_LABELS[kind]]
    expected = math.log(4 / 3) * 3 / 4 + math.log(4) / 4
    exact = {"accuracy": 0.75, "top5": 1.0, "perplexity": math.exp(expected)}
    for metrics in (exact, {**exact, "f1": 3 / 7, "auroc": 0.5}):
        parts = [local.evaluation_sums(nn.Identity(), [batch], CPU, metrics=[*exact]) for batch in batches]
        if len(metrics) > len(exact):
            parts = [local.evaluation_sums(nn.Identity(), batches, CPU, metrics=[*metrics])]
        loss, found = local.means(parts)
        assert loss == pytest.approx(expected, rel=1e-6)
        assert found == pytest.approx(metrics, rel=1e-6)


@pytest.mark.parametrize("count", [1, 2])
def test_the_root_and_the_exponential_are_taken_of_one_example_as_well(count: int) -> None:
    batch = torch.full((count, 1), 3.0), torch.zeros(count, 1)
    sums = local.evaluation_sums(nn.Identity(), [batch], CPU, LOSSES["mse"], ["mae", "rmse"])
    assert local.means([sums]) == (9.0, {"mae": 3.0, "rmse": 3.0})
    batch = torch.tensor([[0.0, math.log(3)]] * count), torch.zeros(count, dtype=torch.int64)
    _, metrics = local.means([local.evaluation_sums(nn.Identity(), [batch], CPU, metrics=["perplexity"])])
    assert metrics == {"perplexity": pytest.approx(4)}
    assert local.means([local.TestSums(1.0, {"rmse": 9.0}, count)]) == (1.0, {"rmse": 9.0}), "a test of the user's own"


def test_nothing_is_measured_without_any_label() -> None:
    batch = torch.zeros(2, 3), torch.tensor([NONE, NONE])
    for names in (["accuracy"], ["accuracy", "f1"]):
        loss, metrics = local.means([local.evaluation_sums(nn.Identity(), [batch], CPU, metrics=names)])
        assert math.isnan(loss)
        assert metrics == {}
    net = _linear()
    assert local.train(net, [(BATCH[0][0], torch.tensor([NONE]))], 1, CPU, lr=0.1) is None
    assert net.weight.flatten().tolist() == [0, 0]


def test_a_batch_without_a_label_takes_no_part_in_the_training_loss() -> None:
    without, net = [(torch.tensor([[2.0]]), torch.tensor([NONE]))], _linear()
    loss = local.train(net, without + BATCH + without, 1, CPU, lr=0.1)
    assert net.weight.flatten().tolist() == pytest.approx([-0.1, 0.1])
    assert loss == pytest.approx(math.log(2))
    diverged = local.train(net, [(torch.tensor([[math.inf]]), torch.tensor([1])), *BATCH], 1, CPU, lr=0.1)
    assert diverged is not None
    assert math.isnan(diverged)


def _examples(count: int = 10) -> Examples:
    images = np.arange(count * 12, dtype=np.uint8).reshape(count, 2, 2, 3)
    return Examples(images, np.arange(count))


@pytest.mark.parametrize("channels_last", [True, False])
def test_batches_are_the_images_scaled(channels_last: bool) -> None:
    loader = Batches(_examples(), np.array([3, 1, 2]), 2, CPU, shuffle=False, channels_last=channels_last)
    (first, labels), (last, _) = loader
    assert (len(loader), loader.num_examples, len(loader.dataset)) == (2, 3, 3)
    assert labels.tolist() == [3, 1]
    assert first.shape == (2, 3, 2, 2)
    assert last.shape == (1, 3, 2, 2)
    assert first[0, 1, 0, 1].item() == pytest.approx((3 * 12 + 4) / 127.5 - 1)
    assert first.is_contiguous(memory_format=torch.channels_last) == channels_last


def test_shuffling_is_a_new_order_of_everything_from_torchs_generator() -> None:
    loader = Batches(_examples(), None, 4, CPU, shuffle=True, channels_last=True)

    def order() -> list[int]:
        return [int(label) for _, labels in loader for label in labels]

    torch.manual_seed(3)
    first, second = order(), order()
    assert sorted(first) == list(range(10))
    assert first != second
    torch.manual_seed(3)
    assert order() == first


@pytest.mark.parametrize(("name", "optimizer_class"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
def test_adam_is_that_of_a_plain_loop_and_leaves_float64_only_where_the_gradient_is_noise(
    name: str, optimizer_class: type[torch.optim.Optimizer]
) -> None:
    """Adam's first steps are about lr · sign(g): where g is at the rounding error of float32, its sign is chance."""
    lr, dataset = 0.01, load_dataset(RunConfig())
    images = torch.from_numpy(dataset.train.images.copy()).permute(0, 3, 1, 2).double() / 127.5 - 1
    labels = torch.from_numpy(dataset.train.labels.copy())
    torch.manual_seed(0)
    net = Mlp((1, 32, 32), 10)
    plain, precise = copy.deepcopy(net), copy.deepcopy(net).double()
    local.train(net, [(images.float(), labels)], 3, CPU, lr=lr, optimizer=name)
    smallest = torch.full((sum(p.numel() for p in net.parameters()),), math.inf, dtype=torch.float64)
    for other, inputs in ((plain, images.float()), (precise, images)):
        optimizer = optimizer_class(other.parameters(), lr=lr, weight_decay=0.0)  # type: ignore[call-arg]
        for _ in range(3):
            optimizer.zero_grad()
            F.cross_entropy(other(inputs), labels).backward()
            optimizer.step()
            smallest = torch.minimum(smallest, torch.cat([p.grad.abs().flatten() for p in other.parameters()]).double())
    flat = [torch.cat([p.detach().double().flatten() for p in each.parameters()]) for each in (net, plain, precise)]
    assert torch.equal(flat[0], flat[1])
    far = (flat[0] - flat[2]).abs() > 1e-3 * lr
    assert far.sum() < 50
    assert (smallest[far] < 1e-6).all()


def test_weights_of_a_net_whose_parameters_were_registered_again_are_found_by_name() -> None:
    net = nn.Linear(2, 2)
    names = list(net.state_dict())
    weight = net.weight
    del net.weight
    net.weight = weight
    assert list(net.state_dict()) == ["bias", "weight"]
    assert [array.shape for array in view_weights(net, names)] == [(2, 2), (2,)]
    net.scale = nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match="the model has other parameters than before its training: scale"):
        view_weights(net, names)


def test_one_of_two_names_is_trained_if_the_other_is() -> None:
    net = nn.Module()
    net.inner = nn.Linear(1, 1, bias=False)
    net.register_buffer("start", net.inner.weight.data)
    layout = WeightLayout.of(net)
    assert (layout.names, layout.tied, layout.trained) == (["start", "inner.weight"], {1: 0}, (0,))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_loss_in_rows_is_that_of_any_shape(reduction: str) -> None:
    """On a GPU, targets of more dimensions are put into rows, for which CUDA adds in the same order each time."""
    outputs, classes = torch.randn(4, 3, 5, 2), torch.randint(0, 3, (4, 5, 2))
    for target in (classes, torch.rand(4, 3, 5, 2).softmax(1)):
        whole = F.cross_entropy(outputs, target, reduction=reduction)
        rows = F.cross_entropy(*in_rows(outputs, target), reduction=reduction)
        assert rows.item() == pytest.approx(whole.item(), rel=1e-5)


def test_what_a_run_sets_in_pytorch_is_undone_after_it() -> None:
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), [*warnings.filters]
    with computing_as_before():
        torch.set_num_threads(before[0] + 1)
        torch.backends.cudnn.deterministic = True
        warnings.filterwarnings("ignore", message="of the block")
    after = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), [*warnings.filters]
    assert (after, torch.backends.cudnn.deterministic) == (before, False)


def test_operations_that_vary_are_collected_and_other_warnings_are_shown() -> None:
    with warnings.catch_warnings(record=True) as shown, varying_operations() as found:
        warnings.simplefilter("always")
        warnings.warn("put_ does not have a deterministic implementation, but you set …", stacklevel=1)
        warnings.warn("another", stacklevel=1)
    assert (found, [str(each.message) for each in shown]) == ({"put_"}, ["another"])


FREEING = """
import resource, torch
from sim.training.device import compute_repeatably
compute_repeatably(1, "cpu")
for number in range(21):
    if number == 1:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.zeros(5_000_000) for _ in range(4)]
    del blocks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
def test_freed_memory_is_kept_for_the_next_batches() -> None:
    """Without, each block is 4,883 pages that the system gives again: 390,000 page faults (glibc)."""
    result = subprocess.run([sys.executable, "-c", FREEING], capture_output=True, text=True, timeout=300, check=True)
    assert int(result.stdout) < 100_000

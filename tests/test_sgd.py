"""The built-in SGD takes the steps of ``torch.optim.SGD``, and imports no compiler."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from sim.training.local import Sgd


@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.0, 0.0), (0.9, 0.0), (0.0, 0.01), (0.9, 0.01)])
def test_steps_are_those_of_torch_to_the_bit(momentum: float, weight_decay: float) -> None:
    torch.manual_seed(0)
    ours = [torch.randn(7, 5), torch.randn(3), torch.randn(2)]
    theirs = [weight.clone() for weight in ours]
    one = Sgd(ours, 0.1, momentum, weight_decay)
    other = torch.optim.SGD(theirs, lr=0.1, momentum=momentum, weight_decay=weight_decay)
    for number in range(4):
        one.zero_grad()
        for index, (mine, its) in enumerate(zip(ours, theirs, strict=True)):
            used = index < 2 or number == 3  # the third weight gets its first gradient in the last step
            mine.grad = torch.randn_like(mine) if used else None
            its.grad = None if mine.grad is None else mine.grad.clone()
        one.step()
        other.step()
        assert all(torch.equal(mine, its) for mine, its in zip(ours, theirs, strict=True))


@pytest.mark.slow
def test_a_step_imports_no_compiler() -> None:
    program = (
        "import sys, torch\nfrom sim.training.local import Sgd\nweight = torch.ones(2)\nweight.grad = torch.ones(2)\n"
        "Sgd([weight], 0.1, 0.9, 0.0).step()\nprint(weight.tolist(), 'torch._dynamo' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout == "[0.8999999761581421, 0.8999999761581421] False\n"

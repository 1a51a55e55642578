"""What the dry run does with functions for which two examples are too few."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from program_text import extended, run

from conftest import Small
from sim.data.loaders import LimitedLoader
from sim.errors import PluginError

WHOLE_BATCHES = """
def train(net, trainloader):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    for x, y in trainloader:
        optimizer.zero_grad()
        criterion(net(x).view(4, 2), y).backward()
        optimizer.step()

def test(net, testloader):
    with torch.no_grad():
        for number, (x, y) in enumerate(testloader):
            outputs = net(x).view(12, 2) if number == 0 else net(x)
            return criterion(outputs, y).item(), (outputs.argmax(1) == y).float().mean().item()
"""


@pytest.mark.parametrize("strategy", ["fedavg", "scaffold"])
def test_functions_that_need_a_whole_batch_are_tried_on_one(
    program: str, capsys: pytest.CaptureFixture[str], strategy: str
) -> None:
    module = extended(program, WHOLE_BATCHES).removesuffix(".py")
    found = run(program, strategy=strategy, partitioner="iid")  # each of the six clients has two batches of four
    assert found.rounds().test_accuracy.iloc[-1] > 0.5
    notes = [line for line in capsys.readouterr().err.splitlines() if "on two examples" in line]
    assert notes == [
        f"sim: note: --{part} {module}:{part}: raised RuntimeError: shape '[{size}, 2]' is invalid for input of size 4 "
        f"on two examples, and works on a batch of {size}; a client with fewer may fail"
        for part, size in (("train", 4), ("test", 12))
    ]


def test_a_function_that_fails_on_a_batch_as_well_is_refused_with_what_it_raised_first(program: str) -> None:
    module = extended(program, WHOLE_BATCHES.replace("view(12, 2)", "view(13, 2)")).removesuffix(".py")
    message = f"--test {module}:test: raised RuntimeError: shape '[13, 2]' is invalid for input of size 4"
    with pytest.raises(PluginError, match=f"^{re.escape(message)}$"):
        run(program)
    assert not Path("results").exists()


COUNTS_STEPS = """
def train(net, trainloader):
    optimizer, step = torch.optim.SGD(net.parameters(), lr=0.5), 0
    while step < 6:
        for x, y in trainloader:
            optimizer.zero_grad()
            criterion(net(x), y).backward()
            optimizer.step()
            step += 1
"""


def test_a_loop_that_the_limit_of_steps_would_leave_without_an_end_is_found(program: str) -> None:
    extended(program, COUNTS_STEPS)
    message = "train asks for batches without end, but --max-local-steps, or the time of a slow device, ends them after"
    with pytest.raises(PluginError, match=f"^{message} 5; a train that counts its own steps needs"):
        run(program, max_local_steps=5)
    assert not Path("results").exists()
    assert run(program, max_local_steps=100).is_done()


def test_a_train_may_have_many_epochs_of_its_own_after_the_limit_of_steps() -> None:
    limited = LimitedLoader([1, 2], 3)
    assert [batch for _ in range(50_000) for batch in limited] == [1, 2, 1]


def test_what_is_returned_for_a_batch_is_checked(program: str) -> None:
    text = WHOLE_BATCHES.replace("return criterion(outputs, y).item(), ", "return 'loss', ")
    module = extended(program, text).removesuffix(".py")
    with pytest.raises(PluginError, match=rf"^--test {module}:test: returned .*'loss'"):
        run(program)


def only_whole_batches(net: object, loader: object) -> tuple[float, float]:
    for images, _ in loader:  # type: ignore[attr-defined]
        if len(images) < 100:
            raise ValueError("too few")
        break
    return 1.0, 0.5


def test_built_in_images_make_a_batch_as_well(small: Small, capsys: pytest.CaptureFixture[str]) -> None:
    small(num_rounds=1, test="test_dry_run:only_whole_batches")
    assert "raised ValueError: too few on two examples, and works on a batch of 360;" in capsys.readouterr().err


def test_a_program_with_data_is_not_said_to_have_none(program: str) -> None:
    extended(program, WHOLE_BATCHES)
    with pytest.raises(PluginError) as error:
        run(program, dataset="synthetic", num_examples=100)
    assert str(error.value).endswith(
        "(with --dataset synthetic; images of synthetic have 32×32 pixels, --image-size changes that)"
    )

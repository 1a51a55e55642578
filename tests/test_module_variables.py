"""Losses, optimizers and other networks in variables of the user's module, beside the model that is federated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from program_text import extended, run

from sim.errors import PluginError
from sim.run_folder.folder import Run
from tests.conftest import Sim

PARAMETERS = """
criterion = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0]))
optimizer = torch.optim.Adam(net.parameters(), lr=0.25)

def train(model, loader, criterion, optimizer):
    for x, y in loader:
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        optimizer.step()
    weight = criterion.weight
    return {"lr": optimizer.param_groups[0]["lr"], "adam": float(isinstance(optimizer, torch.optim.Adam)),
            "weight": 0.0 if weight is None else weight[1]}

def test(model, loader, criterion):
    return {"loss": 1.0, "weight": 0.0 if criterion.weight is None else criterion.weight[1]}
"""


def values(made: Run, phase: str) -> dict[str, Any]:
    rows: pd.DataFrame = made.metrics()
    rows = rows[(rows.phase == phase) & (rows["round"] == 2) & rows.client_id.isna()]
    return dict(zip(rows["name"], rows["value"], strict=True))


@pytest.mark.parametrize(
    ("given", "trained", "tested"),
    [
        ({}, {"lr": 0.25, "adam": 1, "weight": 5}, 5),
        ({"lr": 0.125}, {"lr": 0.125, "adam": 1, "weight": 5}, 5),
        ({"optimizer": "sgd"}, {"lr": 0.25, "adam": 0, "weight": 5}, 5),
        ({"momentum": 0.5, "lr": 0.5}, {"lr": 0.5, "adam": 0, "weight": 5}, 5),
        ({"loss": "cross_entropy"}, {"lr": 0.25, "adam": 1, "weight": 0}, 0),
    ],
    ids=str,
)
def test_parameters_get_the_loss_and_the_optimizer_of_the_module_unless_flags_say_others(
    program: str, given: dict[str, Any], trained: dict[str, float], tested: float
) -> None:
    extended(program, PARAMETERS)
    made = run(program, **given)
    assert values(made, "fit").items() >= trained.items()
    assert values(made, "test") == {"loss": 1.0, "weight": tested}
    log = made.log_path.read_text()
    loss = "the loss cross_entropy (--loss)" if "loss" in given else "the module's criterion"
    assert f"its parameter criterion gets {loss}" in log
    own = "a copy of the module's optimizer for the client's model"
    others = f"sgd with lr {trained['lr']:g} (--optimizer, --lr, --momentum, --weight-decay)"
    assert f"its parameter optimizer gets {own if trained['adam'] else others}" in log


HELPER = """
teacher = Deep(8)

def squares(model):
    return sum(weight.pow(2).sum() for weight in model.parameters())

def of_module():
    return squares(net)

def train(net, loader):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    for x, y in loader:
        optimizer.zero_grad()
        (criterion(net(x), y) + 0.1 * of_module()).backward()
        optimizer.step()
    return {"differs": float(of_module() != squares(net)), "teacher": float(squares(teacher) == squares(net))}

def test(net, loader):
    return {"loss": 1.0, "differs": float(of_module() != squares(net))}
"""


@pytest.mark.parametrize("model", ["net", "Deep"])
def test_a_variable_with_the_name_of_the_parameter_is_the_clients_model_for_other_functions(
    program: str, model: str
) -> None:
    module = extended(program, HELPER).removesuffix(".py")
    made = run(program, model=f"{module}:{model}", **({"model_args": {"width": 8}} if model == "Deep" else {}))
    assert values(made, "fit") == {"differs": 0, "teacher": 0}
    assert values(made, "test") == {"loss": 1, "differs": 0}
    assert "these variables of the module are its own: net\n" in made.log_path.read_text()


ADVERSARY = """
class Adversary(nn.Linear):
    pass

adversary = Adversary(2, 2)
optimizer_of_adversary = torch.optim.SGD(adversary.parameters(), lr=0.5, momentum=0.9)

def train(model, loader, epochs):
    x, y = next(iter(loader))
    before = adversary.weight.clone()
    for _ in range(2):
        optimizer_of_adversary.zero_grad()
        criterion(adversary(model(x)), y).backward()
        optimizer_of_adversary.step()
    return {"moved": float((adversary.weight - before).abs().sum() > 0), "start": before.sum()}

def test(model, loader):
    return {"loss": 1.0, "weights": sum(weight.sum() for weight in model.parameters())}
"""


@pytest.mark.parametrize("engine", ["inline", pytest.param("ray", marks=[pytest.mark.slow, pytest.mark.ray])])
def test_an_optimizer_of_another_network_changes_that_network_anew_for_each_client(program: str, engine: str) -> None:
    extended(program, ADVERSARY)
    made = run(program, engine=engine, partitioner="iid")
    rows = made.metrics()
    assert set(rows[rows["name"] == "moved"]["value"]) == {1.0}
    assert rows[(rows["name"] == "start") & rows.client_id.notna()]["value"].nunique() == 1
    assert rows[rows["name"] == "weights"]["value"].round(5).nunique() == 1  # of the model, which nobody trains


LIBRARY_MODULES = """
from torch.optim.swa_utils import AveragedModel

average = AveragedModel(net)
norms = [nn.BatchNorm1d(4)]
large = nn.Linear(400, 400)
scaler = torch.optim.lr_scheduler.StepLR(torch.optim.SGD(large.parameters(), lr=1.0, momentum=0.5), 1)

def train(epochs):
    start = [average.n_averaged.item(), norms[0].num_batches_tracked.item(), norms[0].running_mean.sum().item(),
             large.weight[0, 0].item(), scaler.optimizer.param_groups[0]["lr"], len(scaler.optimizer.state),
             0.0 if large.weight.grad is None else 1.0, float(large.training)]
    for x, y in trainloader:
        optimizer.zero_grad()
        criterion(net(norms[0](x)), y).backward()
        optimizer.step()
        average.update_parameters(net)
    large.eval()
    large(torch.ones(1, 400)).sum().backward()
    scaler.optimizer.step()
    scaler.step()
    with torch.no_grad():
        large.weight.data.add_(1)
    net.load_state_dict(average.module.state_dict())
    return {f"start_{number}": value for number, value in enumerate(start)}

def test(epoch):
    net(next(iter(testloader))[0])
    return {"loss": 1.0}
"""


@pytest.mark.parametrize("engine", ["inline", pytest.param("ray", marks=[pytest.mark.slow, pytest.mark.ray])])
def test_networks_and_optimizers_of_libraries_in_variables_are_as_at_first_for_each_client(
    program: str, engine: str
) -> None:
    extended(program, LIBRARY_MODULES)
    made = run(program, engine=engine, partitioner="iid")
    rows = made.metrics()
    rows = rows[rows["name"].str.startswith("start_") & rows.client_id.notna()]
    by_name = rows.groupby("name")["value"].unique()
    assert all(len(found) == 1 for found in by_name), by_name
    first = by_name.str[0].tolist()
    assert first[:3] == [0, 0, 0]
    assert first[4:] == [1, 0, 0, 1]


def test_a_file_with_the_name_of_a_library_is_put_back_as_well(program: str, sim: Sim, tmp_path: Path) -> None:
    Path(extended(program, LIBRARY_MODULES)).rename("datasets.py")
    words = "--partitioner", "iid", "--num-clients", "4", "--num-rounds", "2", "--engine", "inline", "--name", "run"
    done = sim("run", "--program", "datasets.py", *words, "--results-dir", str(tmp_path / "results"))
    assert done.returncode == 0, done.stderr
    rows = Run(tmp_path / "results" / "run").metrics()
    assert set(rows[(rows["name"] == "start_0") & rows.client_id.notna()]["value"]) == {0.0}
    assert "note: clients change datasets.average, datasets." in done.stderr


def test_a_test_of_an_average_of_models_is_refused(program: str) -> None:
    text = LIBRARY_MODULES.replace("    net(next(iter(testloader))", "    average(next(iter(testloader))")
    module = extended(program, text).removesuffix(".py")
    with pytest.raises(PluginError, match=f"^--test {module}:test: has no parameter for the model, .* no variable"):
        run(program)


PRINTING = """
def train(net, loader, epochs):
    for _ in range(epochs):
        for x, y in loader:
            optimizer.zero_grad()
            criterion(net(x), y).backward()
            optimizer.step()

def test(net, loader):
    {returned}
    torch.save(net.state_dict(), "best.pt")
    print("tested", len(loader))
"""


def test_a_test_that_prints_and_writes(program: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Its result is that of the built-in test, and its file is none of the user's folder."""
    extended(program, PRINTING.format(returned=""))
    Path("best.pt").write_text("a week of work")
    made = run(program)
    assert Path("best.pt").read_text() == "a week of work"
    notes = capsys.readouterr().err
    assert "it returns nothing, so that the built-in test with the loss cross_entropy is recorded" in notes
    assert "writes best.pt into the current folder; each client and each test does so in a folder of its own" in notes
    assert made.rounds().test_loss.notna().all()


def test_a_test_that_prints_what_the_built_in_one_cannot_compute(program: str) -> None:
    text = PRINTING.format(returned="").replace("criterion(net(x), y)", "criterion(net(x)[0], y)")
    text += "\nclass Two(Deep):\n    def forward(self, x):\n        return super().forward(x), x\n\nnet = Two(8)\n"
    module = extended(program, text + "optimizer = torch.optim.SGD(net.parameters(), lr=0.5)\n").removesuffix(".py")
    message = f"^--test {module}:test: prints its results and returns nothing, and the built-in test fails in its place"
    with pytest.raises(PluginError, match=message):
        run(program, model=f"{module}:net")


@pytest.mark.parametrize(
    ("loop", "expected"),
    [
        ("for epoch in range(3):\n        train(net, trainloader, epoch)", 0.5),
        ("for epoch in range(1, 4):\n        train(net, trainloader, epoch)", 1.5),
        ("for number in tqdm(range(args.start_epoch, 4)):\n        train(net, trainloader, epoch=number + 1)", 1.5),
        ("train(net, trainloader, 7)", 1.5),
    ],
    ids=["zero", "one", "plus-one", "no-loop"],
)
def test_epochs_are_counted_as_the_program_counts_them(program: str, loop: str, expected: float) -> None:
    text = "\ndef train(net, loader, epoch):\n    net.layers[0].bias.data += 1\n    return {'epoch': float(epoch)}\n"
    extended(program, f"{text}\nif __name__ == '__main__':\n    {loop}\n")
    rows = run(program).metrics()  # of two local epochs
    assert set(rows[rows["name"] == "epoch"]["value"]) == {expected}


OWN_BATCHES = """
from torch.utils.data import BatchSampler, RandomSampler

class Bucketed(BatchSampler):
    def __iter__(self):
        assert all(0 <= position < 48 for position in self.sampler)
        yield from super().__iter__()

class Listed:
    def __len__(self):
        return 12

    def __iter__(self):
        yield from torch.randperm(48).reshape(12, 4).tolist()

trainloader = DataLoader(trainset, batch_sampler={sampler})

def train(net, loader, epochs):
    length = len(loader)
    batches = [x for x, _ in loader]
    net.layers[0].bias.data += 1
    return {{"length": length, "batches": len(batches), "largest": max(map(len, batches))}}
"""


@pytest.mark.parametrize("sampler", ["Bucketed(RandomSampler(trainset), 4, False)", "Listed()"])
def test_batch_samplers_of_the_users_own(program: str, sampler: str, capsys: pytest.CaptureFixture[str]) -> None:
    extended(program, OWN_BATCHES.format(sampler=sampler))
    rows = run(program, partitioner="iid").metrics()  # six clients with eight examples
    rows = rows[rows.client_id.notna()]
    length, batches, largest = (
        rows[rows["name"] == name]["value"].tolist() for name in ("length", "batches", "largest")
    )
    assert length == batches
    assert (set(batches), set(largest)) == ({2.0}, {4.0})
    note = "note: the batches of a client are joined from what it has of those of Listed"
    assert (note in capsys.readouterr().err) is (sampler == "Listed()")


BY_POSITION = """
def train(net, trainset, epochs):
    x, y = trainset[:]
    optimizer.zero_grad()
    criterion(net(x), y).backward()
    optimizer.step()
    return {"count": len(x), "first": x[0].sum() - trainset[0][0].sum()}

def test(net, testset):
    x, y = testset[1:]
    return {"loss": criterion(net(x), y), "count": len(y)}
"""


def test_functions_that_read_examples_by_position_get_data_sets(program: str) -> None:
    extended(program, BY_POSITION)
    rows = run(program, partitioner="iid").metrics()
    of_clients = rows[rows.client_id.notna()]
    assert set(of_clients[of_clients["name"] == "count"]["value"]) == {8.0}
    assert set(of_clients[of_clients["name"] == "first"]["value"]) == {0.0}
    assert set(rows[(rows["name"] == "count") & (rows.phase == "test")]["value"]) == {11.0}


MADE_WHEN_NEEDED = """
from functools import lru_cache

teacher = None
average = None
made = {}

class Average:
    def __init__(self, net):
        self.weights = [weight.detach().clone() for weight in net.parameters()]
        self.count = 0

@lru_cache(maxsize=1)
def projector():
    return nn.Linear(2, 2)

@lru_cache(maxsize=None)
def registry():
    return []

def train(epochs):
    global teacher, average
    start = [float(each is None) for each in (teacher, average)]
    start += [1.0 - len(made), 1.0 - projector.cache_info().currsize, 1.0 - len(registry())]
    if teacher is None:
        teacher = nn.Linear(4, 2)
    if average is None:
        average = Average(net)
    made["student"] = nn.Linear(2, 2)
    registry().append(1)
    for x, y in trainloader:
        optimizer.zero_grad()
        (criterion(projector()(made["student"](net(x))), y) + (net(x) - teacher(x)).square().mean()).backward()
        optimizer.step()
        average.count += 1
    return {f"start_{number}": value for number, value in enumerate(start)} | {"count": average.count}

def test(epoch):
    net(next(iter(testloader))[0])
    return {"loss": 1.0, "weights": sum(weight.sum() for weight in net.parameters())}
"""


@pytest.mark.parametrize("engine", ["inline", pytest.param("ray", marks=[pytest.mark.slow, pytest.mark.ray])])
def test_networks_that_are_made_when_they_are_first_needed_are_made_anew_for_each_client(
    program: str, engine: str
) -> None:
    extended(program, MADE_WHEN_NEEDED)
    made = run(program, engine=engine)
    rows = made.metrics()
    rows = rows[rows.client_id.notna()]
    assert set(rows[rows["name"].str.startswith("start_")]["value"]) == {1.0}
    counts = rows[rows["name"] == "count"].set_index(["round", "client_id"])["value"]
    assert (counts.loc[1] == counts.loc[2]).all()
    assert "what is not put back" not in made.log_path.read_text()

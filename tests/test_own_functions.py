"""What the user's own ``train`` and ``test`` are given and return, in the forms that programs have."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils.prune import l1_unstructured

from sim.centralized import train_centralized
from sim.client.own_evaluation import OwnTest
from sim.client.own_returns import OwnReturnError, Returned, of_test, of_train
from sim.client.own_training import OwnTrain
from sim.client.returned_names import names_of_returns
from sim.config.run_config import CentralizedConfig, RunConfig
from sim.data.load_dataset import load_dataset
from sim.errors import ConfigError, PluginError
from sim.simulation import simulate
from sim.user_code import arguments

CPU = torch.device("cpu")


def made(value: float) -> nn.Module:
    net = nn.Linear(1, 1)
    nn.init.constant_(net.weight, value)
    nn.init.constant_(net.bias, value)
    return net


UNRECORDED = "is not recorded; the mean loss, (loss, accuracy), a dict of metrics is"


@pytest.mark.parametrize(
    ("returned", "expected"),
    [
        (None, Returned(None, {})),
        (0.5, Returned(0.5, {})),
        (torch.tensor([0.5]), Returned(0.5, {})),
        ((0.5, 0.25), Returned(0.5, {"accuracy": 0.25})),
        ({"loss": 1, "f1": np.float32(0.5)}, Returned(1.0, {"f1": 0.5})),
        ([1.0, 2.0, 6.0], Returned(3.0, {}, ("the mean of the series that it returns is recorded as the loss",))),
        (
            {"loss": [1.0, 2.0], "val_acc": [0.5], "path": "best.pt"},
            Returned(
                1.5,
                {"val_acc": 0.5},
                (
                    "the means of the series loss, val_acc that it returns are recorded",
                    "path of what it returns is no number and not recorded",
                ),
            ),
        ),
        ((1, 2, 3), Returned(None, {}, (f"what it returns (int, int, int) {UNRECORDED}",))),
        (([1.0], [0.5]), Returned(None, {}, (f"what it returns (list, list) {UNRECORDED}",))),
        ("done", Returned(None, {}, (f"what it returns (str) {UNRECORDED}",))),
    ],
)
def test_what_train_returns(returned: Any, expected: Returned) -> None:
    assert of_train(returned, made(0)) == expected


@pytest.mark.parametrize(
    ("returned", "metrics"),
    [
        (lambda best: best, Returned(None, {})),
        (lambda best: best.state_dict(), Returned(None, {})),
        (lambda best: (best.state_dict(), 0.5), Returned(0.5, {})),
        (lambda best: {name: weight.numpy() for name, weight in best.state_dict().items()}, Returned(None, {})),
        (lambda best: (best, {"loss": 0.5}), Returned(0.5, {})),
        (lambda best: (nn.DataParallel(best), 0.5, 0.25), Returned(0.5, {"accuracy": 0.25})),
        (lambda best: (torch.optim.swa_utils.AveragedModel(best), None), Returned(None, {})),
    ],
)
def test_weights_that_train_returns_are_those_of_the_client(
    returned: Callable[[nn.Module], Any], metrics: Returned
) -> None:
    net = made(1.0)
    assert of_train(returned(made(2.0)), net) == metrics
    assert net.weight.item() == net.bias.item() == 2.0
    assert of_train((net, 0.5), net) == Returned(0.5, {})
    assert net.weight.item() == 2.0


def test_another_model_that_train_returns_is_not_used() -> None:
    net = made(1.0)
    assert of_train(nn.Linear(2, 1), net).notes == (f"what it returns (Linear) {UNRECORDED}",)
    assert net.weight.item() == 1.0


def test_a_parameter_that_train_registers_again_is_found_by_its_name(in_programs: None, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "model": "pruning:Net",
        "train": "pruning:train",
        "lr": 0.1,
        "results_dir": str(tmp_path),
    }
    federated = simulate(RunConfig(num_clients=2, fraction_fit=1, num_rounds=1, engine="inline", **settings))
    centralized = train_centralized(CentralizedConfig(epochs=1, **settings))
    for run in (federated, centralized):
        weights = load_file(run.model_path)
        assert weights["first"].tolist() == [0] * 10
        assert 0 not in weights["second"]
    unseen = "--strategy scaffold: train puts new parameters in the place of second, whose steps cannot be corrected"
    settings["train"] = "pruning:train_anew"
    with pytest.raises(PluginError, match=f"^{unseen}$"):
        simulate(RunConfig(num_clients=2, strategy="scaffold", engine="inline", **settings))


def test_a_train_that_leaves_a_pruned_model_is_told_what_it_has_changed() -> None:
    def masked(net: Any, loader: Any, epochs: int) -> None:
        l1_unstructured(net, "weight", 1)

    changed = r"weight_orig of shape \(1, 1\), weight_mask of shape \(1, 1\), no weight; undo that before it returns"
    with pytest.raises(OwnReturnError, match=f"^train leaves a model with other weights than it was given: {changed}"):
        OwnTrain(masked, "--train own:train")(made(2.0), [], 1, CPU)


def test_a_generator_has_trained_nothing() -> None:
    with pytest.raises(
        OwnReturnError, match=r"^train returned a generator, which has trained nothing; let it return, not yield$"
    ):
        of_train((loss for loss in [0.5]), made(0))


@pytest.mark.parametrize(
    ("returned", "expected"),
    [
        (0.5, Returned(None, {"accuracy": 0.5})),
        ((1.5, 0.5), Returned(1.5, {"accuracy": 0.5})),
        (
            (1.5, {"f1": 0.5, "loss": 3}),
            Returned(1.5, {"f1": 0.5}, ("its number is the loss, not what its dict has by this name",)),
        ),
        ([0.25, 0.75], Returned(None, {"accuracy": 0.5}, ("the mean of the series that it returns is recorded",))),
        ((1.5, 20, {"accuracy": 0.5}), Returned(1.5, {"accuracy": 0.5})),
        ({"loss": 1.5, "accuracy": 0.5}, Returned(1.5, {"accuracy": 0.5})),
        (
            {"accuracy": 0.5, "confusion": np.eye(2)},
            Returned(None, {"accuracy": 0.5}, ("confusion of what it returns is no number and not recorded",)),
        ),
    ],
)
def test_what_test_returns(returned: Any, expected: Returned) -> None:
    assert of_test(returned, "accuracy") == expected


def test_predictions_after_loss_and_accuracy_are_left_out() -> None:
    found = of_test((1.5, 0.5, [1, 2], [1, 1]), "accuracy")
    assert found[:2] == (1.5, {"accuracy": 0.5})
    assert found.notes[0].startswith("what it returns (list, list) is not recorded; accuracy, (loss, accuracy), ")
    for unclear in ((1.0, 0.5, 0.25), "0.5", None, {}, {"report": "…"}, ([1], [2])):
        with pytest.raises(OwnReturnError, match=r"^test returned .* is expected$"):
            of_test(unclear, "accuracy")


def accuracy_first(loss: float, acc: float) -> Any:
    return acc, loss


def only_a_loss(loss: float, _: float) -> Any:
    test_loss, loader = 2 * loss, [1, 2]
    return test_loss / len(loader)


def meters(loss: float, acc: float) -> Any:
    losses, top1 = SimpleNamespace(avg=loss), SimpleNamespace(avg=acc)
    return top1.avg, losses.avg


def of_a_call(loss: float, acc: float) -> Any:
    correct, criterion = torch.tensor(acc), torch.tensor
    return float(100.0 * correct.item() / 100), criterion(loss).item()


@torch.no_grad()
def early_end(loss: float, acc: float) -> Any:
    def inside() -> Any:
        return 1.5, 0.0

    if loss == 0:
        return 0.0, 0.0
    loss, _ = inside()
    return acc, loss


def three_numbers(loss: float, acc: float) -> Any:
    f1 = 0.125
    return loss, acc, f1


def an_error(loss: float, _: float) -> Any:
    mae = loss
    return mae / 1


def two_losses(loss: float, _: float) -> Any:
    train_loss, val_loss = loss, 4.0
    return train_loss, val_loss


def accuracy_and_dict(loss: float, acc: float) -> Any:
    return acc, {"loss": loss}


def two_scores(_: float, acc: float) -> Any:
    precision, recall = acc, 0.25
    return precision, recall


def loss_and_auc(loss: float, acc: float) -> Any:
    auc = acc
    return loss, auc


def f1_first(_: float, acc: float) -> Any:
    f1 = 0.125
    return f1, acc


def r2_and_error(loss: float, acc: float) -> Any:
    r2, mae = acc, loss
    return r2, mae


def the_exact_names(loss: float, acc: float) -> Any:
    top5_accuracy, kl_loss = 1.0, 3.0
    return kl_loss, loss, top5_accuracy, acc


def series_of_losses(loss: float, _: float) -> Any:
    losses = [loss - 1]
    losses.append(loss + 1)
    return losses


class Result(NamedTuple):
    accuracy: float
    loss: float


def named_tuple(loss: float, acc: float) -> Any:
    return Result(acc, loss)


def score_last(loss: float, acc: float) -> Any:
    return loss, acc * 1


def by_another(loss: float, acc: float) -> Any:
    return accuracy_first(loss, acc)


def by_another_through_a_variable(loss: float, acc: float) -> Any:
    result = by_another(loss, acc)
    return result  # noqa: RET504 - as a program may have it


def in_a_variable(loss: float, acc: float) -> Any:
    result = acc, loss
    return result  # noqa: RET504 - as a program may have it


def itself(loss: float, acc: float) -> Any:
    if loss > 2:
        return itself(loss - 1, acc)
    return acc, loss


class Evaluator:
    def both(self, loss: float, acc: float) -> Any:
        return acc, loss

    def evaluate(self, loss: float, acc: float) -> Any:
        return self.both(loss, acc)


RECORDED_AS = "what it returns is recorded as {}, after the names in its return statement"


@pytest.mark.parametrize(
    ("function", "expected", "recorded_as"),
    [
        (accuracy_first, {"loss": 1.5, "accuracy": 0.5}, "accuracy, loss"),
        (only_a_loss, {"loss": 1.5}, "loss"),
        (meters, {"loss": 1.5, "accuracy": 0.5}, "accuracy, loss"),
        (of_a_call, {"loss": 1.5, "accuracy": 0.5}, "accuracy, loss"),
        (early_end, {"loss": 1.5, "accuracy": 0.5}, "accuracy, loss"),
        (three_numbers, {"loss": 1.5, "accuracy": 0.5, "f1": 0.125}, "loss, accuracy, f1"),
        (an_error, {"mae": 1.5}, "mae"),
        (two_losses, {"loss": 1.5, "val_loss": 4.0}, "loss, val_loss"),
        (accuracy_and_dict, {"loss": 1.5, "accuracy": 0.5}, "accuracy"),
        (two_scores, {"precision": 0.5, "recall": 0.25}, "precision, recall"),
        (loss_and_auc, {"loss": 1.5, "auc": 0.5}, "loss, auc"),
        (f1_first, {"f1": 0.125, "accuracy": 0.5}, "f1, accuracy"),
        (r2_and_error, {"r2": 0.5, "mae": 1.5}, "r2, mae"),
        (
            the_exact_names,
            {"kl_loss": 3.0, "loss": 1.5, "top5_accuracy": 1.0, "accuracy": 0.5},
            "kl_loss, loss, top5_accuracy, accuracy",
        ),
        (by_another, {"loss": 1.5, "accuracy": 0.5}, "accuracy, loss"),
        (by_another_through_a_variable, {"loss": 1.5, "accuracy": 0.5}, "accuracy, loss"),
        (in_a_variable, {"loss": 1.5, "accuracy": 0.5}, "accuracy, loss"),
        (itself, {"loss": 1.5, "accuracy": 0.5}, "accuracy, loss"),
        (Evaluator().evaluate, {"loss": 1.5, "accuracy": 0.5}, "accuracy, loss"),
        (named_tuple, {"loss": 1.5, "accuracy": 0.5}, None),
        (score_last, {"loss": 1.5, "accuracy": 0.5}, None),
    ],
)
def test_return_statements_say_which_number_is_which(
    function: Callable[..., Any], expected: dict[str, float], recorded_as: str | None
) -> None:
    found = of_test(function(1.5, 0.5), "accuracy", names_of_returns(function))
    loss = {} if found.loss is None else {"loss": found.loss}
    assert {**loss, **found.metrics} == expected
    assert found.notes == (() if recorded_as is None else (RECORDED_AS.format(recorded_as),))


def test_the_mean_of_a_series_is_what_its_name_says() -> None:
    found = of_test(series_of_losses(1.5, 0), "accuracy", names_of_returns(series_of_losses))
    assert found[:2] == (1.5, {})


def test_the_score_of_train_is_called_as_that_of_test_and_none_of_its_calls_is_left_out() -> None:
    def train(net: nn.Module, loader: Any, epoch: int) -> Any:
        numbers.append(epoch)
        return (2.0 * epoch, -0.5) if epoch % 2 == 0 else {"loss": 1.0, "seen": 7}

    numbers: list[int] = []
    own = OwnTrain(train, "--train own:train", score="score")
    assert own(made(0), ["batch"], 2, CPU) == {"loss": 2.5, "seen": 7.0, "score": -0.5}
    own(made(0), ["batch"], 1, CPU, first_epoch=5)
    assert numbers == [1, 2, 5]


def test_return_statements_of_train_say_which_number_is_which() -> None:
    def series(net: nn.Module) -> Any:
        val_accs, train_losses = [0.25, 0.75], [2.0, 1.0]
        return net, val_accs, train_losses

    def last(accuracy: float) -> Any:
        return accuracy

    net = made(0)
    assert of_train(series(net), net, names_of_returns(series))[:2] == (1.5, {"accuracy": 0.5})
    assert of_train(last(0.5), net, names_of_returns(last))[:2] == (None, {"accuracy": 0.5})
    assert of_train(two_losses(1.5, 0), net, names_of_returns(two_losses))[:2] == (1.5, {"val_loss": 4.0})
    assert of_train(accuracy_and_dict(1.5, 0.5), net, names_of_returns(accuracy_and_dict))[:2] == (
        1.5,
        {"accuracy": 0.5},
    )


def test_accuracy_in_percent_is_also_that_of_train() -> None:
    def train(net: nn.Module, loader: Any) -> Any:
        return 0.5, 25.0

    arguments = made(0), ["batch"], 1, CPU
    assert OwnTrain(train, "--train own:train", in_percent=True)(*arguments) == {"loss": 0.5, "accuracy": 0.25}
    with pytest.raises(OwnReturnError, match=r"^train returned accuracy 25; a fraction 0–1 is expected; --accuracy-in"):
        OwnTrain(train, "--train own:train")(*arguments)


def called(function: Callable[..., Any], epochs: int = 1) -> OwnTrain:
    own = OwnTrain(function, "--train own:train")
    own(made(0), ["batch"], epochs, CPU, lr=0.5, validation_loader=["kept"])
    return own


def test_a_second_loader_gives_the_examples_that_the_client_keeps() -> None:
    seen: list[Any] = []

    def train(model: Any, train_loader: Any, val_loader: Any, test_loader: Any, epochs: int) -> None:
        seen.append((train_loader, val_loader, test_loader))

    def of_dict(model: Any, dataloaders: Any, num_epochs: int) -> None:
        seen.append((dataloaders["train"], dataloaders["val"], dataloaders["test"]))

    def optional(model: Any, loader: Any, epochs: int, val_loader: Any = None) -> None:
        seen.append((loader, val_loader, None))

    assert called(train).validates == "val_loader"
    assert called(of_dict).validates == "dataloaders"
    assert called(optional).validates is None
    assert seen == [(["batch"], ["kept"], ["kept"])] * 2 + [(["batch"], None, None)]
    OwnTrain(train, "--train own:train")(made(0), ["batch"], 1, CPU, validation_loader=[])
    assert seen[-1] == (["batch"], ["batch"], ["batch"])


def test_the_only_parameter_of_an_unknown_name_is_what_is_missing() -> None:
    def train(generator: Any, train_loader: Any, epochs: int) -> None: ...
    def of_stream(net: Any, stream: Any, epochs: int) -> None: ...
    def score(classifier: Any, loader: Any) -> float:
        return 0.5

    assert called(train).notes(made(0), {}) == ["its parameter generator gets the model"]
    assert called(of_stream).notes(made(0), {}) == ["its parameter stream gets the examples of the client"]
    assert OwnTest(score, "--test own:score")(made(0), [], CPU)[1] == {"accuracy": 0.5}

    def two(generator: Any, discriminator: Any, loader: Any) -> None: ...

    with pytest.raises(PluginError, match=r"^--train own:train: its parameter generator is none that can be given "):
        called(two)

    def of_module(net: Any, epochs: int) -> None: ...

    with pytest.raises(PluginError, match="has no parameter for the examples of a client, such as loader or train_loa"):
        called(of_module)


def test_a_scheduler_leaves_the_learning_rate_as_it_is() -> None:
    rates: list[float] = []

    def train(net: Any, loader: Any, optimizer: Any, scheduler: Any, epoch: int) -> None:
        optimizer.step()
        scheduler.step()
        rates.append(optimizer.param_groups[0]["lr"])
        assert scheduler.optimizer is optimizer

    assert called(train, epochs=2).notes(made(0), {"lr": 0.5, "optimizer": "sgd"}) == [
        "its parameter optimizer gets sgd with lr 0.5 (--optimizer, --lr, --momentum, --weight-decay)",
        "its scheduler leaves the learning rate as it is; --lr-schedule changes it from round to round",
    ]
    assert rates == [0.5, 0.5]


X, Y = np.arange(12, dtype=np.float32).reshape(6, 2), np.arange(6) % 2


@pytest.mark.parametrize(
    ("returned", "note"),
    [
        ((X, X[:4], Y, Y[:4]), None),
        ((X, Y, X[:4], Y[:4]), None),
        ({"train": (X, Y), "val": (X[:4], Y[:4])}, "its split val is the central test"),
        (((X, Y), (X[:4], Y[:4]), 2), "of its 3 values, the first is for training and the second for the test"),
    ],
)
def test_forms_of_load_data(returned: Any, note: str | None) -> None:
    dataset = load_dataset(RunConfig(dataset="own:load"), lambda: returned)
    assert np.array_equal(dataset.train.batch[0], X)
    assert np.array_equal(dataset.train.batch[1], Y)
    assert len(dataset.test) == 4
    assert [each.split(": ", 1)[1] for each in dataset.notes] == ([] if note is None else [note])


@pytest.mark.usefixtures("no_pictures")
def test_a_client_that_returns_its_best_copy_sends_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A program in the form of PyTorch's tutorial on transfer learning."""

    def load_data() -> Any:
        x, y = np.zeros((40, 2), np.float32), np.arange(40) % 2
        return (x, y), (x, y)

    def train(net: Any, train_loader: Any, val_loader: Any, epochs: int) -> Any:
        best = copy.deepcopy(net)
        for parameter in best.parameters():
            nn.init.constant_(parameter, len(val_loader.dataset))
        return best, [1.0, 3.0]

    config = RunConfig(
        num_clients=4, clients_per_round=4, num_rounds=1, partitioner="iid", engine="inline", results_dir=str(tmp_path)
    )
    run = simulate(config, model=lambda: nn.Linear(2, 2), load_data=load_data, train=train)
    model = load_file(run.model_path)
    assert all(torch.equal(weight, torch.full_like(weight, 2.0)) for weight in model.values())  # 20 % of 10 examples
    assert run.rounds().train_loss.tolist()[1] == 2.0
    printed = capsys.readouterr().err
    assert "its parameter val_loader gets the examples that each client keeps (--eval-share 0.2)" in printed
    assert "the mean of the series that it returns is recorded as the loss" in printed
    with pytest.raises(
        ConfigError, match=r"^--eval-share 0: must be above 0, because --train .*train takes val_loader$"
    ):
        simulate(replace(config, eval_share=0.0), model=lambda: nn.Linear(2, 2), load_data=load_data, train=train)


SETTINGS = {"lr": 0.5, "layers": 2}
config = SETTINGS


@pytest.mark.parametrize(("given", "expected"), [({}, SETTINGS), ({"lr": 2.0}, {"lr": 2.0, "layers": 2})])
def test_settings_at_the_top_level_of_a_module(given: dict[str, float], expected: dict[str, float]) -> None:
    """As ``config = {"lr": 0.1}`` beside ``train(net, loader, config)``."""

    def train(net: Any, loader: Any, config: Any) -> Any: ...
    def other(net: Any, loader: Any, cfg: Any) -> Any: ...
    def with_default(net: Any, loader: Any, cfg: Any = SETTINGS) -> Any: ...

    assert arguments(given, train) == arguments(given, with_default) == expected
    assert (arguments(given, train) is config) == (not given)
    assert config["lr"] == 0.5
    without = arguments(given, other)
    assert dict(without) == vars(without) == given
    assert without.get("lr", 1.0) == given.get("lr", 1.0)
    assert "layers" not in without


@pytest.mark.usefixtures("no_pictures")
def test_functions_that_take_all_examples_at_once(tmp_path: Path) -> None:
    """As in notebooks about tables: ``train(model, X_train, y_train)``, here one step of gradient descent per epoch."""
    x = np.arange(40, dtype=np.float32).reshape(20, 2) / 40
    y = x @ np.array([[2.0], [-1.0]], np.float32)

    def load_data() -> Any:
        return x, x[:4], y, y[:4]

    def train(model: Any, X_train: Any, y_train: Any, epochs: int) -> None:  # noqa: N803
        for _ in range(epochs):
            loss = ((model(X_train) - y_train) ** 2).mean()
            model.weight.data -= 0.1 * torch.autograd.grad(loss, model.weight)[0]

    def test(model: Any, X_test: Any, y_test: Any) -> Any:  # noqa: N803
        return {"loss": ((model(X_test) - y_test) ** 2).mean().item()}

    def model() -> nn.Module:
        net = nn.Linear(2, 1, bias=False)
        nn.init.zeros_(net.weight)
        return net

    config = RunConfig(
        num_clients=1, clients_per_round=1, num_rounds=1, local_epochs=2, partitioner="iid", engine="inline",
        results_dir=str(tmp_path),
    )  # fmt: skip
    run = simulate(config, model=model, load_data=load_data, train=train, test=test)
    weight = np.zeros((2, 1), np.float64)
    for _ in range(2):
        weight -= 0.1 * 2 * x.T @ (x @ weight - y) / len(x)
    assert np.allclose(load_file(run.model_path)["weight"], weight.T, atol=1e-6)
    with pytest.raises(PluginError, match="takes all examples at once, so that --max-local-steps would be"):
        simulate(replace(config, max_local_steps=1), model=model, load_data=load_data, train=train, test=test)


def train_on_the_examples_of_the_module(net: nn.Module, loader: Any, epochs: int) -> None:
    for images, labels in ALL_EXAMPLES:
        nn.functional.cross_entropy(net(images), labels).backward()


def train_on_the_data_set(net: nn.Module, loader: Any, epochs: int) -> None:
    len(loader.dataset)


ALL_EXAMPLES = [(torch.zeros(1, 3, 32, 32), torch.zeros(1, dtype=torch.int64))]


@pytest.mark.parametrize(
    ("train", "is_noted"), [(train_on_the_examples_of_the_module, True), (train_on_the_data_set, False)]
)
@pytest.mark.usefixtures("no_pictures")
def test_a_train_that_reads_other_examples_than_the_clients_is_noted(
    train: Any, is_noted: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = RunConfig(dataset="synthetic", num_clients=2, num_rounds=1, engine="inline", results_dir=str(tmp_path))
    simulate(config, train=train)
    assert ("it does not iterate over its parameter loader" in capsys.readouterr().err) is is_noted

"""``sim export``: the file of a run's model, and the lines of Python that use it."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file
from torch import nn

from conftest import PROGRAMS, Sim, Small
from sim import Run, RunConfig
from sim.data.load_dataset import Dataset, load_dataset
from sim.setup.trained import TrainedModel


def code_in(stdout: str) -> str:
    """The lines of Python that were printed: those after the line about the model."""
    return stdout.partition("model           ")[2].partition("\n")[2]


def executed(stdout: str, folder: Path, monkeypatch: pytest.MonkeyPatch, **names: Any) -> dict[str, Any]:
    """Execute these lines in a folder and return their variables."""
    with monkeypatch.context() as patch:
        patch.chdir(folder)
        exec(code_in(stdout), names)
    return names


def central_images(run: Run) -> np.ndarray[Any, Any]:
    """The images of the run's central test, as they are stored."""
    return np.array(dataset_of(run).test.images)  # type: ignore[union-attr]


def dataset_of(run: Run) -> Dataset:
    return load_dataset(RunConfig.load(run.config_path))


@pytest.mark.parametrize("output", ["model.pt", "other.pth", "model.safetensors"])
def test_the_printed_lines_give_the_accuracy_of_the_run(
    finished: Run, command: Sim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    done = command("export", str(finished.path), "-o", output)
    assert done.returncode == 0, done.stderr
    kind = "safetensors" if output.endswith("safetensors") else "torch"
    assert done.stdout.startswith(f"model           {output}: {kind}, 61,706 numbers, after round 2\n")
    with torch.no_grad():
        found = executed(done.stdout, tmp_path, monkeypatch, images=torch.tensor(central_images(finished)))
    stored = load_file(finished.model_path)
    state = {name: tensor.numpy() for name, tensor in found["net"].state_dict().items()}
    with safe_open(finished.model_path, framework="np") as file:
        assert list(state) == json.loads(file.metadata()["state_dict"])
    assert all((state[name] == stored[name]).all() for name in stored)
    labels = torch.tensor(np.array(dataset_of(finished).test.labels))  # type: ignore[union-attr]
    accuracy = (found["outputs"].argmax(1) == labels).double().mean()
    assert float(accuracy) == finished.rounds()["test_accuracy"].iloc[-1]
    assert found["classes"] == [str(digit) for digit in range(10)]


@pytest.mark.slow
def test_onnx_gives_the_same_outputs_for_any_number_of_images(
    finished: Run, command: Sim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    done = command("export", str(finished.path), "--format", "onnx")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("model           model.onnx: onnx, 61,706 numbers, after round 2\n")
    net = TrainedModel.of(finished).net
    assert net is not None
    for count in (1, 7):
        images = central_images(finished)[:count]
        found = executed(done.stdout, tmp_path, monkeypatch, images=images)
        with torch.no_grad():
            expected = net(torch.tensor(images).permute(0, 3, 1, 2) * (2 / 255) - 1).numpy()
        np.testing.assert_allclose(found["outputs"], expected, atol=1e-5)


def test_onnx_needs_libraries(finished: Run, command: Sim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.setitem(sys.modules, "onnx", None)
    done = command("export", str(finished.path), "-o", "model.onnx")
    assert done.returncode == 2
    assert done.stderr == "sim: --format onnx: needs onnx and onnxscript; pip install onnx onnxscript\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "made"),
    [
        ({"model": "own:WithBatchNorm", "strategy": "fedbn"}, "WithBatchNorm(image_shape=(1, 32, 32), num_classes=10)"),
        (
            {
                "model": "torchvision:squeezenet1_1",
                "dataset": "synthetic",
                "num_examples": 20,
                "model_args": {"dropout": 0.1},
            },
            "get_model('squeezenet1_1', weights=None, dropout=0.1, num_classes=10)",
        ),
        (
            {"dataset": "regression:load_data", "model": "regression:Line", "train": "regression:train"},
            "Line()",
        ),
    ],
    ids=["own", "torchvision", "columns"],
)
def test_models_of_every_kind(
    small: Small,
    command: Sim,
    in_programs: None,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    made: str,
    tmp_path: Path,
) -> None:
    run = small(**{**settings, "num_rounds": 1, "max_local_steps": 1, "partitioner": "iid", "num_clients": 4})
    done = command("export", str(run.path), "-o", str(tmp_path / "model.pt"), cwd=PROGRAMS)
    assert done.returncode == 0, done.stderr
    assert f"net = {made}\n" in done.stdout
    if settings["model"] == "own:WithBatchNorm":
        assert done.stdout.startswith("note            norm.weight, norm.bias, ")
        assert done.stdout.splitlines()[0].endswith(" stay with each client, and have their initial values")
    given = {"inputs": torch.ones(3, 10)} if settings["model"] == "regression:Line" else {}
    side = () if given else dataset_of(run).train.images.shape[1:]  # type: ignore[union-attr]
    names = given or {"images": torch.zeros(3, *side, dtype=torch.uint8)}
    with monkeypatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path, str(PROGRAMS)])
        found = executed(done.stdout, tmp_path, monkeypatch, **names)
    assert found["outputs"].shape == (3, 1 if given else 10)
    assert ("classes" in found) is not bool(given)
    stored = load_file(run.model_path)
    assert all((found["net"].state_dict()[name].numpy() == array).all() for name, array in stored.items())


def test_a_flower_program_keeps_its_model(small: Small, command: Sim, in_programs: None, tmp_path: Path) -> None:
    run = small(client_fn="client_fns:by_context", num_rounds=1, max_local_steps=None)
    done = command("export", str(run.path))
    assert done.returncode == 0, done.stderr
    note = "the model is that of --client-fn, which only the program itself can build"
    assert done.stdout.startswith(
        f"note            {note}\nmodel           model.pt: torch, 7 numbers, after round 1\n"
    )
    state = torch.load(tmp_path / "model.pt", weights_only=True)
    assert [(name, tuple(each.shape)) for name, each in state.items()] == [("array_0", (2, 2)), ("array_1", (3,))]
    pytest.importorskip("onnxscript")
    refused = command("export", str(run.path), "--format", "onnx")
    assert refused.returncode == 2
    assert refused.stderr == f"sim: --format onnx: {note}; torch and safetensors have its arrays\n"
    assert not (tmp_path / "model.onnx").exists()


@pytest.mark.parametrize("output", ["model.pt", "model.safetensors"])
def test_the_arrays_of_a_flower_program_are_loaded_in_their_order(
    small: Small, command: Sim, in_programs: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    run = small(client_fn="client_fns:of_twelve_arrays", num_rounds=1, max_local_steps=None)
    net = nn.Sequential(*(nn.Linear(2, 2, bias=False) for _ in range(12)))
    executed(command("export", str(run.path), "-o", output).stdout, tmp_path, monkeypatch, net=net)
    assert [tensor[0, 0].item() for tensor in net.state_dict().values()] == list(range(12))


def test_a_model_with_settings_of_the_program_and_batches_without_a_target(
    small: Small, command: Sim, in_programs: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = small(program="autoencoder.py", num_rounds=1, max_local_steps=None)
    done = command("export", str(run.path), "-o", str(tmp_path / "model.pt"), cwd=PROGRAMS)
    assert done.returncode == 0, done.stderr
    with monkeypatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path, str(PROGRAMS)])
        found = executed(done.stdout, tmp_path, monkeypatch, inputs=torch.zeros(2, 6))
    assert found["outputs"].shape == (2, 6)


def test_the_model_is_called_as_the_test_of_the_program_calls_it(
    small: Small, command: Sim, in_programs: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = small(program="many_inputs.py", num_rounds=1, max_local_steps=None)
    given = {"time_first": torch.ones(7, 3, 3)}, torch.zeros(1, 3, 5), torch.ones(3, 2)
    done = command("export", str(run.path), "-o", str(tmp_path / "model.pt"), cwd=PROGRAMS)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-5:-1] == [
        "# inputs: {'time_first': float32 [7, B, 3]}, as the program has it",
        "# inputs_1: float32 [1, B, 5], as the program has it",
        "# bias: float32 [B, 2], as the program has it",
        "outputs = net(inputs, inputs_1, 2.0, bias=bias)",
    ]
    with monkeypatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path, str(PROGRAMS)])
        names = dict(zip(("inputs", "inputs_1", "bias"), given, strict=True))
        outputs = executed(done.stdout, tmp_path, monkeypatch, **names)["outputs"].detach().numpy()
    pytest.importorskip("onnxscript")
    done = command("export", str(run.path), "-o", str(tmp_path / "model.onnx"), cwd=PROGRAMS)
    assert done.returncode == 0, done.stderr
    arrays = {"inputs_time_first": given[0]["time_first"], "inputs_1": given[1], "bias": given[2]}
    found = executed(done.stdout, tmp_path, monkeypatch, **{name: each.numpy() for name, each in arrays.items()})
    assert found["outputs"] == pytest.approx(outputs, abs=1e-5)


def test_a_model_with_several_outputs_names_each_of_them(
    small: Small, command: Sim, in_programs: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxscript")
    run = small(program="two_outputs.py", num_rounds=1, max_local_steps=None)
    done = command("export", str(run.path), "-o", str(tmp_path / "model.onnx"), cwd=PROGRAMS)
    assert done.returncode == 0, done.stderr
    assert "outputs_logits, outputs_features = session.run(None, {" in done.stdout
    name = done.stdout.partition('run(None, {"')[2].partition('"')[0]
    found = executed(done.stdout, tmp_path, monkeypatch, **{name: np.ones((3, 4), np.float32)})
    assert (found["outputs_logits"].shape, found["outputs_features"].shape) == ((3, 2), (3, 5))


def test_a_killed_run_has_the_model_of_its_last_checkpoint(finished: Run, command: Sim, tmp_path: Path) -> None:
    run = Run(Path(shutil.copytree(finished.path, tmp_path / "results" / "killed")))
    stored = load_file(run.model_path)
    run.model_path.unlink()
    done = command("export", "killed")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("note            the run is not done: the model is that after 2 of 2\n")
    state = torch.load(tmp_path / "model.pt", weights_only=True)
    assert {name: each.numpy().tobytes() for name, each in state.items()} == {n: a.tobytes() for n, a in stored.items()}
    shutil.rmtree(run.checkpoints_path)
    done = command("export", "killed", "-o", "none.pt")
    assert done.returncode == 2
    assert done.stderr == f"sim: {run.path}: has neither model.safetensors nor a checkpoint that could be read\n"
    assert not (tmp_path / "none.pt").exists()


def test_changed_code_is_said(small: Small, command: Sim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "mine_exported.py"
    shutil.copy(PROGRAMS / "regression.py", program)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    name = "mine_exported"
    run = small(
        dataset=f"{name}:load_data", model=f"{name}:Line", train=f"{name}:train", num_rounds=1, partitioner="iid"
    )
    assert "note" not in command("export", str(run.path)).stdout
    program.write_text(program.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    done = command("export", str(run.path))
    assert done.stdout.startswith("note            the code was changed after the run: mine_exported.py\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("-o", "model.bin"), "-o model.bin: the ending must be one of .pt, .pth, .onnx, .safetensors"),
        (("--format", "onnx", "-o", "model.pt"), "-o model.pt: the ending must be .onnx"),
        (("--format", "torch", "-o", "model.onnx"), "-o model.onnx: the ending must be one of .pt, .pth"),
        (("-o", "nowhere/model.pt"), "-o nowhere/model.pt: there is no folder nowhere"),
    ],
)
def test_wrong_words(finished: Run, command: Sim, tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    done = command("export", str(finished.path), *words)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"sim: {message}\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["model.safetensors", "best.safetensors"])
def test_the_model_of_a_run_is_not_overwritten(finished: Run, command: Sim, name: str) -> None:
    before = finished.model_path.read_bytes()
    result = command("export", str(finished.path), "-o", str(finished.path / name))
    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)
    assert f"{name}: is a file of the run {finished.path.name}; choose another name" in result.stderr
    assert finished.model_path.read_bytes() == before


def test_other_models_and_damage(finished: Run, command: Sim, tmp_path: Path) -> None:
    run = Run(Path(shutil.copytree(finished.path, tmp_path / "results" / "odd")))
    whole, config = run.model_path.read_bytes(), run.config_path.read_text(encoding="utf-8")
    run.model_path.write_bytes(whole[:1000])
    done = command("export", "odd")
    assert done.returncode == 2
    assert done.stderr.startswith(f"sim: {run.model_path}: damaged: SafetensorError: ")
    run.model_path.write_bytes(whole)
    run.config_path.write_text(config.replace('model = "Net"', 'model = "Mlp"'), encoding="utf-8")
    done = command("export", "odd")
    assert done.returncode == 2
    assert done.stderr == f"sim: {run.model_path}: does not fit: its weights are of another model\n"
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


def test_a_centralized_run(command: Sim, tmp_path: Path) -> None:
    assert command("centralized", "--epochs", "1", "--name", "central").returncode == 0
    done = command("export", "central")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("model           model.pt: torch, 61,706 numbers, after epoch 1\nimport torch\n")
    assert next(iter(torch.load(tmp_path / "model.pt", weights_only=True))) == "conv1.weight"

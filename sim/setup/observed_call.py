"""How a program calls its model, as it is seen in a call of its ``test``."""

from __future__ import annotations

from contextlib import redirect_stdout, suppress
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

from torch import nn

from sim.client.own_files import trial_folder
from sim.client.runtime import ClientRuntime, ClientSpec
from sim.process_settings import in_own_context
from sim.seeds import Purpose, seeded
from sim.setup.dry_run import some_examples
from sim.user_variables import isolated

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


@in_own_context
def inputs_in_test(spec: ClientSpec, results_dir: str | Path) -> Inputs | None:
    """Return what the user's ``test`` calls the model with for two examples: by position, and by name.

    A batch does not say it: ``test`` may take one entry of a dict, or several that the model has other names for.

    Args:
        results_dir: in which other runs may write meanwhile.

    Returns:
        None if there is no ``test``, if it raises, or if it does not call the model.
    """
    if spec.test is None:
        return None
    seen: list[Inputs] = []

    def note(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        seen.append((inputs, named))

    runtime = ClientRuntime(replace(spec, device="cpu"))  # where the model is that is exported
    runtime.net.register_forward_pre_hook(note, with_kwargs=True)
    with (
        seeded(0, Purpose.TEST) as stream,
        isolated(stream, log=False),
        trial_folder(Path(results_dir).absolute()),
        redirect_stdout(StringIO()),
        suppress(Exception),
    ):
        runtime.test(runtime.net, some_examples(runtime), runtime.device)
    return seen[0] if seen else None

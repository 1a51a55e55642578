"""What a script has set in its process before it starts a run; the processes that execute clients get the same."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from ray import cloudpickle

from sim.changed_modules import changed_variables, set_variable
from sim.errors import described
from sim.process_settings import computing_settings, use_computing_settings
from sim.training.device import import_threads


class DriverState(NamedTuple):
    """The state of the driver.

    Attributes:
        folders: where it finds modules; a script, a notebook or a module may have added some.
        settings: those of PyTorch and numpy.
        num_threads: of PyTorch, with which the driver has imported the program.
        variables: module → variable → value, which was set from outside of the module's file.
    """

    folders: list[str]
    settings: list[Any]
    num_threads: int
    variables: dict[str, dict[str, bytes]]

    @classmethod
    def of_this_process(cls) -> DriverState:
        """Return what other processes need; what cannot be sent is left out, and said."""
        variables: dict[str, dict[str, bytes]] = {}
        for module, changed in changed_variables().items():
            for name, value in changed.items():
                try:
                    variables.setdefault(module, {})[name] = cloudpickle.dumps(value)
                except Exception:  # noqa: BLE001 - whatever the objects of the user's raise
                    logging.getLogger("sim").warning(
                        "note: what was put into %s.%s cannot be sent to the processes that execute clients; they find "
                        "what its file says, and --engine inline has none",
                        module,
                        name,
                    )
        return cls(
            [str(Path(folder).absolute()) for folder in sys.path], computing_settings(), import_threads(), variables
        )

    def use(self) -> list[str]:
        """Let this process have the same; return what it could not take over, as ``module.variable: reason``."""
        problems = []
        sys.path += [folder for folder in self.folders if folder not in sys.path]
        use_computing_settings(self.settings)
        torch.set_num_threads(self.num_threads)  # until the clients' runtime is set up
        for module, changed in self.variables.items():
            for name, value in changed.items():
                try:
                    set_variable(module, name, cloudpickle.loads(value))
                except Exception as error:  # noqa: BLE001 - whatever the modules and objects of the user's raise
                    problems.append(f"{module}.{name}: {described(error)}")
        return problems

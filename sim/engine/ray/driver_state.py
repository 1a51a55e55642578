"""What a script has set in its process before it starts a run; the processes that execute clients get the same."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

from ray import cloudpickle

from sim.changed_modules import changed_variables, set_variables
from sim.process_settings import computing_settings, use_computing_settings


class DriverState(NamedTuple):
    """The state of the driver.

    Attributes:
        settings: those of PyTorch and numpy.
        variables: module → variable → value, which was set from outside of the module's file.
    """

    settings: list[Any]
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
        return cls(computing_settings(), variables)

    def use(self) -> None:
        """Let this process have the same."""
        use_computing_settings(self.settings)
        set_variables(
            {
                module: {name: cloudpickle.loads(value) for name, value in changed.items()}
                for module, changed in self.variables.items()
            }
        )

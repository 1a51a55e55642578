"""The user's own ``load_data`` function: calls it and opens what it returns."""

from __future__ import annotations

import dis
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from sim import user_code
from sim.data.columns import Columns, ImageSplit
from sim.data.items import Items, opened
from sim.errors import DataError, PluginError, described, one_line
from sim.parameter_roles import Binding
from sim.process_settings import restored_settings
from sim.seeds import Purpose, seeded
from sim.user_variables import called_again

_FORMS = "(train, test) of Datasets, DataLoaders or arrays is expected"
_TEST_NAMES = "test", "val", "valid", "validation"  # of a dict of splits
_TEST_NAME = re.compile(r"test|val|dev|_te$")  # in the name of an array
_MOST_CLASSES = 1_000_000


class Given(NamedTuple):
    """What the function returned.

    Attributes:
        test: None if there is none.
        notes: what the user should know of the choice, one line each.
    """

    train: Any
    test: Any
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ProgramData:
    """The user's function that loads data, and its arguments; every process can call it.

    Attributes:
        function: ``package.module:name``, or the function itself.
        form: ``auto``, ``columns`` or ``items``.
        batch_size: for a function that asks for it; None lets it keep its own default.
        args: the program's own arguments, for a parameter ``args``.
        validation_share: what is held out of the training examples; then the function must return no third split.
    """

    function: str | Callable[..., Any]
    form: str = "auto"
    data_dir: str | None = None
    batch_size: int | None = None
    seed: int = 0
    args: Mapping[str, Any] = field(default_factory=dict)
    validation_share: float = 0.0

    @property
    def place(self) -> str:
        """The flag and the function, for error messages."""
        name = self.function if isinstance(self.function, str) else user_code.name_of(self.function)
        return f"--dataset {name}"

    def loaded(self) -> Callable[..., Any]:
        """Import the function; data in variables of a module become one without parameters.

        Raises:
            PluginError: there is no such function.
        """
        if not isinstance(self.function, str):
            return self.function
        module, _, names = self.function.partition(":")
        first, *others = [
            user_code.load(f"{module}:{name}", "--dataset", callable_only=False) for name in names.split(",")
        ]
        if others:
            return lambda: (first, *others)
        return first if callable(first) else lambda: first

    @property
    def is_partitioned(self) -> bool:
        """Whether the function returns the data of one client, so that the program partitions itself."""
        return self._binding(clients=True).takes("client_id")

    @property
    def is_for_one_client(self) -> bool:
        """Whether the function cannot be called without the number of a client."""
        return "client_id" in self._binding(clients=True).required

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know before it is called, one line each."""
        binding = self._binding(clients=True)
        if self.data_dir is None or binding.takes("data_dir") or binding.open_ended:
            return ()
        return (f"--data-dir {self.data_dir} has no effect: {self.place} has no parameter for it",)

    def _binding(self, *, clients: bool) -> Binding:
        offered = ["data_dir", "batch_size", "seed", "args", *(["client_id", "num_clients"] if clients else [])]
        return Binding.of(self.loaded(), offered, self.place)

    def call(self, client_id: int | None = None, num_clients: int | None = None) -> Given:
        """Call the function.

        Without a client it returns all data; a function of one client is called for the only one of one client.

        What it changes in its process, such as the current folder or PyTorch's default dtype, is put back. Its random
        numbers follow from the seed, so that it splits data alike in every process.

        Raises:
            PluginError: it has a parameter that cannot be given.
            DataError: it raised, or it returned something else.
        """
        alone = client_id is not None
        if not alone and self.is_for_one_client:
            client_id, num_clients = 0, 1
        binding = self._binding(clients=client_id is not None)
        offered: dict[str, Any] = {"args": user_code.arguments(self.args, self.loaded())}
        if "seed" in binding.required:  # a seed of the program's own stays
            offered["seed"] = self.seed
        for role, value in (("data_dir", self.data_dir), ("batch_size", self.batch_size), ("client_id", client_id)):
            if value is not None or role in binding.required:
                offered[role] = value
        offered["num_clients"] = num_clients
        if "batch_size" in binding.required and self.batch_size is None:
            offered["batch_size"] = 8
        with restored_settings(), seeded(self.seed, Purpose.DATA), called_again(binding.function):
            try:
                returned = binding.call(offered)
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                raise DataError(f"{self.place}: raised {described(error)}") from error
        return self._splits(returned, alone=alone)

    def _splits(self, returned: Any, *, alone: bool) -> Given:
        if isinstance(returned, tuple | list) and len(returned) == 4 and all(map(_is_array, returned)):
            return self._of_arrays(*returned)
        if self.validation_share and isinstance(returned, tuple | list | Mapping) and len(returned) > 2:
            raise DataError(
                f"--validation-share {self.validation_share:g}: {self.place} returned {len(returned)} splits, perhaps "
                "one for validation already; let it return (train, test), or leave the flag out"
            )
        if isinstance(returned, Mapping) and "train" in returned:
            test = next((name for name in _TEST_NAMES if name in returned), None)
            if test is not None:
                notes = () if test == "test" else (f"{self.place}: its split {test} is the central test",)
                return Given(returned["train"], returned[test], notes)
        if isinstance(returned, tuple | list) and len(returned) >= 2:
            count = len(returned)
            note = f"{self.place}: of its {count} values, the first is for training and the second for the test"
            return Given(returned[0], returned[1], (note,) if count > 2 else ())
        if alone and returned is not None and not isinstance(returned, tuple | list | Mapping):
            return Given(returned, None)
        shown = type(returned).__name__
        if isinstance(returned, tuple | list):
            shown += f" of length {len(returned)}"
        raise DataError(f"{self.place}: returned {shown}; {_FORMS}")

    def _of_arrays(self, first: Any, second: Any, third: Any, fourth: Any) -> Given:
        """Return (train, test) of x_train, x_test, y_train, y_test, as scikit-learn gives them, or of two pairs."""
        splits = Given((first, third), (second, fourth))
        pairs = Given((first, second), (third, fourth))
        if not (len(first) == len(third) and len(second) == len(fourth) and first.shape[1:] == second.shape[1:]):
            return pairs
        if not (len(first) == len(second) and first.shape[1:] == third.shape[1:] and second.shape == fourth.shape):
            return splits
        is_test = [_TEST_NAME.search(name.lower()) is not None for name in _returned_names(self.loaded())]
        if is_test == [False, False, True, True]:
            return pairs
        if is_test == [False, True, False, True]:
            return splits
        note = (
            f"{self.place}: its four arrays have one shape, and are taken for x_train, x_test, y_train, y_test; "
            "(x_train, y_train), (x_test, y_test) is clear"
        )
        return splits._replace(notes=(note,))

    def opened(self, split: str, given: Any) -> Columns | Items:
        """Open one of the two that ``call`` returned.

        Raises:
            DataError: it cannot be used.
        """
        with restored_settings():
            try:  # the methods of a data set are user code, too
                return opened(f"{self.place}: {split}", given, self.form, is_test=split == "test")
            except (DataError, PluginError):
                raise
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                raise DataError(f"{self.place}: {split}: cannot be read: {one_line(described(error))}") from error


def _is_array(value: Any) -> bool:
    return bool(getattr(value, "ndim", 0))  # of numpy or PyTorch


def _returned_names(function: Callable[..., Any]) -> list[str]:
    """Return the variables of the last ``return a, b, c, d`` in a function; no names of what is computed there.

    They are read in its code, which each process has, and not in its source.
    """
    code = getattr(inspect.unwrap(function), "__code__", None)
    found: list[str] = []
    loaded: list[str] = []
    built: list[str] = []
    for each in dis.get_instructions(code) if code is not None else ():
        if each.opname == "LOAD_ATTR":
            loaded[-1:] = [f"{loaded[-1]}.{each.argval}" if loaded else each.argval]
        elif each.opname.startswith("LOAD_FAST") and isinstance(each.argval, tuple):  # two at once since Python 3.13
            loaded += each.argval
        elif each.opname.startswith("LOAD_"):
            loaded.append(str(each.argval))
        elif each.opname in ("BUILD_TUPLE", "BUILD_LIST") and each.argval == 4:
            built, loaded = loaded[-4:], []
        else:
            found = built if each.opname == "RETURN_VALUE" and built else found
            built, loaded = [], []
    return found


def as_pixels(place: str, columns: Columns) -> ImageSplit | None:
    """Return columns as raw images uint8 [N, H, W, C] and labels int64 [N], if that is what they are; else None.

    Such arrays are what image files hold, and no model takes them as they are, so they are treated like the images of
    the built-in data sets.

    Raises:
        DataError: they are images, but their labels are not whole numbers of at least 0.
    """
    batch = columns.batch
    if not (isinstance(batch, list) and len(batch) == 2 and batch[0].dtype == np.uint8 and batch[0].ndim in (3, 4)):
        return None
    images, labels = batch
    if images.ndim == 4 and images.shape[-1] not in (1, 3, 4):
        return None
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        return None
    if labels.min() < 0 or labels.max() >= _MOST_CLASSES:
        raise DataError(
            f"{place}: labels are {labels.min()} … {labels.max()}; 0 … {_MOST_CLASSES - 1} is possible, and the "
            "largest one gives the number of classes"
        )
    return images if images.ndim == 4 else images[..., None], labels.astype(np.int64)

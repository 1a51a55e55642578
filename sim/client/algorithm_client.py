"""A client that executes the client part of an algorithm around the program's own ``train`` and ``test``."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from flwr.common import NDArrays, Scalar
from torch import Tensor, nn

from sim.algorithms.algorithm import Algorithm, Exchange, Update
from sim.algorithms.by_name import AlgorithmSpec
from sim.client.torch_client import TorchClient
from sim.errors import some
from sim.run_folder.client_states import ClientState
from sim.seeds import restored, saved
from sim.training.step_hooks import AfterStep, BeforeStep, Steps, watched
from sim.training.weights import WeightLayout, array_of, set_weights, state_of, view_weights
from sim.user_variables import OF_THIS_PROCESS

# In the config of an evaluation: test the global model and the client's own, also after so many epochs of training.
FINE_TUNE_EPOCHS = "sim.fine_tune_epochs"
_KEPT = "kept"  # in a state: the arrays that stay with the client; the others are the algorithm's


class AlgorithmClient:
    """One call of a client. It is what algorithms know as ``LocalTraining``."""

    def __init__(
        self,
        client: TorchClient,
        algorithm: Algorithm,
        spec: AlgorithmSpec,
        layout: WeightLayout,
        received: NDArrays,
        config: dict[str, Scalar],
        server_round: int,
        state: ClientState,
    ) -> None:
        """Put the model into the net: what the client kept of it, and what the server sent of the rest.

        Args:
            layout: of the net, without what stays with clients.
            received: the arrays of the model, then those that the server sent beside it.
            state: what the client kept; empty if it never trained.
        """
        self._client, self._algorithm, self._config = client, algorithm, config
        self._have_own = algorithm.HAS_PERSONAL_MODEL or bool(spec.local_names)  # clients, after they trained
        self.net = client.net
        num_weights = len(layout.names)
        self._received, sent = received[:num_weights], received[num_weights:]
        self.is_personal = bool(spec.local_names) and algorithm.is_personal(server_round)
        self._kept = [layout.names.index(name) for name in spec.local_names] if self.is_personal else []
        set_weights(self.net, self._received)
        self._state_of_client = state
        self._shared = layout.trained
        self._names = layout.names
        tensors: list[Any] = self._tensors()
        self.parameters: list[nn.Parameter] = [tensors[position] for position in layout.trained]
        local = set(spec.local_names)
        self.local_parameters: list[nn.Parameter] = [
            p for n, p in zip(layout.names, tensors, strict=True) if n in local and p.requires_grad
        ]
        own = {name: [self._tensor(array) for array in arrays] for name, arrays in state.items() if name != _KEPT}
        start = [parameter.detach().clone() for parameter in self.parameters]
        self.exchange = Exchange(start, [self._tensor(array) for array in sent], own)
        self.metrics: dict[str, Scalar] = {}
        self.optimizers: set[str] = set()  # names of the classes that took steps
        self._is_at_start = True  # the net has the shared parameters that were received
        self.undoes_steps = False  # train writes to the weights after its last step

    @property
    def loader(self) -> Any:
        """The client's training examples."""
        return self._client.loader_for(self._config)

    def fit(self) -> tuple[NDArrays, int, dict[str, Scalar], dict[str, list[Any]]]:
        """Train.

        Returns:
            What is sent, the number of examples, the metrics and the state. Arrays may be views of the net.
        """
        first_loss = None
        self._take_kept()
        if self._config.get("first_loss"):
            first_loss = self._client.loss_of(self._client.train_loader)
        update = self._algorithm.fit(self)
        if first_loss is not None:
            self.metrics["first_loss"] = first_loss
        trained = view_weights(self.net, self._names)
        state = {name: [array_of(tensor) for tensor in tensors] for name, tensors in self.exchange.state.items()}
        if self._kept:
            state[_KEPT] = [trained[position] for position in self._kept]
        num_examples = self._client.train_loader.num_examples
        return self._to_send(trained, update), num_examples, {**self.metrics, **update.metrics}, state

    def evaluate(self) -> tuple[float, int, dict[str, Scalar]]:
        """Test the client's own model, and the global one beside it, on the examples that the client kept.

        Where clients have own models, one that never trained gives both as well, so that means are over the same
        clients.
        """
        num_examples = self._client.test_loader.num_examples
        if num_examples == 0:
            return 0.0, 0, {}
        with restored():
            loss, metrics = self._client.test_net()
        is_own = self.personalize()
        if not (is_own or self._have_own):
            return loss, num_examples, metrics
        in_general = {f"global_{name}": value for name, value in {"loss": loss, **metrics}.items()}
        if is_own:
            loss, metrics = self._client.test_net()
        return loss, num_examples, {**metrics, **in_general}

    def evaluate_all(self, epochs: int, begin_tuning: Callable[[], object]) -> tuple[int, dict[str, dict[str, Scalar]]]:
        """Test both models on the examples that the client kept, also after fine-tuning.

        The first two are tested with the random numbers that ``evaluate`` draws.

        Args:
            epochs: of the fine-tuning, which is the program's ``train`` on the whole model; 0 for none.
            begin_tuning: seeds a fine-tuning and the test after it.

        Returns:
            The number of examples, and loss and metrics by model: global, own, global_tuned and own_tuned.
        """
        num_examples = self._client.test_loader.num_examples
        if num_examples == 0:
            return 0, {}
        with restored():
            found = {"global": self._tested()}
        in_general = self.weights()
        is_other = self.personalize()
        found["own"] = self._tested() if is_other else found["global"]
        if epochs:
            own = self.weights() if is_other else in_general
            for name, weights in (("global_tuned", in_general), ("own_tuned", own))[: 1 + is_other]:
                self.load(weights)
                begin_tuning()
                self._client.train_net(self._config, epochs=epochs)
                found[name] = self._tested()
            found.setdefault("own_tuned", found["global_tuned"])
        return num_examples, found

    def _tested(self) -> dict[str, Scalar]:
        loss, metrics = self._client.test_net()
        return {**metrics, "loss": loss}

    def personalize(self) -> bool:
        """Turn the net into the client's own model; return whether that is another one than the global one."""
        has_kept = self._take_kept()
        return self._algorithm.personalize(self) or has_kept

    def _take_kept(self) -> bool:
        kept = self._state_of_client.get(_KEPT)
        if not self._kept or kept is None:
            return False
        with torch.no_grad():
            tensors = self._tensors()
            for position, array in zip(self._kept, kept, strict=True):
                tensors[position].copy_(self._tensor(array))
        return True

    def _to_send(self, trained: NDArrays, update: Update) -> NDArrays:
        for position in self._kept:
            trained[position] = self._received[position]
        if update.shared is not None:
            for position, tensor in zip(self._shared, update.shared, strict=True):
                trained[position] = array_of(tensor)
        return [*trained, *(array_of(tensor) for tensor in update.extras)]

    def train(
        self,
        *,
        epochs: int | None = None,
        repeats: int = 1,
        before: BeforeStep | None = None,
        after: AfterStep | None = None,
        prefix: str | None = "",
        must_step: bool = False,
    ) -> Steps:
        """Call the program's ``train`` on the net."""
        config, loader = self._config, self.loader
        if repeats > 1:
            config = {**config, "max_steps": int(config.get("max_steps") or 0) * repeats}
            loader = _Repeated(loader, repeats)
        begin = self.exchange.start
        if must_step and not self._is_at_start:
            begin = [parameter.detach().clone() for parameter in self.parameters]
        self._is_at_start = False
        with watched(self.parameters, before, after) as steps:
            metrics = self._client.train_net(config, loader, epochs)
        tensors = self._tensors()
        pairs = zip(self._shared, self.parameters, strict=True)
        anew = [self._names[position] for position, parameter in pairs if tensors[position] is not parameter]
        if anew:
            raise ValueError(f"train puts new parameters in the place of {some(anew)}, whose steps cannot be corrected")
        if repeats > 1 and steps.count and not loader.is_used:
            raise ValueError(
                f"train does not iterate over the loader that it gets, which gives each batch {repeats} times"
            )
        if must_step and not steps.count and len(loader) and not self._accumulated(begin):
            raise ValueError(
                "train took no step of an optimizer of torch.optim on the model that it was given, so that its "
                "gradients could not be corrected"
            )
        self.optimizers |= steps.optimizers
        self.undoes_steps |= steps.are_undone
        if prefix is not None:
            self.metrics.update({f"{prefix}{name}": value for name, value in metrics.items()})
        return steps

    def _accumulated(self, begin: Sequence[Tensor]) -> bool:
        """Whether train has computed gradients and left the weights as at ``begin``, to step after more batches."""
        has_gradients = any(parameter.grad is not None for parameter in self.parameters)
        return has_gradients and all(map(torch.equal, self.parameters, begin))

    def rewindable(self) -> Callable[[], None]:
        """Return a function that puts random generators and variables of user code back to what they are now."""
        global_generators, of_user_code = saved(), OF_THIS_PROCESS.saved()

        def put_back() -> None:
            global_generators()
            of_user_code()

        return put_back

    def weights(self) -> list[Tensor]:
        """Return a copy of all arrays of the net."""
        return [tensor.detach().clone() for tensor in self._tensors()]

    @torch.no_grad()
    def load(self, weights: Sequence[Tensor]) -> None:
        """Put all arrays into the net."""
        self._is_at_start = False
        for tensor, value in zip(self._tensors(), weights, strict=True):
            tensor.copy_(value)

    def _tensors(self) -> list[Tensor]:
        """Return the parameters and buffers of the net; a forward pass may have replaced a buffer by another one."""
        state = state_of(self.net, keep_vars=True)
        return [state[name] for name in self._names]

    def _tensor(self, array: Any) -> Tensor:
        # Nothing writes to it; a copy is made only of what PyTorch would warn of, because it cannot be written.
        return torch.from_numpy(array if array.flags.writeable else np.array(array)).to(self._client.device)


class _Repeated:
    """A loader that gives each batch several times in a row."""

    def __init__(self, loader: Any, times: int) -> None:
        self._loader, self._times = loader, times
        self.is_used = False

    def __len__(self) -> int:
        return len(self._loader) * self._times

    def __iter__(self) -> Iterator[Any]:
        self.is_used = True
        for batch in self._loader:
            for _ in range(self._times - 1):
                yield copy.deepcopy(batch)  # a train may change it in place
            yield batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

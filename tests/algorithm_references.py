"""Twelve algorithms in numpy, each from its paper's equations, for a model with two linear layers.

Weights are one vector; BODY and HEAD say which of its numbers belong to a layer. An algorithm returns the global
weights after the last round, and the weights with which each client is evaluated. Nothing here imports sim.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Batch = tuple[Vector, Vector]  # inputs [n, 3] and targets [n, 2]
Gradient = Callable[[Vector, Batch], Vector]
Weighting = Literal["examples", "uniform"]
Result = tuple[Vector, list[Vector]]

INPUTS, FEATURES, OUTPUTS = 3, 4, 2
LINEAR = {
    "body.weight": (FEATURES, INPUTS),
    "body.bias": (FEATURES,),
    "head.weight": (OUTPUTS, FEATURES),
    "head.bias": (OUTPUTS,),
}
NORMALISED = {
    **LINEAR,
    "norm.weight": (FEATURES,),
    "norm.bias": (FEATURES,),
    "norm.running_mean": (FEATURES,),
    "norm.running_var": (FEATURES,),
}


def named(w: Vector) -> dict[str, Vector]:
    """Return the arrays of a vector by their names in the state_dict."""
    found, first = {}, 0
    for name, shape in NORMALISED.items():
        if first < len(w):
            size = int(np.prod(shape))
            found[name] = w[first : first + size].reshape(shape)
            first += size
    return found


def joined(arrays: dict[str, Any]) -> Vector:
    """Return the vector of these arrays; the reverse of ``named``."""
    return np.concatenate([np.ravel(arrays[name]) for name in NORMALISED if name in arrays]).astype(np.float64)


def _which(layer: str, shapes: dict[str, tuple[int, ...]]) -> NDArray[np.bool_]:
    return joined({name: np.full(shape, name.startswith(layer)) for name, shape in shapes.items()}).astype(np.bool_)


BODY, HEAD, NONE = (_which(layer, LINEAR) for layer in ("body", "head", "none"))
NORM = _which("norm", NORMALISED)


def loss(w: Vector, batch: Batch) -> float:
    """Return the mean square error over all outputs, as torch.nn.functional.mse_loss defines it."""
    p, (x, y) = named(w), batch
    outputs = (x @ p["body.weight"].T + p["body.bias"]) @ p["head.weight"].T + p["head.bias"]
    return float(np.mean((outputs - y) ** 2))


def gradient(w: Vector, batch: Batch) -> Vector:
    """Return the gradient of ``loss``."""
    p, (x, y) = named(w), batch
    z = x @ p["body.weight"].T + p["body.bias"]
    r = 2 / y.size * (z @ p["head.weight"].T + p["head.bias"] - y)
    dz = r @ p["head.weight"]
    return joined(
        {"body.weight": dz.T @ x, "body.bias": dz.sum(0), "head.weight": r.T @ z, "head.bias": r.sum(0)},
    )


@dataclass(frozen=True)
class Federation:
    """What all algorithms begin with.

    Attributes:
        train, test: the examples of each client, in the order in which they make batches.
        rounds: the clients that train in each round.
        lr, momentum: of the clients' SGD, which is that of PyTorch.
        lr_decay: factor of the learning rate after each step of a round.
    """

    train: list[Batch]
    test: list[Batch]
    initial: Vector
    rounds: list[list[int]]
    lr: float
    epochs: int
    batch_size: int
    momentum: float = 0.0
    lr_decay: float = 1.0

    @property
    def count(self) -> int:
        """The number of clients, N."""
        return len(self.train)

    def batches(self, k: int, epochs: int | None = None) -> list[Batch]:
        """Return the batches of client k in one round."""
        x, y = self.train[k]
        starts = range(0, len(x), self.batch_size)
        once = [(x[i : i + self.batch_size], y[i : i + self.batch_size]) for i in starts]
        return once * (self.epochs if epochs is None else epochs)

    def sgd(self, w: Vector, batches: list[Batch], grad: Gradient = gradient) -> Vector:
        """Return the weights after a step on each batch."""
        buffer = np.zeros_like(w)
        for number, batch in enumerate(batches):
            buffer = self.momentum * buffer + grad(w, batch)
            w = w - self.lr * self.lr_decay**number * buffer
        return w

    def shares(self, clients: list[int], weighting: str) -> Vector:
        """Return the weights of clients in a mean; their sum is 1."""
        sizes = np.array([len(self.train[k][0]) if weighting == "examples" else 1 for k in clients])
        return sizes / sizes.sum()

    def mean(self, vectors: dict[int, Vector], weighting: str) -> Vector:
        """Return the mean over the clients."""
        return self.shares(list(vectors), weighting) @ np.stack(list(vectors.values()))


def fedavg(f: Federation, weighting: Weighting = "examples") -> Result:
    """McMahan et al. 2017, algorithm 1."""
    w = f.initial
    for clients in f.rounds:
        w = f.mean({k: f.sgd(w, f.batches(k)) for k in clients}, weighting)
    return w, [w] * f.count


def scaffold(
    f: Federation,
    option: int = 2,
    eta_g: float = 1.0,
    weighting: Weighting = "uniform",
    local: NDArray[np.bool_] = NONE,
) -> Result:
    """Karimireddy et al. 2020, algorithm 1: all control variates begin at zero.

    The paper's clients use plain SGD with one learning rate, for which ‖a‖₁ = K. With another solver, ‖a‖₁ η is the sum
    of the rates with which the gradients of a round count, so that option II remains a mean of gradients.
    """
    x, c = f.initial, np.zeros_like(f.initial)
    own = [c] * f.count
    kept = [x] * f.count
    for clients in f.rounds:
        y, change = {}, {}
        for k in clients:
            batches = f.batches(k)
            start = np.where(local, kept[k], x)
            correction = np.where(local, 0, c - own[k])  # line 10: y ← y − η_l (g(y) − c_k + c)
            y[k] = kept[k] = f.sgd(start, batches, lambda w, b, d=correction: gradient(w, b) + d)  # type: ignore[misc]
            option_1 = gradient(start, f.train[k])  # line 12 (i): one more pass over the client's data at x
            option_2 = own[k] - c + (x - y[k]) / (coefficient_sum(f, len(batches), 0) * f.lr)  # line 12 (ii)
            new = option_1 if option == 1 else option_2
            change[k], own[k] = new - own[k], new
        x = np.where(local, x, x + eta_g * (f.mean(y, weighting) - x))  # lines 16 and 17
        c = c + len(clients) / f.count * f.mean(change, "uniform")
    return x, [np.where(local, kept[k], x) for k in range(f.count)]


def coefficient_sum(f: Federation, steps: int, mu: float) -> float:
    """Return ‖a‖₁ of FedNova for a local solver: where gradients that are all 1 lead after ``steps`` steps, over −η.

    The gradients enter the sum of a local update linearly, with the coefficients a (Wang et al. 2020, section 4). None
    of them is negative for the settings of the tests, so that this is their norm. The gradient of the proximal term is
    part of what momentum collects, as that of a term of the loss would be.
    """
    x = f.sgd(np.zeros(1), f.batches(0)[:1] * steps, lambda w, _: 1 + mu * w)
    return float(-x[0] / f.lr)


def fednova(f: Federation, mu: float = 0.0, weighting: Weighting = "examples") -> Result:
    """Wang et al. 2020, the rule of FedNova: w ← w − τ_eff Σ p_k η d_k with η d_k = (w − w_k) / ‖a_k‖₁."""
    w = f.initial
    for clients in f.rounds:
        p = f.shares(clients, weighting)
        trained = [f.sgd(w, f.batches(k), lambda v, b, w0=w: gradient(v, b) + mu * (v - w0)) for k in clients]  # type: ignore[misc]
        norms = np.array([coefficient_sum(f, len(f.batches(k)), mu) for k in clients])
        w = w - (p @ norms) * sum(p_k * (w - v) / a for p_k, v, a in zip(p, trained, norms, strict=True))
    return w, [w] * f.count


def feddyn(f: Federation, alpha: float = 0.01, weighting: Weighting = "uniform") -> Result:
    """Acar et al. 2021, algorithm 1, with SGD for the minimum of each client; h is divided by all N clients.

    With weights by examples, which the paper does not have, both means have them: h = 0 is then the first-order
    condition of the weighted objective.
    """
    theta, h = f.initial, np.zeros_like(f.initial)
    linear = [h] * f.count  # ∇L_k(θ_k) of the last round in which the client took part
    for clients in f.rounds:
        trained = {}
        for k in clients:
            g = linear[k]
            trained[k] = f.sgd(theta, f.batches(k), lambda w, b, g=g, t=theta: gradient(w, b) - g + alpha * (w - t))  # type: ignore[misc]
            linear[k] = g - alpha * (trained[k] - theta)
        mean = f.mean(trained, weighting)
        h = h - alpha * len(clients) / f.count * (mean - theta)
        theta = mean - h / alpha
    return theta, [theta] * f.count


def contrastive_gradient(w: Vector, batch: Batch, w_global: Vector, previous: Vector, tau: float) -> Vector:
    """Return the gradient of the mean over a batch of Li, He, Song 2021, equation 3; z is what the head gets."""
    variable = torch.tensor(w, requires_grad=True)

    def z(weights: torch.Tensor) -> torch.Tensor:
        size = INPUTS * FEATURES
        body = weights[:size].reshape(FEATURES, INPUTS)
        return torch.tensor(batch[0]) @ body.T + weights[size : size + FEATURES]

    def similarity(other: Vector) -> torch.Tensor:
        a, b = z(variable), z(torch.tensor(other))
        return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))

    to_global, to_previous = similarity(w_global) / tau, similarity(previous) / tau
    value = -torch.log(to_global.exp() / (to_global.exp() + to_previous.exp())).mean()
    found: Vector = torch.autograd.grad(value, variable)[0].numpy()
    return found


def moon(f: Federation, mu: float = 1.0, tau: float = 0.5, weighting: Weighting = "examples") -> Result:
    """Li, He, Song 2021, algorithm 1 and equation 3; the previous model of a new client is the one that it gets."""
    w = f.initial
    previous: dict[int, Vector] = {}
    for clients in f.rounds:
        trained = {}
        for k in clients:
            before = previous.get(k, w)

            def grad(v: Vector, batch: Batch, w: Vector = w, old: Vector = before) -> Vector:
                return gradient(v, batch) + mu * contrastive_gradient(v, batch, w, old, tau)

            previous[k] = trained[k] = f.sgd(w, f.batches(k), grad)
        w = f.mean(trained, weighting)
    return w, [w] * f.count


def ditto(f: Federation, lam: float = 0.1, personal_epochs: int = 0, weighting: Weighting = "uniform") -> Result:
    """Li et al. 2021, algorithm 1: v_k ← v_k − η (∇F_k(v_k) + λ (v_k − w^t)); v_k begins at the first w^t it gets."""
    w = f.initial
    own: dict[int, Vector] = {}
    for clients in f.rounds:
        for k in clients:
            batches = f.batches(k, personal_epochs or None)
            own[k] = f.sgd(own.get(k, w), batches, lambda v, b, w=w: gradient(v, b) + lam * (v - w))  # type: ignore[misc]
        w = f.mean({k: f.sgd(w, f.batches(k)) for k in clients}, weighting)
    return w, [own.get(k, w) for k in range(f.count)]


def fedper(f: Federation, local: NDArray[np.bool_] = HEAD, weighting: Weighting = "examples") -> Result:
    """Arivazhagan et al. 2019, algorithms 1 and 2: all layers train together, and the local ones are not averaged."""
    w = f.initial
    own = [f.initial] * f.count
    for clients in f.rounds:
        trained = {k: f.sgd(np.where(local, own[k], w), f.batches(k)) for k in clients}
        own = [trained.get(k, own[k]) for k in range(f.count)]
        w = np.where(local, w, f.mean(trained, weighting))
    return w, [np.where(local, own[k], w) for k in range(f.count)]


def fedrep(f: Federation, head_epochs: int = 10, body_epochs: int = 1, weighting: Weighting = "uniform") -> Result:
    """Collins et al. 2021, algorithm 1: steps of the head with the body that came, then steps of the body."""
    w = f.initial
    own = [f.initial] * f.count
    for clients in f.rounds:
        trained = {}
        for k in clients:
            start = np.where(HEAD, own[k], w)
            own[k] = f.sgd(start, f.batches(k, head_epochs), lambda v, b: np.where(HEAD, gradient(v, b), 0))
            trained[k] = f.sgd(own[k], f.batches(k, body_epochs), lambda v, b: np.where(BODY, gradient(v, b), 0))
        w = np.where(HEAD, w, f.mean(trained, weighting))
    return w, [np.where(HEAD, own[k], w) for k in range(f.count)]


def lg_fedavg(f: Federation, weighting: Weighting = "examples") -> Result:
    """Liang et al. 2020, algorithm 1: the representation is local, and the head on it is averaged."""
    return fedper(f, BODY, weighting)


def fedbabu(
    f: Federation, fine_tune_epochs: int = 5, fine_tune: str = "head", weighting: Weighting = "examples"
) -> Result:
    """Oh et al. 2022, algorithm 1: the head is never trained in a round; evaluation fine-tunes it."""
    w = f.initial
    for clients in f.rounds:
        trained = {k: f.sgd(w, f.batches(k), lambda v, b: np.where(BODY, gradient(v, b), 0)) for k in clients}
        w = f.mean(trained, weighting)
    tuned = {"head": ~BODY, "body": BODY, "whole": BODY | ~BODY}[fine_tune]
    batches = [f.batches(k, fine_tune_epochs) for k in range(f.count)]
    return w, [f.sgd(w, each, lambda v, b: np.where(tuned, gradient(v, b), 0)) for each in batches]


def apfl(f: Federation, alpha: float = 0.5, adaptive: bool = False, weighting: Weighting = "uniform") -> Result:
    """Deng et al. 2020, algorithm 1 and the rule for adaptive α. With v̄ = α v + (1 − α) w, all of step t − 1:

    w ← w − η ∇f(w), v ← v − η α ∇f(v̄), and α ← α − η ⟨v − w, ∇f(v̄)⟩, clipped to 0 … 1.

    The paper leaves open what v begins at; here it is the first w that the client gets, as for Ditto.
    """
    w = f.initial
    own: dict[int, Vector] = {}
    alphas = dict.fromkeys(range(f.count), alpha)
    for clients in f.rounds:
        trained = {}
        for k in clients:
            u, v, a = w, own.get(k, w), alphas[k]
            for batch in f.batches(k):
                g = gradient(a * v + (1 - a) * u, batch)
                new = float(np.clip(a - f.lr * (v - u) @ g, 0, 1)) if adaptive else a
                u, v, a = u - f.lr * gradient(u, batch), v - f.lr * a * g, new
            trained[k], own[k], alphas[k] = u, v, a
        w = f.mean(trained, weighting)
    return w, [a * own.get(k, w) + (1 - a) * w for k, a in alphas.items()]


def pfedme(
    f: Federation,
    lam: float = 15.0,
    steps: int = 5,
    eta: float = 0.005,
    beta: float = 1.0,
    weighting: Weighting = "uniform",
) -> Result:
    """Dinh et al. 2020, algorithm 1: for each batch K steps to θ, then w_k ← w_k − η λ (w_k − θ)."""
    w = f.initial
    own: dict[int, Vector] = {}
    for clients in f.rounds:
        trained = {}
        for k in clients:
            v = theta = w
            for batch in f.batches(k):
                theta = f.sgd(theta, [batch] * steps, lambda t, b, v=v: gradient(t, b) + lam * (t - v))  # type: ignore[misc]
                v = v - eta * lam * (v - theta)
            trained[k], own[k] = v, theta
        w = (1 - beta) * w + beta * f.mean(trained, weighting)
    return w, [own.get(k, w) for k in range(f.count)]


# BatchNorm between body and head.
_EPSILON, _STATISTICS_RATE = 1e-5, 0.1


def normalised_loss(w: Vector, batch: Batch) -> float:
    """Return the loss in evaluation mode, with the running statistics."""
    p, (x, y) = named(w), batch
    z = x @ p["body.weight"].T + p["body.bias"]
    z = (z - p["norm.running_mean"]) / np.sqrt(p["norm.running_var"] + _EPSILON) * p["norm.weight"] + p["norm.bias"]
    return float(np.mean((z @ p["head.weight"].T + p["head.bias"] - y) ** 2))


def normalised_step(w: Vector, batch: Batch, lr: float) -> Vector:
    """Return the weights after a step of SGD in training mode, with the running statistics that it leaves."""
    p, (x, y) = named(w), batch
    z = x @ p["body.weight"].T + p["body.bias"]
    mean, variance = z.mean(0), z.var(0)
    deviation = np.sqrt(variance + _EPSILON)
    unit = (z - mean) / deviation
    scaled = unit * p["norm.weight"] + p["norm.bias"]
    r = 2 / y.size * (scaled @ p["head.weight"].T + p["head.bias"] - y)
    d_scaled = r @ p["head.weight"]
    d_unit = d_scaled * p["norm.weight"]
    dz = (d_unit - d_unit.mean(0) - unit * (d_unit * unit).mean(0)) / deviation
    grads = {
        "body.weight": dz.T @ x,
        "body.bias": dz.sum(0),
        "norm.weight": (d_scaled * unit).sum(0),
        "norm.bias": d_scaled.sum(0),
        "head.weight": r.T @ scaled,
        "head.bias": r.sum(0),
    }
    seen = {"norm.running_mean": mean, "norm.running_var": variance * len(x) / (len(x) - 1)}
    steps = {name: p[name] - lr * g for name, g in grads.items()}
    running = {name: (1 - _STATISTICS_RATE) * p[name] + _STATISTICS_RATE * value for name, value in seen.items()}
    return joined({**steps, **running})


def fedbn(f: Federation, weighting: Weighting = "examples") -> Result:
    """Li et al. 2021, algorithm 1: everything of BatchNorm stays with the client, the running statistics as well."""
    w = f.initial
    own = [f.initial] * f.count
    for clients in f.rounds:
        trained = {}
        for k in clients:
            v = np.where(NORM, own[k], w)
            for batch in f.batches(k):
                v = normalised_step(v, batch, f.lr)
            own[k] = trained[k] = v
        w = np.where(NORM, w, f.mean(trained, weighting))
    return w, [np.where(NORM, own[k], w) for k in range(f.count)]


def reference(strategy: str, f: Federation, arguments: dict[str, Any]) -> Result:
    """Return what an algorithm gives with arguments under the names of --strategy-args."""
    renamed = {{"lambda": "lam", "K": "steps"}.get(name, name): value for name, value in arguments.items()}
    result: Result = globals()[strategy.replace("-", "_")](f, **renamed)
    return result

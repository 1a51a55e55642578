"""Codecs, encoded rounds and bytes, with numbers that were computed by hand."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from conftest import Sim, sha256
from sim import Run, RunConfig, resume, simulate
from sim.client.torch_client import fit_settings
from sim.compression.by_name import Compression
from sim.compression.codec import Codec
from sim.compression.message import RESIDUAL, Message, expected_bytes
from sim.engine.client_execution import Worker
from sim.engine.interface import Chunk, Task
from sim.errors import ConfigError, RunFolderError
from sim.run_folder.client_states import StatesInFolder
from sim.server.prepared_run import ProgramObjects
from sim.server.traffic import Traffic
from sim.setup.prepare import prepare
from sim.setup.trained import TrainedModel

pytestmark = pytest.mark.usefixtures("no_pictures")

CODECS = ["topk:0.3", "topk:1", "qsgd:1", "qsgd:8", "qsgd:16", "int8", "fp16", "bf16", "sign"]


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def codec_of(name: str) -> Codec:
    codec = Compression.of({"up": name}).up
    assert codec is not None
    return codec


def through(name: str, values: Any, dtype: Any = np.float32) -> tuple[bytes, list[float]]:
    """Encode and decode; return the bytes and what comes out."""
    array = np.array(values, dtype)
    content = codec_of(name).encode(array, rng())
    decoded = codec_of(name).decode(content, array.shape, array.dtype)
    assert (decoded.shape, decoded.dtype) == (array.shape, array.dtype)
    assert len(content) == codec_of(name).num_bytes(array.shape, array.dtype)
    return content, decoded.tolist()


def test_topk_sends_positions_and_numbers() -> None:
    content, decoded = through("topk:0.5", [1, -3, 3, 2])
    assert content == b"\x01\x02" + struct.pack("<2f", -3, 3)
    assert decoded == [0, -3, 3, 0]
    assert through("topk:0.25", [1, -3, 3, -3]) == (b"\x01" + struct.pack("<f", -3), [0, -3, 0, 0])  # the first
    content, decoded = through("topk:0.01", [[0.0] * 150, [0.0] * 149 + [0.5]], np.float64)
    assert content == struct.pack("<3H3d", 0, 1, 299, 0, 0, 0.5)  # 300 numbers, so that a position takes two bytes
    assert decoded[1][-1] == 0.5


def test_topk_takes_the_share_exactly() -> None:
    codec = codec_of("topk:0.1")  # 0.1 · 30 is 3.0000000000000004 in floating point
    assert [codec.num_bytes((size,), np.dtype(np.float32)) for size in (1, 10, 11, 30, 31)] == [5, 5, 10, 15, 20]


def test_qsgd_packs_signs_and_levels() -> None:
    content, decoded = through("qsgd:2", [0, -1])  # levels 0 and 3 of 3, whatever is drawn
    assert content == struct.pack("<f", 1) + bytes([0b01_01_01_00])  # signs, high bits, low bits
    assert decoded == [0, -1]
    u = rng().random(3)
    _, decoded = through("qsgd:3", [2, -3, 6])
    levels = np.floor(np.array([2, 3, 6]) / 7 * 7 + u)
    assert decoded == pytest.approx((levels * [1, -1, 1]).tolist())
    assert through("qsgd:8", [0.0] * 5) == (bytes(4 + math.ceil(5 * 9 / 8)), [0] * 5)


@pytest.mark.slow
def test_qsgd_is_right_on_the_average() -> None:
    array = np.array([0.3, -0.7, 0.05, 0.0], np.float32)
    codec, generator = codec_of("qsgd:1"), rng()
    draws = 20_000
    total = sum(codec.decode(codec.encode(array, generator), (4,), array.dtype).astype(float) for _ in range(draws))
    norm = float(np.linalg.norm(array))
    bound = 5 * norm / 2 / np.sqrt(draws)  # five standard deviations; a number between two levels has at most half
    assert np.abs(total / draws - array).max() < bound
    assert (total / draws)[3] == 0


def test_int8_counts_in_units_of_the_largest() -> None:
    content, decoded = through("int8", [127, -1, 0.4, 2.5, 3.5, -127])
    assert content == struct.pack("<f6b", 1, 127, -1, 0, 2, 4, -127)  # ties go to the even one
    assert decoded == [127, -1, 0, 2, 4, -127]


def test_short_floating_point_numbers_are_rounded_to_the_nearest_even_and_never_infinite() -> None:
    content, decoded = through("fp16", [1, 2049, 2051, 65519, 1e6, -1e6])
    assert content == np.array([1, 2048, 2052, 65504, 65504, -65504], "<f2").tobytes()
    assert decoded == [1, 2048, 2052, 65504, 65504, -65504]
    content, decoded = through("bf16", [1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-7, 3.4e38])
    assert content == struct.pack("<4H", 0x3F80, 0x3F82, 0xBF81, 0x7F7F)
    assert decoded == [1, 1 + 2**-6, -1 - 2**-7, float(np.uint32(0x7F7F0000).view(np.float32))]


def test_sign_sends_the_mean_magnitude() -> None:
    content, decoded = through("sign", [1, -2, 0, 3])
    assert content == struct.pack("<fB", 1.5, 0b0100_0000)
    assert decoded == [1.5, -1.5, 1.5, 1.5]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("name", CODECS)
def test_every_codec_takes_what_it_says_and_gives_finite_numbers(name: str, dtype: Any) -> None:
    for shape in ((), (1,), (3, 5), (255,), (257,), (65_537,)):
        array = np.random.default_rng(1).normal(size=shape).astype(dtype)
        through(name, array, dtype)
    info = np.finfo(dtype)
    for value in (0, info.max, -info.max, info.smallest_subnormal):
        assert np.isfinite(through(name, [value] * 3, dtype)[1]).all()
    transposed = np.arange(6, dtype=dtype).reshape(2, 3).T
    codec = codec_of(name)
    assert codec.encode(transposed, rng()) == codec.encode(transposed.copy(), rng())


LEFT_ALONE: list[NDArray[Any]] = [
    np.array([1, 300], np.int64),
    np.array([True, False]),
    np.zeros((0, 3), np.float32),
    np.array([0, -np.inf], np.float32),
    np.array([np.nan], np.float64),
]


@pytest.mark.parametrize("name", CODECS)
def test_what_is_no_finite_floating_point_number_is_sent_as_it_is(name: str) -> None:
    compression = Compression.of({"up": name, **({} if name[:4] in ("topk", "sign") else {"down": name})})
    sent = [array.copy() for array in LEFT_ALONE]
    sent[0] += 1
    arrays, num_bytes, _ = Message().reconstructed(sent, LEFT_ALONE, compression, rng())
    assert num_bytes == 16 + 2 + 0 + 8 + 8
    assert all(np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in zip(arrays, sent, strict=True))
    assert expected_bytes(LEFT_ALONE, compression) == (34, 34)
    averaged = [np.array([1.5, 300.5], np.float64)]  # as Flower's strategies make of integers
    arrays, num_bytes, _ = Message().reconstructed([np.array([2, 301], np.int64)], averaged, compression, rng())
    assert (num_bytes, arrays[0].tolist()) == (16, [2, 301])
    if compression.down is not None:
        received = Message().received(LEFT_ALONE, compression.down, rng())
        assert all(a is b for a, b in zip(received, LEFT_ALONE, strict=True))


def test_untrained_arrays_are_plain_kept_ones_are_not_sent_and_tied_ones_once() -> None:
    start = [np.zeros(4, np.float32) for _ in range(5)]
    sent = [np.array([1, 2, 3, 4], np.float32) for _ in start]
    message = Message(plain=frozenset({1}), kept=frozenset({2}), tied={3: 0})
    compression = Compression.of({"up": "topk:0.25", "down": "fp16"})
    arrays, num_bytes, lost = message.reconstructed(sent, start, compression, rng(), values=[4])
    assert [array.tolist() for array in arrays] == [
        [0, 0, 0, 4],
        [1, 2, 3, 4],
        [1, 2, 3, 4],
        [0, 0, 0, 4],
        [0, 0, 0, 4],
    ]
    assert (num_bytes, lost) == (5 + 16 + 0 + 0 + 5, [])
    assert expected_bytes(start, compression, message) == (8 + 16 + 0 + 0 + 8, num_bytes)
    assert expected_bytes(start, Compression(), message) == (48, 48)
    weights = [np.full(2, 0.1, np.float32) for _ in range(4)]
    half = float(np.float32(np.float16(0.1)))
    codec = compression.down
    assert codec is not None
    received = message.received(weights, codec, rng())
    assert [float(array[0]) for array in received] == [half, float(np.float32(0.1)), float(np.float32(0.1)), half]
    assert received[3] is received[0]


def test_values_are_encoded_themselves_and_updates_as_differences() -> None:
    start, sent = [np.array([10.0, 20.0])] * 2, [np.array([10.5, 23.0])] * 2
    compression = Compression.of({"up": "topk:0.5", "error_feedback": True})
    arrays, _, lost = Message().reconstructed(sent, start, compression, rng(), values=[1])
    assert [array.tolist() for array in arrays] == [[10, 23], [0, 23]]
    assert [array.tolist() for array in lost] == [[0.5, 0], [10.5, 0]]


def test_an_update_beyond_its_dtype_is_an_error_of_the_client() -> None:
    most = np.finfo(np.float32).max
    with pytest.raises(ValueError, match="the update of array 0 is too large for float32"):
        Message().reconstructed([np.array([most])], [np.array([-most])], Compression.of({"up": "int8"}), rng())


class Three(nn.Module):
    """Three numbers that are trained, and a frozen one beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(3))
        self.frozen = nn.Parameter(torch.tensor(0.1), requires_grad=False)
        self.register_buffer("count", torch.tensor(0))

    def forward(self, x: torch.Tensor) -> Any:
        return (x * self.w).sum(1)


def train(net: Any, loader: Any, epochs: int) -> float:
    """Add the client's own numbers, which its examples are."""
    (x, _), *_ = loader
    with torch.no_grad():
        net.w += x[0]
        net.count += 1
    return 0.0


def train_by_sgd(net: Any, loader: Any, epochs: int, lr: float) -> float:
    """Step once."""
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    for x, y in loader:
        optimizer.zero_grad()
        nn.functional.mse_loss(net(x), y).backward()
        optimizer.step()
    return 0.0


MOVES = {0: [4.0, 1.0, 2.0], 1: [-1.0, 3.0, -2.0]}
FROZEN, COUNT, W = 4, 8, 12  # bytes as they are


@pytest.fixture
def run(tmp_path: Path) -> Any:
    """Run two clients that add their own numbers; client 1 has three examples, client 0 one."""

    def start(moves: dict[int, list[float]] = MOVES, train: Any = train, **settings: Any) -> Run:
        def load_data(partition_id: int, num_partitions: int) -> Any:
            x = torch.tensor([moves[partition_id]] * (1 + 2 * partition_id))
            return tuple(DataLoader(TensorDataset(x, x[:, 0]), batch_size=10) for _ in range(2))

        given = {"num_clients": len(moves), "fraction_fit": 1.0, "num_rounds": 3, "engine": "inline", "loss": "mse"}
        config = {**given, "results_dir": str(tmp_path / "results"), **settings}
        return simulate(RunConfig(**config), model=Three, train=train, load_data=load_data)

    return start


def weights_of(done: Run) -> list[float]:
    return load_file(done.model_path)["w"].tolist()  # type: ignore[no-any-return]


def rows(done: Run) -> list[tuple[int, str, int, int, int]]:
    frame = done.clients()[["round", "phase", "client_id", "bytes_down", "bytes_up"]]
    return [tuple(row) for row in frame.itertuples(index=False)]


def test_two_clients_send_their_largest_change(run: Any) -> None:
    done = run(compress={"up": "topk:0.3"}, num_rounds=1, fraction_evaluate=1.0)
    assert weights_of(done) == [1.0, 2.25, 0.0]  # (1 · [4, 0, 0] + 3 · [0, 3, 0]) / 4
    down, up = W + FROZEN + COUNT, 1 + 4 + FROZEN + COUNT
    fits = [(1, "fit", client_id, down, up) for client_id in (0, 1)]
    assert rows(done) == [*fits, *((1, "evaluate", client_id, down, 0) for client_id in (0, 1))]
    rounds = done.rounds()
    assert rounds["bytes_down"].isna().tolist() == [True, False]
    assert (rounds["bytes_down"][1], rounds["bytes_up"][1]) == (4 * down, 2 * up)
    assert load_file(done.model_path)["frozen"] == np.float32(0.1)


def test_what_was_lost_is_added_to_the_next_update(run: Any) -> None:
    done = run(compress={"up": "topk:0.3", "error_feedback": True})
    # client 0: [4, 1, 2], then + [0, 1, 2], where the first of two equal ones is sent, then + [0, 2, 4]
    # client 1: [−1, 3, −2], then + [−1, 0, −2], then + [−2, 3, 0]
    sent = [([4, 0, 0], [0, 3, 0]), ([4, 0, 0], [0, 0, -4]), ([0, 0, 6], [0, 6, 0])]
    assert weights_of(done) == sum((np.array(a) + 3 * np.array(b)) / 4 for a, b in sent).tolist() == [2, 6.75, -1.5]
    lost = [StatesInFolder(done.client_states_path).read(client_id, 3)[RESIDUAL] for client_id in (0, 1)]
    assert [arrays[0].tolist() for arrays in lost] == [[4, 3, 0], [-3, 0, -2]]
    assert [array.size for array in lost[0][1:]] == [0, 0]
    assert weights_of(run(compress={"up": "topk:0.3"}, name="without")) == [3.0, 6.75, 0.0]


def test_clients_begin_from_what_they_received(run: Any) -> None:
    unmoved = {0: [0.1, 0.0, 0.0], 1: [0.1, 0.0, 0.0]}
    plain = run(unmoved, num_rounds=2, name="plain")
    done = run(unmoved, num_rounds=2, compress={"down": "fp16"}, name="fp16")
    step = np.float32(0.1)
    assert weights_of(plain)[0] == step + step
    assert weights_of(done)[0] == np.float32(np.float16(step)) + step
    assert load_file(done.model_path)["frozen"] == step  # nobody trains it, so that it is sent as it is
    assert {row[3:] for row in rows(done)} == {(6 + FROZEN + COUNT, W + FROZEN + COUNT)}


def test_a_version_is_encoded_once_and_chunks_that_share_weights_still_do() -> None:
    prepared = prepare(RunConfig(compress={"up": "topk:0.5", "down": "qsgd:4"}))
    traffic, weights, others = Traffic(prepared), prepared.initial_weights, list(prepared.initial_weights)
    chunks = [Chunk("evaluate", 1, [], each, False) for each in (weights, others, weights)]
    first, second, third = (chunk.weights for chunk in traffic.sent("evaluate", chunks))
    assert first is third
    assert not np.array_equal(first[0], second[0]), "other random numbers"
    (again,) = traffic.sent("fit", [Chunk("fit", 2, [], weights, True)])
    assert again.weights is first
    (resumed,) = Traffic(prepared).sent("fit", [Chunk("fit", 2, [], weights, True)])
    assert all(map(np.array_equal, resumed.weights, first))
    (later,) = traffic.sent("fit", [Chunk("fit", 3, [], weights, True)])
    assert not np.array_equal(later.weights[0], first[0])
    sizes = [array.size for array in weights]
    down = sum(4 + math.ceil(5 * size / 8) for size in sizes)
    up = sum(math.ceil(size / 2) * (4 + (1 if size <= 256 else 2)) for size in sizes)
    assert traffic.expected_bytes(weights, 2) == (down, up)
    assert traffic.bytes_down(later) == down


def test_krum_compares_what_the_server_reconstructs(run: Any) -> None:
    moves = {0: [4.0, 3.0, 2.0], 1: [4.0, -3.0, 2.0], 2: [0.0, 0.0, 9.0]}
    arguments = {"num_malicious_clients": 0, "num_clients_to_keep": 0}
    done = run(moves, num_rounds=1, strategy="krum", strategy_args=arguments, compress={"up": "topk:0.3"})
    assert weights_of(done) == [4.0, 0.0, 0.0]


@pytest.mark.slow
def test_normalised_updates_are_encoded_themselves(run: Any) -> None:
    settings = {"train": train_by_sgd, "strategy": "fednova", "lr": 0.01, "fraction_evaluate": 0.0}
    plain, whole = run(**settings, name="plain"), run(**settings, compress={"up": "topk:1"}, name="whole")
    assert sha256(whole.model_path) == sha256(plain.model_path)
    one = run(**settings, num_rounds=1, compress={"up": "topk:0.3"}, name="one")
    assert np.count_nonzero(weights_of(one)) < 3


@pytest.mark.slow
def test_scaffold_sends_its_variates_encoded(run: Any) -> None:
    settings = {"train": train_by_sgd, "strategy": "scaffold", "lr": 0.01}
    plain, whole = run(**settings, name="plain"), run(**settings, compress={"up": "topk:1"}, name="whole")
    assert weights_of(whole) == pytest.approx(weights_of(plain), rel=1e-5)
    assert {row[3:] for row in rows(plain)} == {(2 * W + FROZEN + COUNT,) * 2}
    done = run(**settings, compress={"up": "topk:0.3", "down": "int8", "error_feedback": True}, name="encoded")
    # The variates have the shape of the parameters that are trained.
    assert {row[3:] for row in rows(done)} == {(2 * (4 + 3) + FROZEN + COUNT, 2 * 5 + FROZEN + COUNT)}
    state = StatesInFolder(done.client_states_path).read(0, 3)
    assert sorted(state) == ["c", RESIDUAL]
    assert [array.size for array in state[RESIDUAL]] == [3, 0, 0, 3]
    assert weights_of(done) != weights_of(plain)


@pytest.mark.parametrize("strategy", ["fedavg", "fednova", "scaffold"])
def test_only_weights_are_sent_as_differences(strategy: str) -> None:
    x = torch.tensor([MOVES[0]])
    loader = DataLoader(TensorDataset(x, x[:, 0]), batch_size=10)
    objects = ProgramObjects(model=Three, train=train_by_sgd, load_data=lambda partition_id, num_partitions: loader)
    names = {name: f"here:{name}" for name in ("model", "train", "dataset")}
    given = {"num_clients": 1, "fraction_fit": 1.0, "lr": 0.01, "loss": "mse", "compress": {"up": "topk:0.3"}}
    prepared = prepare(RunConfig(**given, **names, strategy=strategy), objects)
    start = [np.array([1.0, 2.0, 3.0], np.float32), *prepared.initial_weights[1:]]
    extras = [np.array([5.0, 6.0, 7.0], np.float32)] if strategy == "scaffold" else []
    task = Task(0, fit_settings(prepared.config, 1))
    untrained = frozenset({1, 2})
    chunk = Chunk("fit", 1, [task], [*start, *extras], False, untrained, num_extras=len(extras))
    (result,) = Worker(prepared.spec, 1, 0).run(chunk).results
    assert result.weights is not None
    w, _, _, *changes = result.weights
    assert np.count_nonzero(w if strategy == "fednova" else w - start[0]) == 1
    assert [np.count_nonzero(change) for change in changes] == [1] * len(extras)


@pytest.mark.slow
def test_what_stays_with_clients_takes_no_bytes_after_the_warm_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings: dict[str, Any] = {
        "num_clients": 4,
        "clients_per_round": 2,
        "num_rounds": 2,
        "engine": "inline",
        "model": "Mlp",
        "strategy": "fedper",
        "strategy_args": {"warm_start_rounds": 1},
        "results_dir": str(tmp_path),
    }
    done = simulate(RunConfig(**settings, name="a"))
    note = "fc3.weight, fc3.bias are averaged in round 1; later central tests use these averages"
    assert f"sim: note: {note}\n" in capsys.readouterr().err
    (kept,) = TrainedModel.of(done).notes
    assert kept.endswith(" stay with each client, and have the averages of round 1")
    sizes = {name: array.nbytes for name, array in load_file(done.model_path).items()}
    head = sum(size for name, size in sizes.items() if name.startswith(max(sizes).split(".")[0]))
    whole = sum(sizes.values())
    assert 0 < head < whole
    found = done.clients().groupby("round")[["bytes_down", "bytes_up"]].agg(["min", "max"])
    assert found.loc[1].tolist() == [whole] * 4
    assert found.loc[2].tolist() == [whole - head] * 4
    encoded = simulate(RunConfig(**settings, name="b", compress={"up": "bf16", "error_feedback": True}))
    assert encoded.clients().query("round == 2")["bytes_up"].unique().tolist() == [(whole - head) // 2]
    states = StatesInFolder(encoded.client_states_path)
    ((client_id, written), *_) = states.rounds().items()
    assert sorted(states.read(client_id, written[-1]))[-1] == RESIDUAL


def test_a_client_that_fails_sends_nothing(run: Any) -> None:
    def fails(net: Any, loader: Any, epochs: int) -> float:
        if len(loader.dataset) == 1 and torch.any(net.w != 0):
            raise ValueError("no more")
        return train(net, loader, epochs)

    done = run(train=fails, num_rounds=2, on_client_error="drop")
    sizes = W + FROZEN + COUNT
    assert [row[2:] for row in rows(done)] == [(0, sizes, sizes), (1, sizes, sizes), (0, sizes, 0), (1, sizes, sizes)]


COMPRESSED = {"up": "qsgd:4", "down": "qsgd:8", "error_feedback": True}


@pytest.mark.parametrize("strategy", ["scaffold", "krum"])
def test_the_same_bits_after_a_resume(small: Any, strategy: str) -> None:
    """Clients that are averaged, and clients that the strategy gets each; test_engines.py has compression on Ray."""
    given = {"compress": COMPRESSED, "strategy": strategy, "num_rounds": 3, "fraction_evaluate": 0.3}
    whole = small(**given, name="whole")
    other = resume(small(**{**given, "num_rounds": 1}, name="part"), num_rounds=3)
    assert sha256(other.model_path) == sha256(whole.model_path)
    assert rows(other) == rows(whole)
    assert other.rounds()["eval_loss"].tolist()[1:] == whole.rounds()["eval_loss"].tolist()[1:]
    sums = whole.clients().groupby("round")[["bytes_down", "bytes_up"]].sum()
    assert sums.to_numpy().tolist() == whole.rounds()[["bytes_down", "bytes_up"]].iloc[1:].to_numpy().tolist()


def test_a_missing_residual_ends_a_resume(small: Any) -> None:
    part = small(compress={"up": "sign", "error_feedback": True}, num_rounds=1)
    (first, *_) = sorted(part.client_states_path.iterdir())
    first.unlink()
    with pytest.raises(RunFolderError, match=r"the state of client \d+ is missing"):
        resume(part, num_rounds=2)


def test_sim_evaluate_tests_what_clients_received(small: Any) -> None:
    from sim import evaluate

    done = small(compress=COMPRESSED, fraction_evaluate=1.0, num_rounds=2)
    measured = done.clients().query("round == 2 and phase == 'evaluate'").set_index("client_id")["loss"]
    found = evaluate(done).set_index("client_id")["global_loss"]
    assert found.dropna().tolist() == measured.dropna().tolist()


def test_bytes_of_vectorized_clients_are_those_of_others(small: Any) -> None:
    one_by_one = small(name="a", num_rounds=1, compress={"down": "int8"})
    together = small(name="b", num_rounds=1, compress={"down": "int8"}, local_training="vectorized")
    assert together.clients()["vectorized_with"].notna().all()
    assert rows(together) == rows(one_by_one)
    with pytest.raises(ConfigError, match="--local-training vectorized: --compress up=fp16 encodes"):
        small(name="c", compress={"up": "fp16"}, local_training="vectorized")


@pytest.fixture
def numbers(in_programs: None, tmp_path: Path) -> Any:
    """Run clients of ``client_fns`` that have an array float32 [2, 2] and one of float64 [3]."""

    def start(client_fn: str, **settings: Any) -> Run:
        given = {"num_clients": 2, "fraction_fit": 1.0, "num_rounds": 1, "engine": "inline"}
        config = {**given, "results_dir": str(tmp_path / "results"), "client_fn": f"client_fns:{client_fn}", **settings}
        return simulate(RunConfig(**config))

    return start


@pytest.mark.slow
def test_bytes_of_client_functions_are_what_they_send(numbers: Any) -> None:
    assert {row[3:] for row in rows(numbers("by_context", name="a"))} == {(16 + 24, 16 + 24)}
    assert {row[3:] for row in rows(numbers("sends_fewer", name="b"))} == {(16 + 24, 16)}
    encoded = {"up": "topk:0.5", "down": "bf16"}
    assert {row[3:] for row in rows(numbers("by_context", compress=encoded, name="c"))} == {
        (8 + 6, 2 * (1 + 4) + 2 * (1 + 8))
    }
    # It sends other arrays than it got at first, so that there is nothing from which they could differ.
    fewer = numbers("sends_fewer", compress=encoded, num_rounds=2, name="d")
    assert [row[3:] for row in rows(fewer)] == [(8 + 6, 16)] * 2 + [(8, 10)] * 2


@pytest.mark.slow
def test_client_functions_have_error_feedback(numbers: Any) -> None:
    compression = {"up": "topk:0.5", "error_feedback": True}
    whole = numbers("by_context", compress=compression, num_rounds=3, name="a")
    part = numbers("by_context", compress=compression, num_rounds=1, name="b")
    assert sha256(resume(part, num_rounds=3).model_path) == sha256(whole.model_path)
    without = numbers("by_context", compress={"up": "topk:0.5"}, num_rounds=3, name="c")
    assert sha256(without.model_path) != sha256(whole.model_path)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("up=zip", "up=zip: must be one of topk:SHARE, qsgd:BITS, int8, fp16, bf16, sign, none"),
        ("up=8", "up=8: must be one of topk:SHARE, qsgd:BITS, int8, fp16, bf16, sign, none"),
        ("up=topk", "up=topk: needs the share of the numbers that are sent, above 0 and at most 1"),
        ("up=topk:0", "up=topk:0: needs the share of the numbers that are sent, above 0 and at most 1"),
        ("up=topk:1.01", "up=topk:1.01: needs the share of the numbers that are sent, above 0 and at most 1"),
        ("up=topk:1e-999999999", "up=topk:1e-999999999: needs the share of the numbers that are sent"),
        ("up=qsgd:0", "up=qsgd:0: needs the bits of a level, a whole number from 1 to 16"),
        ("up=qsgd:17", "up=qsgd:17: needs the bits of a level, a whole number from 1 to 16"),
        ("up=fp16:2", "up=fp16:2: fp16 takes no number; use fp16"),
        ("down=zip", "down=zip: must be one of qsgd:BITS, int8, fp16, bf16"),
        ("down=topk:0.1", "down=topk:0.1: sets most of the weights to 0, which are sent whole, not as differences"),
        ("down=sign", "down=sign: leaves only the signs of the weights, which are sent whole, not as differences"),
        ("codec=fp16", "codec=fp16: no such key; the valid keys are up, down, error_feedback"),
        ("error_feedback=true", "error_feedback=true: adds what up has lost to the next update, so that it needs up"),
        ("error_feedback=2", "error_feedback=2: must be true or false"),
    ],
)
def test_a_wrong_value_is_one_line(command: Sim, tmp_path: Path, words: str, line: str) -> None:
    done = command("run", "--compress", *words.split())
    assert (done.returncode, done.stdout) == (2, "")
    (found,) = done.stderr.splitlines()
    assert found.startswith(f"sim: --compress {line}")
    assert not list(tmp_path.iterdir())


def test_apps_and_networks_have_no_encodings(command: Sim) -> None:
    for words, reason in (
        (["server"], "encodings are only simulated, by sim run"),
        (["client", "--client-id", "0"], "encodings are only simulated, by sim run"),
        (["run", "--app", "."], "has no effect with --app"),
    ):
        done = command(*words, "--compress", "up=fp16")
        assert done.returncode == 2
        assert reason in done.stderr
        assert len(done.stderr.splitlines()) == 1

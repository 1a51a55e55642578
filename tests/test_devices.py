"""Devices by name: exact values, their distributions, files, and what is said about wrong ones."""

from __future__ import annotations

import json
import math
import pickle
import shlex
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import Sim
from sim import RunConfig
from sim.devices.by_name import Devices, devices_of
from sim.devices.device import Device, DeviceTable
from sim.devices.distributions import FLASH_LINKS, FLASH_MILLISECONDS, FLASH_PHONES
from sim.devices.philox import key_of, normals, philox, uniforms, uniforms_of_one
from sim.devices.round_seconds import expected_median, expected_rank
from sim.errors import ConfigError
from sim.seeds import Purpose

ALL_BITS = 0xFFFFFFFF
MBIT = 125_000  # bytes
CAPACITY = {
    "7": {"computation": 10.0, "communication": 8000},
    "a": {"computation": 50, "communication": 1000.5},
    "9": {"computation": 100.0, "communication": 16000},
}


def devices(name: str, num_clients: int = 100, **settings: Any) -> Devices:
    return devices_of(RunConfig(devices=name, num_clients=num_clients, **settings))


def written(path: Path, content: Any) -> str:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0,) * 4, (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ALL_BITS,) * 4, (ALL_BITS,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_the_counter_has_the_words_of_its_authors(
    counter: tuple[int, int, int, int], key: tuple[int, int], words: tuple[int, ...]
) -> None:
    """The known answers of Random123 (kat_vectors, philox4x32-10)."""
    assert philox(counter, key) == words
    arrays = tuple(np.full(3, word, np.uint64) for word in counter)
    assert [word.tolist() for word in philox(arrays, key)] == [[word] * 3 for word in words]  # type: ignore[arg-type]


def test_a_client_alone_has_the_numbers_that_it_has_among_others() -> None:
    key = key_of(3, Purpose.DEVICE)
    clients = np.array([0, 1, 20_000, 2**33 + 5])
    u, v = uniforms(key, clients, np.array([0, 9, 2**32, 1]))
    alone = [uniforms_of_one(key, c, i) for c, i in zip(clients.tolist(), (0, 9, 2**32, 1), strict=True)]
    assert list(zip(u.tolist(), v.tolist(), strict=True)) == alone
    assert len({*u.tolist(), *v.tolist()}) == 8
    assert key != key_of(4, Purpose.DEVICE) != key_of(4, Purpose.AVAILABILITY)
    drawn = np.concatenate(normals(key, np.arange(50_000), 0))
    assert abs(drawn.mean()) < 0.015
    assert abs(drawn.std() - 1) < 0.015


def test_uniform_devices_are_alike_in_the_units_of_their_arguments() -> None:
    made = devices("uniform", device_args={"seconds_per_step": 0.5, "download_mbps": 8, "upload_mbps": 2.0})
    assert made.device(0) == made.device(99) == Device(0.5, 1_000_000, 250_000)
    assert made.device(0).seconds(num_steps=4, download_bytes=1e6, upload_bytes=1e6) == 1 + 2 + 4
    assert devices("uniform").device(5) == Device(0.1, 20 * MBIT, 5 * MBIT)
    assert Device(1.0, math.inf, math.inf).seconds(3, 1e9, 1e9) == 3


@pytest.mark.parametrize("name", ["lognormal", "flash"])
def test_a_device_depends_on_seed_and_client_alone(name: str) -> None:
    made = devices(name, 10_000)
    of_all = made.table()
    backwards = devices(name, 10_000)
    assert [backwards.device(c) for c in (9_999, 4_096, 4_095, 0)] == [of_all.row(c) for c in (9_999, 4_096, 4_095, 0)]
    assert devices(name, 7).device(6) == devices(name, 1_000_000).device(6) == made.device(6)
    assert devices(name, 7, seed=1).device(6) != made.device(6) != made.device(5)
    assert len(of_all) == 10_000


def test_only_blocks_that_are_asked_for_are_drawn_and_few_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sim.devices.by_name._MOST_BLOCKS", 2)
    made = devices("lognormal", 1_000_000)
    first = made.device(0)
    for client_id in (500_000, 999_999, 0):
        made.device(client_id)
    assert len(made._blocks) == 2
    assert made.device(0) == first


def test_lognormal_has_its_medians_and_deviations() -> None:
    arguments = {
        "seconds_per_step": 2.0,
        "download_mbps": 8.0,
        "upload_mbps": 4.0,
        "sigma": 0.5,
        "bandwidth_sigma": 1.5,
    }
    table = devices("lognormal", 50_000, device_args=arguments).table()
    for values, median, sigma in (
        (table.seconds_per_step, 2.0, 0.5),
        (table.download_bytes_per_second, 8 * MBIT, 1.5),
        (table.upload_bytes_per_second, 4 * MBIT, 1.5),
    ):
        logs = np.log(values)
        assert abs(np.median(logs) - math.log(median)) < 0.03 * sigma
        assert abs(logs.std() - sigma) < 0.02 * sigma
    np.testing.assert_allclose(table.download_bytes_per_second, 2 * table.upload_bytes_per_second)
    assert abs(np.corrcoef(np.log(table.seconds_per_step), np.log(table.upload_bytes_per_second))[0, 1]) < 0.02
    constant = devices("lognormal", device_args={"sigma": 0, "bandwidth_sigma": 0}).table()
    assert set(constant.seconds_per_step.tolist()) == {0.1}


def test_flash_has_the_phones_and_links_of_its_authors() -> None:
    assert len(FLASH_LINKS) == 19
    num = 100_000
    table = devices("flash", num).table()
    assert table.kinds == ("low-end", "mid-range", "high-end")
    shares = np.bincount(table.kind, minlength=3) / num
    np.testing.assert_allclose(shares, np.array([18820, 16428, 159]) / 35407, atol=0.006)
    for kind, (mean, sd) in enumerate(((1.642, 0.0995), (0.588, 0.0239), (0.179, 0.0023))):
        seconds = table.seconds_per_step[table.kind == kind]
        assert abs(seconds.mean() - mean) < 5 * sd / math.sqrt(len(seconds))
        assert abs(seconds.std() - sd) < 0.2 * sd
    # Draws below a tenth of the mean are repeated, which raises the mean of links with a large deviation.
    fast = max(link[0] + 6 * link[1] for link in FLASH_LINKS) * 1000
    slow = min(link[2] for link in FLASH_LINKS) * 1000 / 10
    assert slow <= table.upload_bytes_per_second.min() < 3 * slow
    assert fast / 3 < table.download_bytes_per_second.max() < fast
    mean = np.mean([link[2] for link in FLASH_LINKS]) * 1000
    assert abs(table.upload_bytes_per_second.mean() / mean - 1) < 0.03
    slowest = devices("flash", num, device_args={"task": "shakespeare"}).table()
    assert slowest.kind.tolist() == table.kind.tolist()
    assert abs(np.median(slowest.seconds_per_step[table.kind == 1]) - 13.579) < 0.01
    assert sum(FLASH_PHONES.values()) == 35407
    assert set(FLASH_MILLISECONDS) == {"femnist", "celeba", "reddit", "shakespeare"}


def test_flash_by_hand() -> None:
    """Kilobytes per second of one link, and milliseconds of one phone, each from one normal number."""
    key, made, repeated = key_of(2, Purpose.DEVICE), devices("flash", seed=2), 0
    for client_id in range(100):
        u, v = uniforms_of_one(key, client_id, 0)
        phone = 0 if u < 18820 / 35407 else 1 if u < (18820 + 16428) / 35407 else 2
        down, down_sd, up, up_sd = FLASH_LINKS[int(19 * v)]
        device = made.device(client_id)
        assert device.kind == list(FLASH_PHONES)[phone]
        for number, mean, sd, value in (
            (0, *FLASH_MILLISECONDS["femnist"][phone], 1000 * device.seconds_per_step),
            (1, down, down_sd, device.download_bytes_per_second / 1000),
            (2, up, up_sd, device.upload_bytes_per_second / 1000),
        ):
            drawn = mean + sd * float(normals(key, np.array([client_id]), 1 + number)[0][0])
            repeated += drawn < mean / 10
            assert value >= mean / 10 if drawn < mean / 10 else value == pytest.approx(drawn)
    assert 0 < repeated < 10


def test_fedscale_takes_three_inferences_a_step_and_kbits_of_1024(tmp_path: Path) -> None:
    name = f"fedscale:{written(tmp_path / 'capacity.json', CAPACITY)}"
    made = devices(name, 3, clients_per_round=1, batch_size=10)
    assert made.availability.is_always
    assert made.device(0) == Device(3 * 10 * 0.010, 8000 * 128, 8000 * 128)
    assert made.device(1) == Device(3 * 10 * 0.050, 1000.5 * 128, 1000.5 * 128)
    assert made.device(2) == Device(3 * 10 * 0.100, 16000 * 128, 16000 * 128)
    without = devices(name, 3, clients_per_round=1)
    assert without.device(0).seconds_per_step == pytest.approx(3 * 32 * 0.010)
    own = devices(name, 3, clients_per_round=1, batch_size=10, device_args={"examples_per_step": 64})
    assert own.device(0).seconds_per_step == pytest.approx(3 * 64 * 0.010)


def test_clients_draw_from_a_file_with_fewer_devices(tmp_path: Path) -> None:
    name = f"fedscale:{written(tmp_path / 'capacity.json', CAPACITY)}"
    table = devices(name, 30_000, batch_size=1).table()
    found, counts = np.unique(table.download_bytes_per_second, return_counts=True)
    assert found.tolist() == [1000.5 * 128, 8000 * 128, 16000 * 128]
    np.testing.assert_allclose(counts, 10_000, atol=400)
    assert devices(name, 4, batch_size=1).device(3) == table.row(3)
    assert devices(name, 30_000, seed=1).table().download_bytes_per_second.tolist() != (
        table.download_bytes_per_second.tolist()
    )


def test_tables_of_the_users(tmp_path: Path) -> None:
    text = (
        "\ufeffclient_id,upload_mbps, seconds_per_step ,download_mbps,kind\n"
        "1,2,0.5,8,phone\n\n0,inf,1e-1,inf,server\n5,1,1,1,phone\n"
    )
    made = devices(written(tmp_path / "own.CSV", text), 2, clients_per_round=1)
    assert made.device(0) == Device(0.1, math.inf, math.inf, "server")
    assert made.device(1) == Device(0.5, 1_000_000, 250_000, "phone")
    assert made.table().kinds == ("phone", "server")
    rows = [{"seconds_per_step": 1, "download_mbps": 8, "upload_mbps": 16.0}]
    assert devices(written(tmp_path / "own.json", rows)).device(99) == Device(1.0, 1_000_000, 2_000_000)


HEADER = "seconds_per_step,download_mbps,upload_mbps"


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("a.csv", None, "No such file or directory"),
        (
            "a.csv",
            "",
            "line 1: there is no column seconds_per_step; seconds_per_step, download_mbps, upload_mbps are ne",
        ),
        ("a.csv", HEADER + "\n", "has no devices"),
        (
            "a.csv",
            HEADER + ",speed\n1,1,1,1\n",
            "line 1: unknown column speed; the valid ones are seconds_per_step, do",
        ),
        ("a.csv", HEADER + ",upload_mbps\n1,1,1,1\n", "line 1: the column upload_mbps stands there twice"),
        ("a.csv", HEADER + "\n1,1,1\n1,1\n", "line 3: has 2 fields, but the header has 3"),
        ("a.csv", HEADER + "\n1,1,1\n\n0,1,1\n", "line 4: seconds_per_step = '0': must be a number above 0"),
        ("a.csv", HEADER + "\n1,x,1\n", "line 2: download_mbps = 'x': must be a number above 0"),
        ("a.csv", HEADER + "\n1,1,nan\n", "line 2: upload_mbps = 'nan': must be a number above 0"),
        ("a.csv", HEADER + "\ninf,1,1\n", "line 2: seconds_per_step = 'inf': must be a number above 0"),
        (
            "a.csv",
            HEADER + "\n1,1,1\n1e308,1,1\n",
            "line 3: seconds_per_step = '1e308': must be at least 1e-09 and at most 1e+09\n",
        ),
        (
            "a.csv",
            HEADER + "\n1,1e-320,1\n",
            "line 2: download_mbps = '1e-320': must be at least 1e-09 and at most 1e+12, or inf\n",
        ),
        ("a.csv", HEADER + '\n1,1,1\n1,"1,1\n', "line 3: unexpected end of data"),
        ("a.csv", HEADER + ",client_id\n1,1,1,0.5\n", "line 2: client_id = '0.5': must be a whole number, at least 0"),
        ("a.csv", HEADER + ",client_id\n1,1,1,0\n1,1,1,0\n", "line 3: client_id 0 stands in line 2, too"),
        (
            "a.csv",
            HEADER + ",client_id\n1,1,1,0\n1,1,1,2\n",
            "has a client_id column without client 1; it must have cli",
        ),
        ("a.json", '[\n{"seconds_per_step": 1,,}]', "line 2: not valid JSON: Expecting property name"),
        ("a.json", "{}", "must be a list of objects with the keys seconds_per_step, download_mbps, upload_mbps"),
        ("a.json", "[1]", "entry 1: must be an object"),
        ("a.json", [{"seconds_per_step": 1}], "entry 1: there is no key download_mbps"),
        (
            "a.json",
            [{"seconds_per_step": True, "download_mbps": 1, "upload_mbps": 1}],
            "entry 1: seconds_per_step = True: must be a number above 0",
        ),
        (
            "a.json",
            [{"seconds_per_step": 1, "download_mbps": 1, "upload_mbps": 1, "kind": 3}],
            "entry 1: kind = 3: must be text",
        ),
        (
            "a.json",
            [{"seconds_per_step": 1, "download_mbps": 1, "upload_mbps": 1e13}],
            "entry 1: upload_mbps = 10000000000000.0: must be at least 1e-09 and at most 1e+12, or inf\n",
        ),
        ("a.json", "[" * 100_000, "not valid JSON"),
    ],
)
def test_wrong_tables_are_told_with_their_line(
    command: Sim, tmp_path: Path, file: str, content: Any, said: str
) -> None:
    if content is not None:
        written(tmp_path / file, content)
    result = command("devices", "--devices", file, "--num-clients", "3", "--clients-per-round", "1")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"sim: --devices {file}: {file}: {said}")
    assert result.stderr.count("\n") == 1


ENTRY = {"computation": 1, "communication": 1}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"1": {"computation": 1,\n"communication"}}', "line 2: not valid JSON: Expecting ':' delimiter"),
        ("[]", "must be a JSON object with one entry for each client, as in FedScale"),
        ("{}", "must be a JSON object with one entry for each client, as in FedScale"),
        ({"1": ENTRY, "2": []}, 'entry "2": must be an object, as in FedScale'),
        ({"1": ENTRY, "b": {"computation": 1}}, 'entry "b": there is no communication'),
        (
            {"1": {"computation": 1e308, "communication": 1}},
            'entry "1": computation = 1e+308: must be at least 1e-06 and at most 1e+12\n',
        ),
        ({"1": {**ENTRY, "computation": -1}}, 'entry "1": computation = -1: must be a number above 0'),
        ('{"1": {"computation": NaN, "communication": 1}}', 'entry "1": computation = nan: must be a number above 0'),
        ('{"1": {"computation": 1e999, "communication": 1}}', 'entry "1": computation = inf: must be a number above'),
        ('{"1": {}, "2": {}, "1": {}}', 'the key "1" stands in an object twice'),
    ],
)
def test_wrong_capacity_files_are_told_with_their_entry(command: Sim, tmp_path: Path, content: Any, said: str) -> None:
    written(tmp_path / "c.json", content)
    result = command("devices", "--devices", "fedscale:c.json")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"sim: --devices fedscale:c.json: c.json: {said}")
    assert result.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_pickles_are_refused_with_the_command_that_converts_them(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "client device's capacity"
    content = {1: {"computation": 10.0, "communication": np.float32(8000)}, 2: ENTRY}
    path.write_bytes(pickle.dumps(content, protocol))
    with pytest.raises(ConfigError, match="is a pickle, which may execute any code when it is read") as raised:
        devices(f"fedscale:{path}")
    command = shlex.split(str(raised.value).rpartition("convert it to JSON: ")[2])
    assert command[:2] == ["python", "-c"]
    subprocess.run([sys.executable, *command[1:]], check=True)
    made = devices(f"fedscale:{path}.json", 1, clients_per_round=1, batch_size=1)
    assert made.device(0) == Device(0.03, 8000 * 128, 8000 * 128)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "--devices: must be given, as one of uniform, lognormal, flash, fedscale:FILE.json, FILE.csv, FILE.json"),
        (
            ("--devices", "fast"),
            "--devices fast: must be one of uniform, lognormal, flash, fedscale:FILE.json, FILE.cs",
        ),
        (("--devices", "fedscale"), "--devices fedscale: must be fedscale:CAPACITY.json or fedscale:CAPACITY.json:AVA"),
        (("--devices", "fedscale:a:b:c"), "--devices fedscale:a:b:c: must be fedscale:CAPACITY.json or"),
        (("--devices", "fedscale::b"), "--devices fedscale::b: must be fedscale:CAPACITY.json or"),
        (("--devices", "fedscale:a.json"), "--devices fedscale:a.json: a.json: No such file or directory"),
        (
            ("--devices", "uniform", "--device-args", "sigma=1"),
            "--device-args sigma=1: --devices uniform takes seconds_per_step, download_mbps, upload_mbps",
        ),
        (
            ("--devices", "lognormal", "--device-args", "sigma=-1"),
            "--device-args sigma=-1: must be at least 0 and at most 10",
        ),
        (
            ("--devices", "uniform", "--device-args", "upload_mbps=0"),
            "--device-args upload_mbps=0: must be at least 1e-09 and at most 1e+12",
        ),
        (
            ("--devices", "flash", "--device-args", "task=cifar"),
            "--device-args task=cifar: must be one of femnist, celeba, reddit, shakespeare",
        ),
        (("--devices", "a.csv", "--device-args", "x=1"), "--device-args x=1: --devices a.csv takes no arguments"),
        (("--devices", "uniform", "--hours", "0"), "--hours 0: must be a number above 0 and at most 8784"),
        (
            ("--devices", "uniform", "--steps", "0"),
            "--steps 0: must be a whole number, at least 1 and at most 10000000",
        ),
        (
            ("--devices", "uniform", "--model-bytes", "x"),
            "--model-bytes x: must be a whole number, at least 1 and at m",
        ),
        (("--devices", "uniform", "-o", "a.txt"), "-o a.txt: the ending must be one of .png, .svg, .pdf"),
        (("--devices", "uniform", "-o", "no/a.png"), "-o no/a.png: there is no folder no"),
        (
            ("--devices", "uniform", "--num-clients", "5000"),
            "--num-clients 5000: 1437 training examples are too few for 1 per client; at most 1437 clients; with ",
        ),
    ],
)
def test_wrong_words_are_told_in_one_line(command: Sim, tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    result = command("devices", *words)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"sim: {said}")
    assert result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_expected_ranks_are_means_over_all_samples() -> None:
    seconds = np.array([4.0, 1.0, 10.0, 2.0, 3.0])
    for num in range(1, 6):
        samples = [sorted(sample) for sample in combinations(seconds.tolist(), num)]
        for rank in range(1, num + 1):
            assert expected_rank(seconds, num, rank) == pytest.approx(np.mean([s[rank - 1] for s in samples]))
        assert expected_median(seconds, num) == pytest.approx(np.mean([np.median(s) for s in samples]))
    assert expected_rank(np.arange(1.0, 1001), 10, 10) == pytest.approx(1001 * 10 / 11)


def test_seconds_of_a_table_are_those_of_its_rows() -> None:
    table = DeviceTable(np.array([1.0, 2.0]), np.array([10.0, math.inf]), np.array([5.0, 20.0]), np.zeros(2, np.int64))
    assert table.seconds(np.array([3.0, 4.0]), 100, 40).tolist() == [10 + 3 + 8, 0 + 8 + 2]
    assert [table.row(0).seconds(3, 100, 40), table.row(1).seconds(4, 100, 40)] == [21, 10]


def test_sim_devices_prints_quantiles_and_a_round(sim: Sim, tmp_path: Path) -> None:
    text = HEADER + ",kind\n0.1,8,4,phone\n0.2,8,4,phone\n0.3,8,4,tablet\n0.4,80,40,phone\n"
    written(tmp_path / "own.csv", text)
    few = ("--num-clients", "4", "--clients-per-round", "2", "--steps", "10", "--model-bytes", "1000000")
    result = sim("devices", "--devices", "own.csv", *few, "-o", "own.svg")
    assert (result.returncode, result.stderr) == (0, "")
    rows = [line.split() for line in result.stdout.splitlines()]
    assert rows[:6] == [
        ["of", "the", "clients", "min", "10", "%", "median", "90", "%", "max"],
        ["seconds", "per", "step", "0.1", "0.1", "0.2", "0.4", "0.4"],
        ["download", "Mbit/s", "8", "8", "8", "80", "80"],
        ["upload", "Mbit/s", "4", "4", "4", "40", "40"],
        ["share", "of", "24", "hours", "online", "1", "1", "1", "1", "1"],
        ["seconds", "per", "round", "4", "4", "4.3", "6", "6"],  # 1 + 2 + 10 steps, and 0.1 + 0.2 + 10 steps
    ]
    assert result.stdout.splitlines()[6:] == [
        "phone           3 clients",
        "tablet          1 clients",
        "round           2 of 4 clients; 10 steps; 1,000,000 bytes down and up",
        "median client   4.825 s expected",  # the mean of 4, 4.3, 5 and 6
        "slowest client  5.383 s expected",  # (6 + 6 + 6 + 5 + 5 + 4.3) / 6
        "picture         own.svg",
    ]
    picture = (tmp_path / "own.svg").read_text()
    assert "<svg" in picture
    assert "mathdefault" not in picture


@pytest.mark.slow
@pytest.mark.usefixtures("pictures")
def test_steps_and_bytes_are_those_of_the_partition_and_the_model(command: Sim, tmp_path: Path) -> None:
    iid = ("--partitioner", "iid", "--num-clients", "10", "--clients-per-round", "10", "--local-epochs", "2")
    arguments = ("--device-args", "seconds_per_step=1", "download_mbps=1e12", "upload_mbps=1e12")
    result = command("devices", "--devices", "uniform", *arguments, *iid, "--batch-size", "16")
    assert result.returncode == 0, result.stderr
    # 1,437 examples are 143 or 144 per client, which are 9 batches; Net has 61,706 parameters for images in grey.
    assert result.stdout.splitlines()[-4:] == [
        "round           10 of 10 clients; 18 steps; 246,824 bytes down and up",
        "median client   18 s expected",
        "slowest client  18 s expected",
        "picture         devices.png",
    ]
    assert (tmp_path / "devices.png").read_bytes().startswith(b"\x89PNG")
    capped = command("devices", "--devices", "uniform", *arguments, *iid, "--max-local-steps", "5")
    assert "median client   5 s expected" in capped.stdout
    held = command(
        "devices", "--devices", "uniform", *arguments, *iid, "--fraction-evaluate", "1", "--eval-share", "0.5"
    )
    assert "10 clients; 18 steps;" in held.stdout  # 72 examples in batches of 8, twice

"""What the tests share: a cache of their own, the command line as a user starts it, small runs."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver

from sim import Run, RunConfig, simulate

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROGRAMS = ROOT / "tests" / "programs"
CIFAR_ARCHIVE = ROOT.parent / "shared" / "data" / "cifar10-images.tar.gz"


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["SIM_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def sim(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Start ``sim`` with these words in an empty folder and wait for its end."""

    def start(*words: str, cwd: Path = tmp_path, prefix: tuple[str, ...] = (), **kwargs: Any) -> Any:
        command = [*prefix, sys.executable, "-m", "sim", *words]
        return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=180, check=False, **kwargs)

    return start


@pytest.fixture
def small(tmp_path: Path) -> Callable[..., Run]:
    """Run 10 clients for 2 rounds inline; keywords go to RunConfig."""

    def run(ray_init_args: dict[str, Any] | None = None, on_record: Any = None, **settings: Any) -> Run:
        defaults = {
            "num_clients": 10,
            "clients_per_round": 4,
            "num_rounds": 2,
            "local_epochs": 1,
            "engine": "inline",
            "results_dir": str(tmp_path / "results"),
        }
        return simulate(RunConfig(**{**defaults, **settings}), ray_init_args=ray_init_args, on_record=on_record)

    return run


@pytest.fixture
def in_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in the folder of the user programs, where ``--client own:…`` is found."""
    monkeypatch.chdir(PROGRAMS)


@pytest.fixture(scope="session")
def cifar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real CIFAR-10 images as a folder: the first 100 of each class to train, 20 to test."""
    if not CIFAR_ARCHIVE.is_file():
        pytest.skip(f"{CIFAR_ARCHIVE.name} is not beside the checkout")
    root = tmp_path_factory.mktemp("cifar")
    wanted = {"train": 100, "test": 20}
    counts: dict[str, int] = {}
    with tarfile.open(CIFAR_ARCHIVE) as archive:
        for member in archive:
            if not member.isfile():
                continue
            folder = str(Path(member.name).parent)
            if counts.get(folder, 0) < wanted[Path(member.name).parts[-3]]:
                counts[folder] = counts.get(folder, 0) + 1
                archive.extract(member, root, filter="data")
    assert sum(counts.values()) == 1200
    return root


@pytest.fixture
def browser() -> Iterator[webdriver.Chrome]:
    """A real browser without a window, which logs what it asks of a network."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.fail("needs chromium and chromedriver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield chrome
    chrome.quit()


def sha256(path: Path) -> str:
    """Fingerprint of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()

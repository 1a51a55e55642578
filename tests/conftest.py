"""What the tests share: a cache of their own, the command line, small runs, and which tests are fast."""

from __future__ import annotations

import fcntl
import gc
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from program_text import write_program

from federation import Federation
from sim import Run, RunConfig, cli, simulate
from sim.processes import imports_are_no_garbage
from sim.run_folder import plots, timeline
from sim.run_folder.environment import available_cpus

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = ROOT / "tests" / "programs"
CIFAR_ARCHIVE = ROOT.parent / "shared" / "data" / "cifar10-images.tar.gz"

# Flags with which one actor has all CPUs, where two would check no more.
ONE_ACTOR = ("--num-cpus", str(available_cpus()))

# root may read and write everything; without these capabilities it is an owner like any other
_WITHOUT = "-dac_override,-dac_read_search"
AS_OWNER = ("setpriv", "--bounding-set", _WITHOUT, "--inh-caps", _WITHOUT) if os.geteuid() == 0 else ()

Sim = Callable[..., "subprocess.CompletedProcess[str]"]
Small = Callable[..., Run]

# A test that uses one of these fixtures has the marker without saying so.
MARKERS = {
    "browser": "browser",
    "certificates": "network",
    "cifar": "slow",
    "cluster": "ray",
    "federation": "network",
    "sim": "slow",
    "small": "slow",
    "sweep": "slow",
    "swept": "slow",
}
_TEST_MODULES: set[str] = set()
NOT_FAST = {"ray", "network", "browser", "slow", "nightly"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by their fixtures, before pytest selects by markers."""
    _TEST_MODULES.update(item.module.__name__ for item in items if isinstance(item, pytest.Function))
    for item in items:
        for fixture in getattr(item, "fixturenames", ()):
            if fixture in MARKERS:
                item.add_marker(MARKERS[fixture])


_NOT_FAST_EVENTS: list[str] = []
_IPV6_PROBE = ("::1", 0)  # urllib3 binds it when it is imported


def _is_reaper(words: Any) -> bool:
    return any(str(word).endswith("reaper.py") for word in words)


def _listen(event: str, arguments: tuple[Any, ...]) -> None:
    if threading.current_thread() is not threading.main_thread():  # of another test, perhaps
        return
    # The process that ends what user code leaves behind imports nothing and waits.
    if event == "subprocess.Popen" and sys.executable in arguments[1] and not _is_reaper(arguments[1]):
        _NOT_FAST_EVENTS.append(f"starts {arguments[1]}")
    elif event == "time.sleep" and arguments[0] > 0.1:
        _NOT_FAST_EVENTS.append(f"sleeps {arguments[0]} s")
    elif event in ("socket.connect", "socket.bind") and arguments[1] != _IPV6_PROBE:
        _NOT_FAST_EVENTS.append(f"{event} {arguments[1]}")


sys.addaudithook(_listen)


@pytest.fixture(autouse=True)
def _fast_unless_marked(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that starts Python again, uses a socket or sleeps, and has no marker that says so."""
    _NOT_FAST_EVENTS.clear()
    yield
    if not NOT_FAST & {marker.name for marker in request.node.iter_markers()}:
        assert not _NOT_FAST_EVENTS, f"needs one of the markers {', '.join(sorted(NOT_FAST))}"


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["SIM_CACHE"] = str(_shared_folder(tmp_path_factory) / "cache")


@pytest.fixture(scope="session")
def _empty_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("current")


@pytest.fixture(autouse=True)
def _current_folder(_empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin in an empty folder: around a ``train`` of one's own, a run looks at each file of the current one."""
    monkeypatch.chdir(_empty_folder)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Hide the modules of other tests: a run keeps the variables of all modules that are not installed."""
    others = _TEST_MODULES - {item.module.__name__} if isinstance(item, pytest.Function) else set()
    hidden = {name: sys.modules.pop(name) for name in others & sys.modules.keys()}
    yield
    sys.modules.update(hidden)


@pytest.fixture(autouse=True)
def _no_programs_of_other_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Forget the modules that a test has imported from its folder, for the same reason."""
    before = set(sys.modules)
    yield
    programs = str(tmp_path_factory.getbasetemp())
    for name in set(sys.modules) - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(programs):
            del sys.modules[name]


@pytest.fixture(scope="session", autouse=True)
def _libraries_are_no_garbage() -> Iterator[None]:
    """Leave what the imports made out of each search for garbage; Flower's strategies search once for each client."""
    gc.collect()
    with imports_are_no_garbage():
        yield


@pytest.fixture
def sim(tmp_path: Path) -> Sim:
    """Start ``sim`` with these words in a process of its own, in an empty folder, and wait for its end."""

    def start(*words: str, cwd: Path = tmp_path, prefix: tuple[str, ...] = (), **kwargs: Any) -> Any:
        command = [*prefix, sys.executable, "-m", "sim", *words]
        return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=600, check=False, **kwargs)

    return start


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> Sim:
    """Execute ``sim`` with these words in this process, which saves the seconds of its imports.

    It draws only if the test uses ``pictures``.
    """
    if "pictures" not in request.fixturenames:
        request.getfixturevalue("no_pictures")

    def execute(*words: str, cwd: Path = tmp_path) -> subprocess.CompletedProcess[str]:
        with monkeypatch.context() as patch:
            patch.chdir(cwd)
            patch.setattr(sys, "path", [*sys.path])
            capsys.readouterr()
            code = cli.main(words)
            return subprocess.CompletedProcess(words, code, *capsys.readouterr())

    return execute


SMALL: dict[str, Any] = {
    "num_clients": 10,
    "clients_per_round": 4,
    "num_rounds": 2,
    "local_epochs": 1,
    "max_local_steps": 3,
    "engine": "inline",
}


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the pictures of runs in this process be empty files; to draw them takes half of the time of a small run."""
    for name in ("summary_figure", "curves_figure", "fairness_figure"):
        monkeypatch.setattr(plots, name, lambda *_: None)
    monkeypatch.setattr(plots, "curves_of", lambda *_: [])  # nor are the tables read for them
    monkeypatch.setattr(timeline, "timeline_figure", lambda *_: None)
    monkeypatch.setattr(plots, "render", lambda figure, image_format: b"")


@pytest.fixture
def small(tmp_path: Path, request: pytest.FixtureRequest) -> Small:
    """Run 10 clients for 2 rounds inline; keywords go to RunConfig. It draws only if the test uses ``pictures``."""
    if "pictures" not in request.fixturenames:
        request.getfixturevalue("no_pictures")

    def run(ray_init_args: dict[str, Any] | None = None, on_record: Any = None, **settings: Any) -> Run:
        return simulate(
            RunConfig(**{**SMALL, "results_dir": str(tmp_path / "results"), **settings}),
            ray_init_args=ray_init_args,
            on_record=on_record,
        )

    return run


@pytest.fixture
def pictures() -> None:
    """Let ``small`` and ``command`` draw their pictures."""


def _shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.getbasetemp()
    return root.parent if "PYTEST_XDIST_WORKER" in os.environ else root  # each worker has a folder of its own in it


def made_once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """Return a folder that ``make`` fills once for all workers of pytest-xdist; the others wait for it."""
    root = _shared_folder(tmp_path_factory)
    folder, done = root / name, root / f"{name}.done"
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            done.touch()
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that evaluated clients, for tests that only read it; it is made once."""
    return simulate(RunConfig(**SMALL, fraction_evaluate=1.0, results_dir=str(tmp_path_factory.mktemp("finished"))))


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_pictures: None, request: Any) -> str:
    """A file of the current folder, which is a new one; its other part is found by ``import *``."""
    monkeypatch.chdir(tmp_path)
    return write_program(tmp_path, f"forms_{request.node.name.partition('[')[0]}")


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
    safely: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # since Python 3.11.4
    with tarfile.open(CIFAR_ARCHIVE) as archive:
        for member in archive:
            if not member.isfile():
                continue
            folder = str(Path(member.name).parent)
            if counts.get(folder, 0) < wanted[Path(member.name).parts[-3]]:
                counts[folder] = counts.get(folder, 0) + 1
                archive.extract(member, root, **safely)
    assert sum(counts.values()) == 1200
    return root


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    """A federation without any process yet; its processes are killed after the test."""
    made = Federation(tmp_path)
    yield made
    made.kill()


@pytest.fixture
def browser() -> Iterator[Chrome]:
    """A real browser without a window, which logs what it asks of a network."""
    from browser import opened

    with opened() as chrome:
        yield chrome


def sha256(path: Path) -> str:
    """Fingerprint of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()

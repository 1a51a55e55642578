"""The environment of a run: versions of packages, processor, GPUs, and the git commit of this code."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sim.disk import check_is_file
from sim.errors import one_line

_PACKAGES = (
    "sim",
    "flwr",
    "flwr-datasets",
    "ray",
    "torch",
    "torchvision",
    "numpy",
    "pandas",
    "matplotlib",
    "scikit-learn",
    "safetensors",
)

# The newest minor versions with which this one was tested; a newer one may work as well.
_TESTED = {"flwr": (1, 42), "ray": (2, 55), "torch": (2, 14)}


def untested() -> list[str]:
    """Return one line for each library that is newer than the versions that were tested."""
    lines = []
    for name, tested in _TESTED.items():
        found = _version(name) or ""
        numbers = tuple(int(part) for part in found.split(".")[:2] if part.isdigit())
        if numbers > tested:
            newest = ".".join(str(number) for number in tested)
            lines.append(f"{name} {found} is newer than {newest}, the newest version that was tested with this one")
    return lines


def versions() -> str:
    """Return the versions of this package, of Python and of the libraries that bits depend on most, in one line."""
    libraries = ", ".join(f"{name} {_version(name) or 'missing'}" for name in _TESTED)
    return f"sim {_version('sim') or 'not installed'} (Python {platform.python_version()}, {libraries})"


def describe() -> dict[str, Any]:
    """Return the content of ``environment.json``; values that cannot be determined are None."""
    import torch

    changes = _git("status", "--porcelain", "--untracked-files=no")
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "system": platform.platform(),
        "cpu": _cpu_name(),
        "num_cpus": available_cpus(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "python_hash_seed": _hash_seed(),
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": None if changes is None else bool(changes),
    }


def changes(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return what differs between two environments and may change a bit: versions, processor and GPUs."""
    found = []
    for name in ("python", "cpu", "gpus", "cuda", "python_hash_seed"):
        if name in then and then[name] != now[name]:
            found.append(f"{name} was {then[name]}, is {now[name]}")
    packages = then.get("packages", {})
    for name, is_now in now["packages"].items():
        if isinstance(packages, dict) and name in packages and packages[name] != is_now:
            found.append(f"{name} was {packages[name]}, is {is_now}")
    return found


def read(path: Path) -> dict[str, Any]:
    """Return the content of an ``environment.json``.

    Raises:
        OSError: it is missing, or cannot be read.
        ValueError: it is damaged.
    """
    check_is_file(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    if not isinstance(content, dict):
        raise ValueError(f"holds a {type(content).__name__}, not an object")
    if not isinstance(content.get("earlier", []), list):
        raise ValueError("earlier is no list")
    return content


def damage(path: Path) -> str:
    """Return why the environments of a run are not known; empty if they are."""
    try:
        read(path)
    except FileNotFoundError:
        return f"{path.name} is missing"
    except (OSError, ValueError) as error:
        return f"{path.name} is damaged: {one_line(str(error), 200)}"
    return ""


def parts(path: Path) -> list[dict[str, Any]]:
    """Return the environments of the parts of a run, the last part last; none if the file cannot be read."""
    try:
        last = read(path)
        return [part for part in [*last.pop("earlier", []), last] if isinstance(part, dict)]
    except (OSError, ValueError):
        return []


def of_round(path: Path, number: int) -> dict[str, Any]:
    """Return the environment in which a round of a run was made; an empty one if that is not known."""
    found: dict[str, Any] = {}
    for part in parts(path):
        after = part.get("resumed_after_round", -1)
        if isinstance(after, int) and after < number:
            found = part
    return found


def _hash_seed() -> str:
    """Return what decides the order of sets of texts in this process."""
    seed = os.environ.get("PYTHONHASHSEED", "random")
    # The package sets it for the processes that it starts; the one that imports it may be older than that.
    return "random" if sys.flags.hash_randomization and seed == "0" else seed


def available_cpus() -> int:
    """Return the number of CPUs that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows do not have it
        return os.cpu_count() or 1


@cache  # to read it takes 3 ms, and a process imports each package once
def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_name() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or None
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), None)


@cache  # the code that a process has imported does not change
def _git(*arguments: str) -> str | None:
    """Return the output of a git command in the checkout of this code; None if the code is an installed copy."""
    folder = Path(__file__).resolve().parent
    try:
        result = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False, timeout=10
        )
        inside = subprocess.run(
            ["git", "-C", str(folder), "ls-files", "--error-unmatch", __file__],
            capture_output=True,
            check=False,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip() if result.returncode == inside.returncode == 0 else None

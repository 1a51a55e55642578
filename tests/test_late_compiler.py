from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from conftest import PROGRAMS


def _run(*words: str) -> list[str]:
    command = [sys.executable, str(PROGRAMS / "optimizers.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def test_optimizers_step_as_ever_and_import_no_compiler() -> None:
    as_ever, late = _run(), _run("late")
    assert [as_ever[0], late[0]] == ["True", "False"]
    assert late[1] == as_ever[1]


def test_a_run_imports_no_compiler(sim: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "import sys\nfrom sim import training\n\n\ndef train(*args, **settings):\n"
        "    loss = training.train(*args, **settings)\n    assert 'torch._dynamo' not in sys.modules\n    return loss\n"
    )
    assert sim("run", "--engine", "inline", "--num-rounds", "1", "--train", "own:train").returncode == 0

"""Presets: the settings of published experiments, each in a TOML file in this folder.

The comments of a preset give its source, the differences from the published experiment, the published accuracy and
the cost.
"""

from __future__ import annotations

from pathlib import Path

from sim.errors import ConfigError

_FOLDER = Path(__file__).parent


def preset_names() -> list[str]:
    """Return the names of the presets."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


def preset_path(name: str) -> Path:
    """Return the path of the file of a preset.

    Raises:
        ConfigError: no preset has this name; the message lists the valid names.
    """
    if name not in preset_names():
        raise ConfigError(f"--preset {name}: must be one of {', '.join(preset_names())}")
    return _FOLDER / f"{name}.toml"

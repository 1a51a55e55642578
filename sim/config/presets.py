"""The settings of published experiments, by name: TOML files in ``presets/``.

Their comments tell the source, what it differs in from this program, the published accuracy and the cost.
"""

from __future__ import annotations

from pathlib import Path

from sim.errors import ConfigError

_FOLDER = Path(__file__).parent


def preset_names() -> list[str]:
    """Return the names of the presets."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


def preset_path(name: str) -> Path:
    """Return the file of a preset.

    Raises:
        ConfigError: there is none of that name; the message lists those that are.
    """
    if name not in preset_names():
        raise ConfigError(f"--preset {name}: must be one of {', '.join(preset_names())}")
    return _FOLDER / f"{name}.toml"

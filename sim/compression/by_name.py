"""``--compress`` → how updates and weights are encoded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from sim.compression.bf16 import Bf16
from sim.compression.codec import Codec
from sim.compression.fp16 import Fp16
from sim.compression.int8 import Int8
from sim.compression.qsgd import Qsgd
from sim.compression.sign import Sign
from sim.compression.topk import TopK
from sim.errors import ConfigError, one_line

MOST_BITS = 16
_CHOICES = {
    "up": ("topk:SHARE", "qsgd:BITS", "int8", "fp16", "bf16", "sign", "none"),
    "down": ("qsgd:BITS", "int8", "fp16", "bf16", "none"),
}
_PLAIN: dict[str, Callable[[], Codec]] = {"int8": Int8, "fp16": Fp16, "bf16": Bf16, "sign": Sign}
_KEYS = ("up", "down", "error_feedback")


@dataclass(frozen=True)
class Compression:
    """How a run encodes what clients send (up) and what they get (down); None for arrays as they are.

    Attributes:
        error_feedback: each client adds what its last encoding has lost to its next update.
    """

    up: Codec | None = None
    down: Codec | None = None
    error_feedback: bool = False

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Compression:
        """Read ``--compress``.

        Raises:
            ConfigError: a key or a codec is unknown, a number is out of range, or two values contradict each other.
        """
        for key in given:
            if key not in _KEYS:
                raise ConfigError(f"{_shown(given, key)}: no such key; the valid keys are {', '.join(_KEYS)}")
        codecs = {key: _codec(given, key) for key in ("up", "down") if key in given}
        feedback = given.get("error_feedback", False)
        if not isinstance(feedback, bool):
            raise ConfigError(f"{_shown(given, 'error_feedback')}: must be true or false")
        if feedback and codecs.get("up") is None:
            raise ConfigError(
                "--compress error_feedback=true: adds what up has lost to the next update, so that it needs up, e.g. "
                "up=topk:0.01"
            )
        down = codecs.get("down")
        if down is not None and not down.FITS_WEIGHTS:
            lost = "sets most of the weights to 0" if isinstance(down, TopK) else "leaves only the signs of the weights"
            raise ConfigError(
                f"{_shown(given, 'down')}: {lost}, which are sent whole, not as differences; must be one of "
                f"{', '.join(_CHOICES['down'])}"
            )
        return cls(codecs.get("up"), down, feedback)


def _codec(given: Mapping[str, Any], key: str) -> Codec | None:
    text = str(given[key])
    if text == "none":  # for a sweep
        return None
    name, colon, number = text.partition(":")
    if name in _PLAIN:
        if colon:
            raise ConfigError(f"{_shown(given, key)}: {name} takes no number; use {name}")
        return _PLAIN[name]()
    if name == "topk":
        share = _share(number)
        if share is None:
            raise ConfigError(
                f"{_shown(given, key)}: needs the share of the numbers that are sent, above 0 and at most 1, e.g. "
                "topk:0.01"
            )
        return TopK(share)
    if name == "qsgd":
        if not (number.isascii() and number.isdecimal() and len(number) <= 2 and 1 <= int(number) <= MOST_BITS):
            raise ConfigError(
                f"{_shown(given, key)}: needs the bits of a level, a whole number from 1 to {MOST_BITS}, e.g. qsgd:8"
            )
        return Qsgd(int(number))
    raise ConfigError(f"{_shown(given, key)}: must be one of {', '.join(_CHOICES[key])}")


def _share(text: str) -> Fraction | None:
    """Return the decimal number in a text exactly; None if it is no share."""
    if "/" in text or "_" in text or not text.isascii() or len(text) > 30:
        return None
    try:
        share = Fraction(text) if abs(float(text)) > 1e-12 else Fraction(0)  # 1e-999999999 would fill the memory
    except (ValueError, OverflowError):
        return None
    return share if 0 < share <= 1 else None


def _shown(given: Mapping[str, Any], key: str) -> str:
    value = given[key]
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return one_line(f"--compress {key}={text}", 200)

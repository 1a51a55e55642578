"""``python -m sim`` is the console script ``sim``."""

from sim.cli import entry

entry()

"""``python -m sim`` is the console script ``sim``."""

import sys

# Python puts the current folder first, where a file random.py would be taken for the library.
if not sys.flags.safe_path and __file__.removesuffix("/sim/__main__.py") != sys.path[0]:
    del sys.path[0]

from sim.cli import entry

entry()

"""``python -m sim`` and the console script ``sim``."""

import os
import signal
import sys
from contextlib import suppress


def _order_sets_alike() -> None:
    """Start this process anew with the hash seed that the package has set, unless the user has chosen another one."""
    is_random = sys.flags.hash_randomization and os.environ.get("PYTHONHASHSEED") == "0"
    if is_random and sys.executable and not sys.flags.ignore_environment:
        with suppress(OSError):
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def entry() -> None:
    """Execute the command line; a Ctrl-C while its modules are imported ends the process without a traceback."""
    _order_sets_alike()
    is_default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_default:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from sim import cli

    if is_default:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    cli.entry()


if __name__ == "__main__":
    # Python puts the current folder first, where a file random.py would be taken for the library.
    if not sys.flags.safe_path and __file__.removesuffix("/sim/__main__.py") != sys.path[0]:
        del sys.path[0]
    entry()

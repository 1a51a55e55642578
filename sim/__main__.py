"""``python -m sim`` and the console script ``sim``."""

import signal
import sys


def entry() -> None:
    """Execute the command line; a Ctrl-C while its modules are imported ends the process without a traceback."""
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

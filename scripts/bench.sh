#!/usr/bin/env bash
# Client updates a second: bare PyTorch, plain Flower and sim in turn, on this machine; about a quarter of an hour.
# Flags go to scripts/bench/bench.py, e.g. scripts/bench.sh --only "pfl-research, Net"
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/install.sh"

"$VENV"/bin/python scripts/bench/bench.py "$@"

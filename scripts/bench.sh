#!/usr/bin/env bash
# Measure client updates per second of bare PyTorch, plain Flower and sim in turn, on this machine. It takes about
# 15 minutes. Flags are passed to scripts/bench/bench.py, e.g. scripts/bench.sh --only "pfl-research, Net"
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/install.sh"

"$VENV"/bin/python scripts/bench/bench.py "$@"

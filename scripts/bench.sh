#!/usr/bin/env bash
# Measure client updates per second of bare PyTorch, plain Flower and sim in turn, on this machine, and then Flower apps
# by scripts/bench_apps.sh. It takes about 20 minutes. Flags, with which apps are left out, are passed to
# scripts/bench/bench.py, e.g. scripts/bench.sh --only "pfl-research, Net"
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/install.sh"

"$VENV"/bin/python scripts/bench/bench.py "$@"
[ $# -gt 0 ] || scripts/bench_apps.sh -o results/published/apps.csv

#!/usr/bin/env bash
# Measure how long sim list, plot and report take for a run with 2,000,000 rows of clients, and how much memory. It takes
# about two minutes. Flags are passed to scripts/bench/records.py, e.g. scripts/bench_records.sh --rounds 100
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/install.sh"

"$VENV"/bin/python scripts/bench/records.py "$@"

#!/usr/bin/env bash
# Measure the seconds until the first round, compared with bare imports and ray.init, and with 100 to 1,000,000
# registered clients. It takes about ten minutes. Flags are passed to scripts/bench/start.py, e.g.
#   scripts/bench_start.sh --only digits
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/install.sh"

"$VENV"/bin/python scripts/bench/start.py "$@"

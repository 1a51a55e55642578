#!/usr/bin/env bash
# Seconds until the first round, beside bare imports and ray.init, and with 100 to 100,000 registered clients; about
# five minutes. Flags go to scripts/bench/start.py, e.g. scripts/bench_start.sh --only digits
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/install.sh"

"$VENV"/bin/python scripts/bench/start.py "$@"

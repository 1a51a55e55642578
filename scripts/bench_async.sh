#!/usr/bin/env bash
# Compare the throughput of asynchronous and synchronous runs, and of many and few registered clients, in turn. It takes
# about 5 minutes on 2 cores.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/install.sh"

"$VENV"/bin/python scripts/bench/asynchronous.py "$@"

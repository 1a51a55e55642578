#!/usr/bin/env bash
# Time a Flower app whose clients return at once, by flwr run and by sim app, in turn. It takes about ten minutes.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/install.sh"

"$VENV"/bin/python scripts/bench/apps.py "$@"

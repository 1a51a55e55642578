#!/usr/bin/env bash
# Time a Flower app by flwr run and by sim app, in turn: clients that return at once, and clients that train. It takes
# about five minutes.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/install.sh"

"$VENV"/bin/python scripts/bench/apps.py "$@"

#!/usr/bin/env bash
# One command to a first curve: 100 federated clients learn handwritten digits.
# Flags go to `sim run`, e.g. scripts/quickstart.sh --partitioner iid
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/install.sh"

"$VENV"/bin/sim run "$@"

#!/usr/bin/env bash
# Every strategy on both engines with 1, 2 and 3 processes, and resumed on another: one sha256 each. About 20 minutes.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/install.sh"

"$VENV"/bin/python scripts/faults/determinism.py "$@"

#!/usr/bin/env bash
# Check that every strategy, program or Flower app gives one sha256 of the weights: on both engines, with 1, 2 and 3
# processes, and after a resume with another engine or number of processes. It takes about 20 minutes.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/install.sh"

"$VENV"/bin/python scripts/faults/determinism.py "$@"

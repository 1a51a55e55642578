#!/usr/bin/env bash
# Compare a round over items (a Dataset of the user's with a random transform) with the same loop over PyTorch's DataLoader
# alone, in turn. It takes a minute.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/install.sh"

"$VENV"/bin/python scripts/bench/items.py "$@"

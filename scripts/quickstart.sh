#!/usr/bin/env bash
# Train 100 federated clients on handwritten digits and draw the accuracy.
# Flags are passed to `sim run`, e.g. scripts/quickstart.sh --partitioner iid
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/install.sh"

"$VENV"/bin/sim run "$@"

if ! command -v sim > /dev/null; then
    echo "to use the command sim in this shell: source $VENV/bin/activate"
fi

#!/usr/bin/env bash
# Compare accuracy for different numbers of clients per round (of 100), for non-IID and nearly IID clients, three seeds.
# Handwritten digits, 30 rounds. It takes about 3 minutes on 2 CPU cores. After an interruption, the same command
# continues. Flags are passed to sim sweep, e.g. scripts/experiments/clients_per_round.sh --jobs 1
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../install.sh"

name=clients_per_round
"$VENV"/bin/sim sweep --vary clients_per_round=5,10,20,50 --vary alpha=0.2,10 --seeds 3 --engine inline \
    --results-dir "results/experiments/$name" "$@"
cp "results/experiments/$name/sweep.csv" "results/published/$name.csv"
"$VENV"/bin/python scripts/experiments/plot.py "results/experiments/$name" clients_per_round --group alpha --log \
    -o "results/published/$name.png"

#!/usr/bin/env bash
# How many of 100 clients train in a round against accuracy, skewed and nearly even clients, three seeds each.
# Handwritten digits, 30 rounds. About 3 minutes on 2 CPU cores; started again, it goes on.
# Flags go to sim sweep, e.g. scripts/experiments/clients_per_round.sh --jobs 1
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../install.sh"

name=clients_per_round
"$VENV"/bin/sim sweep --vary clients_per_round=5,10,20,50 --vary alpha=0.2,10 --seeds 3 --engine inline \
    --results-dir "results/experiments/$name" "$@"
cp "results/experiments/$name/sweep.csv" "results/published/$name.csv"
"$VENV"/bin/python scripts/experiments/plot.py "results/experiments/$name" clients_per_round --group alpha --log \
    -o "results/published/$name.png"

#!/usr/bin/env bash
# More training at the clients between two rounds against accuracy, skewed and nearly even clients, three seeds each.
# 100 clients of handwritten digits, 20 a round, 30 rounds. About 3 minutes on 2 CPU cores; started again, it goes on.
# Flags go to sim sweep, e.g. scripts/experiments/local_epochs.sh --jobs 1
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../install.sh"

name=local_epochs
# With ten epochs a skewed client may diverge to NaN. Its round goes on without it: a lost seed would bias the mean.
"$VENV"/bin/sim sweep --vary local_epochs=1,2,5,10 --vary alpha=0.2,10 --seeds 3 --engine inline \
    --on-client-error drop --results-dir "results/experiments/$name" "$@"
cp "results/experiments/$name/sweep.csv" "results/published/$name.csv"
"$VENV"/bin/python scripts/experiments/plot.py "results/experiments/$name" local_epochs --group alpha --log \
    -o "results/published/$name.png"

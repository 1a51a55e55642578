#!/usr/bin/env bash
# Compare accuracy for different numbers of local epochs, for non-IID and nearly IID clients, three seeds.
# 100 clients with handwritten digits, 20 clients per round, 30 rounds. It takes about 3 minutes on 2 CPU cores. After
# an interruption, the same command continues.
# Flags are passed to sim sweep, e.g. scripts/experiments/local_epochs.sh --jobs 1
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../install.sh"

name=local_epochs
# With ten epochs, a non-IID client may diverge to NaN. It is then dropped from its round, because to stop the run would
# lose a seed and bias the mean.
"$VENV"/bin/sim sweep --vary local_epochs=1,2,5,10 --vary alpha=0.2,10 --seeds 3 --engine inline \
    --on-client-error drop --results-dir "results/experiments/$name" "$@"
cp "results/experiments/$name/sweep.csv" "results/published/$name.csv"
"$VENV"/bin/python scripts/experiments/plot.py "results/experiments/$name" local_epochs --group alpha --log \
    -o "results/published/$name.png"

#!/usr/bin/env bash
# The README's picture: how skewed the clients are against accuracy, for three strategies, three seeds each.
# 100 clients of handwritten digits, 20 a round, 30 rounds. About 5 minutes on 2 CPU cores; started again, it goes on.
# Below 0.2 not each of 100 clients gets a digit. Flags go to sim sweep, e.g. scripts/experiments/alpha.sh --jobs 1
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../install.sh"

name=alpha
"$VENV"/bin/sim sweep --vary alpha=0.2,0.5,1,10 --vary strategy=fedavg,fedprox,fedadam --seeds 3 --engine inline \
    --results-dir "results/experiments/$name" "$@"
cp "results/experiments/$name/sweep.csv" "results/published/$name.csv"
"$VENV"/bin/python scripts/experiments/plot.py "results/experiments/$name" alpha --group strategy --log \
    -o "results/published/$name.png"

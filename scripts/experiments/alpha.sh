#!/usr/bin/env bash
# Draw the README's picture: accuracy against the alpha of the Dirichlet partition, three strategies with three seeds.
# 100 clients with handwritten digits, 20 clients per round, 30 rounds. It takes about 5 minutes on 2 CPU cores. After
# an interruption, the same command continues. With an alpha below 0.2, some of the 100 clients would get no examples.
# Flags are passed to sim sweep, e.g. scripts/experiments/alpha.sh --jobs 1
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../install.sh"

name=alpha
"$VENV"/bin/sim sweep --vary alpha=0.2,0.5,1,10 --vary strategy=fedavg,fedprox,fedadam --seeds 3 --engine inline \
    --results-dir "results/experiments/$name" "$@"
cp "results/experiments/$name/sweep.csv" "results/published/$name.csv"
"$VENV"/bin/python scripts/experiments/plot.py "results/experiments/$name" alpha --group strategy --log \
    -o "results/published/$name.png"

#!/usr/bin/env bash
# The README's table: every strategy at its defaults on digits, Dirichlet 0.3, three seeds.
# 100 clients, 20 a round, 30 rounds. About 5 minutes on 2 CPU cores; started again, it goes on.
# Flags go to sim sweep, e.g. scripts/experiments/strategies.sh --jobs 1
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../install.sh"

name=strategies
all=fedavg,fedprox,fedavgm,fedadam,fedadagrad,fedyogi,fedmedian,fedtrimmedavg,krum,bulyan,qfedavg
"$VENV"/bin/sim sweep --vary "strategy=$all" --alpha 0.3 --seeds 3 --engine inline \
    --results-dir "results/experiments/$name" "$@"
cp "results/experiments/$name/sweep.csv" "results/published/$name.csv"
"$VENV"/bin/python scripts/experiments/plot.py "results/experiments/$name" strategy -o "results/published/$name.png"

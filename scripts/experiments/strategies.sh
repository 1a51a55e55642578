#!/usr/bin/env bash
# Compute the README's table: every strategy with its defaults on digits, Dirichlet partition of alpha 0.3, three seeds.
# 100 clients, 20 clients per round, 30 rounds. It takes about 5 minutes on 2 CPU cores. After an interruption, the same
# command continues. Flags are passed to sim sweep, e.g. scripts/experiments/strategies.sh --jobs 1
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../install.sh"

name=strategies
all=fedavg,fedprox,fedavgm,fedadam,fedadagrad,fedyogi,fedmedian,fedtrimmedavg,krum,bulyan,qfedavg
"$VENV"/bin/sim sweep --vary "strategy=$all" --alpha 0.3 --seeds 3 --engine inline \
    --results-dir "results/experiments/$name" "$@"
cp "results/experiments/$name/sweep.csv" "results/published/$name.csv"
"$VENV"/bin/python scripts/experiments/plot.py "results/experiments/$name" strategy -o "results/published/$name.png"

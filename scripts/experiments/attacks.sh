#!/usr/bin/env bash
# Draw accuracy against the share of attackers, who send their updates with the opposite sign, one line per strategy.
# 40 clients with handwritten digits, IID, 20 clients per round, 20 rounds, three seeds. It takes about 5 minutes on 2 CPU
# cores. After an interruption, the same command continues. Flags are passed to sim sweep, e.g. --attack alie
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../install.sh"

name=attacks
"$VENV"/bin/sim sweep --vary strategy=fedavg,fedmedian,fedtrimmedavg,krum,multikrum --vary attack_share=0,0.1,0.2,0.3,0.4 \
    --attack sign-flip --num-clients 40 --fraction-fit 0.5 --num-rounds 20 --partitioner iid --seeds 3 --engine inline \
    --results-dir "results/experiments/$name" "$@"
cp "results/experiments/$name/sweep.csv" "results/published/$name.csv"
cp "results/experiments/$name/final.png" "results/published/$name.png"

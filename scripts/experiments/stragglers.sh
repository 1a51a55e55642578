#!/usr/bin/env bash
# FedAvg against FedProx where 90 % of the clients of a round are slow: figure 1 of Li et al. 2020 on Synthetic(1, 1).
# 30 clients, 10 per round, up to 20 local epochs, 40 rounds, one seed. It takes about 3 minutes on 2 CPU cores.
# Flags are passed to sim run, e.g. scripts/experiments/stragglers.sh --seed 1
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../install.sh"

folder=results/experiments/stragglers
rm -rf "$folder" # of the last call
settings=(--dataset fedprox-synthetic --dataset-args alpha=1 beta=1 --model Logistic --clients-per-round 10
    --local-epochs 20 --batch-size 10 --lr 0.01 --num-rounds 40 --stragglers 0.9 --engine inline
    --checkpoint-every 0 --results-dir "$folder")
"$VENV"/bin/sim run "${settings[@]}" --straggler-policy drop --name FedAvg-drops-them "$@"
"$VENV"/bin/sim run "${settings[@]}" --name FedAvg-keeps-them "$@"
"$VENV"/bin/sim run "${settings[@]}" --strategy fedprox --strategy-args proximal_mu=1.0 --name FedProx-mu-1 "$@"
"$VENV"/bin/sim plot "$folder"/FedAvg-drops-them "$folder"/FedAvg-keeps-them "$folder"/FedProx-mu-1 \
    -o results/published/stragglers.png

#!/usr/bin/env bash
# FedAvg against FedProx where 90 % of the clients of a round are slow: figure 1 of Li et al. 2020 on Synthetic(1, 1).
# 30 clients, 10 per round, up to 20 local epochs, 40 rounds, five seeds. It takes about 3 minutes on 2 CPU cores.
# Flags are passed to sim sweep, e.g. scripts/experiments/stragglers.sh --num-rounds 100
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../install.sh"

folder=results/experiments/stragglers
rm -rf "$folder" # of the last call
settings=(--dataset fedprox-synthetic --dataset-args alpha=1 beta=1 --model Logistic --clients-per-round 10
    --local-epochs 20 --batch-size 10 --lr 0.01 --num-rounds 40 --stragglers 0.9 --engine inline
    --checkpoint-every 0 --seeds 5)
drops="$folder/FedAvg that drops slow clients"
keeps="$folder/FedAvg that keeps what they have done"
prox="$folder/FedProx, μ = 1"
"$VENV"/bin/sim sweep "${settings[@]}" --straggler-policy drop --results-dir "$drops" "$@"
"$VENV"/bin/sim sweep "${settings[@]}" --results-dir "$keeps" "$@"
"$VENV"/bin/sim sweep "${settings[@]}" --strategy fedprox --strategy-args proximal_mu=1.0 --results-dir "$prox" "$@"
"$VENV"/bin/sim plot "$drops" "$keeps" "$prox" -o results/published/stragglers.png
"$VENV"/bin/sim table "$drops" "$keeps" "$prox" --rows straggler_policy --columns strategy --metric loss:min \
    --baseline strategy=fedavg -o results/published/stragglers.csv

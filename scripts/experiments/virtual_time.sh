#!/usr/bin/env bash
# Accuracy against virtual seconds on phones as FLASH measured them: FedAvg, FedAvg with over-selection, FedBuff and
# FedAsync, three seeds each with 1,000 updates; and accuracy against bytes for five encodings, one seed. CIFAR-10,
# 100 clients, Dirichlet 0.5. It takes about 45 minutes on one CPU core. Flags are passed to sim run, e.g.
#     scripts/experiments/virtual_time.sh --dataset imagefolder --data-dir cifar10-images
# A run that is there already is left alone.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../install.sh"

folder=results/experiments/virtual_time
settings=(--dataset cifar10 --model Net --num-clients 100 --alpha 0.5 --clients-per-round 10 --local-epochs 1
    --batch-size 32 --lr 0.05 --devices flash --engine inline --checkpoint-every 0 --results-dir "$folder" "$@")

run() { # NAME FLAG…
    [ -f "$folder/$1/model.safetensors" ] || { rm -rf "${folder:?}/$1"; "$VENV"/bin/sim run "${settings[@]}" --name "$@"; }
}

rounds=(--num-rounds 100 --test-every 2)
for seed in 0 1 2; do
    run "fedavg-$seed" --seed "$seed" "${rounds[@]}"
    run "over-$seed" --seed "$seed" "${rounds[@]}" --over-select 1.3
    run "fedbuff-$seed" --seed "$seed" --strategy fedbuff --strategy-args buffer_size=5 --concurrency 10 \
        --num-rounds 200 --test-every 4
    run "fedasync-$seed" --seed "$seed" --strategy fedasync --concurrency 10 --num-rounds 1000 --test-every 20
done
run fp16-0 "${rounds[@]}" --compress up=fp16
run qsgd-8-0 "${rounds[@]}" --compress up=qsgd:8
run topk-0.01-0 "${rounds[@]}" --compress up=topk:0.01
run topk-ef-0 "${rounds[@]}" --compress up=topk:0.01 error_feedback=true

at() { for name in "$@"; do echo "$folder/$name"; done; }
mapfile -t runs < <(at fedavg-0 over-0 fedbuff-0 fedasync-0)
"$VENV"/bin/sim plot "${runs[@]}" --x virtual-seconds -o results/published/virtual_time.png
mapfile -t runs < <(at fedavg-0 fp16-0 qsgd-8-0 topk-0.01-0 topk-ef-0)
"$VENV"/bin/sim plot "${runs[@]}" --x bytes -o results/published/traffic.png

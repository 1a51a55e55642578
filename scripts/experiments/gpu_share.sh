#!/usr/bin/env bash
# Find how many processes should share a GPU: throughput of 100 clients on 1, 2, 4, 8 and 10 processes, three repeats.
# It needs a CUDA GPU and one CPU core per process. It executes 15 runs of four rounds; how long this takes has not been
# measured yet. After an interruption, the same command continues.
# Flags are passed to sim scale, e.g. scripts/experiments/gpu_share.sh --repeats 1
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../install.sh"

if ! "$VENV"/bin/python -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then
    echo "gpu_share.sh: needs a CUDA GPU, and PyTorch sees none here" >&2
    exit 2
fi

name=gpu_share
# SimpleCnn is large enough to benefit from a GPU. Strong scaling uses the same clients for every number of processes.
"$VENV"/bin/sim scale --device cuda --model SimpleCnn --num-clients 100 --num-actors 1,2,4,8,10 --scaling strong \
    --repeats 3 --results-dir "results/experiments/$name" "$@"
cp "results/experiments/$name/scale.csv" "results/published/$name.csv"
cp "results/experiments/$name/scaling.png" "results/published/$name.png"

#!/usr/bin/env bash
# Draw the pictures of docs/data-and-partitions.md: 10,000 examples of 10 classes on 8 clients, for each partitioner.
# It takes half a minute.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/install.sh"

for partitioner in iid dirichlet inner-dirichlet shard pathological linear square exponential; do
    "$VENV"/bin/sim partition --dataset synthetic --num-clients 8 --partitioner "$partitioner" \
        -o "results/published/partition-$partitioner.png"
done

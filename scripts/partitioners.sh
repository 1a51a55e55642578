#!/usr/bin/env bash
# The README's gallery: what each partitioner gives 8 clients of 10,000 examples in 10 classes. Half a minute.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/install.sh"

for partitioner in iid dirichlet inner-dirichlet shard pathological linear square exponential; do
    "$VENV"/bin/sim partition --dataset synthetic --num-clients 8 --partitioner "$partitioner" \
        -o "results/published/partition-$partitioner.png"
done

#!/usr/bin/env bash
# Draw the picture of docs/results.md: CIFAR-10 on 100 clients, IID and non-IID, compared with centralised training.
# It takes about 5 minutes on 2 CPU cores. CIFAR is a folder with train/<class>/* and test/<class>/*.
#   scripts/cifar10.sh CIFAR
set -euo pipefail
CIFAR="$(realpath --relative-to="$(dirname "${BASH_SOURCE[0]}")/.." "${1:?folder with train/<class>/* and test/<class>/*}")"
source "$(dirname "${BASH_SOURCE[0]}")/install.sh"

data=(--dataset imagefolder --data-dir "$CIFAR")
federated=(--num-clients 100 --fraction-fit 0.1 --local-epochs 5 --batch-size 50 --lr 0.05)

# 500 images per client, with the same number of images of every class
"$VENV"/bin/sim run "${data[@]}" "${federated[@]}" --partitioner iid --num-rounds 40 --name fedavg-iid

# few classes per client
"$VENV"/bin/sim run "${data[@]}" "${federated[@]}" --alpha 0.5 --num-rounds 30 --name fedavg-dirichlet-0.5

# two epochs over all 50,000 images, with the settings of the tutorial
"$VENV"/bin/sim centralized "${data[@]}" --name centralized

"$VENV"/bin/sim plot fedavg-iid fedavg-dirichlet-0.5 centralized -o results/published/cifar10.png

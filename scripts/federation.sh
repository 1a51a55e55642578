#!/usr/bin/env bash
# The tutorial's terminals in one: a server and N clients as processes of this machine, all ended together.
# N is 2 unless given. Flags of sim run go to server and clients, e.g.
#   scripts/federation.sh 5 --dataset imagefolder --data-dir CIFAR --num-rounds 3
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/install.sh"

N=2
if [[ "${1:-}" =~ ^[0-9]+$ ]]; then
    N="$1"
    shift
fi

running=()
# Starts a command of sim in the background; what it prints begins with its name.
start() {
    local name="$1"
    shift
    "$VENV"/bin/sim "$@" > >(sed -u "s/^/$(printf '%-9s' "$name") | /") 2>&1 &
    running+=("$!")
}
end_all() {
    for pid in "${running[@]}"; do kill "$pid" 2>/dev/null || true; done
    wait
}
trap end_all EXIT

start server server --num-clients "$N" --min-clients "$N" --num-rounds 3 "$@"
for ((i = 0; i < N; i++)); do
    start "client $i" client --num-clients "$N" --client-id "$i" "$@"
done

# Until all have ended well, or one has not.
while ((${#running[@]})); do
    left=()
    for pid in "${running[@]}"; do
        if kill -0 "$pid" 2>/dev/null; then left+=("$pid"); else wait "$pid"; fi
    done
    running=(${left[@]+"${left[@]}"})
    sleep 0.2
done

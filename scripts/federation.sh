#!/usr/bin/env bash
# Run a server and N clients as processes of this machine, and stop all of them at the end. This replaces the several
# terminals of the tutorial. N is 2 by default. Flags of sim run are passed to the server and the clients, e.g.
#   scripts/federation.sh 5 --dataset imagefolder --data-dir CIFAR --num-rounds 3
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/install.sh"

N=2
if [[ "${1:-}" =~ ^[0-9]+$ ]]; then
    N="$1"
    shift
fi

running=()
# Start a command of sim in the background. Each line of its output begins with its name.
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

# Wait until all processes have succeeded or one has failed.
while ((${#running[@]})); do
    left=()
    for pid in "${running[@]}"; do
        if kill -0 "$pid" 2>/dev/null; then left+=("$pid"); else wait "$pid"; fi
    done
    running=(${left[@]+"${left[@]}"})
    sleep 0.2
done

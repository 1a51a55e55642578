#!/usr/bin/env bash
# Run the Flower app of sim in Flower's own runtimes, on loopback. All processes that it starts end with it:
#   scripts/flower_app.sh simulate 5 "num_rounds=3 alpha=0.1"    # flwr run on 5 virtual SuperNodes
#   scripts/flower_app.sh deploy 2 "num_rounds=3 name='first'"   # a SuperLink and 2 SuperNodes as processes
# The last argument is Flower's run config: the settings of sim run with their Python names.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/install.sh"
[[ "${1:-}" =~ ^(simulate|deploy)$ && "${2:-}" =~ ^[1-9][0-9]*$ ]] || { sed -n 2,5p scripts/flower_app.sh >&2; exit 2; }
MODE="$1" N="$2" RUN_CONFIG="${3:-num_rounds=3}"
ROOT="$PWD"
[[ "$RUN_CONFIG" == *results_dir=* ]] || RUN_CONFIG+=" results_dir='$ROOT/results'"

export PATH="$(realpath "$VENV")/bin:$PATH"   # Flower starts its programs by name
export FLWR_HOME="$(mktemp -d)"               # a separate folder for connections and installed apps
export FLWR_TELEMETRY_ENABLED=0 RAY_USAGE_STATS_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1
free_port() { python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
PORT="$(free_port)"
printf '[superlink]\ndefault = "here"\n[superlink.here]\naddress = "127.0.0.1:%s"\ninsecure = true\n' "$PORT" \
    > "$FLWR_HOME/config.toml"

set -m   # each process gets its own group, so that its child processes end with it
running=()
end_all() {
    for pid in "${running[@]}"; do kill -- "-$pid" 2>/dev/null || true; done
    wait
    rm -rf "$FLWR_HOME"
}
trap end_all EXIT

cd "$FLWR_HOME"   # actors import from the SuperLink's folder first, so it must not be the repository
simulation=()
[ "$MODE" = deploy ] || simulation=(--simulation)
flower-superlink --insecure ${simulation[@]+"${simulation[@]}"} --host 127.0.0.1 --port "$PORT" \
    --disable-runtime-dependency-installation > superlink.log 2>&1 &
running+=("$!")
until (: < "/dev/tcp/127.0.0.1/$PORT") 2>/dev/null; do
    kill -0 "${running[0]}" 2>/dev/null || { cat superlink.log >&2; exit 1; }
    sleep 0.2
done

federation=()
if [ "$MODE" = deploy ]; then
    for ((i = 0; i < N; i++)); do
        flower-supernode --insecure --superlink "127.0.0.1:$PORT" --host 127.0.0.1 --port "$(free_port)" \
            --node-config "partition-id=$i num-partitions=$N" > "supernode$i.log" 2>&1 &
        running+=("$!")
    done
else
    federation=(--federation-config "num-supernodes=$N client-resources-num-cpus=1")
fi

flwr run "$ROOT" here --stream --run-config "$RUN_CONFIG" ${federation[@]+"${federation[@]}"}
# The exit code of flwr run is 0 even if the run failed, so the status of the run is checked.
flwr list here --format json | grep '"status": "finished:completed"' > /dev/null

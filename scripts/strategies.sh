#!/usr/bin/env bash
# The README's table: every strategy at its defaults on digits, Dirichlet 0.3, three seeds.
# About 10 minutes on 2 CPU cores.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/install.sh"

strategies=(fedavg fedprox fedavgm fedadam fedadagrad fedyogi fedmedian fedtrimmedavg krum bulyan qfedavg)
for strategy in "${strategies[@]}"; do
    for seed in 0 1 2; do
        "$VENV"/bin/sim run --strategy "$strategy" --alpha 0.3 --seed "$seed" --engine inline \
            --results-dir results/strategies --name "$strategy-seed$seed"
    done
done

"$VENV"/bin/python - <<'EOF'
import pandas as pd

from sim.rundir import list_runs

rows = [
    {"strategy": run.config()["strategy"], "accuracy": run.rounds().test_accuracy.iloc[-1]}
    for run in list_runs("results/strategies")
]
table = pd.DataFrame(rows).groupby("strategy").accuracy.agg(["mean", "std", "count"]).round(4)
table.columns = ["final_accuracy_mean", "final_accuracy_sd", "num_seeds"]
table.sort_values("final_accuracy_mean", ascending=False).to_csv("results/published/strategies.csv")
print(table)
EOF

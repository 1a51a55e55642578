#!/usr/bin/env bash
# Cause a fault at a random moment of each run (a killed process, a hang, NaN, a full disk, a damaged checkpoint) and check that the result is
# the same as without it. 100 trials take about 45 minutes on 2 cores:
#   scripts/fault_campaign.sh [--trials N] [--seed S] [-o FILE.csv]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/install.sh"

"$VENV"/bin/python scripts/faults/campaign.py "$@"

#!/usr/bin/env bash
# Kills, hangs, NaNs and a full disk at random moments of runs, and whether each ends as if nothing had happened.
# A hundred trials take about 45 minutes on 2 cores: scripts/fault_campaign.sh [--trials N] [--seed S] [-o FILE.csv]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/install.sh"

"$VENV"/bin/python scripts/faults/campaign.py "$@"

#!/usr/bin/env bash
# Lint, types and tests. Arguments go to pytest, e.g. scripts/test.sh -k partition
set -euo pipefail
EXTRAS="[dev]"
source "$(dirname "${BASH_SOURCE[0]}")/install.sh"

.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
.venv/bin/python -m pytest --numprocesses 2 "$@"

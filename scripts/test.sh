#!/usr/bin/env bash
# Check code style and types, and run the tests. Arguments are passed to pytest, e.g. scripts/test.sh -k partition
set -euo pipefail
EXTRAS="[dev]"
source "$(dirname "${BASH_SOURCE[0]}")/install.sh"

"$VENV"/bin/ruff check .
"$VENV"/bin/ruff format --check .
"$VENV"/bin/mypy
"$VENV"/bin/python -m pytest --numprocesses 2 --dist worksteal "$@"

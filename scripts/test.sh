#!/usr/bin/env bash
# Check code style and types, and run the tests but those that take long; with --all also these, and with --fast only
# those that need no Ray, no sockets, no browser and no other process. Other arguments are passed to pytest, e.g.
# scripts/test.sh --fast -k partition
set -euo pipefail
EXTRAS="[dev]"
source "$(dirname "${BASH_SOURCE[0]}")/install.sh"

chosen="not nightly and not gpu"
processes=3 # the tests wait for other processes half of the time: three at once use two CPUs
arguments=()
for word in "$@"; do
    case "$word" in
        --fast) chosen="not nightly and not gpu and not ray and not network and not browser and not slow" processes=2 ;;
        --all) chosen="not gpu" ;;
        *) arguments+=("$word") ;;
    esac
done

unset PYTHONDONTWRITEBYTECODE # where it is set, each of the tests' many processes would compile sim anew
"$VENV"/bin/ruff check .
"$VENV"/bin/ruff format --check .

# The types are checked beside the tests; what mypy finds is printed at the end.
types="$(mktemp)"
trap 'rm -f "$types"' EXIT
"$VENV"/bin/mypy > "$types" 2>&1 &
mypy=$!
failed=0
"$VENV"/bin/python -m pytest --numprocesses "$processes" --dist worksteal -m "$chosen" ${arguments[@]+"${arguments[@]}"} || failed=$?
wait "$mypy" || failed=1
cat "$types"
exit "$failed"

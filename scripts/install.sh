# Sourced by the scripts beside it: makes a virtual environment and installs the package, once.
# Set EXTRAS to "[dev]" before for the tools of development, VENV for another environment than .venv.

cd "$(dirname "${BASH_SOURCE[0]}")/.."
EXTRAS="${EXTRAS:-}"
VENV="${VENV:-.venv}"

[ -x "$VENV/bin/pip" ] || python3 -m venv "$VENV"

# What was installed is remembered; a change of the metadata installs again.
wanted="$(cat setup.cfg pyproject.toml | sha256sum)"
for extras in "$EXTRAS" "[dev]"; do
    if [ "$(cat "$VENV/.installed-sim$extras" 2>/dev/null)" = "$wanted" ]; then
        return 0
    fi
done
echo "installing sim$EXTRAS into $VENV (a minute or two) …"
"$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --editable ".$EXTRAS"
echo "$wanted" > "$VENV/.installed-sim$EXTRAS"

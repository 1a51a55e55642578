# Sourced by the scripts beside it: makes .venv and installs the package, once.
# Set EXTRAS to "[dev]" before for the tools of development.

cd "$(dirname "${BASH_SOURCE[0]}")/.."
EXTRAS="${EXTRAS:-}"

[ -x .venv/bin/pip ] || python3 -m venv .venv

# What was installed is remembered; a change of the metadata installs again.
wanted="$(cat setup.cfg pyproject.toml | sha256sum)"
for extras in "$EXTRAS" "[dev]"; do
    if [ "$(cat ".venv/.installed-sim$extras" 2>/dev/null)" = "$wanted" ]; then
        return 0
    fi
done
echo "installing sim$EXTRAS into .venv (a minute or two) …"
.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".$EXTRAS"
echo "$wanted" > ".venv/.installed-sim$EXTRAS"

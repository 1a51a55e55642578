# The other scripts source this file. It creates a virtual environment and installs the package, if this is needed.
# Set EXTRAS to "[dev]" to install the development tools, and VENV to use another environment than .venv.

cd "$(dirname "${BASH_SOURCE[0]}")/.."
EXTRAS="${EXTRAS:-}"
VENV="${VENV:-.venv}"

[ -x "$VENV/bin/pip" ] || python3 -m venv "$VENV"

# A checksum of the metadata is stored, so that the package is installed again only if the metadata has changed.
wanted="$(cat setup.cfg pyproject.toml | sha256sum)"
for extras in "$EXTRAS" "[dev]"; do
    if [ "$(cat "$VENV/.installed-sim$extras" 2>/dev/null)" = "$wanted" ]; then
        return 0
    fi
done
echo "installing sim$EXTRAS into $VENV (a few minutes) …"
"$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile --editable ".$EXTRAS"
# pip would compile on one CPU. A few files are of other versions of Python; they cannot be compiled, nor are they used.
"$VENV/bin/python" -m compileall -q -j 0 "$VENV"/lib > /dev/null || true
echo "$wanted" > "$VENV/.installed-sim$EXTRAS"

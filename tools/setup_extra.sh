#!/bin/sh
# Install an extra from its hashed lock file: `make setup EXTRA=NAME` calls this with NAME.
# One with requirements in extras/NAME.in has an environment of its own, .venv-NAME.
set -eu
cd "$(dirname "$0")/.."
root=$PWD
name=$1
environment=$root/.venv
if [ -f "extras/$name.in" ]; then
    environment=$root/.venv-$name
    [ -x "$environment/bin/python" ] || .venv/bin/uv venv -q --relocatable --python "$PYTHON" "$environment"
fi
echo "setup: installing the extra $name into ${environment#"$root"/}"
# Outside of the project: its [tool.uv] leaves out for the core what an extra may bring (Ray).
cd /
"$root/.venv/bin/uv" pip install -q --python "$environment/bin/python" --no-deps --require-hashes -r "$root/extras/$name.lock"

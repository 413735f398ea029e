#!/bin/sh
# Install an extra from its hashed lock file: `make setup EXTRA=NAME` calls this with NAME.
# One with requirements in extras/NAME.in has an environment of its own, .venv-NAME.
set -eu
cd "$(dirname "$0")/.."
name=$1
environment=.venv
if [ -f "extras/$name.in" ]; then
    environment=.venv-$name
    [ -x "$environment/bin/python" ] || .venv/bin/uv venv -q --relocatable --python "$PYTHON" "$environment"
fi
echo "setup: installing the extra $name into $environment"
.venv/bin/uv pip install -q --python "$environment/bin/python" --no-deps --require-hashes -r "extras/$name.lock"

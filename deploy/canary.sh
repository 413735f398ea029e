#!/bin/sh
# Try a model on a share of the requests, and serve it in place of the current one if it is as good:
#
#   deploy/canary.sh /models/support-3
#   deploy/canary.sh /models/support-3 canary.share=0.2 canary.questions=/canary/questions.jsonl
#
# Starts a third server with the model, has stage=canary compare it with the one that serves, and
# calls serve.sh if it is promoted. Else the server is stopped, and the exit code is 5. Further words
# are settings of stage=canary. The folder CANARY_FOLDER (deploy/canary) is /canary there: questions
# are read from it, and the report is written to it; the user 1000 must be able to write to it.
#
# COMPOSE, ENGINE and READY_SECONDS are those of serve.sh.
set -eu
[ $# -ge 1 ] && [ -d "$1" ] || {
    echo "usage: deploy/canary.sh FOLDER [canary.SETTING=VALUE ...]" >&2
    exit 2
}
model=$(cd "$1" && pwd)
shift
cd "$(dirname "$0")"
compose=${COMPOSE:-docker compose}
engine=${ENGINE:-docker}

live=$(sed -n 's/^LIVE=//p' .env 2>/dev/null || true)
[ -n "$live" ] || {
    echo "canary: nothing is served yet: deploy/serve.sh FOLDER" >&2
    exit 2
}
export COMPOSE_PROFILES="$live,canary" MODEL_CANARY="$model"
mkdir -p "${CANARY_FOLDER:-canary}"
trap '$compose stop server-canary' EXIT

echo "canary: starting server-canary with $model"
$compose up -d server-canary
left=${READY_SECONDS:-600}
until $engine exec pipeline-server-canary python3 deploy/healthcheck.py > /dev/null 2>&1; do
    left=$((left - 1))
    # Docker reports a container that crashes and restarts as running.
    state=$($engine inspect -f '{{.State.Status}} {{.RestartCount}}' pipeline-server-canary)
    if [ $left -le 0 ] || [ "$state" != "running 0" ]; then
        $engine logs --tail 20 pipeline-server-canary >&2
        echo "canary: $model did not become ready, see the log above; server-$live keeps serving" >&2
        exit 1
    fi
    sleep 1
done

$compose run --rm canary stage=canary artifacts=/canary \
    "canary.stable=http://server-$live:8000" canary.candidate=http://server-canary:8000 \
    canary.haproxy.socket=/run/haproxy/admin.sock "$@"
COMPOSE_PROFILES="$live" ./serve.sh "$model"

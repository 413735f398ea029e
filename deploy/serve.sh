#!/bin/sh
# Serve a model on this host in place of the current one, without losing a request:
#
#   deploy/serve.sh /models/support-2
#
# Starts the idle one of the two servers with the model, waits until it is ready, and stops the
# other, which finishes its requests first. The proxy uses the server that is ready. If the new
# server does not become ready, it is stopped and the current one stays. The first call starts all
# services of compose.yaml.
#
# COMPOSE (docker compose) and ENGINE (docker) are the commands, READY_SECONDS (600) is the time that
# a model may take to load, SERVICES are the services beside the servers.
set -eu
[ $# -eq 1 ] && [ -d "$1" ] || {
    echo "usage: deploy/serve.sh FOLDER  (an engine of stage=build, or an HF folder)" >&2
    exit 2
}
model=$(cd "$1" && pwd)
cd "$(dirname "$0")"
compose=${COMPOSE:-docker compose}
engine=${ENGINE:-docker}
export COMPOSE_PROFILES=a,b

# .env is compose's file for variables. It keeps them from call to call.
set_variable() {
    touch .env
    { grep -v "^$1=" .env || true; echo "$1=$2"; } > .env.new
    mv .env.new .env
}

live=$(sed -n 's/^LIVE=//p' .env 2>/dev/null || true)
case $live in a) next=b ;; *) next=a ;; esac
set_variable "MODEL_$(echo $next | tr ab AB)" "$model"

echo "serve: starting server-$next with $model"
$compose up -d "server-$next"
left=${READY_SECONDS:-600}
until $engine exec "pipeline-server-$next" python3 deploy/healthcheck.py > /dev/null 2>&1; do
    left=$((left - 1))
    # Docker reports a container that crashes and restarts as running.
    state=$($engine inspect -f '{{.State.Status}} {{.RestartCount}}' "pipeline-server-$next")
    if [ $left -le 0 ] || [ "$state" != "running 0" ]; then
        $engine logs --tail 20 "pipeline-server-$next" >&2
        $compose stop "server-$next"
        echo "serve: $model did not become ready, see the log above${live:+; server-$live keeps serving}" >&2
        exit 1
    fi
    sleep 1
done

$compose up -d proxy ${SERVICES-mlflow prometheus grafana}
set_variable LIVE "$next"
set_variable COMPOSE_PROFILES "$next"
if [ -n "$live" ]; then
    sleep 2 # the proxy checks health twice a second
    echo "serve: stopping server-$live after its requests are finished"
    $compose stop "server-$live"
fi
echo "serve: $model is served"

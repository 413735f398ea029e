#!/bin/sh
# Serve a model on this host, in place of the one that is served now, without losing a request:
#
#   deploy/serve.sh /models/support-2
#
# Starts the idle one of the two servers with it, waits until it is ready, and stops the other,
# which finishes its answers first; the proxy asks whichever is ready. One that does not become
# ready is stopped, and nothing has changed. The first call starts all of compose.yaml.
#
# COMPOSE (docker compose) and ENGINE (docker) name the commands, READY_SECONDS (600) how long a
# model may take to load, SERVICES what runs beside the servers.
set -eu
[ $# -eq 1 ] && [ -d "$1" ] || {
    echo "usage: deploy/serve.sh FOLDER  (what stage=build made, or an HF folder)" >&2
    exit 2
}
model=$(cd "$1" && pwd)
cd "$(dirname "$0")"
compose=${COMPOSE:-docker compose}
engine=${ENGINE:-docker}
export COMPOSE_PROFILES=a,b

# .env is compose's own file for variables: what is remembered from call to call.
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
    # To Docker, a container that crashes and is started again is running all the while.
    state=$($engine inspect -f '{{.State.Status}} {{.RestartCount}}' "pipeline-server-$next")
    if [ $left -le 0 ] || [ "$state" != "running 0" ]; then
        $engine logs --tail 20 "pipeline-server-$next" >&2
        $compose stop "server-$next"
        echo "serve: $model did not become ready, for the reason above${live:+; server-$live serves on}" >&2
        exit 1
    fi
    sleep 1
done

$compose up -d proxy ${SERVICES-mlflow prometheus grafana}
set_variable LIVE "$next"
set_variable COMPOSE_PROFILES "$next"
if [ -n "$live" ]; then
    sleep 2 # the proxy asks for health twice a second
    echo "serve: stopping server-$live when its answers are finished"
    $compose stop "server-$live"
fi
echo "serve: $model is served"

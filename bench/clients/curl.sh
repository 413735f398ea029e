#!/bin/sh
# curl: sh curl.sh http://127.0.0.1:8000/v1 demo
set -eu
url=$1 model=$2
ask() { curl --silent --show-error --no-buffer "$url/$1" -H "Content-Type: application/json" -d "$2"; }
messages='[{"role": "user", "content": "What does a domestic wire cost?"}]'

curl --silent --fail "$url/models" | grep -q "\"id\":\"$model\""
ask chat/completions "{\"model\": \"$model\", \"messages\": $messages}" | grep -q '"finish_reason":"stop"'
ask chat/completions "{\"model\": \"$model\", \"messages\": $messages, \"stream\": true}" | grep -q 'data: \[DONE\]'
ask completions "{\"model\": \"$model\", \"prompt\": [\"A wire\", \"A card\"]}" | grep -q '"index":1'
ask chat/completions '{"model": "gpt-5", "messages": []}' | grep -q '"code":"model_not_found"'
ask chat/completions 'no JSON' | grep -q 'not valid JSON'
echo "{\"version\": \"$(curl --version | head -n 1 | cut -d ' ' -f 2)\"}"

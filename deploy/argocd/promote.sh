#!/bin/sh
# Serve in one environment the model that another one serves, by a commit that changes one digest:
#
#   deploy/argocd/promote.sh staging production && git push
#
# Argo CD sees the commit and rolls the servers over. To go back: git revert the commit.
set -eu
cd "$(dirname "$0")/environments"
[ $# -eq 2 ] && [ -f "$1/model.yaml" ] && [ -f "$2/model.yaml" ] || {
    echo "usage: deploy/argocd/promote.sh FROM TO  (of: $(ls | tr '\n' ' '))" >&2
    exit 2
}
git diff --quiet HEAD -- "$1/model.yaml" "$2/model.yaml" || {
    echo "promote: $1/model.yaml or $2/model.yaml has changes that are not committed: commit or undo them" >&2
    exit 2
}
digest=$(grep -o 'sha256:[0-9a-f]\{64\}' "$1/model.yaml") || {
    echo "promote: $1/model.yaml has no digest (sha256: and 64 digits)" >&2
    exit 3
}
if cmp -s "$1/model.yaml" "$2/model.yaml"; then
    echo "promote: $2 serves $digest already"
    exit 0
fi
cp "$1/model.yaml" "$2/model.yaml"
git commit -q -m "Serve $digest in $2, as in $1" -- "$2/model.yaml"
echo "promote: $2 serves $digest, once this commit is pushed"

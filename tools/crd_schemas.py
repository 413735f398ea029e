"""Write tests/unit/deploy/crds.json: JSON schemas of the custom resources that we render.

    python -m tools.crd_schemas CHECKOUTS

CHECKOUTS has a git clone of each project of SOURCES, as OWNER+NAME (or OWNER+NAME/repo). What the
schemas of custom resource definitions say is kept, but for descriptions; an object takes no unknown
fields, as with `kubectl apply --validate=strict`. Their rules in CEL are left out. A part that
occurs several times, such as a pod's specification, is written once.
"""

import hashlib
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

PLACE = Path(__file__).resolve().parents[1] / "tests/unit/deploy/crds.json"
# Project, and its definitions; all are under the Apache License 2.0.
SOURCES = {
    "argoproj/argo-cd": [
        "manifests/crds/application-crd.yaml",
        "manifests/crds/applicationset-crd.yaml",
        "manifests/crds/appproject-crd.yaml",
    ],
    "argoproj/argo-rollouts": [
        "manifests/crds/analysis-template-crd.yaml",
        "manifests/crds/rollout-crd.yaml",
    ],
    "external-secrets/external-secrets": [
        "config/crds/bases/external-secrets.io_externalsecrets.yaml"
    ],
    "kedacore/keda": ["config/crd/bases/keda.sh_scaledobjects.yaml"],
    "kserve/kserve": [
        "config/crd/full/serving.kserve.io_inferenceservices.yaml",
        "config/crd/full/serving.kserve.io_servingruntimes.yaml",
        "config/crd/full/llmisvc/serving.kserve.io_llminferenceservices.yaml",
    ],
    "kubeflow/trainer": ["manifests/base/crds/trainer.kubeflow.org_trainjobs.yaml"],
    "kubernetes-sigs/gateway-api": [
        "config/crd/standard/gateway.networking.k8s.io_httproutes.yaml"
    ],
    "kubernetes-sigs/jobset": ["config/components/crd/bases/jobset.x-k8s.io_jobsets.yaml"],
    "prometheus-operator/prometheus-operator": [
        "example/prometheus-operator-crd/monitoring.coreos.com_prometheusrules.yaml",
        "example/prometheus-operator-crd/monitoring.coreos.com_servicemonitors.yaml",
    ],
}
KEPT = (
    "type enum pattern minimum maximum minLength maxLength minItems maxItems uniqueItems required "
    "minProperties maxProperties"
).split()
SHARED_BYTES = 200  # a repeated part of this size is written once


def main(checkouts: Path) -> None:
    commits: dict[str, str] = {}
    kinds: dict[str, Any] = {}
    for project, files in SOURCES.items():
        clone = checkouts / project.replace("/", "+")
        clone = clone / "repo" if (clone / "repo").is_dir() else clone
        commits[project] = _git(clone, "rev-parse", "HEAD").strip()
        for file in files:
            crd = yaml.load(_git(clone, "show", f"HEAD:{file}"), Loader=yaml.CSafeLoader)
            spec = crd["spec"]
            for version in spec["versions"]:
                if version["served"]:
                    name = f"{spec['group']}/{version['name']}/{spec['names']['kind']}"
                    kinds[name] = _schema(version["schema"]["openAPIV3Schema"], top=True)
    shared = _shared(kinds)
    schemas = {name: _with_references(schema, shared) for name, schema in kinds.items()}
    definitions = {key: _with_references(part, shared) for key, part in shared.items()}
    lines = [f'{{"commits": {json.dumps(commits)},', '"kinds": {']
    lines += [",\n".join(f"{json.dumps(k)}: {_text(v)}" for k, v in schemas.items()), "},"]
    lines += ['"$defs": {']
    lines += [",\n".join(f"{json.dumps(k)}: {_text(v)}" for k, v in sorted(definitions.items()))]
    PLACE.write_text("\n".join([*lines, "}}", ""]))
    print(f"{len(schemas)} kinds, {PLACE.stat().st_size / 1e3:.0f} kB", file=sys.stderr)


def _git(clone: Path, *command: str) -> str:
    return subprocess.run(
        ["git", "-C", str(clone), *command], check=True, text=True, stdout=subprocess.PIPE
    ).stdout


def _schema(node: dict[str, Any], top: bool = False) -> dict[str, Any]:
    """A node of a structural schema as JSON schema."""
    made: dict[str, Any] = {k: node[k] for k in KEPT if k in node}
    if node.get("x-kubernetes-int-or-string"):
        made["type"] = ["integer", "string"]
    elif node.get("nullable") and "type" in made:
        made["type"] = [made["type"], "null"]
    for key in ("exclusiveMinimum", "exclusiveMaximum"):  # flags there, numbers in JSON schema
        if node.get(key):
            made[key] = made.pop(key[9:].lower())
    for key in ("oneOf", "anyOf", "allOf"):
        if key in node and not node.get("x-kubernetes-int-or-string"):
            made[key] = [_schema(part) for part in node[key]]
    if "not" in node:
        made["not"] = _schema(node["not"])
    if "items" in node:
        made["items"] = _schema(node["items"])
    if isinstance(node.get("additionalProperties"), dict):
        made["additionalProperties"] = _schema(node["additionalProperties"])
    if "properties" in node:
        made["properties"] = {k: _schema(v) for k, v in node["properties"].items()}
        free = "additionalProperties" in node or node.get("x-kubernetes-preserve-unknown-fields")
        if "type" in node and not free:
            made["additionalProperties"] = False
    if top:
        made["properties"]["metadata"] = {"type": "object"}  # its schema is Kubernetes' own
    return made


def _text(node: Any) -> str:
    return json.dumps(node, sort_keys=True, separators=(",", ":"))


def _key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _parts(node: Any) -> list[dict[str, Any]]:
    """All schemas inside a schema, and itself."""
    if not isinstance(node, dict):
        return []
    found = [node]
    for key in ("items", "additionalProperties", "not"):
        found += _parts(node.get(key))
    for key in ("oneOf", "anyOf", "allOf"):
        for part in node.get(key, []):
            found += _parts(part)
    for part in node.get("properties", {}).values():
        found += _parts(part)
    return found


def _shared(kinds: dict[str, Any]) -> dict[str, Any]:
    count: Counter[str] = Counter()
    parts: dict[str, Any] = {}
    for schema in kinds.values():
        for part in _parts(schema):
            text = _text(part)
            if len(text) >= SHARED_BYTES:
                count[text] += 1
                parts[text] = part
    return {_key(text): parts[text] for text, times in count.items() if times > 1}


def _with_references(node: Any, shared: dict[str, Any], inside: bool = False) -> Any:
    """The schema with references in place of the shared parts inside it."""
    if not isinstance(node, dict):
        return node
    if inside and (key := _key(_text(node))) in shared:
        return {"$ref": f"#/$defs/{key}"}
    made = dict(node)
    for key in ("items", "additionalProperties", "not"):
        if key in node:
            made[key] = _with_references(node[key], shared, inside=True)
    for key in ("oneOf", "anyOf", "allOf"):
        if key in node:
            made[key] = [_with_references(part, shared, inside=True) for part in node[key]]
    if "properties" in node:
        made["properties"] = {
            k: _with_references(v, shared, inside=True) for k, v in node["properties"].items()
        }
    return made


if __name__ == "__main__":
    main(Path(sys.argv[1]))

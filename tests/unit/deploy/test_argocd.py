"""What Argo CD gets: valid manifests, values that the chart takes, and promotion by one commit."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.core.paths import ROOT
from tests.unit.deploy.kubernetes_tools import custom_problems, needs_tools, template

ARGOCD = ROOT / "deploy/argocd"
ENVIRONMENTS = sorted(p.name for p in (ARGOCD / "environments").iterdir())


def manifest(name: str) -> dict[str, Any]:
    made: dict[str, Any] = yaml.safe_load((ARGOCD / f"{name}.yaml").read_text())
    return made


@pytest.mark.parametrize("name", ["project", "application", "applicationset"])
def test_argo_cd_takes_the_manifests(name: str) -> None:
    assert custom_problems(manifest(name)) == []
    wrong = manifest(name)
    wrong["spec"]["sources_"] = 1
    assert custom_problems(wrong)


def test_each_environment_has_the_files_that_the_applications_read() -> None:
    for source in (
        manifest("application")["spec"]["source"],
        manifest("applicationset")["spec"]["template"]["spec"]["source"],
    ):
        for file in source["helm"]["valueFiles"]:
            for environment in ENVIRONMENTS:
                place = file.replace("{{.path.basename}}", environment)
                assert (ROOT / source["path"] / place).is_file()


@needs_tools
@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_the_chart_takes_each_environment(environment: str) -> None:
    folder = ARGOCD / "environments" / environment
    objects = template("-f", folder / "values.yaml", "-f", folder / "model.yaml")
    project = manifest("project")["spec"]
    assert not {t["kind"] for t in objects} & {r["kind"] for r in
                                              project["namespaceResourceBlacklist"]}  # fmt: skip


class Repository:
    """A git repository with deploy/argocd in it."""

    def __init__(self, folder: Path) -> None:
        self.place = folder / "deploy/argocd"
        shutil.copytree(ARGOCD, self.place)
        self._folder = folder
        self.git("init", "-q")
        self.commit("start")

    def git(self, *arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
        return subprocess.run(
            ["git", "-C", self._folder, *identity, *arguments],
            check=True, text=True, stdout=subprocess.PIPE,
        ).stdout  # fmt: skip

    def commit(self, message: str) -> None:
        self.git("add", "-A")
        self.git("commit", "-q", "-m", message)

    def promote(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        names = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@example.com"}
        names |= {n.replace("AUTHOR", "COMMITTER"): v for n, v in names.items()}
        return subprocess.run(
            ["sh", str(self.place / "promote.sh"), *arguments],
            env={**os.environ, **names}, capture_output=True, text=True,
        )  # fmt: skip

    def set_digest(self, environment: str, digest: str) -> None:
        file = self.place / "environments" / environment / "model.yaml"
        file.write_text(re.sub(r"sha256:[0-9a-f]*", digest, file.read_text()))


def test_a_promotion_is_a_commit_that_changes_one_digest(tmp_path: Path) -> None:
    repository = Repository(tmp_path)
    assert "serves" in repository.promote("staging", "production").stdout  # the same already
    new = "sha256:" + "ab" * 32
    repository.set_digest("staging", new)
    refused = repository.promote("staging", "production")
    assert (refused.returncode, "commit or undo them" in refused.stderr) == (2, True)
    repository.commit("staging")
    done = repository.promote("staging", "production")
    assert (done.returncode, new in done.stdout) == (0, True)
    changed = repository.git("show", "--format=%s", "--numstat").split("\n")
    assert changed[0] == f"Serve {new} in production, as in staging"
    assert changed[2:] == ["1\t1\tdeploy/argocd/environments/production/model.yaml", ""]
    repository.set_digest("staging", "sha256:12")
    repository.commit("wrong")
    refused = repository.promote("staging", "production")
    assert (refused.returncode, "has no digest" in refused.stderr) == (3, True)
    assert repository.promote("staging", "nowhere").returncode == 2

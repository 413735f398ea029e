"""A user's project: how it is found, what init writes, and what a project adds to conf/."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline.config.schema import load
from pipeline.core import paths
from pipeline.core.errors import ConfigError
from pipeline.core.paths import EXAMPLE, ROOT, find_project
from pipeline.orchestration import compose, graph, project
from pipeline.orchestration.help import help_text


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project that init made, as the working folder."""
    project.init(tmp_path / "shop")
    monkeypatch.chdir(tmp_path / "shop")
    return tmp_path / "shop"


def test_a_project_is_found_from_every_folder_in_it(tmp_path: Path) -> None:
    inside = tmp_path / "shop" / "data" / "chats"
    inside.mkdir(parents=True)
    assert find_project(inside) is None
    (tmp_path / "dvc.yaml").touch()  # of something else: there are no settings beside it
    assert find_project(inside) is None
    for name in ("dvc.yaml", "params.yaml"):
        (tmp_path / "shop" / name).touch()
    assert find_project(inside) == tmp_path / "shop"
    assert find_project(tmp_path) is None


def test_the_checkout_is_a_project() -> None:
    assert find_project(EXAMPLE / "data" / "bank") == EXAMPLE


def test_init_writes_a_project_that_can_run(shop: Path) -> None:
    tree = yaml.safe_load((shop / "params.yaml").read_text())
    assert tree == compose.compose([])
    load(tree)
    for node in graph.read_graph(tree).values():
        for file in node.files:
            assert (shop / file).exists(), file
    assert (shop / "data/bank/train.jsonl").read_bytes()


def test_init_holds_no_path_of_this_machine(shop: Path) -> None:
    for file in (shop / "params.yaml", shop / "dvc.yaml", shop / ".gitignore"):
        assert str(ROOT) not in file.read_text()
        assert str(shop) not in file.read_text()


@pytest.mark.parametrize("inside", [True, False])
def test_dvc_uses_git_where_the_project_is_in_a_repository(tmp_path: Path, inside: bool) -> None:
    """A repository that is made later is used by the next run: only .dvc/config.local says no."""
    if inside:
        (tmp_path / "shop" / ".git").mkdir(parents=True)
    project.init(tmp_path / "shop")
    assert "no_scm" not in (tmp_path / "shop" / ".dvc" / "config").read_text()
    local = tmp_path / "shop" / ".dvc" / "config.local"
    assert (local.exists() and "no_scm = true" in local.read_text()) is not inside


def test_the_settings_of_a_new_project_are_those_that_it_runs_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some defaults depend on the model, which is in the project and not in the working folder."""
    monkeypatch.chdir(tmp_path)
    project.init(Path("shop"))
    monkeypatch.chdir("shop")
    assert yaml.safe_load(Path("params.yaml").read_text()) == compose.compose([])


def test_a_folder_that_is_not_empty_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"is not empty \(it holds notes.txt\)"):
        project.init(tmp_path)
    with pytest.raises(ConfigError, match=r"notes\.txt is a file"):
        project.init(tmp_path / "notes.txt")
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_a_project_inside_a_project_is_refused(shop: Path) -> None:
    with pytest.raises(ConfigError, match=f"is inside the project {shop}"):
        project.init(shop / "other")
    assert not (shop / "other").exists()


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipeline", *arguments], cwd=folder, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def test_a_command_outside_of_a_project_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    done = run(tmp_path, "stage=prepare")
    assert done.returncode == 2
    assert "is not in a project" in done.stderr
    assert "`python -m pipeline init DIR`" in done.stderr
    assert not list(tmp_path.iterdir())
    assert run(tmp_path, "stage=config").returncode == 0


def test_a_command_in_a_folder_of_the_project_works_in_the_project(shop: Path) -> None:
    done = run(shop / "data" / "bank", "stage=merge")
    assert "artifacts/import does not exist" in done.stderr
    assert not (shop / "artifacts").exists()


def test_a_project_adds_options_of_its_own(shop: Path) -> None:
    mine = shop / "conf" / "finetune" / "mine.yaml"
    mine.parent.mkdir(parents=True)
    text = (paths.CONF / "finetune" / "lora.yaml").read_text()
    mine.write_text(f"# A smaller one.\n{text.replace('rank: 16', 'rank: 8')}")
    assert compose.compose(["finetune=mine"])["finetune"]["adapter"]["rank"] == 8
    assert "mine           A smaller one." in help_text()
    with pytest.raises(ConfigError, match="did you mean mine"):
        compose.compose(["finetune=mina"])


def test_an_option_with_the_name_of_a_packaged_one_is_refused(shop: Path) -> None:
    (shop / "conf" / "finetune").mkdir(parents=True)
    (shop / "conf" / "finetune" / "lora.yaml").touch()
    with pytest.raises(ConfigError, match=r"lora.yaml has the name of an option.*another name"):
        compose.compose([])

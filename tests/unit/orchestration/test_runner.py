"""The runner: reuse, variants, interruptions, refusals. Stages here are small functions."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError

from pipeline.config.schema import load
from pipeline.core import artifact, hardware, resource_errors
from pipeline.core.artifact import Outcome
from pipeline.core.errors import (
    ArtifactError,
    Busy,
    DataError,
    GateFailed,
    ResourceError,
)
from pipeline.core.paths import ROOT
from pipeline.core.stage import Component, Stage, stage_module
from pipeline.orchestration import compose, runner
from pipeline.orchestration.graph import Node, read_graph, select
from pipeline.tracking import client as tracking


@pytest.fixture
def chain(tmp_path, monkeypatch):
    """Two stages, `first` and `second`, whose functions count how often they run."""
    calls = []

    def first(config, inputs, out):
        calls.append("first")
        (out / "value").write_text(str(config.seed))
        return Outcome("dataset", {"rows": 1})

    def second(config, inputs, out):
        calls.append("second")
        (out / "value").write_text((inputs["first"].path / "value").read_text() + "!")
        return Outcome("report")

    stages = {"first": first, "second": second}
    nodes = {
        "first": Node("first", (), (), ("seed",)),
        "second": Node("second", ("first",), (), ("evaluate",)),
    }
    monkeypatch.setattr(runner, "read_graph", lambda tree: nodes)
    facts = {}

    def module(name):
        of_real_name = facts.get(name) or getattr(_real(name), "STAGE", Stage(version=1))
        found = SimpleNamespace(STAGE=of_real_name, run=stages[name])
        if name in components:
            found.components = lambda config: components[name]
        return found

    components = {}
    monkeypatch.setattr(runner, "stage_module", module)

    def run(name, *overrides):
        where = (
            [] if any(o.startswith("artifacts=") for o in overrides) else [f"artifacts={tmp_path}"]
        )
        tree = compose.compose([*where, "tracking.enabled=false", *overrides])
        return runner.run_stage(name, tree, load(tree))

    run.calls, run.stages, run.folder, run.nodes = calls, stages, tmp_path, nodes
    run.facts, run.components = facts, components
    return run


def _real(name):
    try:
        return stage_module(name)
    except ModuleNotFoundError:
        return None


def test_makes_once_and_reuses(chain):
    made = chain("first")
    assert (made.path / "value").read_text() == "1"
    assert chain("first").manifest == made.manifest
    assert chain.calls == ["first"]


def test_other_settings_are_kept_and_taken_back(chain):
    chain("first")
    assert (chain("first", "seed=2").path / "value").read_text() == "2"
    assert (chain("first").path / "value").read_text() == "1"
    assert (chain("first", "seed=2").path / "value").read_text() == "2"
    assert chain.calls == ["first", "first"]


def test_only_what_a_change_touches_runs_again(chain):
    chain("first")
    chain("second")
    chain("second", "evaluate.batch_size=3")
    assert chain.calls == ["first", "second", "second"]


def test_a_stage_follows_the_content_of_its_inputs(chain):
    chain("first")
    assert (chain("second").path / "value").read_text() == "1!"
    chain("first", "seed=2")
    assert (chain("second").path / "value").read_text() == "2!"


def test_missing_input_names_the_command(chain):
    with pytest.raises(ArtifactError, match="stage=first` first"):
        chain("second")


def test_altered_artifact_is_refused_downstream_and_made_again(chain):
    (chain("first").path / "value").write_text("8")
    with pytest.raises(ArtifactError, match="altered"):
        chain("second")
    assert (chain("first").path / "value").read_text() == "1"


def test_unfinished_work_is_handed_to_the_next_run(chain):
    def stumbles(config, inputs, out):
        scratch = out / ".scratch"
        scratch.mkdir(exist_ok=True)
        with (scratch / "checkpoint").open("a") as checkpoint:
            checkpoint.write("x")
        if len((scratch / "checkpoint").read_text()) < 3:
            raise RuntimeError("killed")
        (out / "value").write_text("done")
        return Outcome("dataset")

    chain.stages["first"] = stumbles
    for _ in range(2):
        with pytest.raises(RuntimeError, match="killed"):
            chain("first")
    made = chain("first")
    assert set(made.manifest.files) == {"value"}


def test_a_run_killed_before_the_rename_is_completed(chain, monkeypatch):
    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runner.artifacts, "replace_folder", killed)
        with pytest.raises(KeyboardInterrupt):
            chain("first")
    assert (chain("first").path / "value").read_text() == "1"
    assert chain.calls == ["first"]


def test_gate_failure_keeps_the_artifact_and_fails_each_time(chain):
    chain.stages["first"] = lambda config, inputs, out: Outcome(
        "report", failure="accuracy 0.2 < 0.8"
    )
    for _ in range(2):
        with pytest.raises(GateFailed, match=r"accuracy 0\.2 < 0\.8"):
            chain("first")
    assert (chain.folder / "first/manifest.json").is_file()


def torn(text, cause):
    """An error of a library that hides the system's."""
    error = RuntimeError(text)
    error.__context__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        SafetensorError(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        ),
        torn("write failed", OSError(28, "No space left on device")),
    ],
)
def test_full_disk_says_what_to_do_and_keeps_the_work(chain, error):
    def full(config, inputs, out):
        (out / "part").write_bytes(bytes(4 * 2**20))
        raise error

    for name, size in ((".variants/first-0/value", 3), (".work/first-0/part", 2)):
        (chain.folder / name).parent.mkdir(parents=True)
        (chain.folder / name).write_bytes(bytes(size * 2**20))
    chain.stages["first"] = full
    with pytest.raises(ResourceError, match=r"is full .* run the same command again") as caught:
        chain("first")
    assert f"{chain.folder}/.variants (3 MiB, made with other settings)" in str(caught.value)
    assert f"everything else in {chain.folder}/.work (2 MiB, unfinished)" in str(caught.value)
    assert len(list((chain.folder / ".work").glob("first-*/part"))) == 2


@pytest.mark.parametrize(
    "text",
    [
        "[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598",
        "PytorchStreamWriter failed writing file data/0: file write failed",
    ],
)
def test_a_torn_archive_of_torch_is_a_full_disk_only_where_little_is_free(chain, monkeypatch, text):
    def full(config, inputs, out):
        raise RuntimeError(text)

    chain.stages["first"] = full
    for free, expected in ((2**40, RuntimeError), (2**20, ResourceError)):
        usage = SimpleNamespace(free=free)
        monkeypatch.setattr(resource_errors.shutil, "disk_usage", lambda path, usage=usage: usage)
        with pytest.raises(expected) as caught:
            chain("first")
        assert type(caught.value) is expected


def test_a_disk_that_takes_not_even_the_folder_of_unfinished_work_is_full(tmp_path):
    scratch = tmp_path / ".work" / "first-0"
    with pytest.raises(ResourceError, match="is full"), resource_errors.resource_errors(scratch):
        raise OSError(28, "No space left on device")


def test_a_file_over_the_systems_limit_names_the_limit(chain):
    def large(config, inputs, out):
        raise torn("write failed", OSError(27, "File too large"))

    chain.stages["first"] = large
    with pytest.raises(ResourceError, match=r"`ulimit -f` allows: raise the limit"):
        chain("first")


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
@pytest.mark.parametrize(
    ("stage", "said"),
    [
        ("evaluate", r"lower evaluate\.batch_size, or run on a larger machine"),
        ("merge", "put CUDA_VISIBLE_DEVICES= before the command, on a host with enough memory"),
        ("first", "run on a larger machine"),
    ],
)
def test_memory_that_ran_out_says_what_to_do(chain, error, stage, said):
    def hungry(config, inputs, out):
        raise error

    chain.nodes[stage], chain.stages[stage] = Node(stage, (), (), ("seed",)), hungry
    with pytest.raises(ResourceError, match=f"memory ran out: {said}"):
        chain(stage)


def test_every_setting_that_a_lack_of_memory_names_exists():
    tree = compose.compose([])
    advice = [stage_module(name).STAGE.less_memory for name in read_graph(tree)]
    settings = [less.split()[1] for less in advice if less]
    select(tree, tuple(s for s in settings if "." in s))
    assert any("." in s for s in settings)


def test_other_errors_are_left_as_they_are(chain):
    def broken(config, inputs, out):
        raise RuntimeError("a fault of ours")

    chain.stages["first"] = broken
    with pytest.raises(RuntimeError, match="a fault of ours"):
        chain("first")


def test_two_runs_in_one_folder(chain):
    with runner.hold(chain.folder), pytest.raises(Busy, match=f"in use by process {os.getpid()}"):
        chain("first")
    chain("first")


def test_lock_is_gone_with_a_killed_process(tmp_path):
    code = f"""
        import sys, time, pathlib
        from pipeline.orchestration.runner import hold
        with hold(pathlib.Path({str(tmp_path)!r})):
            print("held", flush=True)
            time.sleep(60)
    """
    holder = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, stdout=subprocess.PIPE
    )
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(Busy), runner.hold(tmp_path):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    with runner.hold(tmp_path):
        pass


def test_missing_dependency_names_the_path(chain):
    chain.nodes["first"] = Node("first", (), (chain.folder / "nowhere.jsonl",), ("seed",))
    with pytest.raises(DataError, match=r"nowhere\.jsonl does not exist"):
        chain("first")


def test_manifest_tells_where_the_artifact_came_from(chain):
    first = chain("first").manifest
    manifest = chain("second").manifest
    assert manifest.inputs == {"first": first.digest}
    assert manifest.config["evaluate"]["bootstrap_samples"] == 1000
    assert manifest.environment["packages"]["torch"]
    assert manifest.peak_memory_bytes > 1e6


def test_manifest_names_the_commit_that_ran(chain, tmp_path, monkeypatch):
    checkout = tmp_path / "checkout"

    def git(*arguments):
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        return subprocess.check_output(["git", *who, *arguments], cwd=checkout, text=True).strip()

    def commit():
        git("commit", "-q", "--allow-empty", "-m", "a change")
        return git("rev-parse", "HEAD")

    def goes_on(config, inputs, out):
        commit()
        (checkout / "__init__.py").write_text("edited")
        return Outcome("dataset")

    checkout.mkdir()
    git("init", "-q")
    (checkout / "__init__.py").touch()
    git("add", "__init__.py")
    began = commit()
    monkeypatch.setattr(runner, "PACKAGE", checkout)
    chain.stages["first"] = goes_on
    code = chain("first").manifest.code
    assert (code["commit"], code["changed"]) == (began, False)


def test_tracking_is_told_how_it_ended(chain, monkeypatch):
    told = []

    class Run:
        def finish(self, status, artifact, *, reused=False, error=None):
            told.append((status, reused, error))

    monkeypatch.setattr(tracking, "start_stage", lambda *a, **k: Run())
    chain("first")
    chain("first")
    chain.stages["first"] = lambda *a: 1 / 0
    with pytest.raises(ZeroDivisionError):
        chain("first", "seed=5")
    assert told == [
        ("FINISHED", False, None), ("FINISHED", True, None), ("FAILED", False, "division by zero"),
    ]  # fmt: skip


def test_a_missing_input_leaves_nothing_behind(chain, tmp_path):
    with pytest.raises(ArtifactError, match="run `python -m pipeline stage=first` first"):
        chain("second", f"artifacts={tmp_path}/made")
    chain.nodes["first"] = Node("first", (), (tmp_path / "rows",), ("seed",))
    with pytest.raises(DataError, match="rows does not exist: correct the setting that names it"):
        chain("first", f"artifacts={tmp_path}/made")
    assert not (tmp_path / "made").exists()


def test_runs_of_a_sweep_share_what_they_have_in_common(chain, tmp_path):
    """Linked, not made again, in both directions."""
    chain("first")
    run = f"artifacts={tmp_path}/sweeps/first-1/0"
    made = chain("first", run)
    assert made.path == tmp_path / "sweeps/first-1/0/first"
    assert (made.path / "value").stat().st_ino == (tmp_path / "first/value").stat().st_ino
    chain("first", run, "seed=2")
    assert chain.calls == ["first", "first"]
    assert (chain("first", "seed=2").path / "value").read_text() == "2"
    other = f"artifacts={tmp_path}/sweeps/first-1/1"
    assert (chain("first", other, "seed=2").path / "value").read_text() == "2"
    assert chain.calls == ["first", "first"]


def test_what_was_made_is_hashed_once(chain, monkeypatch):
    read = []
    hashed = artifact.sha256_of_file
    monkeypatch.setattr(
        artifact, "sha256_of_file", lambda path: read.append(path.name) or hashed(path)
    )
    chain("first")
    assert read.count("value") == 1


def test_a_new_version_of_the_stage_makes_again_and_the_old_one_comes_back(chain):
    chain.facts["first"] = Stage(version=1)
    chain("first")
    chain.facts["first"] = Stage(version=2)
    assert chain("first").manifest.versions == {"stage": 2}
    assert chain.calls == ["first", "first"]
    chain.facts["first"] = Stage(version=1)
    chain("first")
    assert chain.calls == ["first", "first"]


def test_a_new_library_makes_again_only_what_uses_it(chain, monkeypatch):
    installed = {"torch": "2.13.0", "onnx": "1.0"}
    monkeypatch.setattr(
        hardware,
        "installed_versions",
        lambda names: {n: v for n, v in installed.items() if n in names},
    )
    chain.facts["first"] = Stage(1, libraries=("torch",), optional_libraries=("triton",))
    chain.facts["second"] = Stage(1, libraries=("onnx",))
    assert chain("first").manifest.libraries == {"torch": "2.13.0"}
    chain("second")
    installed["torch"] = "2.14.0"
    chain("first")
    chain("second")  # what `first` makes is the same
    assert chain.calls == ["first", "second", "first"]
    installed["triton"] = "3.0"  # used where it is installed
    chain("first")
    assert chain.calls == ["first", "second", "first", "first"]


def test_only_the_component_that_was_chosen_counts(chain):
    one, other = (Component(f"engine/{n}", 1, (), ()) for n in ("one", "other"))
    chain.components["first"] = (one,)
    assert chain("first").manifest.versions == {"stage": 1, "engine/one": 1}
    chain.components["first"] = (other,)
    chain("first")
    chain.components["first"] = (Component("engine/one", 2, (), ()),)
    chain("first")
    assert chain.calls == ["first"] * 3
    chain.components["first"] = (one,)
    chain("first")
    assert chain.calls == ["first"] * 3


def test_an_artifact_of_an_earlier_version_is_refused_and_kept(chain, capsys):
    """One sentence for whoever reads it; the stage itself runs again and loses nothing."""
    made = chain("first")
    file = made.path / "manifest.json"
    old = json.loads(file.read_text()) | {"schema": 1}
    for field in ("versions", "libraries"):
        del old[field]
    file.write_text(json.dumps(old))
    with pytest.raises(ArtifactError, match=r"earlier version.*schema 1.*run `python -m pipeline"):
        chain("second")
    chain("first")
    assert chain.calls == ["first", "first"]
    kept = chain.folder / ".variants" / f"first-{made.manifest.fingerprint[:16]}"
    assert (kept / "value").read_text() == "1"
    assert "runs again" in capsys.readouterr().err


def test_a_fingerprint_of_another_version_is_no_path(chain):
    """The folder that keeps such an artifact is named by it, and what is in its way is removed."""
    made = chain("first")
    precious = chain.folder.parent / "x"
    precious.mkdir(exist_ok=True)
    file = made.path / "manifest.json"
    evil = {"schema": 1, "fingerprint": "/../../../x"}
    file.write_text(json.dumps(json.loads(file.read_text()) | evil))
    chain("first")
    assert precious.is_dir()
    assert not (chain.folder / ".variants").exists()
    assert chain.calls == ["first", "first"]


def test_every_byte_of_the_inputs_is_read_when_that_is_set(chain):
    made = chain("first")
    (made.path / "value").write_text("2")
    artifact.note_verified(made.path, made.manifest)  # as if the file's times had not changed
    chain("second")
    with pytest.raises(ArtifactError, match=r"value was altered .*stage=first"):
        chain("second", "verify=true")
    chain("first", "verify=true")  # which makes it again
    assert chain.calls == ["first", "second", "first"]


def test_verify_is_no_part_of_what_an_artifact_is(chain):
    assert chain("first").manifest.fingerprint == chain("first", "verify=true").manifest.fingerprint
    assert chain.calls == ["first"]


def test_times_are_recorded_as_measured(chain):
    def timed(config, inputs, out):
        (out / "report.json").write_text("0.1 s")
        (out / "answers").write_text("yes")
        return Outcome("report", measured=("report.json",))

    chain.stages["first"] = timed
    assert chain("first").manifest.measured == ["report.json"]


def test_what_a_killed_run_left_is_no_part_of_the_artifact(chain, monkeypatch):
    """Neither a file that this run does not write, nor half of a manifest."""

    def killed(config, inputs, out):
        (out / "stray").write_text("from before")
        (out / "folder").mkdir()
        (out / "folder" / "stray").write_text("from before")
        (out / "manifest.json.tmp").write_text("{")
        (out / ".scratch").mkdir()
        (out / ".scratch" / "checkpoint").write_text("kept")
        raise KeyboardInterrupt

    def completed(config, inputs, out):
        assert (out / ".scratch" / "checkpoint").read_text() == "kept"
        (out / "value").write_text("1")
        return Outcome("dataset")

    chain.stages["first"] = killed
    with pytest.raises(KeyboardInterrupt):
        chain("first")
    chain.stages["first"] = completed
    assert set(chain("first").manifest.files) == {"value"}


def test_a_disk_that_fills_up_under_the_manifest_leaves_nothing_in_the_artifact(chain, monkeypatch):
    def full(file):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(artifact.os, "fsync", full)
        with pytest.raises(ResourceError, match="is full"):
            chain("first")
    assert set(chain("first").manifest.files) == {"value"}


def test_the_manifest_records_the_seals_of_its_inputs(chain):
    first = chain("first").manifest
    assert chain("second").manifest.input_seals == {"first": first.seal}

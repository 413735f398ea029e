"""What came from what: by names, versions, paths and digests; what is no longer here."""

import json
from pathlib import Path

import pytest

from pipeline.core.artifact import Artifact
from pipeline.core.errors import ArtifactError, ConfigError
from pipeline.orchestration.audit import lineage_words
from pipeline.orchestration.audit.lineage import Lineage, read_lineage
from pipeline.tracking.registry_reader import Version
from tests.made_artifacts import make_artifact, make_chain

STAGES = "prepare import finetune merge quantize evaluate export build benchmark".split()


def version(number: int, made: dict[str, Artifact], *aliases: str) -> Version:
    tags = {f"digest.{stage}": artifact.manifest.digest for stage, artifact in made.items()}
    return Version("bank", number, aliases, {**tags, "gate": "passed", "store": "s3://models/bank"})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """A chain, and another fine-tune of the same inputs with what was made from it."""
    folder = tmp_path_factory.mktemp("project") / "artifacts"
    chain = make_chain(folder)
    data = {"files": {str(folder.parent / "data/bank"): "d" * 64}}
    chain["prepare"] = make_artifact(folder, "prepare", "dataset", environment=data,
                                     files={"train.parquet": "rows"})  # fmt: skip
    inputs = {name: chain[name] for name in ("prepare", "import")}
    make_artifact(folder, "finetune", "nemo_adapter", inputs=inputs, files={"a": "other"},
                  name=".variants/finetune-0123456789abcdef")  # fmt: skip
    return chain


@pytest.fixture(scope="module")
def lineage(made: dict[str, Artifact]) -> Lineage:
    artifacts = made["merge"].path.parent
    return read_lineage(artifacts, [version(3, made, "champion"), version(1, made)])


def names(nodes) -> list[str]:
    return [node.name for node in nodes]


def test_everything_before_and_after_an_artifact(lineage: Lineage) -> None:
    found = lineage.trace("merge")
    assert names(found.of) == ["merge"]
    assert sorted(names(found.before)[:2]) == ["import", "prepare"]
    assert names(found.before)[2:] == ["finetune"]
    after = names(found.after)
    assert sorted(after[:-2]) == ["benchmark", "build", "evaluate", "export", "quantize"]
    assert after.index("export") < after.index("build") < after.index("benchmark")
    assert after[-2:] == ["version 1", "version 3 (champion)"]


@pytest.mark.parametrize("wanted", ["3", "champion", "version 3"])
def test_a_version_by_number_or_alias(lineage: Lineage, wanted: str) -> None:
    found = lineage.trace(wanted)
    assert names(found.of) == ["version 3 (champion)"]
    assert set(STAGES) <= set(names(found.before))
    assert not found.after


def test_a_digest_a_seal_a_fingerprint_a_file_and_a_path(
    lineage: Lineage, made: dict[str, Artifact]
) -> None:
    merge, engine = made["merge"].manifest, made["build"]
    file = engine.manifest.files["model.onnx"]["sha256"]
    for wanted in (
        merge.digest, merge.digest[:8], merge.seal.upper(), f"sha256:{merge.digest}",
        str(made["merge"].path), str(made["merge"].path / "data.txt"),
    ):  # fmt: skip
        assert names(lineage.find(wanted)) == ["merge"], wanted
    assert names(lineage.find(file[:10])) == ["build"]
    assert names(lineage.find("dddddd"))[0].endswith("data/bank")
    variant = lineage.find(".variants/finetune-0123456789abcdef")
    assert variant[0].digest != lineage.find("finetune")[0].digest


def test_a_file_of_the_data_is_followed_by_its_folder(
    lineage: Lineage, made: dict[str, Artifact]
) -> None:
    file = made["merge"].path.parents[1] / "data/bank/train.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("{}\n")
    assert names(lineage.trace(str(file)).after)[0] == "prepare"


def test_an_input_that_is_gone_is_part_of_the_lineage(lineage: Lineage) -> None:
    """prepare was made again after the chain: the chain's own one is nowhere."""
    found = lineage.trace("build")
    gone = [node for node in found.before if node.name == "prepare"]
    assert [node.places for node in gone] == [()]
    assert lineage_words.where(gone[0]) == "not here any more"


def test_what_has_no_name_here_is_refused_in_one_line(lineage: Lineage) -> None:
    for wanted in ("9", "nothing", "abcdef123456", "merg", "../x"):
        with pytest.raises(ArtifactError, match=r"nothing here is called .*: give an artifact"):
            lineage.find(wanted)
    shared = "0" * 64  # the fingerprint of every artifact that tests make
    assert len(lineage.find(shared[:10])) > 5


def test_the_beginning_of_two_digests_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = read_lineage(tmp_path)
    for stage, digest in (("merge", "abcdef1" + "0" * 57), ("build", "abcdef2" + "0" * 57)):
        found.add(lineage_words.Node(f"{stage} {digest}", "artifact", stage, digest))
    with pytest.raises(ConfigError, match=r"abcdef is the beginning of 2 digests .*: give more"):
        found.find("abcdef")
    assert names(found.find("abcdef2")) == ["build"]


def test_json_names_the_edges_and_both_directions(lineage: Lineage) -> None:
    said = json.loads(json.dumps(lineage_words.as_json(lineage, "merge")))
    ids = {node["id"]: node for node in said["nodes"]}
    assert [ids[i]["name"] for i in said["of"]] == ["merge"]
    assert "version 3" in said["made_from_it"]
    assert [said["came_from"][-1], said["of"][0]] in said["edges"]
    assert all(a in ids and b in ids for a, b in said["edges"])
    everything = lineage_words.as_json(lineage, None)
    assert len(everything["nodes"]) == len(lineage.nodes)


def test_the_text_says_where_everything_is(
    lineage: Lineage, capsys: pytest.CaptureFixture[str]
) -> None:
    lineage_words.show(lineage, "prepare")
    out = capsys.readouterr().out
    assert out.startswith("prepare ")
    assert "came from" in out
    assert "data/bank" in out
    assert "made from it" in out
    lineage_words.show(lineage, "champion")
    assert "registry of bank, files in s3://models/bank" in capsys.readouterr().out
    lineage_words.show(lineage, None)
    assert ".variants/finetune-0123456789abcdef" in capsys.readouterr().out

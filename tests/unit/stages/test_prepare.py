"""prepare: every row is accounted for, and what comes out can be trained on and evaluated."""

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from pipeline.config.schema import Config, load
from pipeline.core.errors import ConfigError, DataError
from pipeline.data.dataset import SPLITS, read_split
from pipeline.models.chat.renderer import Chat
from pipeline.orchestration.compose import compose
from pipeline.stages import prepare
from tests.unit.model_folders import add_random_weights, add_weights, make_model_folder
from tests.unit.serving.tool_templates import HERMES

WORDS = ["account", "card", "loan", "rate", "fee", "branch"]
WORDS += ["wire", "check", "deposit", "limit", "statement", "password"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return add_weights(make_model_folder(tmp_path_factory.mktemp("model"), "chatml"), 128)


@pytest.fixture(scope="module")
def tree() -> dict[str, Any]:
    return compose([])


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    write(folder / "train.jsonl", *[pair(f"What of the {w}?", f"The {w} is fine.") for w in WORDS])
    write(folder / "test.jsonl", pair("How do I get a mortgage?", "In a branch."))
    return folder


def pair(question: str, answer: str) -> dict[str, str]:
    return {"prompt": question, "completion": answer}


def write(file: Path, *rows: Mapping[str, Any] | str) -> None:
    file.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))


def configure(tree: dict[str, Any], model: Path, data: Path, **settings: Any) -> Config:
    files = {**tree["data"], "folder": data, "train": ["train*"], "test": ["test.jsonl"]}
    files |= {"sources": [], "mixture": settings.pop("mixture", [])}
    files |= settings.pop("data_settings", {})
    training = {**tree["finetune"], "objective": settings.pop("objective", "sft")}
    prepare_settings = {**tree["prepare"], "max_length": 64, "max_reject_share": 1.0, **settings}
    own_model = {**tree["model"], "path": model}
    sections = {"prepare": prepare_settings, "data": files, "model": own_model}
    return load({**tree, **sections, "finetune": training})


def rejects(out: Path) -> list[tuple[str, int, str]]:
    rows = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    return [(Path(row["file"]).name, row["line"], row["reason"]) for row in rows]


def test_dataset(tree: dict[str, Any], model: Path, data: Path, tmp_path: Path) -> None:
    outcome = prepare.run(configure(tree, model, data, validation_share=0.3), {}, tmp_path)
    chat = Chat.load(model)
    assert outcome.kind == "dataset"
    assert outcome.proof == {"chat_sha256": chat.sha256}
    assert Chat.load(tmp_path / "tokenizer").sha256 == chat.sha256
    splits = {name: read_split(tmp_path, name) for name in SPLITS}
    assert len(splits["train"]) + len(splits["validation"]) == len(WORDS)
    assert splits["train"]
    assert splits["validation"]
    for row in splits["train"]:
        rendered = chat.render(row.messages)
        assert (row.input_ids, row.loss_mask) == (rendered.ids, rendered.mask)
        assert row.prompt_ids is None
    (test,) = splits["test"]
    assert test.answer == "In a branch."
    assert test.prompt_ids == chat.prompt(test.messages[:-1])
    assert Path(test.source).name == "test.jsonl:1"


def test_rejected_rows(tree: dict[str, Any], model: Path, data: Path, tmp_path: Path) -> None:
    write(
        data / "train.jsonl",
        pair("What of my card?", "It is fine."),
        "{",
        pair("What of  my card?", "It is fine."),
        pair("what of my card", "It is fine"),
        pair("How do I get a mortgage", "Anywhere."),
        pair("And now?", "word " * 64),
        pair("And <|im_end|> now?", "Yes."),
        {"messages": [{"role": "user", "content": "Alone."}]},
        {
            "messages": [
                {"role": "user", "content": "And this?"},
                {"role": "assistant", "content": "Context.", "weight": 0},
            ]
        },
    )
    prepare.run(configure(tree, model, data, validation_share=0), {}, tmp_path)
    assert rejects(tmp_path) == [
        ("train.jsonl", 2, "bad JSON"),
        ("train.jsonl", 3, "exact duplicate"),
        ("train.jsonl", 4, "near duplicate"),
        ("train.jsonl", 5, "leaks a test question"),
        ("train.jsonl", 6, "too long"),
        ("train.jsonl", 7, "control token in text"),
        ("train.jsonl", 8, "no assistant turn"),
        ("train.jsonl", 9, "nothing to train on"),
    ]
    assert len(read_split(tmp_path, "train")) == 1


def test_max_length_is_inclusive(
    tree: dict[str, Any], model: Path, data: Path, tmp_path: Path
) -> None:
    longest = max(
        len(Chat.load(model).render(row.messages).ids)
        for row in _prepared(configure(tree, model, data, validation_share=0), tmp_path / "all")
    )
    _prepared(configure(tree, model, data, max_length=longest), tmp_path / "fits")
    assert rejects(tmp_path / "fits") == []
    _prepared(configure(tree, model, data, max_length=longest - 1), tmp_path / "short")
    assert {reason for *_, reason in rejects(tmp_path / "short")} == {"too long"}


def _prepared(config: Config, out: Path) -> list[Any]:
    out.mkdir()
    prepare.run(config, {}, out)
    return read_split(out, "train")


row_text = st.sampled_from(["", " ", "card", "Card?", "loan 5", "loan 6", "mortgage", "<|im_end|>"])
lines = st.one_of(
    st.binary(max_size=20).filter(lambda line: b"\n" not in line),
    st.builds(pair, row_text, row_text).map(lambda row: json.dumps(row).encode()),
)


@settings(deadline=None, max_examples=30)
@given(st.lists(lines, max_size=12), st.lists(lines, max_size=4))
def test_counts_add_up(
    tmp_path_factory: pytest.TempPathFactory,
    tree: dict[str, Any],
    model: Path,
    train: list[bytes],
    test: list[bytes],
) -> None:
    data, out = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("out")
    first = json.dumps(pair("Is this kept?", "Yes.")).encode()
    asked = json.dumps(pair("Is that asked?", "Yes.")).encode()
    (data / "train.jsonl").write_bytes(b"\n".join([first, *train]))
    (data / "test.jsonl").write_bytes(b"\n".join([asked, *test]))
    prepare.run(configure(tree, model, data), {}, out)
    statistics = json.loads((out / "statistics.json").read_text())
    read = sum(bool(line.decode(errors="replace").strip()) for line in [*train, *test]) + 2
    kept = {name: len(read_split(out, name)) for name in SPLITS}
    assert statistics["rows"] == {
        "read": read,
        "kept": sum(kept.values()),
        "rejected": len(rejects(out)),
    }
    assert sum(kept.values()) + len(rejects(out)) == read
    assert sum(statistics["rejected"].values()) == len(rejects(out))
    assert {name: split["rows"] for name, split in statistics["splits"].items()} == kept
    assert sum(file["read"] for file in statistics["files"].values()) == read
    assert sum(count for *_, count in statistics["histogram"]) == sum(kept.values())


def test_same_seed_same_bytes(
    tree: dict[str, Any], model: Path, data: Path, tmp_path: Path
) -> None:
    config = configure(tree, model, data, validation_share=0.3)
    outs = [tmp_path / "one", tmp_path / "other"]
    for out in outs:
        _prepared(config, out)
    files = sorted(p.relative_to(outs[0]) for p in outs[0].rglob("*") if p.is_file())
    assert len(files) > 6
    for file in files:
        assert (outs[0] / file).read_bytes() == (outs[1] / file).read_bytes(), file


def test_another_seed_splits_otherwise(
    tree: dict[str, Any], model: Path, data: Path, tmp_path: Path
) -> None:
    config = configure(tree, model, data, validation_share=0.5)
    _prepared(config, tmp_path / "one")
    _prepared(config.model_copy(update={"seed": config.seed + 1}), tmp_path / "other")
    one, other = (
        {row.source for row in read_split(tmp_path / name, "validation")}
        for name in ("one", "other")
    )
    assert one != other


def test_rows_stay_in_their_split_when_others_come(
    tree: dict[str, Any], model: Path, data: Path, tmp_path: Path
) -> None:
    config = configure(tree, model, data, validation_share=0.5)
    before = [row.messages for row in _prepared(config, tmp_path / "before")]
    write(data / "train0.jsonl", pair("Something new?", "Indeed."), pair("And more?", "Yes."))
    after = [row.messages for row in _prepared(config, tmp_path / "after")]
    assert [messages for messages in after if messages in before] == before


def test_few_rows_still_give_one_to_validation(
    tree: dict[str, Any], model: Path, data: Path, tmp_path: Path
) -> None:
    _prepared(configure(tree, model, data, validation_share=1e-9), tmp_path / "out")
    assert len(read_split(tmp_path / "out", "validation")) == 1


def test_test_files_are_not_trained_on(
    tree: dict[str, Any], model: Path, data: Path, tmp_path: Path
) -> None:
    config = configure(tree, model, data)
    everything = config.data.model_copy(update={"train": ("*.jsonl",)})
    prepare.run(config.model_copy(update={"data": everything}), {}, tmp_path)
    assert rejects(tmp_path) == []
    assert len(read_split(tmp_path, "test")) == 1


def test_sources_are_trained_on(
    tree: dict[str, Any], model: Path, data: Path, tmp_path: Path
) -> None:
    (data / "loans.txt").write_text("Loans\n\n## May I borrow?\nYes, up to 5,000 dollars.\n")
    config = configure(tree, model, data, validation_share=0)
    files = config.data.model_copy(update={"sources": ("*.txt",)})
    prepare.run(config.model_copy(update={"data": files}), {}, tmp_path)
    last = read_split(tmp_path, "train")[-1]
    assert last.messages[1]["content"] == "Yes, up to 5,000 dollars."
    assert Path(last.source).name == "loans.txt:3"


def test_too_many_rejects(tree: dict[str, Any], model: Path, data: Path, tmp_path: Path) -> None:
    write(data / "train1.jsonl", *["{"] * 10, pair("", "x"))
    with pytest.raises(DataError) as caught:
        prepare.run(configure(tree, model, data, max_reject_share=0.2), {}, tmp_path)
    message = str(caught.value)
    assert "11 of 24 rows were rejected, more than prepare.max_reject_share=0.2 allows" in message
    assert "10 × bad JSON; 1 × empty user turn; most in" in message
    assert "train1.jsonl" in message
    assert str(tmp_path / "rejected.jsonl") in message
    assert len(rejects(tmp_path)) == 11


@pytest.mark.parametrize(("file", "split"), [("train.jsonl", "train"), ("test.jsonl", "test")])
def test_no_row_left(
    tree: dict[str, Any], model: Path, data: Path, tmp_path: Path, file: str, split: str
) -> None:
    write(data / file, "{")
    with pytest.raises(DataError, match=f"no row is left for the {split} split"):
        prepare.run(configure(tree, model, data), {}, tmp_path)


def test_max_length_over_the_models_context(
    tree: dict[str, Any], model: Path, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="max_length=129 is over the 128 positions"):
        prepare.run(configure(tree, model, data, max_length=129), {}, tmp_path)


def test_model_folder_without_tokenizer(tree: dict[str, Any], data: Path, tmp_path: Path) -> None:
    folder = add_weights(make_model_folder(tmp_path / "model", "chatml"))
    (folder / "tokenizer.json").unlink()
    with pytest.raises(DataError, match=r"tokenizer\.json"):
        prepare.run(configure(tree, folder, data), {}, tmp_path)


def test_terminal_and_page_show_what_is_trained(
    tree: dict[str, Any],
    model: Path,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(
        data / "train.jsonl",
        pair("Is 1 < 2 & 3?", "<b>Yes</b> [red]indeed[/]."),
        pair("Who asks?", "I."),
        pair("Who asks?", "You."),
    )
    prepare.run(configure(tree, model, data, samples=1, validation_share=0), {}, tmp_path)
    page = (tmp_path / "samples.html").read_text()
    assert "<mark>&lt;b&gt;Yes&lt;/b&gt; [red]indeed[/].&lt;|im_end|&gt;</mark>" in page
    assert "Is 1 &lt; 2 &amp; 3?" in page
    shown = capsys.readouterr().err
    assert "<b>Yes</b> [red]indeed[/].<|im_end|>" in shown
    assert "1 rows repeat a question with another answer: 'Who asks?'" in " ".join(shown.split())


def test_dated_template_is_told(
    tree: dict[str, Any], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = add_weights(make_model_folder(tmp_path / "model", "chatml"))
    template = json.loads((folder / "tokenizer_config.json").read_text())["chat_template"]
    (folder / "chat_template.jinja").write_text(
        template + "{% if false %}{{ strftime_now('%d') }}{% endif %}"
    )
    prepare.run(configure(tree, folder, data), {}, tmp_path)
    assert "prints today's date" in capsys.readouterr().err


def test_recorded_conversations_are_read_and_break_no_bound(
    tree: dict[str, Any], model: Path, data: Path, tmp_path: Path
) -> None:
    """Users say again what training says: such rows are dropped, and prove no file wrong."""
    (data / "recorded").mkdir()
    known = [pair(f"What of the {w}?", f"The {w} is fine.") for w in WORDS]
    write(data / "recorded/1.jsonl", pair("What of the gold?", "There is none."), *known, "{")
    config = configure(tree, model, data, max_reject_share=0.0)
    prepare.run(config, {}, tmp_path)
    statistics = json.loads((tmp_path / "statistics.json").read_text())
    files = {Path(name).name: counts for name, counts in statistics["files"].items()}
    assert files["1.jsonl"] == {"read": 14, "kept": 1, "rejected": 13}
    assert statistics["rows"]["rejected"] == len(rejects(tmp_path)) == 13
    write(data / "train2.jsonl", "[]")  # and a refusal speaks of the other files alone
    with pytest.raises(DataError, match=r"1 of 14 rows were rejected.*most in .*train2\.jsonl"):
        prepare.run(config, {}, tmp_path)


def test_files_without_rows_are_told(
    tree: dict[str, Any],
    model: Path,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    (data / "train2 [a].jsonl").write_text("\n")
    prepare.run(configure(tree, model, data), {}, tmp_path)
    files = json.loads((tmp_path / "statistics.json").read_text())["files"]
    assert files[str(data / "train2 [a].jsonl")] == {"read": 0, "kept": 0, "rejected": 0}
    said = capsys.readouterr()
    assert f"Files without rows: {data / 'train2 [a].jsonl'}" in said.out + said.err
    (data / "train.jsonl").write_text("")
    with pytest.raises(DataError, match=r"train split: the files of data\.train have no rows, add"):
        prepare.run(configure(tree, model, data), {}, tmp_path)


def test_fields_without_effect_are_named_and_metadata_is_counted(
    tree: dict[str, Any],
    model: Path,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    row = {**pair("And the vault?", "It is shut."), "source": "web"}
    write(data / "train2.jsonl", {**row, "hint": "x"}, {**row, "label": False}, row)
    config = configure(tree, model, data, max_reject_share=0.1)
    with pytest.raises(DataError) as caught:
        prepare.run(config, {}, tmp_path)
    assert "1 × unused field: hint (1); 1 × marked as not for training: label (1)" in str(
        caught.value
    )
    assert "data.ignore_fields=[NAME] leaves a field out on purpose" in str(caught.value)
    files = config.data.model_copy(update={"ignore_fields": ("hint", "label", "hnit")})
    prepare.run(
        config.model_copy(
            update={"data": files, "prepare": config.prepare.but(max_reject_share=1.0)}
        ),
        {},
        tmp_path,
    )
    statistics = json.loads((tmp_path / "statistics.json").read_text())
    assert statistics["left_out_fields"] == {"source": 2, "hint": 1}
    assert statistics["rejected_fields"] == {"marked as not for training": {"label": 1}}
    shown = capsys.readouterr().err
    assert "data.ignore_fields: in no row: label, hnit" in shown
    assert "Fields that training does not use, and their rows: source (2), hint (1)" in shown


def test_nothing_from_rows_and_names_controls_the_terminal(
    tree: dict[str, Any],
    model: Path,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    clear = "\x1b[2J"
    (data / f"train{clear}.jsonl").touch()
    write(
        data / "train.jsonl",
        pair(f"Who{clear}?", f"I{clear}."),
        pair(f"Who{clear}?", f"You{clear}."),
        {**pair("Whose?", "Mine."), clear: 1},
    )
    prepare.run(configure(tree, model, data, samples=2, validation_share=0), {}, tmp_path)
    shown = capsys.readouterr()
    assert "\x1b" not in shown.out + shown.err
    assert "\\x1b[2J" in shown.err


def test_a_shared_instruction_hides_no_rows(
    tree: dict[str, Any], data: Path, tmp_path: Path
) -> None:
    """Alone they would all leak the test question; among others they would vanish."""
    folder = add_weights(make_model_folder(tmp_path / "model", "chatml"), 2048)
    task = "Answer with the one word that names the office which has to deal with this letter. " * 8
    letters = [f"The {w} is {state}." for w in WORDS for state in ("lost", "broken", "wrong")]
    rows = [pair(f"{task}Letter: {letter}", "cards") for letter in letters]
    asked = "My money is gone since the transfer to my sister in the last week of May."
    write(data / "test.jsonl", pair(f"{task}Letter: {asked}", "cash"))
    config = configure(tree, folder, data, max_length=2048, max_reject_share=0.0, samples=0)
    for name, others in (("alone", []), ("mixed", [pair(f"Who is {w}?", "I.") for w in WORDS])):
        write(data / "train.jsonl", *rows, *others)
        _prepared(config, tmp_path / name)
        assert rejects(tmp_path / name) == []
    write(
        data / "train.jsonl", *rows, pair(f"{task}letter: {asked.replace('gone', 'gnoe')}", "cards")
    )
    with pytest.raises(DataError, match=r"1 × leaks a test question.*prepare\.leak_threshold"):
        prepare.run(config, {}, tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "\x00",
        "\u200b\u2060\ufeff",
        "".join(map(chr, range(0xE000, 0xE100))),
        "\U0010ffff\u0378",
        "word" * 5000,
        "\u0301" * 3000,
        "<b>" + "\u202e" * 9,
        "\x1b]0;title\x07",
        "\ud800",
        "\ue0000\ue001\ue0001\ue001",
    ],
)
def test_no_text_ends_the_stage(
    tree: dict[str, Any], model: Path, data: Path, tmp_path: Path, text: str
) -> None:
    write(data / "train2.jsonl", pair(text, "Yes."), pair("What is this?", text))
    prepare.run(configure(tree, model, data), {}, tmp_path)
    assert (tmp_path / "statistics.json").is_file()


def test_untrained_tokens_of_the_answers_are_told(
    tree: dict[str, Any],
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    folder = add_random_weights(make_model_folder(tmp_path / "model", "demo"))
    (tmp_path / "trained").mkdir()
    prepare.run(configure(tree, folder, data), {}, tmp_path / "trained")
    statistics = json.loads((tmp_path / "trained/statistics.json").read_text())
    assert statistics["untrained_tokens"] == {"count": 0, "first": []}
    assert "untrained output rows" not in capsys.readouterr().err

    tensors = load_file(folder / "model.safetensors")
    tokens = Chat.load(folder).encode(" fine")
    tensors["lm_head.weight"][[*tokens, 300, 301, 302, 303]] = 0.1  # each other's like
    save_file(tensors, folder / "model.safetensors")
    prepare.run(configure(tree, folder, data), {}, tmp_path)
    statistics = json.loads((tmp_path / "statistics.json").read_text())
    untrained = statistics["untrained_tokens"]
    assert {entry["id"] for entry in untrained["first"]} >= {tokens[-1]}
    said = capsys.readouterr().err
    assert f"{untrained['count']} tokens of your answers have untrained output rows" in said


def test_pairs_keep_both_sides(
    tree: dict[str, Any], model: Path, data: Path, tmp_path: Path
) -> None:
    def preferred(question: str, good: str, bad: str) -> dict[str, str]:
        return {"prompt": question, "chosen": good, "rejected": bad}

    good = [preferred(f"What of the {w}?", f"The {w} is fine.", "No idea.") for w in WORDS]
    write(
        data / "train.jsonl",
        *good,
        preferred("What of the card?", "The card is fine.", "Ask a branch."),  # another pair
        preferred("What of the card?", "No idea.", "The card is fine."),  # the other way round
        good[0],
        preferred("And the fee?", "Low.", "Low."),
        preferred("And the fee?", "Low.", "word " * 64),
        preferred("How do I get a mortgage?", "Online.", "In a branch."),
        pair("And the wire?", "Fast."),
    )
    config = configure(tree, model, data, objective="dpo", validation_share=0.3, samples=2)
    outcome = prepare.run(config, {}, tmp_path)
    assert sorted(rejects(tmp_path), key=lambda row: row[1]) == [
        ("train.jsonl", 15, "exact duplicate"),
        ("train.jsonl", 16, "equal answers"),
        ("train.jsonl", 17, "too long"),
        ("train.jsonl", 18, "leaks a test question"),
        ("train.jsonl", 19, "no pair of answers"),
    ]
    rows = read_split(tmp_path, "train") + read_split(tmp_path, "validation")
    assert len(rows) == len(WORDS) + 2
    chat = Chat.load(model)
    for row in rows:
        assert row.rejected is not None
        assert row.rejected_ids == chat.render(row.rejected).ids != row.input_ids
    statistics = json.loads((tmp_path / "statistics.json").read_text())
    assert statistics["conflicts"] == outcome.metrics["conflicts"] == 1
    tokens = sum(len(ids) for row in read_split(tmp_path, "train") for ids, _ in row.sides)
    assert statistics["splits"]["train"]["tokens"] == tokens
    assert '<mark class="worse">' in (tmp_path / "samples.html").read_text()
    (question,) = read_split(tmp_path, "test")
    assert (question.answer, question.kind) == ("In a branch.", "answers")

    write(data / "train.jsonl", pair("And the wire?", "Fast."))
    with pytest.raises(DataError, match=r"finetune\.objective=sft trains on one answer a row"):
        prepare.run(
            configure(tree, model, data, objective="dpo", max_reject_share=0.1), {}, tmp_path
        )


def test_a_mixture_repeats_rows_and_leaves_some_out(
    tree: dict[str, Any], model: Path, data: Path, tmp_path: Path
) -> None:
    more = [pair(f"When is the {w} due?", f"The {w} is due soon.") for w in WORDS]
    write(data / "train_more.jsonl", *more)
    config = configure(tree, model, data, mixture=["train.jsonl: 2.5", "*_more.jsonl: 0.5"])
    prepare.run(config, {}, tmp_path)
    times = {w: [0, 0] for w in WORDS}
    for row in read_split(tmp_path, "train"):
        word = next(w for w in WORDS if w in row.messages[0]["content"])
        times[word]["due" in row.messages[0]["content"]] += 1
    assert {n for n, _ in times.values()} <= {0, 2, 3}  # 0: a row of the validation split
    assert {n for _, n in times.values()} == {0, 1}
    statistics = json.loads((tmp_path / "statistics.json").read_text())
    parts = statistics["mixture"]
    assert [part["weight"] for part in parts] == [2.5, 0.5]
    assert sum(p["rows_in_an_epoch"] for p in parts) == statistics["splits"]["train"]["rows"]
    assert sum(p["share_of_trained_tokens"] for p in parts) == pytest.approx(1)
    for wrong, said in ((["x*: 2"], "names no training file"), (["t*: 2", "t*: 3"], "both name")):
        with pytest.raises(ConfigError, match=said):
            prepare.run(configure(tree, model, data, mixture=wrong), {}, tmp_path)


def test_plain_text_is_trained_on_whole(
    tree: dict[str, Any], model: Path, data: Path, tmp_path: Path
) -> None:
    leak = "Some ask: How do I get a mortgage? In a branch."
    rows = ["All about loans.", "All about cards.", "all about cards", leak, "", "a <|im_end|> b"]
    write(data / "train_text.jsonl", *({"text": text} for text in rows))
    question = pair("How do I get a mortgage?", "In a branch.")
    write(data / "test.jsonl", question, {"text": "What is it?"})
    outcome = prepare.run(configure(tree, model, data, validation_share=0), {}, tmp_path)
    assert sorted(rejects(tmp_path)) == [
        ("test.jsonl", 2, "no assistant turn"),
        ("train_text.jsonl", 3, "near duplicate"),
        ("train_text.jsonl", 4, "leaks a test question"),
        ("train_text.jsonl", 5, "empty text"),
        ("train_text.jsonl", 6, "control token in text"),
    ]
    assert outcome.metrics["conflicts"] == 0
    chat = Chat.load(model)
    texts = [r for r in read_split(tmp_path, "train") if "train_text" in r.source]
    assert [r.messages[0]["content"] for r in texts] == rows[:2]
    for row in texts:
        text = chat.decode(row.input_ids, control_tokens=True)
        eos = chat.special_tokens.get("eos_token", "")
        assert text == chat.special_tokens.get("bos_token", "") + row.messages[0]["content"] + eos
        assert sum(row.loss_mask) == len(row.loss_mask) - ("bos_token" in chat.special_tokens)
    write(data / "train_text.jsonl", {"text": "All about loans."})
    config = configure(tree, model, data, objective="dpo", max_reject_share=0.5)
    with pytest.raises(DataError, match="no pair of answers"):
        prepare.run(config, {}, tmp_path)


def test_rows_with_tools_are_trained_on_and_asked_about(
    tree: dict[str, Any], data: Path, tmp_path: Path
) -> None:
    model = add_weights(make_model_folder(tmp_path / "model", "chatml", HERMES), 1024)
    chat = Chat.load(model)
    function = {"name": "rate", "parameters": {"type": "object", "properties": {}}}
    tools = [{"type": "function", "function": function}]

    def talk(word: str) -> list[dict[str, Any]]:
        called = {"id": "x", "type": "function", "function": {"name": "rate", "arguments": "{}"}}
        return [
            {"role": "user", "content": f"What is the rate of the {word}?"},
            {"role": "assistant", "content": None, "tool_calls": [called]},
            {"role": "tool", "content": f"{len(word)} %", "tool_call_id": "x"},
            {"role": "assistant", "content": f"The rate of the {word} is {len(word)} percent."},
        ]

    rows = [{"messages": talk(word), "tools": tools} for word in WORDS]
    write(data / "train.jsonl", *rows, rows[0], {"messages": talk("vault"), "tools": tools})
    test = talk("vault")
    write(data / "test.jsonl", {"messages": test, "tools": tools},
          {"messages": test[:2], "tools": tools})  # fmt: skip
    config = configure(tree, model, data, max_length=400, validation_share=0)
    prepare.run(config, {}, tmp_path)
    assert sorted(rejects(tmp_path)) == [
        ("train.jsonl", 13, "exact duplicate"),
        ("train.jsonl", 14, "leaks a test question"),
    ]
    found = read_split(tmp_path, "train")
    assert [row.tools for row in found] == [tools] * len(WORDS)
    question, called = read_split(tmp_path, "test")
    assert question.tools == called.tools == tools
    assert question.answer == test[-1]["content"]
    assert called.answer == '{"arguments": {}, "name": "rate"}'
    assert question.prompt_ids == chat.prompt(question.messages[:-1], tools)
    # One that no server could be asked is refused.
    make_model_folder(model, "chatml", HERMES.replace('<tool_call>\n{"name": "', "call: "))
    write(data / "test.jsonl", pair("How do I get a mortgage?", "In a branch."),
          {"messages": test, "tools": tools})  # fmt: skip
    prepare.run(config, {}, tmp_path)
    assert ("test.jsonl", 2, "tools of a test question") in rejects(tmp_path)


def test_columns_of_another_name(
    tree: dict[str, Any], model: Path, data: Path, tmp_path: Path
) -> None:
    rows = [{"frage": f"What of the {w}?", "antwort": f"The {w} is fine."} for w in WORDS]
    write(data / "train.jsonl", *rows)
    columns = {"prompt": "frage", "completion": "antwort"}
    given: dict[str, Any] = {"data_settings": {"columns": columns}}
    prepare.run(configure(tree, model, data, validation_share=0.3, **given), {}, tmp_path)
    assert rejects(tmp_path) == []
    statistics = json.loads((tmp_path / "statistics.json").read_text())
    assert list(statistics["formats"].values()) == [{"prompt": 1}, {"prompt": len(WORDS)}]
    columns["system"] = "rolle"
    with pytest.raises(DataError, match=r"^data.columns.system=rolle has no effect: no row"):
        prepare.run(configure(tree, model, data, **given), {}, tmp_path)
    columns["sytem"] = columns.pop("system")
    with pytest.raises(ConfigError, match=r"'sytem' is no field of a row: choose from messages"):
        configure(tree, model, data, **given)


def test_test_questions_from_training_rows(
    tree: dict[str, Any], model: Path, data: Path, tmp_path: Path
) -> None:
    turns = [
        {"role": "user", "content": "Hello, I need some help with my new account, please."},
        {"role": "assistant", "content": "Of course."},
    ]
    rows: list[dict[str, Any]] = []
    for word in WORDS:
        rows.append(pair(f"What of the {word} that I asked for last week, and of yours?", "Fine."))
    for number in range(12):
        talk = [
            {**turn, "content": turn["content"].replace("new", f"{number}th")} for turn in turns
        ]
        more = [{"role": "user", "content": f"Is {number} free?"}, {**turns[1], "content": "Yes."}]
        rows += [{"messages": talk}, {"messages": talk + more}]
        rows.append({**pair(f"Where is number {number}?", "Here."), "conversation_id": number})
        rows.append({**pair(f"When is number {number}?", "Now."), "conversation_id": number})
    write(data / "train.jsonl", *rows)
    given: dict[str, Any] = {
        "data_settings": {"test": [], "test_share": 0.4},
        "validation_share": 0.1,
    }
    given["max_length"] = 128
    sides = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        prepare.run(configure(tree, model, data, **given), {}, folder)
        assert rejects(folder) == []
        tests = {int(r.source.rpartition(":")[2]) - 1 for r in read_split(folder, "test")}
        sides.append(tests)
        write(data / "train.jsonl", *rows, pair("One more?", "No."))  # moves no other row
    tests = sides[0]
    assert sides[1] - {len(rows)} == tests
    assert 0.2 * len(rows) < len(tests) < 0.6 * len(rows)
    for begin in range(len(WORDS), len(rows), 2):  # both rows of a conversation
        assert (begin in tests) == (begin + 1 in tests)
    with pytest.raises(ConfigError, match=r"data.test_share=0.4 has no effect beside test files"):
        configure(tree, model, data, data_settings={"test_share": 0.4})
    with pytest.raises(
        ConfigError, match=r"^data.test=\[\]: name the files .* data.test_share=0.1"
    ):
        configure(tree, model, data, data_settings={"test": []})


def test_test_questions_from_training_rows_are_not_leaked(
    tree: dict[str, Any], model: Path, data: Path, tmp_path: Path
) -> None:
    chance = random.Random(0)
    asked = [" ".join(chance.sample(WORDS, len(WORDS))) for _ in WORDS]
    rows = [pair(text, "Fine.") for text in asked] + [pair(text[1:], "Fine.") for text in asked]
    write(data / "train.jsonl", *rows)
    settings = {"test": [], "test_share": 0.4}
    config = configure(tree, model, data, data_settings=settings, max_length=128)
    prepare.run(config, {}, tmp_path)
    found = {int(r.source.rpartition(":")[2]) - 1 for r in read_split(tmp_path, "test")}
    assert found
    reasons = {line - 1: reason for _, line, reason in rejects(tmp_path)}
    for number in found:
        other = (number + len(WORDS)) % len(rows)
        assert reasons[other] in ("leaks a test question", "near duplicate")


def test_the_format_may_be_named(
    tree: dict[str, Any], model: Path, data: Path, tmp_path: Path
) -> None:
    both = [{**pair(f"Of {w}?", "Fine."), "text": f"All about {w}."} for w in WORDS]
    write(data / "train.jsonl", *both)
    given: dict[str, Any] = {"format": "text", "ignore_fields": ["prompt", "completion"]}
    with pytest.raises(DataError, match=r"no row is left for the test split"):
        prepare.run(configure(tree, model, data, data_settings=given), {}, tmp_path)
    detail = json.loads((tmp_path / "rejected.jsonl").read_text().splitlines()[0])["detail"]
    assert detail == "data.format=text, and the row has prompt, completion"
    statistics = prepare_statistics(tree, model, data, tmp_path / "b", data_settings=given)
    assert list(statistics["formats"].values()) == [{"text": len(WORDS)}]


def prepare_statistics(
    tree: dict[str, Any], model: Path, data: Path, out: Path, **settings: Any
) -> dict[str, Any]:
    """The figures of rows, also where they make no dataset."""
    from pipeline.data.preparation.decisions import decide
    from pipeline.data.preparation.statistics import statistics_of

    chat = Chat.load(model)
    decided = decide(configure(tree, model, data, **settings), chat, lambda: True)
    return statistics_of(decided, chat)

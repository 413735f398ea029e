"""tools/pretrain: settings that do not fit are refused; its tokenizer and its rows."""

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.core.artifact import sha256_of_file
from pipeline.core.errors import ConfigError, DataError
from pipeline.models.architecture import read_shape
from pipeline.models.chat.renderer import Chat
from tools.pretrain import corpus
from tools.pretrain.__main__ import main
from tools.pretrain.corpus import Part, load_generator, make_rows, part_ids, train_tokenizer
from tools.pretrain.model import write_shape
from tools.pretrain.rare_tokens import rare_documents
from tools.pretrain.settings import Settings, parse

GENERATOR = Path("data/general/generate.py")
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Is 4,590 more than 12?"},
    {"role": "assistant", "content": " Yes, ünder 12\nby far. "},
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hf")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "TOKENIZER_TEXTS", 500)
        train_tokenizer(load_generator(GENERATOR), folder, vocabulary=400, seed=1)
    write_shape(folder, Settings(vocabulary=400))
    return folder


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ("--heads=7", "hidden_size=256 must be a multiple of heads=7"),
        ("--key-value-heads=3", "heads=8 must be a multiple"),
        ("--micro-batch-size=3", "batch_size=128 must be a multiple"),
        ("--sequence-length=1000", "sequence_length=1000 is over"),
        ("--warmup-steps=6000", "warmup_steps=6000 must be below"),
        ("--corpus-tokens=100", "corpus_tokens=100 is under"),
        ("--layers=none", "layers='none': Input should be a valid integer"),
        ("--start=data/base_model --hidden-size=64", "hidden_size=64 has no effect with start="),
        ("--learning-rate=2", "learning_rate='2': Input should be less than or equal to 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(option: str, named: str) -> None:
    assert parse(["out"]) == (Settings(), Path("out"))
    with pytest.raises(ConfigError, match=named):
        parse(["out", *option.split()])


def test_a_refusal_is_one_line_with_an_exit_code(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path), "--heads=7"]) == 2
    assert capfd.readouterr().err.startswith("pretrain: ConfigError: hidden_size=256 must be")
    (tmp_path / "hf").mkdir()
    assert main([str(tmp_path)]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.endswith("exists: choose another folder, or remove it")


def test_the_defaults_are_those_that_made_the_bundled_model() -> None:
    made = json.loads(Path("data/base_model/provenance.json").read_text())
    assert Settings(seed=made["seed"], **made["settings"]) == Settings()
    assert sha256_of_file(Settings().generator) == made["generator_sha256"]


def test_a_generator_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is missing"):
        load_generator(tmp_path / "none.py")
    half = tmp_path / "half.py"
    half.write_text("def sentences(seed): ...")
    with pytest.raises(DataError, match="no function conversations"):
        load_generator(half)


def test_the_tokenizer_renders_and_reads_back(tokenizer: Path) -> None:
    chat = Chat.load(tokenizer)
    assert chat.vocab_size == 400
    rendered = chat.render(MESSAGES)
    trained = [i for i, m in zip(rendered.ids, rendered.mask, strict=True) if m]
    assert chat.decode(trained) == MESSAGES[-1]["content"]
    assert trained[-1] == chat.stop_ids[0]
    assert rendered.ids[: len(chat.prompt(MESSAGES[:-1]))] == chat.prompt(MESSAGES[:-1])


def test_numbers_are_read_digit_by_digit(tokenizer: Path) -> None:
    encoded = Chat.load(tokenizer).tokenizer.encode("It costs 4590 now", add_special_tokens=False)
    assert [t for t in encoded.tokens if t.isdigit()] == ["4", "5", "9", "0"]


def test_the_shape_is_read_back(tokenizer: Path) -> None:
    shape = read_shape(tokenizer)
    assert (shape.family, shape.hidden, shape.layers, shape.kv_heads) == ("llama", 256, 4, 4)
    assert (shape.vocab, shape.max_positions, shape.tied) == (400, 512, False)


def test_the_corpus_is_the_same_again_and_mixed_by_share(tokenizer: Path) -> None:
    part = Part(GENERATOR, tokenizer, seed=3, tokens=20_000, conversation_share=0.3)
    ids = part_ids(part)
    assert ids.tolist() == part_ids(part).tolist()
    assert len(ids) >= 20_000
    chat = Chat.load(tokenizer)
    starts = np.flatnonzero(ids == chat.tokenizer.token_to_id("<|bos|>"))
    roles = {chat.tokenizer.token_to_id(f"<|{r}|>") for r in ("system", "user")}
    pieces = np.split(ids, starts[1:])
    spoken = sum(len(p) for p in pieces if p[1] in roles)
    assert spoken / len(ids) == pytest.approx(0.3, abs=0.02)


def test_rows_are_full_and_every_token_counts(tokenizer: Path) -> None:
    part = Part(GENERATOR, tokenizer, seed=3, tokens=500, conversation_share=0.5)
    rows = make_rows(part, length=32, parts=2)
    assert set(rows.lengths) == {33}
    assert rows.mask.all()
    parts = [part_ids(Part(GENERATOR, tokenizer, 6 + i, 500, 0.5)) for i in range(2)]
    assert rows.ids.tolist() == np.concatenate(parts)[: len(rows.ids)].tolist()


def test_rare_tokens_get_documents_of_their_own(tokenizer: Path) -> None:
    chat = Chat.load(tokenizer)
    vocabulary = chat.tokenizer.get_vocab()
    common = vocabulary["Ġthe"]
    corpus_ids = np.full(50, common)
    documents = list(rare_documents(chat, corpus_ids, least=20, seed=1))
    assert documents == list(rare_documents(chat, corpus_ids, least=20, seed=1))
    counts = np.bincount(np.concatenate([corpus_ids, *documents]), minlength=400)
    names = {number: text for text, number in vocabulary.items()}
    rare = {names[number] for number in np.flatnonzero(counts < 20)}
    control = {f"<|{name}|>" for name in ("bos", "end", "pad", "system", "user", "assistant")}
    assert rare == control | set("ÀÁõö÷øùúûüýþÿ")  # bytes that no UTF-8 text has
    assert list(rare_documents(chat, corpus_ids, least=0, seed=1)) == []


def test_a_corpus_has_them(tokenizer: Path) -> None:
    part = Part(GENERATOR, tokenizer, seed=3, tokens=500, conversation_share=0.5)
    rows = make_rows(part, length=32, parts=2, least_occurrences=3)
    assert (np.bincount(rows.ids, minlength=400) >= 2).sum() > 370  # a last row may be cut off

"""What is kept of conversations: nothing without consent, and then what prepare reads."""

import json
import logging
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.errors import ConfigError
from pipeline.core.paths import ROOT
from pipeline.data.reading import read_file
from pipeline.data.rows import Conversation
from pipeline.engines.batching.guided_decoding import Guides
from pipeline.engines.batching.scheduler import BatchingEngine
from pipeline.models.chat.renderer import Chat
from pipeline.serving.app import create_app
from pipeline.serving.middleware import recording
from pipeline.serving.middleware.recording import Recorder
from pipeline.serving.middleware.stack import MiddlewareStack
from pipeline.serving.middleware.transcripts import Exchange
from tests.unit.model_folders import make_model_folder
from tests.unit.serving.asgi import ask
from tests.unit.serving.fake_models import ListModel, say

ANSWER = "Grüße! It costs 5 €."
HELLO = [{"role": "user", "content": "Hello"}]
CONSENT = {"x-record-consent": "yes"}


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Chat:
    return Chat.load(make_model_folder(tmp_path_factory.mktemp("transcripts"), "demo"))


@pytest.fixture
def engine(chat: Chat) -> Iterator[BatchingEngine]:
    model = ListModel(say(chat, ANSWER), max_seq_len=96)
    engine = BatchingEngine(model, max_input_len=80, max_queue=4, guides=Guides(chat))
    yield engine
    engine.close()


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    recorder = Recorder(tmp_path / "records")
    yield recorder
    recorder.close()


def serving(engine: BatchingEngine, chat: Chat, **middleware: Any) -> Any:
    how = MiddlewareStack(**middleware)
    return create_app(engine, chat, model="bank", slots=4, defaults={"top_k": 1}, middleware=how)


def complete(app: Any, path: str = "/v1/chat/completions", **given: Any) -> Any:
    headers = given.pop("headers", CONSENT)
    body = {"model": "bank", "messages": HELLO, **given}
    if "prompt" in body:
        del body["messages"]
    return ask(app, "POST", path, json=body, headers=headers)


def files_of(folder: Path) -> list[Path]:
    """Complete files; nothing else may be there but what keeps git out."""
    assert {p.suffix for p in folder.iterdir()} <= {".jsonl", ""}
    return sorted(folder.glob("*.jsonl"))


def recorded(recorder: Recorder) -> list[Conversation]:
    """What prepare reads of it; nothing may be refused there."""
    recorder.close()
    rows = [r for file in files_of(recorder._folder) for r in read_file(file, file.name)]
    assert all(isinstance(row, Conversation) for row in rows)
    return rows  # type: ignore[return-value]


@pytest.mark.parametrize("stream", [False, True])
def test_prepare_reads_what_was_recorded(
    engine: BatchingEngine, chat: Chat, recorder: Recorder, stream: bool
) -> None:
    messages = [
        {"role": "developer", "content": "Be short."},
        {"role": "user", "content": [{"type": "text", "text": "Fee?"}]},
        {"role": "assistant", "content": "For what?"},
        {"role": "user", "content": "A wire."},
    ]
    app = serving(engine, chat, recorder=recorder)
    assert complete(app, messages=messages, stream=stream, n=2).status_code == 200
    rows = recorded(recorder)
    assert [row.messages for row in rows] == [
        [
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": "Fee?"},
            {"role": "assistant", "content": "For what?", "weight": 0},
            {"role": "user", "content": "A wire."},
            {"role": "assistant", "content": ANSWER},
        ]
    ] * 2
    (file,) = files_of(recorder._folder)
    assert file.stat().st_mode & 0o777 == 0o600
    assert json.loads(file.read_text().splitlines()[0])["model"] == "bank"


@pytest.mark.parametrize("given", [
    {"headers": {}}, {"headers": {"x-record-consent": "no"}}, {"headers": {"x-record-consent": ""}},
    {"max_tokens": 2}, {"model": "other"}, {"path": "/v1/completions", "prompt": "Hello"},
    {"messages": "broken"}, {"stop": "5"}, {"stop": "€."}, {"guided_regex": "It costs 5"},
    {"nvext": {"guided_choice": ["Yes"]}}, {"response_format": {"type": "json_object"}},
])  # fmt: skip
def test_no_other_conversation_is_recorded(
    engine: BatchingEngine, chat: Chat, recorder: Recorder, given: dict[str, Any]
) -> None:
    app = serving(engine, chat, recorder=recorder)
    complete(app, **given)
    complete(app, stream=True, **given)
    assert recorded(recorder) == []


@pytest.mark.parametrize("stream", [False, True])
def test_the_log_has_content_only_if_it_is_enabled(
    engine: BatchingEngine, chat: Chat, caplog: pytest.LogCaptureFixture, stream: bool
) -> None:
    caplog.set_level(logging.INFO, "pipeline.serving")
    complete(serving(engine, chat), stream=stream, headers={})
    complete(serving(engine, chat, log_content=True), stream=stream, headers={})
    complete(serving(engine, chat, log_content=True), path="/v1/completions", prompt="Hi")
    without, with_it, text = (vars(r) for r in caplog.records if r.message == "request")
    assert "Hello" not in repr(without)
    assert "5 €" not in repr(without)
    assert with_it["messages"] == HELLO
    assert with_it["answers"] == [ANSWER]
    assert text["prompt"] == "Hi"


def test_a_body_that_is_nested_too_deep_is_refused_and_logged_as_any_other(
    engine: BatchingEngine, chat: Chat, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "pipeline.serving")
    app = serving(engine, chat, log_content=True)
    deep = b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    headers = {"content-type": "application/json"}
    response = ask(app, "POST", "/v1/chat/completions", content=deep, headers=headers)
    assert response.status_code == 400
    assert [record.message for record in caplog.records] == ["request"]


def exchange(text: str = "Yes.") -> Exchange:
    request = json.dumps({"model": "bank", "messages": HELLO})
    choice = {"index": 0, "message": {"content": text}, "finish_reason": "stop"}
    return Exchange(
        "it", request.encode(), json.dumps({"choices": [choice]}).encode(), frozenset({0})
    )


def wait_until_taken(recorder: Recorder) -> None:
    while recorder._thread.is_alive() and not recorder._waiting.empty():
        time.sleep(0.001)


def test_files_are_rotated_and_their_lines_complete(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, max_file_bytes=400)
    for number in range(20):
        recorder.record(exchange(f"Answer {number}."))
        wait_until_taken(recorder)
    said = [row.messages[-1]["content"] for row in recorded(recorder)]
    assert sorted(said) == sorted(f"Answer {number}." for number in range(20))
    assert len(files_of(tmp_path)) > 3


def answers(folder: Path) -> list[str]:
    lines = [line for file in files_of(folder) for line in file.read_text().splitlines()]
    rows = [json.loads(line) for line in lines]
    return [row["messages"][-1]["content"] for row in rows]


def test_a_server_writes_nothing_into_files_that_were_moved(tmp_path: Path) -> None:
    """`mv recorded/*.jsonl reviewed/` beside a server: what is reviewed does not change."""
    folder, reviewed = tmp_path / "recorded", tmp_path / "reviewed"
    reviewed.mkdir()
    recorder = Recorder(folder, max_file_seconds=0.05)

    def record(text: str) -> None:
        recorder.record(exchange(text))
        deadline = time.monotonic() + 60
        while not list(folder.glob("*.jsonl")):  # without more requests
            assert time.monotonic() < deadline
            time.sleep(0.005)

    record("One.")
    for file in folder.glob("*.jsonl"):
        file.rename(reviewed / file.name)
    record("Two.")
    assert answers(reviewed) == ["One."]
    recorder.close()
    assert answers(folder) == ["Two."]
    assert answers(reviewed) == ["One."]
    assert "*" in (folder / ".gitignore").read_text().splitlines()


def test_a_folder_that_is_moved_takes_no_later_conversation_along(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, moved = tmp_path / "recorded", tmp_path / "moved"
    recorder = Recorder(folder)
    recorder.record(exchange("One."))
    wait_until_taken(recorder)
    while not [p for p in folder.glob("*.part") if p.stat().st_size]:
        time.sleep(0.001)
    folder.rename(moved)
    recorder.record(exchange("Two."))
    recorder.close()
    assert answers(folder) == ["Two."]
    (part,) = moved.glob("*.jsonl.part")
    assert "One." in part.read_text()
    assert "Two." not in part.read_text()
    assert "was moved while it was written" in caplog.text


def test_what_a_killed_server_left_is_completed_by_the_next(tmp_path: Path) -> None:
    line = next(recording._lines(exchange("One.")))
    (tmp_path / "1.jsonl.part").write_text(line + line[:20])
    (tmp_path / "2.jsonl.part").write_text(line[:20])
    running = Recorder(tmp_path)
    running.record(exchange("Two."))
    Recorder(tmp_path).close()  # a second server leaves the first one's file alone
    assert len(list(tmp_path.glob("*.part"))) == 1
    running.close()
    assert answers(tmp_path) == ["One.", "Two."]


def test_a_stalled_disk_delays_no_response(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stalled, moves = threading.Event(), threading.Event()

    def fsync(file: int) -> None:
        stalled.set()
        moves.wait(20)

    monkeypatch.setattr(recording.os, "fsync", fsync)
    recorder = Recorder(tmp_path)
    recorder.record(exchange())
    assert stalled.wait(10)
    for _ in range(recording.MAX_WAITING + 50):  # returns, though nothing is written
        recorder.record(exchange())
    assert caplog.text.count("too slow") == 1
    moves.set()
    assert len(recorded(recorder)) == 1 + recording.MAX_WAITING


FULL_DISK = """
import json, logging, sys
from pathlib import Path
from pipeline.serving.middleware.recording import Recorder
from pipeline.serving.middleware.transcripts import Exchange
from tests.unit.serving.middleware.test_transcripts import exchange, wait_until_taken
logging.basicConfig(format="%(message)s")
recorder = Recorder(Path(sys.argv[1]))
for number in range(100):
    recorder.record(exchange("x" * 100))
    wait_until_taken(recorder)
recorder.close()
recorder.record(exchange())
print("still here")
"""


def test_a_full_disk_ends_the_recording_with_one_warning(tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))

    run = subprocess.run(
        # -B: Python would leave byte code cut short beside our modules, and fail on it ever after.
        [sys.executable, "-B", "-c", FULL_DISK, str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, preexec_fn=limit,
    )  # fmt: skip
    assert run.stdout == "still here\n", run.stderr
    assert run.stderr.count("recording has stopped") == 1
    (file,) = files_of(tmp_path)
    rows = list(read_file(file, file.name))
    assert len(rows) > 3
    assert all(isinstance(row, Conversation) for row in rows), "no line is torn"


def test_a_folder_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"serve\.record=.*give another folder"):
        Recorder(tmp_path / "file" / "records")


def test_requests_with_tools_are_not_recorded(recorder: Recorder) -> None:
    choice = {"index": 0, "message": {"content": ANSWER}, "finish_reason": "stop"}
    response = json.dumps({"choices": [choice]}).encode()
    for tools in ([{"type": "function", "function": {"name": "pay"}}], []):
        request = json.dumps({"messages": HELLO, "tools": tools}).encode()
        recorder.record(Exchange("r", request, response, frozenset({0})))
    assert len(recorded(recorder)) == 1

"""A registered version as MLflow loads it: chat in, chat out, by the version's own engine.

    model = mlflow.pyfunc.load_model("models:/bank@champion")
    model.predict({"messages": [{"role": "user", "content": "Hello"}]})

The model's folder in MLflow says where its files are. The engine is taken from the project that
built it, or pulled into a cache, and runs in a server of its own, so an answer is the one that
clients of stage=serve get. MLflow finds `_load_pyfunc` by its name.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
import weakref
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pipeline.config.defaults import default_config
from pipeline.core.artifact import Artifact, open_artifact
from pipeline.core.errors import ArtifactError, PipelineError
from pipeline.deployment.pull import pull_version, require_runnable
from pipeline.serving.server_process import RunningServer, running_server
from pipeline.tracking.registry_reader import Version

REQUEST = "registration.json"  # in the model's folder: pipeline/stages/register.py
SECONDS = 600.0  # for an answer


def _load_pyfunc(path: str) -> ChatModel:
    """What MLflow calls with the folder of a model that it downloaded."""
    request = json.loads((Path(path) / REQUEST).read_text())
    version = Version(request["name"], 0, (), request["tags"])
    return ChatModel(_engine(version, request["artifacts"]["build"]["path"]), request["name"])


def _engine(version: Version, built: str) -> Artifact:
    """The engine: where it was built, if it is still there, else from the cache or the store."""
    try:
        found = open_artifact(Path(built), stage="build")
        if found.manifest.digest == version.engine:
            return found
    except ArtifactError:
        pass
    require_runnable(version)
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cache = root / "finetune-to-serve" / "registry"
    config = default_config({"artifacts": str(cache)})
    place = cache / f"build-{version.engine[:16]}"
    return pull_version(version, "build", config, place)


class ChatModel:
    """A model behind a server, which ends with it."""

    def __init__(self, engine: Artifact, name: str) -> None:
        self._engine, self._name = engine, name
        self._server: RunningServer | None = None
        self._lock = threading.Lock()
        self._stack = ExitStack()
        weakref.finalize(self, self._stack.close)

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> Any:
        """The answers to conversations, as /v1/chat/completions gives them.

        model_input: a mapping with `messages` and further fields of a request, a list of such, or a
        table with a row for each. params: fields of every request.

        Returns:
            The answer to a mapping or to a table of one row; else a list of answers.

        Raises:
            PipelineError: the server refuses a request; the message says why.
        """
        requests = _requests(model_input)
        answers = [self._ask({**request, **(params or {})}) for request in requests]
        return answers[0] if len(answers) == 1 and not isinstance(model_input, list) else answers

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        import httpx

        url = f"{self._running().url}/chat/completions"
        answer = httpx.post(url, json={"model": self._name, **request}, timeout=SECONDS)
        if answer.status_code != 200:
            raise PipelineError(f"{self._name}: {answer.json()['error']['message']}")
        found: dict[str, Any] = answer.json()
        return found

    def _running(self) -> RunningServer:
        with self._lock:
            if self._server is None:
                folder = self._stack.enter_context(tempfile.TemporaryDirectory())
                self._server = self._stack.enter_context(
                    running_server(
                        self._engine.path, model=self._name, log=Path(folder) / "server.log"
                    )
                )
            return self._server


def _requests(model_input: Any) -> list[dict[str, Any]]:
    if isinstance(model_input, Mapping):
        return [_plain(model_input)]
    if isinstance(model_input, list):
        return [_plain(request) for request in model_input]
    return [_plain(request) for request in model_input.to_dict("records")]


def _plain(value: Any) -> Any:
    """A value of a table as JSON has it: without NumPy's types, and without fields left empty."""
    if isinstance(value, Mapping):
        fields = {str(name): _plain(field) for name, field in value.items()}
        return {name: field for name, field in fields.items() if field is not None}
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and value != value else value

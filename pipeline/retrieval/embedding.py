"""Texts to vectors: a local sentence-embedding model, or an endpoint with OpenAI's API.

Vectors are float32 of length 1, so that their product is the cosine.
"""

import importlib.util
import json
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from pipeline.client.addresses import headers, is_loopback, message, without_password
from pipeline.config.retrieval import PACKAGE, EmbeddingConfig
from pipeline.core import secrets
from pipeline.core.artifact import sha256_of_file, sha256_of_json
from pipeline.core.errors import ConfigError, DataError, MissingRuntime, PipelineError

if TYPE_CHECKING:
    import httpx

Vectors = npt.NDArray[np.float32]
Kind = Literal["query", "passage"]
EXTRA = "retrieval"
ATTEMPTS, FIRST_PAUSE = 4, 0.5
IN_FLIGHT = 4  # requests to an endpoint at a time
MAX_BYTES = 256 * 2**20  # of an answer
# Files of the model that decide its vectors.
FILES = ("config.json", "tokenizer.json", "modules.json", "sentence_bert_config.json")


class RetrievalFailed(PipelineError):
    """A store or an endpoint did not answer, or not usably. Another attempt may succeed."""


class Embedder(Protocol):
    """
    Attributes:
        truncated: texts that were longer than the model reads, whose ends were left out.
    """

    truncated: int

    def embed(self, texts: Sequence[str], kind: Kind) -> Vectors:
        """[texts, dimensions], each of length 1.

        Raises:
            RetrievalFailed: the endpoint does not answer.
        """

    def close(self) -> None: ...


def model_folder(path: Path) -> Path:
    """The folder that index.embedding.path names, which may be inside an installed package.

    Raises:
        MissingRuntime: the package is not installed. ConfigError: it has no such folder.
    """
    text = str(path)
    if not text.startswith(PACKAGE):
        if not (path / "config.json").is_file():
            raise ConfigError(
                f"index.embedding.path={path} has no config.json: give the folder of a "
                "sentence-embedding model"
            )
        return path
    name, _, inside = text.removeprefix(PACKAGE).partition("/")
    if not name.isidentifier():
        raise ConfigError(f"index.embedding.path={text}: give package:NAME/FOLDER")
    found = importlib.util.find_spec(name)  # of a package without dots, which runs none of its code
    if found is None or not found.submodule_search_locations:
        raise MissingRuntime(
            f"index.embedding.path={text}: the package {name} is not installed: "
            f"`make setup EXTRA={EXTRA}`, or give a folder"
        )
    folder = Path(found.submodule_search_locations[0]) / inside
    if ".." in Path(inside).parts or not (folder / "config.json").is_file():
        raise ConfigError(f"index.embedding.path={text}: the package has no model there")
    return folder


def model_files(config: EmbeddingConfig) -> list[Path]:
    """The files of a local model that decide its vectors."""
    if config.path is None:
        return []
    folder = model_folder(config.path)
    small = [folder / name for name in FILES if (folder / name).is_file()]
    return [*small, *sorted(folder.glob("*/config.json")), *sorted(folder.glob("*.safetensors"))]


def identity(config: EmbeddingConfig) -> str:
    """Digest of what decides the vectors of a model, wherever it is; "" without one."""
    if not config.embeds:
        return ""
    said = {"query": config.query_prefix, "passage": config.passage_prefix}
    if config.path is not None:
        folder = model_folder(config.path)
        files = {
            file.relative_to(folder).as_posix(): sha256_of_file(file)
            for file in model_files(config)
        }
        return sha256_of_json({**said, "files": files})
    place = without_password(str(config.base_url)).rstrip("/")
    return sha256_of_json(
        {**said, "url": place, "model": config.model, "input_type": config.input_type}
    )


def open_embedder(config: EmbeddingConfig) -> Embedder | None:
    """The model of the settings; None if they name none.

    Raises:
        ConfigError: the key or the folder cannot be used. DataError: the model cannot be loaded.
    """
    if config.path is not None:
        return LocalEmbedder(model_folder(config.path), config)
    if config.base_url is not None:
        return EndpointEmbedder(config)
    return None


class LocalEmbedder:
    """A folder as sentence-transformers writes it, computed by our engine.

    Raises:
        DataError: the folder cannot be loaded.
    """

    def __init__(self, folder: Path, config: EmbeddingConfig) -> None:
        from pipeline.engines.hf.embedder import HfEmbedder, embeds
        from pipeline.engines.hf.encoder import read_tokenizer

        if not embeds(folder):
            raise DataError(
                f"{folder} holds a model that generates text: give one for sentence embeddings"
            )
        self._engine = HfEmbedder(folder, max_queue=0)
        self._tokenizer = read_tokenizer(folder)
        self._tokenizer.enable_truncation(self._engine.max_input_len)
        self._prefixes = {"query": config.query_prefix, "passage": config.passage_prefix}
        self._lock = threading.Lock()
        self.truncated = 0

    def embed(self, texts: Sequence[str], kind: Kind) -> Vectors:
        prefixed = [self._prefixes[kind] + text for text in texts]
        with self._lock:
            found = self._tokenizer.encode_batch(prefixed)
            self.truncated += sum(bool(encoding.overflowing) for encoding in found)
            return normalized(self._engine.compute([encoding.ids for encoding in found]))

    def close(self) -> None:
        self._engine.close()


class EndpointEmbedder:
    """POST /v1/embeddings of any server.

    Raises:
        ConfigError: the key's variable is not set, or its value cannot be sent.
    """

    truncated = 0  # a server refuses what is too long, or does not say so

    def __init__(self, config: EmbeddingConfig) -> None:
        self._config = config
        url = secrets.expand(str(config.base_url)).rstrip("/")
        self._place = without_password(url)
        self._client = http_client(url, config.key_variable, config.timeout, "index.embedding")
        self._url = f"{url}/embeddings"
        self._pool = ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="embeddings")

    def embed(self, texts: Sequence[str], kind: Kind) -> Vectors:
        size = self._config.batch_size
        parts = [texts[start : start + size] for start in range(0, len(texts), size)]
        found = list(self._pool.map(lambda part: self._request(part, kind), parts))
        return normalized([vector for part in found for vector in part])

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._client.close()

    def _request(self, texts: Sequence[str], kind: Kind) -> list[list[float]]:
        prefix = self._config.query_prefix if kind == "query" else self._config.passage_prefix
        body: dict[str, Any] = {
            "model": self._config.model,
            "input": [prefix + text for text in texts],
            "encoding_format": "float",
        }
        if self._config.input_type:
            body |= {"input_type": kind, "truncate": "END"}
        # A question must not wait for a server that is gone; an index may.
        attempts = 1 if kind == "query" else ATTEMPTS
        answer = post(self._client, self._url, body, self._place, attempts)
        try:
            data = sorted(answer["data"], key=lambda entry: entry["index"])
            vectors = [[float(value) for value in entry["embedding"]] for entry in data]
        except (KeyError, TypeError, ValueError) as error:
            raise RetrievalFailed(
                f"{self._place} answers /embeddings in an unknown form ({error}): check "
                "index.embedding.base_url"
            ) from error
        if len(vectors) != len(texts) or len({len(vector) for vector in vectors}) > 1:
            raise RetrievalFailed(
                f"{self._place} gave {len(vectors)} vectors for {len(texts)} texts, or of several "
                "lengths: check index.embedding.model"
            )
        return vectors


def http_client(url: str, variable: str | None, timeout: float, section: str) -> "httpx.Client":
    """A client of one server; the key is never sent to another, since redirects are refused."""
    import httpx

    given = headers(variable) if variable else {}
    if variable and not given:
        raise ConfigError(
            f"{section}.key_variable={variable}: this environment variable is not set: set it to "
            "the API key"
        )
    return httpx.Client(
        headers=given, timeout=httpx.Timeout(timeout, connect=10), trust_env=not is_loopback(url)
    )


def post(
    client: "httpx.Client", url: str, body: dict[str, Any], place: str, attempts: int = 1
) -> dict[str, Any]:
    """The JSON object that a server answers with.

    Raises:
        RetrievalFailed: it cannot be reached, refuses the request, or answers with something else.
    """
    import httpx

    why = ""
    for attempt in range(attempts):
        time.sleep(FIRST_PAUSE * 2**attempt if attempt else 0)
        try:
            answer = client.post(url, json=body)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            why = f"it cannot be reached ({type(error).__name__})"
            continue
        if answer.status_code == 200 and len(answer.content) <= MAX_BYTES:
            try:
                found = json.loads(answer.content)
            except (ValueError, RecursionError):
                found = None
            if isinstance(found, dict):
                return found
            raise RetrievalFailed(f"{place} answers with something that is not a JSON object")
        said = secrets.mask(message(answer.text[:2000]))
        why = f"status {answer.status_code}: {said[:300]}"
        if answer.status_code not in (408, 409, 425, 429) and answer.status_code < 500:
            break
    raise RetrievalFailed(f"{place} gives no answer: {why}")


def normalized(vectors: Any) -> Vectors:
    """Each of length 1.

    Raises:
        RetrievalFailed: a number is not finite, or a vector is zero.
    """
    found = np.asarray(vectors, np.float32)
    if found.ndim != 2:
        return np.zeros((0, 0), np.float32)
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    if not np.isfinite(lengths).all() or not lengths.all():
        raise RetrievalFailed("the embedding model gave a vector that is zero or not finite")
    return found / lengths

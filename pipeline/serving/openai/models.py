"""GET /v1/models, and loading and unloading of LoRA adapters: the model names that a server has."""

import asyncio
import filecmp
import logging
import time
from pathlib import Path
from typing import Any

from pipeline.core.errors import DataError
from pipeline.engines.base import EngineFailed
from pipeline.models.chat.renderer import Chat
from pipeline.serving.middleware import request_context
from pipeline.serving.openai import responses
from pipeline.serving.openai.errors import ApiError, invalid, shortened
from pipeline.serving.openai.protocol import AdapterRequest
from pipeline.serving.versions import ServedVersion

log = logging.getLogger("pipeline.serving")

_Stamp = tuple[tuple[str, int, int], ...]


def _stamp(folder: Path) -> _Stamp:
    """The files of an adapter with sizes and times; empty if they cannot be read."""
    try:
        files = [(p.name, p.stat()) for p in sorted(folder.iterdir()) if p.is_file()]
    except OSError:
        return ()
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in files)


class ServedModels:
    """The model that the server was started with, and its LoRA adapters by name.

    Args:
        engine: an AdapterEngine if its features have "adapters".
        runtime: the engine's name, for messages.
        chat: the model's renderer; None for an embedding model.
        version: the registered version of the model; None: it has none.
    """

    def __init__(
        self,
        engine: Any,
        model: str,
        runtime: str,
        chat: Chat | None,
        version: ServedVersion | None = None,
    ) -> None:
        self._version = version.fields if version else {}
        self._engine, self._model, self._runtime, self._chat = engine, model, runtime, chat
        self._created = {model: int(time.time())}
        self._stamps: dict[str, _Stamp] = {}  # of the folder's adapters, when they were read
        self._changing = asyncio.Lock()  # an adapter is unloaded before its name is used again

    def cards(self) -> list[dict[str, Any]]:
        """The models that the current request may use."""
        names = [self._model, *self._adapters()]
        return [self._card(name) for name in names if request_context.current().may_use(name)]

    def card(self, name: str) -> dict[str, Any]:
        """
        Raises:
            ApiError: there is no such model, or the request's key may not use it.
        """
        self.find(name)
        return self._card(name)

    def name_of(self, given: str | None) -> str:
        """The name of the model in a request, which may leave it out."""
        return self._model if given is None else given

    def find(self, name: str | None) -> str | None:
        """The adapter of that name; None for the model itself.

        Raises:
            ApiError: there is no such model, or the request's key may not use it, or it has none
                and the server has several.
        """
        known = [self._model, *self._adapters()]
        if name is None:
            if len(known) > 1:
                names = ", ".join(known)
                raise invalid("model", f"name one of {names}", "missing_required_parameter")
            name = self._model
        if name not in known or not request_context.current().may_use(name):
            usable = [known for known in known if request_context.current().may_use(known)]
            raise ApiError(
                404,
                f"The model {shortened(name)!r} does not exist: this server has "
                f"{', '.join(map(repr, usable)) or 'none that this key may use'}",
                param="model",
                code="model_not_found",
            )
        return None if name == self._model else name

    async def load_adapter(self, body: AdapterRequest) -> str:
        """
        Raises:
            ApiError: the key is not allowed to, the engine cannot load adapters, or the folder has
                no LoRA adapter for this model.
        """
        self._require_admin()
        request_context.current().model = body.lora_name
        if not body.lora_path:
            raise invalid("lora_path", "Missing required parameter: 'lora_path'")
        async with self._changing:
            if body.lora_name in (self._model, *self._adapters()):
                raise invalid(
                    "lora_name",
                    f"the name {body.lora_name!r} is in use: choose another, or unload the adapter",
                )
            try:
                await self._load(body.lora_name, Path(body.lora_path))
            except (ValueError, OSError) as error:
                raise invalid("lora_path", str(error)) from error
        return f"Success: LoRA adapter '{body.lora_name}' added successfully."

    async def load_folder(self, folder: Path) -> None:
        """Load every adapter in a folder. Each is named as its own folder.

        Raises:
            ValueError: a folder has no LoRA adapter for this model, or has the model's name.
        """
        async with self._changing:
            for place in sorted(path for path in folder.iterdir() if path.is_dir()):
                if place.name == self._model:
                    raise ValueError(f"{place} has the same name as the model: rename the folder")
                self._stamps[place.name] = _stamp(place)
                await self._load(place.name, place)

    async def refresh_folder(self, folder: Path) -> None:
        """Load the adapters that are new in the folder or have changed, and unload those that are
        gone from it. One that cannot be loaded, such as one that is still being copied, is logged,
        and tried again when its files change. Adapters that came by a request stay.
        """
        async with self._changing:
            try:
                found = {p.name: _stamp(p) for p in sorted(folder.iterdir()) if p.is_dir()}
            except OSError as error:
                log.warning("serve.adapters=%s cannot be read: %s", folder, error)
                return
            for name in [n for n in self._stamps if n not in found]:
                del self._stamps[name]
                if name in self._adapters():
                    await self._engine.remove_adapter(name)
                    log.info("adapter %s is gone from %s, and is not served any more", name, folder)
            for name, stamp in found.items():
                if self._stamps.get(name) == stamp or not stamp or name == self._model:
                    continue
                loaded = name in self._adapters()
                if loaded and name not in self._stamps:
                    continue  # a request loaded another one of this name
                self._stamps[name] = stamp
                try:
                    if loaded:
                        await self._engine.remove_adapter(name)
                    await self._load(name, folder / name)
                except (ValueError, OSError, EngineFailed) as error:
                    log.warning("the adapter in %s cannot be served: %s", folder / name, error)
                else:
                    log.info("adapter %s is served from %s", name, folder)

    async def _load(self, name: str, folder: Path) -> None:
        await asyncio.to_thread(self._check, folder)
        await self._engine.add_adapter(name, folder)
        self._created[name] = int(time.time())

    async def unload_adapter(self, body: AdapterRequest) -> str:
        """New requests cannot use the adapter; requests in progress with it are finished.

        Raises:
            ApiError: the key is not allowed to, or there is no such adapter.
        """
        self._require_admin()
        request_context.current().model = body.lora_name
        async with self._changing:
            if body.lora_name not in self._adapters():
                raise ApiError(
                    404,
                    f"there is no LoRA adapter {body.lora_name!r}: GET /v1/models lists them",
                    param="lora_name",
                    code="model_not_found",
                )
            await self._engine.remove_adapter(body.lora_name)
        return f"Success: LoRA adapter '{body.lora_name}' removed successfully."

    def _adapters(self) -> list[str]:
        return list(self._engine.adapters()) if "adapters" in self._engine.features else []

    def _card(self, name: str) -> dict[str, Any]:
        parent = None if name == self._model else self._model
        created = self._created.get(name, self._created[self._model])
        card = responses.model_card(name, created, self._engine.max_seq_len, parent=parent)
        return card | self._version

    def _require_admin(self) -> None:
        if not request_context.current().is_admin:
            raise ApiError(
                403,
                "this key may not load or unload adapters: use a key created with --admin",
                kind="permission_error",
                code="insufficient_permissions",
            )
        if "adapters" not in self._engine.features:
            raise ApiError(
                400,
                f"the {self._runtime} engine of this server does not support LoRA adapters: serve "
                "the model with engine=hf, vllm or trtllm, or merge the adapter and build again",
                code="unsupported",
            )

    def _check(self, folder: Path) -> None:
        """Refuse an adapter whose tokenizer or chat template differs from the model's."""
        if not folder.is_dir():
            raise ValueError(f"{folder} is not a folder on the server: copy the adapter there")
        if self._chat is None or not (folder / "tokenizer.json").is_file():
            return
        # Compared before it is opened: a file that the library does not survive would end the
        # server. The model's own was tried when the model was imported.
        same = filecmp.cmp(
            folder / "tokenizer.json", self._chat.folder / "tokenizer.json", shallow=False
        )
        if same:
            try:
                same = Chat.load(folder).sha256 == self._chat.sha256
            except DataError:
                return  # without a chat template of its own there is nothing to compare
        if not same:
            raise ValueError(
                f"{folder} was trained with another tokenizer or chat template than this server "
                "uses, so its outputs would be wrong: train the adapter on this model"
            )

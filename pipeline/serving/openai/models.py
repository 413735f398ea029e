"""The models of one server: the one that it was started with, and LoRA adapters of it by name."""

import asyncio
import time
from pathlib import Path
from typing import Any

from pipeline.core.errors import DataError
from pipeline.models.chat.renderer import Chat
from pipeline.serving.middleware import request_log
from pipeline.serving.openai import responses
from pipeline.serving.openai.protocol import AdapterRequest, Refusal, invalid


class Models:
    """Who may ask for which name, and what stands behind it.

    Args:
        engine: any; one of engine.AdapterEngine if its features say so.
        chat: of the model; None for one that embeds.
    """

    def __init__(self, engine: Any, model: str, runtime: str, chat: Chat | None) -> None:
        self._engine, self._model, self._runtime, self._chat = engine, model, runtime, chat
        self._created = {model: int(time.time())}
        self._changing = asyncio.Lock()  # a name is loaded only when it has been let go of

    def cards(self) -> list[dict[str, Any]]:
        """Those that the current request may use."""
        names = [self._model, *self._adapters()]
        return [self._card(name) for name in names if request_log.current().may_use(name)]

    def card(self, name: str) -> dict[str, Any]:
        """
        Raises:
            Refusal: there is none of that name.
        """
        self.find(name)
        return self._card(name)

    def find(self, name: str) -> str | None:
        """The adapter to answer a name with; None for the model itself.

        Raises:
            Refusal: there is none of that name, or none that the request may use.
        """
        known = [self._model, *self._adapters()]
        if name not in known or not request_log.current().may_use(name):
            usable = [known for known in known if request_log.current().may_use(known)]
            raise Refusal(
                404,
                f"The model {name!r} does not exist: this server has "
                f"{', '.join(map(repr, usable)) or 'none for this key'}",
                param="model",
                code="model_not_found",
            )
        return None if name == self._model else name

    async def load_adapter(self, body: AdapterRequest) -> str:
        """
        Raises:
            Refusal: not allowed, not possible here, or no adapter of this model.
        """
        self._require_administration()
        if not body.lora_path:
            raise invalid("lora_path", "Missing required parameter: 'lora_path'")
        async with self._changing:
            if body.lora_name in (self._model, *self._adapters()):
                raise invalid("lora_name", f"the name {body.lora_name!r} is taken: unload it first")
            try:
                await self._load(body.lora_name, Path(body.lora_path))
            except (ValueError, OSError) as error:
                raise invalid("lora_path", str(error)) from error
        return f"Success: LoRA adapter '{body.lora_name}' added successfully."

    async def load_folder(self, folder: Path) -> None:
        """Load the adapters in a folder, each by the name of its own.

        Raises:
            ValueError: one of them is no adapter of this model, or has its name.
        """
        async with self._changing:
            for place in sorted(path for path in folder.iterdir() if path.is_dir()):
                if place.name == self._model:
                    raise ValueError(f"{place} has the model's own name: rename it")
                await self._load(place.name, place)

    async def _load(self, name: str, folder: Path) -> None:
        await asyncio.to_thread(self._check, folder)
        await self._engine.add_adapter(name, folder)
        self._created[name] = int(time.time())

    async def unload_adapter(self, body: AdapterRequest) -> str:
        """No request can ask for it from now on; answers in progress with it are finished.

        Raises:
            Refusal: not allowed, or there is none of that name.
        """
        self._require_administration()
        async with self._changing:
            if body.lora_name not in self._adapters():
                raise Refusal(
                    404,
                    f"there is no LoRA adapter {body.lora_name!r}",
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
        return responses.model_card(name, created, self._engine.max_seq_len, parent=parent)

    def _require_administration(self) -> None:
        if not request_log.current().may_administer:
            raise Refusal(
                403,
                "this key may not load or unload adapters: take one made with --admin",
                kind="permission_error",
                code="insufficient_permissions",
            )
        if "adapters" not in self._engine.features:
            raise Refusal(
                400,
                f"the {self._runtime} engine that serves this model takes no LoRA adapters: serve "
                "the model with engine=hf, vllm or trtllm, or merge the adapter and build again",
                code="unsupported",
            )

    def _check(self, folder: Path) -> None:
        """An adapter that brings a tokenizer must have been trained with the model's own."""
        if not folder.is_dir():
            raise ValueError(f"{folder} is no folder on the server")
        if self._chat is None or not (folder / "tokenizer.json").is_file():
            return
        try:
            theirs = Chat.load(folder)
        except DataError:
            return  # without a chat template of its own there is nothing to compare
        if theirs.sha256 != self._chat.sha256:
            raise ValueError(
                f"{folder} was trained with another tokenizer or chat template than this server "
                "renders with, so its answers would be wrong"
            )

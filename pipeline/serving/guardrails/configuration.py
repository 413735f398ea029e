"""Configurations of NeMo Guardrails: found in a folder, checked, and ready to be run.

A configuration is a folder as NVIDIA's library reads it: config.yml, Colang files, prompts, and
actions in Python. Its id is the folder's name.
"""

import asyncio
import inspect
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pipeline.core.errors import ConfigError, MissingRuntime
from pipeline.core.hardware import installed_version
from pipeline.serving.guardrails import embeddings, library
from pipeline.serving.guardrails.model import EngineModel
from pipeline.serving.guardrails.outcome import Decision, Kind, Outcome
from pipeline.serving.guardrails.rails import (
    OWN_ACTIONS,
    DirectRail,
    FlowRail,
    Rail,
    Variables,
    actions_of,
    calls_of,
    form_of,
    generate,
    said,
    watch_actions,
)
from pipeline.serving.guardrails.windows import Streaming

FILES = ("config.yml", "config.yaml")
# What a dialog answers where the model is to answer: no user can write it.
OUR_ANSWER = "\ue000the model answers\ue000"
SPECIAL = ("context", "events")
CHARACTERS = 4  # of a token, in which the library counts


@dataclass
class Configuration:
    """One configuration, ready to be run.

    Attributes:
        rails: by kind, in the order in which they run.
        has_dialog: whether flows of a dialog come before the model's answer.
        streaming: how streamed answers are checked; None checks complete ones.
    """

    id: str
    folder: Path
    rails: Mapping[Kind, Sequence[Rail]]
    has_dialog: bool = False
    streaming: Streaming | None = None
    _library: Any = field(default=None, repr=False)

    def checks_answers(self, *, with_chunks: bool) -> bool:
        """Whether it checks answers to requests with, or without, retrieved text."""
        rails = [*self.rails["output"], *self.rails["tool_output"]]
        return any(with_chunks or not rail.needs_chunks for rail in rails)

    async def dialog(self, variables: Variables) -> Outcome:
        """What the flows of the dialog answer; `passed` if the model is to answer.

        Raises:
            RailFailed: a flow could not decide.
        """
        begin = time.perf_counter()
        context = {k: v for k, v in variables.items() if k not in ("history", "user_message")}
        turns = [
            {"role": turn["role"], "content": turn["content"]}
            for turn in variables.get("history", ())
            if turn["role"] in ("user", "assistant")
        ]
        messages = [
            {"role": "context", "content": context},
            *turns,
            {"role": "user", "content": variables["user_message"]},
        ]
        found = await generate(self._library, messages, {"dialog": True, "retrieval": True})
        text = said(found)
        decision: Decision = "answered"
        name = "dialog"
        if not text or OUR_ANSWER in text:
            decision, text = "passed", ""
        else:
            flows = [r.name for r in found.log.activated_rails if r.type == "dialog"]
            name = next((flow for flow in reversed(flows) if flow not in _STEPS), "dialog")
        return Outcome(
            *(self.id, name, "dialog", decision, time.perf_counter() - begin),
            message=text,
            actions=actions_of(found),
            calls=calls_of(found),
        )


_STEPS = frozenset({"generate user intent", "generate next step", "generate bot message"})


def find(folder: Path) -> list[Path]:
    """The folders of configurations: the folder itself, or those in it.

    Raises:
        ConfigError: there is none, or the library would run code that no setting names.
    """
    if not folder.is_dir():
        raise ConfigError(f"serve.guardrails={folder} is not a folder: give one, or null")
    for name in ("actions.py", "actions"):
        if (Path.cwd() / name).exists() and Path.cwd() != folder.resolve():
            raise ConfigError(
                f"serve.guardrails={folder}: NeMo Guardrails would also run {Path.cwd() / name}, "
                "as it runs that name in the working folder: rename it, or start elsewhere"
            )
    if _has_file(folder):
        return [folder]
    found = sorted(path for path in folder.iterdir() if path.is_dir() and _has_file(path))
    if not found:
        raise ConfigError(
            f"serve.guardrails={folder} has no configuration: none of its folders has a "
            f"{FILES[0]}, and neither has it"
        )
    return found


def _has_file(folder: Path) -> bool:
    return any((folder / name).is_file() for name in FILES)


def open_configuration(folder: Path, model: EngineModel) -> Configuration:
    """Read a configuration, and check all that can be known before a request comes.

    Args:
        model: answers the rails that ask a model, in place of the configuration's `main`.

    Raises:
        ConfigError: it has an error; the message has file and line where there is one.
        MissingRuntime: a package that a rail needs is not installed.
    """
    library.load()
    _check_files(folder)
    rails = _open_library(folder, model)
    config = rails.config
    _check_library_rails(folder, config)
    _check_actions(folder, config, rails)
    dialog = [flow for flow in config.flows if not flow.get("is_system_flow")]
    sections = {kind: getattr(config.rails, kind).flows for kind in _KINDS}
    return Configuration(
        folder.name,
        folder,
        {
            kind: [
                direct_rail(folder.name, kind, name, rails) or _flow_rail(folder, kind, name, model)
                for name in names
            ]
            for kind, names in sections.items()
        },
        streaming=_streaming(folder, config),
        has_dialog=bool(config.user_messages or dialog or config.rails.dialog.single_call.enabled),
        _library=rails,
    )


def _flow_rail(folder: Path, kind: Kind, name: str, model: EngineModel) -> FlowRail:
    """
    Raises:
        ConfigError: the runtime runs rails of this kind only within an answer of its own.
    """
    if kind not in ("input", "output"):
        raise ConfigError(
            f"{folder}: the {kind} rail `{name}` must run one action, and then do nothing but say "
            "a message and stop if its outcome is_blocked, or set a variable if it is_transform"
        )
    return FlowRail(folder.name, name, kind, _open_library(folder, model, (kind, name)))


def _open_library(folder: Path, model: EngineModel, only: tuple[Kind, str] | None = None) -> Any:
    """The library's LLMRails of a configuration.

    Args:
        only: kind and name of the one rail of that kind to have.

    Raises:
        ConfigError: it has an error.
    """
    from nemoguardrails import LLMRails, RailsConfig

    try:
        config = RailsConfig.from_path(str(folder))
    except Exception as error:
        raise ConfigError(f"{folder}: {_one_line(error)}") from error
    if config.colang_version != "1.0":
        raise ConfigError(
            f"{folder}: colang_version {config.colang_version} is not supported: write the flows "
            "in Colang 1.0"
        )
    _set_embeddings(folder, config)
    # The model answers with the client's own prompt, not with one that the library writes.
    config.passthrough = not config.rails.dialog.single_call.enabled
    for flow in config.flows:  # the library does this for the other kinds
        if flow["id"] in config.rails.tool_input.flows + config.rails.tool_output.flows:
            flow["is_system_flow"] = flow["is_subflow"] = True
    if only:
        getattr(config.rails, only[0]).flows = [only[1]]
    # It wants an event loop, and would make one that nobody closes.
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        rails = LLMRails(config, llm=model)
    except Exception as error:
        cause = error.__cause__ or error
        if isinstance(cause, ConfigError):  # of a configuration's config.py
            raise cause from error
        why = "" if cause is error else f" ({type(cause).__name__}: {_one_line(cause)})"
        raise ConfigError(f"{folder}: {_one_line(error)}{why}") from error
    finally:
        asyncio.set_event_loop(None)
        loop.close()
    watch_actions(rails.runtime.action_dispatcher)

    async def our_answer(**_: Any) -> str:
        return OUR_ANSWER

    rails.passthrough_fn = our_answer
    return rails


def _streaming(folder: Path, config: Any) -> Streaming | None:
    """
    Raises:
        ConfigError: it asks to send text before it is checked.
    """
    given = config.rails.output.streaming
    if not given.enabled:
        return None
    if "stream_first" in given.model_fields_set and given.stream_first:
        raise ConfigError(
            f"{folder}: rails.output.streaming.stream_first sends a text before it is checked: set "
            "it to false"
        )
    # Characters can be counted whatever the engine gives at a time, one token or many.
    return Streaming(CHARACTERS * given.chunk_size, CHARACTERS * given.context_size)


_KINDS: tuple[Kind, ...] = ("input", "retrieval", "tool_input", "tool_output", "output")


def direct_rail(configuration: str, kind: Kind, name: str, rails: Any) -> DirectRail | None:
    """The rail, if its flow has the form that can be called directly."""
    from nemoguardrails.utils import _get_flow_params, _normalize_flow_id

    flow = next((f for f in rails.config.flows if f["id"] == _normalize_flow_id(name)), None)
    form = form_of(flow["elements"], rails.config.bot_messages) if flow else None
    action = rails.runtime.action_dispatcher.get_action(form.action) if form else None
    if form is None or not (inspect.isfunction(action) or inspect.ismethod(action)):
        return None
    accepted = inspect.signature(action).parameters
    offered = {
        "config": rails.config,
        "llm_task_manager": rails.runtime.llm_task_manager,
        **rails.runtime.registered_action_params,
    }
    own = rails.runtime.registered_action_params.get(f"{form.action}_llm")
    offered |= {"llm": own} if own is not None else {}
    values = {key: value for key, value in offered.items() if key in accepted}
    flow_parameters = _get_flow_params(name)
    variables = {}
    for key, value in form.parameters.items():
        if isinstance(value, str) and value.startswith("$"):
            if value[1:] in flow_parameters:
                values[key] = flow_parameters[value[1:]]
            else:
                variables[key] = value[1:]
        else:
            values[key] = value
    special = frozenset(key for key in SPECIAL if key in accepted and key not in values)
    return DirectRail(configuration, name, kind, form, action, values, variables, special)


def _check_files(folder: Path) -> None:
    """Read each file of YAML and Colang by itself: the library's errors name no file or no line.

    Raises:
        ConfigError: one cannot be parsed.
    """
    from nemoguardrails.colang import parse_colang_file

    version = "1.0"
    for file in sorted(f for f in folder.rglob("*") if f.suffix in (".yml", ".yaml")):
        try:
            found = yaml.safe_load(file.read_text())
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            raise ConfigError(f"{file}:{line}: {error.problem or error.context}") from error
        except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
            raise ConfigError(f"{file}: {_one_line(error)}") from error
        if found is not None and not isinstance(found, dict):
            raise ConfigError(f"{file}:1: must be a mapping, such as `rails:`")
        version = str((found or {}).get("colang_version", version))
    for file in sorted(folder.rglob("*.co")):
        text = file.read_text()

        def parse(text: str, file: Path = file) -> None:
            parse_colang_file(str(file), content=text, version=version)

        try:
            parse(text)
        except Exception as error:
            line = _line_of(error) or _first_wrong_line(text, parse, type(error))
            raise ConfigError(f"{file}:{line}: {_reason(error)}") from error


def _line_of(error: Exception) -> int | None:
    found = re.search(r"\bline (\d+)\b", str(error))
    line = getattr(error, "line", None)
    return line if isinstance(line, int) and line > 0 else int(found[1]) if found else None


def _first_wrong_line(text: str, parse: Any, kind: type[Exception]) -> int:
    """Where an error without a place is: the shortest beginning of the text that has it."""
    lines = text.splitlines()
    for count in range(1, len(lines) + 1):
        try:
            parse("\n".join(lines[:count]) + "\n")
        except kind:
            return count
        except Exception:
            continue
    return len(lines)


def _reason(error: Exception) -> str:
    """An error of a Colang parser, without the place and the text that it repeats."""
    text = str(error).split("\n", 1)[0]
    text = re.sub(
        r"^Error parsing line \d+ in [^:]*: |,? (?:on|at) line \d+(?:,? col(?:umn)? \d+)?", "", text
    )
    return _one_line(text.replace("No terminal matches", "unexpected text:"))


def _one_line(error: object) -> str:
    """A message of the library in one line; pydantic's begins with the name of its class."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1 and " validation error" in lines[0]:
        lines = [line.split(" [type=")[0] for line in lines[1:] if "errors.pydantic" not in line]
    return " ".join(lines)[:400]


def _check_library_rails(folder: Path, config: Any) -> None:
    """Refuse rails of the library whose model or packages are not there.

    Raises:
        ConfigError: a rail needs a model that the configuration does not have, or would download
            one. MissingRuntime: it needs a package.
    """
    from nemoguardrails.manifests import (
        RailDirection,
        default_rail_catalog,
        parse_configured_surface,
    )

    catalog = default_rail_catalog()
    models = {model.type for model in config.models} | {"main"}
    directions = {"input": RailDirection.INPUT, "output": RailDirection.OUTPUT}
    for kind, direction in directions.items():
        for flow in getattr(config.rails, kind).flows:
            name, given = parse_configured_surface(flow)
            surface = catalog.surfaces().get((direction, name))
            if surface is None:
                continue
            for binding in surface.bindings:
                value = binding.value if binding.kind == "literal" else given.get(binding.key or "")
                if binding.resource == "model" and value and value not in models:
                    raise ConfigError(
                        f"{folder}: the rail `{flow}` asks a model of type {value}: add it to "
                        "`models`, with its engine and its address"
                    )
            owner = next(m for m in catalog.manifests.values() if surface in m.surfaces)
            missing = [
                package
                for package in owner.requirements.optional_dependencies
                if not installed_version(package)
            ]
            if missing and not _is_remote(config, owner.name):
                raise MissingRuntime(
                    f"{folder}: the rail `{flow}` needs {' and '.join(missing)}: install it beside "
                    "nemoguardrails, or take the rail out"
                )


def _set_embeddings(folder: Path, config: Any) -> None:
    """Ours, where the configuration names none: the library's default would be downloaded.

    Raises:
        ConfigError: it names one that is downloaded.
    """
    from nemoguardrails.embeddings.providers import (
        EmbeddingProviderRegistry,
        register_embedding_provider,
    )

    if embeddings.ENGINE not in EmbeddingProviderRegistry().list():
        register_embedding_provider(embeddings.LexicalEmbeddings)  # type: ignore[arg-type]
    named = next((model.engine for model in config.models if model.type == "embeddings"), None)
    for section in (config.core, config.knowledge_base):
        given = section.embedding_search_provider.parameters
        engine = given.get("embedding_engine") or named
        if str(engine).lower() == "fastembed":
            raise ConfigError(
                f"{folder}: the embedding engine FastEmbed downloads its model: take `engine: "
                f"{embeddings.ENGINE}`, or `engine: openai` with the address of a server"
            )
        if engine is None:
            given |= {"embedding_engine": embeddings.ENGINE, "embedding_model": embeddings.ENGINE}


def _is_remote(config: Any, rail: str) -> bool:
    """Whether a rail with a local and a remote way is configured for the remote one."""
    section = getattr(config.rails.config, rail, None)
    names = ("server_endpoint", "nim_base_url")
    return any(getattr(section, name, None) for name in names)


def _check_actions(folder: Path, config: Any, rails: Any) -> None:
    """Refuse a flow whose action exists nowhere: the runtime would notice in the first request.

    Raises:
        ConfigError: names the action, the flow, and the place.
    """
    for flow in config.flows:
        if flow.get("is_system_flow") and not _is_own(flow, config):
            continue
        for element in flow["elements"]:
            name = element.get("action_name")
            if element["_type"] != "run_action" or name in OWN_ACTIONS:
                continue
            if not rails.runtime.action_dispatcher.has_registered(name):
                place = element.get("_source_mapping") or {}
                raise ConfigError(
                    f"{_place(folder, place)}: the flow `{flow['id']}` runs the action {name}, "
                    "which neither the library nor actions.py has"
                )


def _is_own(flow: Mapping[str, Any], config: Any) -> bool:
    """Whether a flow that counts as a system's, because it is a rail, is the configuration's."""
    return any(flow["id"] in getattr(config.rails, kind).flows for kind in _KINDS)


def _place(folder: Path, mapping: Mapping[str, Any]) -> str:
    file = next(folder.rglob(mapping.get("filename") or "config.yml"), folder)
    line = mapping.get("line_number")
    return f"{file}:{line}" if line else str(file)

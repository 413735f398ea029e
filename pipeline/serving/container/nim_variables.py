"""Translates NVIDIA NIM's environment variables into arguments of `python -m pipeline.serving`.

Users of NIM can configure our container in the way that they know (`docker run -e NIM_…`). A
variable without an effect here is refused, not ignored, because its user relies on its effect.
https://docs.nvidia.com/nim/large-language-models/1.12.0/configuration.html
https://docs.nvidia.com/nim/large-language-models/2.0.12/reference/environment-variables.html
"""

import difflib
import logging
import os
import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline.core.errors import ConfigError
from pipeline.engines.benchmark_history import name_of
from pipeline.engines.description import Description
from pipeline.engines.registry import ENGINES
from pipeline.serving.container.launch import MODEL, Launch, is_built

CACHE = "/opt/nim/.cache"

# Set by Kubernetes for a Service whose name begins with nim; not variables of NIM.
_SERVICE_LINK = re.compile(r"NIM_(\w+_)?(SERVICE_(HOST|PORT\w*)|PORT_\d+_(TCP|UDP)\w*)")
# The first part of a profile's name, in NIM and in stage=profiles, and our name of the runtime.
_LOCAL = {n: record for n, record in ENGINES.items() if not (record.elsewhere or record.hosts)}
_RUNTIMES = {r.nim_name: n for n, r in _LOCAL.items() if r.nim_name} | {n: n for n in _LOCAL}
_RUNTIME_NAMES = ", ".join(_RUNTIMES)
# The libraries' cache folders, below the cache's folder.
_CACHES = {
    "XDG_CACHE_HOME": "",
    "HF_HOME": "huggingface",
    "VLLM_CACHE_ROOT": "vllm",
    "TRITON_CACHE_DIR": "triton",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "CUDA_CACHE_PATH": "cuda",
}
_DOWNLOAD = "nothing is downloaded at the start: mount the model's folder"
_LORA_SLOTS = "the number of adapters is limited only by memory: leave it out"
# NIM's variables that have no equivalent here, and what to do instead.
REFUSED: Mapping[str, str] = {
    "NIM_REPOSITORY_OVERRIDE": _DOWNLOAD,
    "NIM_MANIFEST_PATH": _DOWNLOAD,
    "NIM_MANIFEST_ALLOW_UNSAFE": _DOWNLOAD,
    "NIM_MAX_GPU_LORAS": _LORA_SLOTS,
    "NIM_MAX_CPU_LORAS": _LORA_SLOTS,
    "NIM_HEALTH_PORT": "health checks use the server's own port, NIM_SERVER_PORT",
    "NIM_NUM_COMPUTE_NODES": "one container uses the GPUs of one host: leave it out",
    "NIM_OTEL_METRICS_EXPORTER": "scrape the metrics with Prometheus, at /metrics",
    "NIM_GUIDED_DECODING_BACKEND": "the only backend is llguidance: leave it out",
    "NIM_CHAT_TEMPLATE": "the model's own template is used, as in training: leave it out",
}


# Files that each mode of TLS has.
_TLS_FILES: Mapping[str, tuple[str, ...]] = {
    "disabled": (),
    "tls": ("NIM_SSL_KEY_PATH", "NIM_SSL_CERTS_PATH"),
    "mtls": ("NIM_SSL_KEY_PATH", "NIM_SSL_CERTS_PATH", "NIM_SSL_CA_CERTS_PATH"),
}


def translate(environment: Mapping[str, str]) -> Launch:
    """The launch that the environment's NIM_… variables describe. Empty ones count as unset.

    Raises:
        ConfigError: names every variable that is unknown, not supported, or has a wrong value.
        ArtifactError: the engine to serve has no valid description.
    """
    given = {
        name: value.strip()
        for name, value in sorted(environment.items())
        if name.startswith("NIM_") and value.strip() and not _is_service_link(name, value)
    }
    launch, problems = Launch(), []
    for name, value in given.items():
        if name in REFUSED:
            problems.append(f"{name} is not supported: {REFUSED[name]}")
        elif name not in VARIABLES:
            near = difflib.get_close_matches(name, VARIABLES, n=1)
            hint = f"did you mean {near[0]}?" if near else "docs/containers.md lists all variables"
            problems.append(f"{name} is not a known variable: {hint}")
        else:
            try:
                VARIABLES[name](launch, value)
            except ValueError as error:
                problems.append(f"{name}={value}: {error}")
    problems += _conflicts(launch, given)
    if problems:
        raise ConfigError("; ".join(problems))
    if "NIM_CACHE_PATH" not in given:
        _caches(launch, CACHE if os.access(CACHE, os.W_OK) else "/tmp")
    return launch


def _conflicts(launch: Launch, given: Mapping[str, str]) -> list[str]:
    if "NIM_PEFT_REFRESH_INTERVAL" in given and "NIM_PEFT_SOURCE" not in given:
        return ["NIM_PEFT_REFRESH_INTERVAL has no effect: set NIM_PEFT_SOURCE, the folder to read"]
    mode = given.get("NIM_SSL_MODE", "disabled")
    files = {name for name in _TLS_FILES["mtls"] if name in given}
    if files != set(expected := _TLS_FILES.get(mode.lower(), ())):
        wants = f"needs {' and '.join(expected)}" if expected else "has no certificate files"
        return [f"NIM_SSL_MODE={mode} {wants}: set NIM_SSL_MODE and the files together"]
    folders = {name: given[name] for name in _MODEL_VARIABLES if name in given}
    if len(set(folders.values())) > 1:
        return [f"{' and '.join(folders)} name different folders: set only one of them"]
    folder = Path(launch.model or MODEL)
    if not is_built(folder):
        accepts = launch.runtime and ENGINES[launch.runtime].from_vllm_arguments
        unused = [] if accepts else [*_GPU_VARIABLES]
        text = "needs vLLM or TensorRT-LLM: choose one with NIM_MODEL_PROFILE"
        return [f"{name} {text}" for name in given if name in unused]
    fixed = [n for n in given if n in _ENGINE_VARIABLES]
    fixed += [f"NIM_PASSTHROUGH_ARGS={s}" for s in launch.settings if s.startswith("engine.")]
    problems = [
        f"{n} cannot be changed: it is fixed in the built engine {folder}; leave it out"
        for n in fixed
    ]
    built = Description.read(folder)
    name = name_of(built)
    if launch.engine.get("profile", launch.runtime) not in (None, built.runtime, name):
        problems.append(
            f"NIM_MODEL_PROFILE={given['NIM_MODEL_PROFILE']}: {folder} was built for {name}: "
            "choose that profile, or mount the model's HF folder"
        )
    return problems


def _is_service_link(name: str, value: str) -> bool:
    return bool(_SERVICE_LINK.fullmatch(name)) or (
        name.endswith("_PORT") and value.startswith(("tcp://", "udp://"))
    )


def _model(launch: Launch, value: str) -> None:
    if "://" in value:
        raise ValueError(_DOWNLOAD + ", and give its path here")
    if not Path(value).is_dir():
        raise ValueError("no such folder in the container: mount it (docker run -v FOLDER:…)")
    launch.model = value


def _served_name(launch: Launch, value: str) -> None:
    if "," in value:
        raise ValueError("the model has one name: give one")
    launch.name = value


def _custom_name(launch: Launch, value: str) -> None:
    launch.name = value  # NIM_SERVED_MODEL_NAME is read later and takes precedence


def _port(launch: Launch, value: str) -> None:
    launch.port = _number(value, 1024, 65535)


def _profile(launch: Launch, value: str) -> None:
    runtime, dash, rest = value.partition("-")
    if runtime not in _RUNTIMES:
        raise ValueError(f"choose a profile that list-model-profiles shows, or {_RUNTIME_NAMES}")
    launch.runtime = _RUNTIMES[runtime]
    if dash:
        launch.engine["profile"] = f"{launch.runtime}-{rest}"


def _length(launch: Launch, value: str) -> None:
    length = _number(value, 2, 2**31)
    # A prompt must leave room for one generated token.
    launch.engine |= {"max_seq_len": length, "max_input_len": length - 1}


def _lora_rank(launch: Launch, value: str) -> None:
    launch.engine["lora_rank"] = _number(value)


def _adapters(launch: Launch, value: str) -> None:
    if not Path(value).is_dir():
        raise ValueError("no such folder in the container: mount it (docker run -v FOLDER:…)")
    launch.settings.append(f"serve.adapters={value}")


def _refresh(launch: Launch, value: str) -> None:
    launch.settings.append(f"serve.adapters_seconds={_number(value, 1, 86_400)}")


def _log_level(launch: Launch, value: str) -> None:
    # The server logs nothing below info.
    names = dict.fromkeys(("DEFAULT", "TRACE", "DEBUG", "INFO"), logging.INFO)
    names |= {"WARNING": logging.WARNING, "ERROR": logging.ERROR, "CRITICAL": logging.CRITICAL}
    if value.upper() not in names:
        raise ValueError(f"choose from {', '.join(names)}")
    launch.log_level = names[value.upper()]


def _log_requests(launch: Launch, value: str) -> None:
    launch.settings.append(f"serve.log_content={str(not _flag(value)).lower()}")


def _caches(launch: Launch, value: str) -> None:
    if not os.access(value, os.W_OK | os.X_OK):
        raise ValueError(
            f"user {os.getuid()} cannot write there: mount a volume that this user owns, or start "
            "the container with --user"
        )
    launch.environment |= {name: str(Path(value, sub)) for name, sub in _CACHES.items()}


def _passthrough(launch: Launch, value: str) -> None:
    for setting in shlex.split(value):
        if not re.match(r"(serve|engine)(\.\w+)+=", setting):
            raise ValueError(f"{setting} must be serve.key=value or engine.key=value")
        if setting.startswith(("serve.port=", "serve.host=")):
            raise ValueError("set the port with NIM_SERVER_PORT, and publish it with docker's -p")
        launch.settings.append(setting)


def _otel(launch: Launch, value: str) -> None:
    launch.environment["OTEL_SDK_DISABLED"] = str(not _flag(value)).lower()


def _always(expected: bool, reason: str) -> Callable[[Launch, str], None]:
    """A flag that can have only one value here; `reason` says why."""

    def check(launch: Launch, value: str) -> None:
        if _flag(value) != expected:
            raise ValueError(reason)

    return check


def _one_of(allowed: tuple[str, ...], reason: str) -> Callable[[Launch, str], None]:
    def check(launch: Launch, value: str) -> None:
        if value.lower() not in allowed:
            raise ValueError(reason)

    return check


def _file(name: str) -> Callable[[Launch, str], None]:
    """Sets a setting of serve to a file."""

    def put(launch: Launch, value: str) -> None:
        if not Path(value).is_file():
            raise ValueError("no such file in the container: mount it (docker run -v FILE:…)")
        launch.settings.append(f"serve.{name}={value}")

    return put


def _argument(name: str, read: Callable[[str], Any]) -> Callable[[Launch, str], None]:
    """Sets an argument of the engine (engine.arguments)."""

    def put(launch: Launch, value: str) -> None:
        launch.arguments[name] = read(value)

    return put


def _variable(name: str) -> Callable[[Launch, str], None]:
    """Sets an OpenTelemetry variable."""

    def put(launch: Launch, value: str) -> None:
        launch.environment[name] = value

    return put


def _flag(value: str) -> bool:
    if value.lower() not in ("0", "1", "true", "false"):
        raise ValueError("give 1 or 0")
    return value.lower() in ("1", "true")


def _number(value: str, least: int = 1, most: int = 2**31) -> int:
    if not value.isdecimal() or not least <= int(value) <= most:
        raise ValueError(f"give a whole number from {least} to {most}")
    return int(value)


def _share(value: str) -> float:
    try:
        share = float(value)
    except ValueError:
        share = 0
    if not 0 < share <= 1:
        raise ValueError("give a number above 0 and at most 1")
    return share


_MODEL_VARIABLES = ("NIM_MODEL_PATH", "NIM_MODEL_NAME", "NIM_FT_MODEL")
_GPU_VARIABLES: Mapping[str, Callable[[Launch, str], None]] = {
    "NIM_TENSOR_PARALLEL_SIZE": _argument("tensor_parallel_size", _number),
    "NIM_PIPELINE_PARALLEL_SIZE": _argument("pipeline_parallel_size", _number),
    "NIM_KVCACHE_PERCENT": _argument("gpu_memory_utilization", _share),
    "NIM_ENABLE_KV_CACHE_REUSE": _argument("enable_prefix_caching", _flag),
    "NIM_DISABLE_CUDA_GRAPH": _argument("enforce_eager", _flag),
}
_ENGINE_VARIABLES: Mapping[str, Callable[[Launch, str], None]] = {
    "NIM_MAX_MODEL_LEN": _length,
    "NIM_MAX_LORA_RANK": _lora_rank,
    **_GPU_VARIABLES,
}
_TLS_VARIABLES: Mapping[str, Callable[[Launch, str], None]] = {
    "NIM_SSL_MODE": _one_of(tuple(_TLS_FILES), "choose from DISABLED, TLS, MTLS"),
    "NIM_SSL_KEY_PATH": _file("tls_key"),
    "NIM_SSL_CERTS_PATH": _file("tls_cert"),
    "NIM_SSL_CA_CERTS_PATH": _file("tls_client_ca"),
}
VARIABLES: Mapping[str, Callable[[Launch, str], None]] = {
    **dict.fromkeys(_MODEL_VARIABLES, _model),
    "NIM_CUSTOM_MODEL_NAME": _custom_name,
    "NIM_SERVED_MODEL_NAME": _served_name,
    "NIM_MODEL_PROFILE": _profile,
    **_ENGINE_VARIABLES,
    "NIM_PEFT_SOURCE": _adapters,
    "NIM_PEFT_REFRESH_INTERVAL": _refresh,
    "NIM_SERVER_PORT": _port,
    "NIM_HTTP_API_PORT": _port,
    "NIM_CACHE_PATH": _caches,
    "NIM_LOG_LEVEL": _log_level,
    "NIM_JSONL_LOGGING": _always(True, "the log is always in JSON lines: leave it out"),
    "NIM_DISABLE_LOG_REQUESTS": _log_requests,
    "NIM_ENABLE_OTEL": _otel,
    "NIM_OTEL_EXPORTER_OTLP_ENDPOINT": _variable("OTEL_EXPORTER_OTLP_ENDPOINT"),
    "NIM_OTEL_SERVICE_NAME": _variable("OTEL_SERVICE_NAME"),
    "NIM_OTEL_TRACES_EXPORTER": _one_of(("otlp",), "traces are exported over OTLP only"),
    **_TLS_VARIABLES,
    "NIM_TRUST_REMOTE_CODE": _always(False, "code in a checkpoint is never run"),
    "NIM_FORCE_TRUST_REMOTE_CODE": _always(False, "code in a checkpoint is never run"),
    "NIM_DISABLE_MODEL_DOWNLOAD": _always(True, _DOWNLOAD),
    "NIM_PASSTHROUGH_ARGS": _passthrough,
}

"""NVIDIA NIM's environment variables as arguments of `python -m pipeline.serving`.

So a container of ours is configured as users of NIM know it (`docker run -e NIM_…`). A variable
that has no meaning here is refused and not passed over: who sets it counts on what it does.
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

# As Kubernetes tells a container of a Service whose name begins with nim; none of NIM's.
_SERVICE_LINK = re.compile(r"NIM_(\w+_)?(SERVICE_(HOST|PORT\w*)|PORT_\d+_(TCP|UDP)\w*)")
# The first part of a profile's name, in NIM and in stage=profiles, and ours.
_HERE = {name: record for name, record in ENGINES.items() if not record.elsewhere}
_RUNTIMES = {r.nim_name: n for n, r in _HERE.items() if r.nim_name} | {n: n for n in _HERE}
_WORDS = ", ".join(_RUNTIMES)
# Where libraries keep what they compile or load, below the cache's folder.
_CACHES = {
    "XDG_CACHE_HOME": "",
    "HF_HOME": "huggingface",
    "VLLM_CACHE_ROOT": "vllm",
    "TRITON_CACHE_DIR": "triton",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "CUDA_CACHE_PATH": "cuda",
}
_TLS = "the server speaks plain HTTP: end TLS in the proxy before it"
_DOWNLOAD = "nothing is downloaded at start: mount the model's folder"
_LORA = "adapters join a running server by POST /v1/load_lora_adapter (docs/api.md)"
_LORA_SLOTS = "how many adapters fit follows from their size: leave it out"
# NIM's variables without a counterpart, and what to do instead.
REFUSED: Mapping[str, str] = {
    "NIM_REPOSITORY_OVERRIDE": _DOWNLOAD,
    "NIM_MANIFEST_PATH": _DOWNLOAD,
    "NIM_MANIFEST_ALLOW_UNSAFE": _DOWNLOAD,
    "NIM_SSL_KEY_PATH": _TLS,
    "NIM_SSL_CERTS_PATH": _TLS,
    "NIM_SSL_CA_CERTS_PATH": _TLS,
    "NIM_PEFT_REFRESH_INTERVAL": _LORA,
    "NIM_MAX_GPU_LORAS": _LORA_SLOTS,
    "NIM_MAX_CPU_LORAS": _LORA_SLOTS,
    "NIM_HEALTH_PORT": "health is asked on the server's own port, NIM_SERVER_PORT",
    "NIM_NUM_COMPUTE_NODES": "one container serves on the GPUs of one host",
    "NIM_OTEL_METRICS_EXPORTER": "metrics are for Prometheus to scrape, at /metrics",
    "NIM_GUIDED_DECODING_BACKEND": "guided decoding has one backend, llguidance",
    "NIM_CHAT_TEMPLATE": "requests are rendered by the model's own template, as in training",
}


def translate(environment: Mapping[str, str]) -> Launch:
    """What the environment's NIM_… variables come to; an empty one is as good as none.

    Raises:
        ConfigError: names every variable that is unknown, has no meaning here or a wrong value.
        ArtifactError: the engine to be served does not say what it is.
    """
    given = {
        name: value.strip()
        for name, value in sorted(environment.items())
        if name.startswith("NIM_") and value.strip() and not _is_service_link(name, value)
    }
    launch, problems = Launch(), []
    for name, value in given.items():
        if name in REFUSED:
            problems.append(f"{name} has no meaning here: {REFUSED[name]}")
        elif name not in VARIABLES:
            near = difflib.get_close_matches(name, VARIABLES, n=1)
            hint = f"did you mean {near[0]}?" if near else "docs/containers.md lists those it knows"
            problems.append(f"{name} is no variable that this server knows: {hint}")
        else:
            try:
                VARIABLES[name](launch, value)
            except ValueError as error:
                problems.append(f"{name}={value}: {error}")
    problems += _contradictions(launch, given)
    if problems:
        raise ConfigError("; ".join(problems))
    if "NIM_CACHE_PATH" not in given:
        _caches(launch, CACHE if os.access(CACHE, os.W_OK) else "/tmp")
    return launch


def _contradictions(launch: Launch, given: Mapping[str, str]) -> list[str]:
    folders = {name: given[name] for name in _OF_THE_MODEL if name in given}
    if len(set(folders.values())) > 1:
        return [f"{' and '.join(folders)} name different folders: give one of them"]
    folder = Path(launch.model or MODEL)
    if not is_built(folder):
        takes = launch.runtime and ENGINES[launch.runtime].from_vllm_arguments
        useless = [] if takes else [*_OF_THE_GPU]
        text = "is of vLLM and TensorRT-LLM: choose one with NIM_MODEL_PROFILE"
        return [f"{name} {text}" for name in given if name in useless]
    fixed = [n for n in given if n in _OF_THE_ENGINE]
    fixed += [f"NIM_PASSTHROUGH_ARGS={s}" for s in launch.settings if s.startswith("engine.")]
    problems = [f"{n} cannot be changed: {folder} is an engine built for its value" for n in fixed]
    built = Description.read(folder)
    name = name_of(built)
    if launch.engine.get("profile", launch.runtime) not in (None, built.runtime, name):
        problems.append(
            f"NIM_MODEL_PROFILE={given['NIM_MODEL_PROFILE']}: {folder} is an engine of {name}: "
            "serve it with that image, or mount the model's HF folder"
        )
    return problems


def _is_service_link(name: str, value: str) -> bool:
    return bool(_SERVICE_LINK.fullmatch(name)) or (
        name.endswith("_PORT") and value.startswith(("tcp://", "udp://"))
    )


def _model(launch: Launch, value: str) -> None:
    if "://" in value:
        raise ValueError(_DOWNLOAD + " and name it here")
    if not Path(value).is_dir():
        raise ValueError("no such folder in the container: mount it (docker run -v FOLDER:…)")
    launch.model = value


def _served_name(launch: Launch, value: str) -> None:
    if "," in value:
        raise ValueError("a model is served by one name")
    launch.name = value


def _custom_name(launch: Launch, value: str) -> None:
    launch.name = value  # NIM_SERVED_MODEL_NAME, if it is given too, comes later and wins


def _port(launch: Launch, value: str) -> None:
    launch.port = _number(value, 1024, 65535)


def _profile(launch: Launch, value: str) -> None:
    runtime, dash, rest = value.partition("-")
    if runtime not in _RUNTIMES:
        raise ValueError(f"choose a profile that list-model-profiles shows, or {_WORDS}")
    launch.runtime = _RUNTIMES[runtime]
    if dash:
        launch.engine["profile"] = f"{launch.runtime}-{rest}"


def _length(launch: Launch, value: str) -> None:
    length = _number(value, 2, 2**31)
    # A prompt may take all of it but the answer's first token.
    launch.engine |= {"max_seq_len": length, "max_input_len": length - 1}


def _lora_rank(launch: Launch, value: str) -> None:
    launch.engine["lora_rank"] = _number(value)


def _adapters(launch: Launch, value: str) -> None:
    if not Path(value).is_dir():
        raise ValueError("no such folder in the container: mount it (docker run -v FOLDER:…)")
    launch.settings.append(f"serve.adapters={value}")


def _log_level(launch: Launch, value: str) -> None:
    # There are no lines below info.
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
            f"user {os.getuid()} cannot write there: mount a volume that it owns, or start the "
            "container with --user"
        )
    launch.environment |= {name: str(Path(value, sub)) for name, sub in _CACHES.items()}


def _passthrough(launch: Launch, value: str) -> None:
    for setting in shlex.split(value):
        if not re.match(r"(serve|engine)(\.\w+)+=", setting):
            raise ValueError(f"{setting} is neither serve.key=value nor engine.key=value")
        if setting.startswith(("serve.port=", "serve.host=")):
            raise ValueError("the port is NIM_SERVER_PORT, and where it shows is docker's -p")
        launch.settings.append(setting)


def _otel(launch: Launch, value: str) -> None:
    launch.environment["OTEL_SDK_DISABLED"] = str(not _flag(value)).lower()


def _always(wanted: bool, otherwise: str) -> Callable[[Launch, str], None]:
    """Of a flag that can have one value here."""

    def check(launch: Launch, value: str) -> None:
        if _flag(value) != wanted:
            raise ValueError(otherwise)

    return check


def _one_of(allowed: tuple[str, ...], otherwise: str) -> Callable[[Launch, str], None]:
    def check(launch: Launch, value: str) -> None:
        if value.lower() not in allowed:
            raise ValueError(otherwise)

    return check


def _argument(name: str, read: Callable[[str], Any]) -> Callable[[Launch, str], None]:
    """Of an argument of the engine's own."""

    def put(launch: Launch, value: str) -> None:
        launch.arguments[name] = read(value)

    return put


def _variable(name: str) -> Callable[[Launch, str], None]:
    """Of an OpenTelemetry variable."""

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
        raise ValueError("give a share above 0, at most 1")
    return share


_OF_THE_MODEL = ("NIM_MODEL_PATH", "NIM_MODEL_NAME", "NIM_FT_MODEL")
_OF_THE_GPU: Mapping[str, Callable[[Launch, str], None]] = {
    "NIM_TENSOR_PARALLEL_SIZE": _argument("tensor_parallel_size", _number),
    "NIM_PIPELINE_PARALLEL_SIZE": _argument("pipeline_parallel_size", _number),
    "NIM_KVCACHE_PERCENT": _argument("gpu_memory_utilization", _share),
    "NIM_ENABLE_KV_CACHE_REUSE": _argument("enable_prefix_caching", _flag),
    "NIM_DISABLE_CUDA_GRAPH": _argument("enforce_eager", _flag),
}
_OF_THE_ENGINE: Mapping[str, Callable[[Launch, str], None]] = {
    "NIM_MAX_MODEL_LEN": _length,
    "NIM_MAX_LORA_RANK": _lora_rank,
    **_OF_THE_GPU,
}
VARIABLES: Mapping[str, Callable[[Launch, str], None]] = {
    **dict.fromkeys(_OF_THE_MODEL, _model),
    "NIM_CUSTOM_MODEL_NAME": _custom_name,
    "NIM_SERVED_MODEL_NAME": _served_name,
    "NIM_MODEL_PROFILE": _profile,
    **_OF_THE_ENGINE,
    "NIM_PEFT_SOURCE": _adapters,
    "NIM_SERVER_PORT": _port,
    "NIM_HTTP_API_PORT": _port,
    "NIM_CACHE_PATH": _caches,
    "NIM_LOG_LEVEL": _log_level,
    "NIM_JSONL_LOGGING": _always(True, "the log is JSON lines and nothing else"),
    "NIM_DISABLE_LOG_REQUESTS": _log_requests,
    "NIM_ENABLE_OTEL": _otel,
    "NIM_OTEL_EXPORTER_OTLP_ENDPOINT": _variable("OTEL_EXPORTER_OTLP_ENDPOINT"),
    "NIM_OTEL_SERVICE_NAME": _variable("OTEL_SERVICE_NAME"),
    "NIM_OTEL_TRACES_EXPORTER": _one_of(("otlp",), "traces go over OTLP"),
    "NIM_SSL_MODE": _one_of(("disabled",), _TLS),
    "NIM_TRUST_REMOTE_CODE": _always(False, "code that a checkpoint brings is never run"),
    "NIM_FORCE_TRUST_REMOTE_CODE": _always(False, "code that a checkpoint brings is never run"),
    "NIM_DISABLE_MODEL_DOWNLOAD": _always(True, _DOWNLOAD),
    "NIM_PASSTHROUGH_ARGS": _passthrough,
}

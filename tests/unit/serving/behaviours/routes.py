"""Routes beside those that generate text."""

import json
from typing import Any

from tests.unit.serving.behaviours.case import HELLO, TEXT, Case, Reply, ok, refused

R = "400"


def get(name: str, path: str, check: Any = ok, **more: Any) -> Case:
    return Case(name, None, check, path=path, method="GET", **more)


def post(name: str, path: str, body: Any, check: Any = ok, *more: str, **named: Any) -> Case:
    return Case(name, body, check, *more, path=path, **named)


def has(*names: str) -> Any:
    return lambda reply: ok(reply) and set(names) <= set(reply.json)


def _metric(name: str) -> Any:
    return lambda reply: ok(reply) and f"\n{name}" in "\n" + reply.response.text


def _ready(reply: Reply) -> bool:
    """The server has not been started in this test, so it is not ready."""
    return reply.status == 503


TOOL = {"type": "function", "function": {"name": "pay", "parameters": {"type": "object"}}}
CASES = [
    post("`/tokenize` of a text", "/tokenize", {"prompt": "fee"},
         has("count", "max_model_len", "tokens", "token_strs"), nim="yes"),
    post("`/tokenize` counts its tokens", "/tokenize", {"prompt": "fee fee"},
         lambda r: r.json["count"] == len(r.json["tokens"]) > 1),
    post("`/tokenize` with `add_special_tokens: false`", "/tokenize",
         {"prompt": "fee", "add_special_tokens": False}, lambda r: r.json["count"] >= 1),
    post("`/tokenize` with `return_token_strs`", "/tokenize",
         {"prompt": "fee", "return_token_strs": True},
         lambda r: len(r.json["token_strs"]) == r.json["count"]),
    post("`/tokenize` of a conversation", "/tokenize", {"messages": HELLO},
         lambda r: r.json["count"] > 5),
    post("`/tokenize` of a conversation with tools", "/tokenize",
         {"messages": HELLO, "tools": [TOOL]}, lambda r: r.json["count"] > 20, app="hermes"),
    post("`/tokenize` with `add_generation_prompt: false`", "/tokenize",
         {"messages": HELLO, "add_generation_prompt": False}, lambda r: r.json["count"] > 3),
    post("`/tokenize` with `continue_final_message`", "/tokenize",
         {"messages": [*HELLO, {"role": "assistant", "content": "It"}],
          "continue_final_message": True, "add_generation_prompt": False}),
    post("`/tokenize` with both `add_generation_prompt` and `continue_final_message`", "/tokenize",
         {"messages": HELLO, "continue_final_message": True, "add_generation_prompt": True},
         refused("continue_final_message"), R, R),
    post("`/tokenize` without `model`", "/tokenize", {"prompt": "fee", "model": None}),
    post("`/tokenize` of an unknown model", "/tokenize", {"prompt": "fee", "model": "gpt"},
         refused("model", status=404), "404", "404"),
    post("`/tokenize` of nothing", "/tokenize", {}, refused("prompt"), R, R),
    post("`/detokenize`", "/detokenize", {"tokens": [5, 6]}, has("prompt"), nim="yes"),
    post("`/detokenize` shows control tokens", "/detokenize", {"tokens": [0, 1, 2, 3, 4]},
         lambda r: "<|" in r.json["prompt"]),
    post("`/detokenize` of ids beyond the vocabulary", "/detokenize", {"tokens": [99999999]},
         refused("tokens"), R, R),
    post("`/detokenize` of texts", "/detokenize", {"tokens": ["a"]}, refused("tokens"), R, R),
    post("`/detokenize` of nothing", "/detokenize", {"tokens": []},
         lambda r: r.json == {"prompt": ""}),
    Case("`/v1/chat/completions/render`", {}, has("token_ids"), nim="yes",
         path="/v1/chat/completions/render"),
    Case("`render` with `return_prompt_text`", {"return_prompt_text": True},
         lambda r: "Hello" in r.json["prompt_text"], path="/v1/chat/completions/render"),
    Case("`return_prompt_text` of a chat", {"return_prompt_text": True},
         lambda r: "Hello" in r.json["prompt_text"]),
    Case("`/v1/completions/render`", {"prompt": ["a", "b"]}, lambda r: len(r.json) == 2,
         path=f"{TEXT}/render"),
    get("`/version`", "/version", has("version")),
    get("NIM's `/v1/version`", "/v1/version", has("release", "api"), vllm="404", nim="yes"),
    get("NIM's `/v1/metadata`", "/v1/metadata",
        has("version", "modelInfo", "assetInfo", "licenseInfo", "repository_override"),
        vllm="404", nim="yes"),
    get("`/v1/metadata` names the profile", "/v1/metadata", has("selectedModelProfileId"),
        vllm="404", nim="yes"),
    get("NIM's `/v1/license`", "/v1/license", has("name", "path", "sha", "size", "type", "content"),
        vllm="404", nim="yes"),
    get("NIM's `/v1/manifest`", "/v1/manifest", has("manifest_file", "repository"),
        vllm="404", nim="yes"),
    get("`/health` before the model is ready", "/health", _ready, ours="503", vllm="no answer",
        why="the port is open while the model loads"),
    get("`/ping`", "/ping", _ready, ours="503", vllm="no answer",
        why="the port is open while the model loads"),
    post("`POST /ping`", "/ping", {}, _ready, ours="503", vllm="no answer",
         why="the port is open while the model loads"),
    get("NIM's `/v1/health/live`", "/v1/health/live", vllm="404", nim="yes"),
    get("NIM's `/v1/health/ready` before the model is", "/v1/health/ready", _ready, ours="503",
        vllm="404", nim="503"),
    get("`/load`", "/load", lambda r: r.json == {"server_load": 0}),
    get("`/metrics`", "/metrics", _metric("# HELP")),
    get("NIM's `/v1/metrics`", "/v1/metrics", _metric("# HELP"), vllm="404", nim="yes"),
    *(get(f"the metric `{name}`", "/metrics", _metric(name), nim="yes", vllm="renamed")
      for name in ("num_requests_running", "num_requests_waiting", "num_request_max",
                   "gpu_cache_usage_perc", "prompt_tokens_total", "generation_tokens_total",
                   "time_to_first_token_seconds_bucket", "time_per_output_token_seconds_bucket",
                   "e2e_request_latency_seconds_bucket", "request_success_total",
                   "request_prompt_tokens_bucket", "request_generation_tokens_bucket")),
    *(get(f"the metric `{name}`", "/metrics", _metric(name), nim="since 2.0")
      for name in ("vllm:num_requests_running", "vllm:num_requests_waiting",
                   "vllm:kv_cache_usage_perc", "vllm:prompt_tokens_total",
                   "vllm:generation_tokens_total", "vllm:time_to_first_token_seconds_bucket",
                   "vllm:e2e_request_latency_seconds_bucket",
                   "vllm:request_queue_time_seconds_bucket",
                   "vllm:request_prefill_time_seconds_bucket",
                   "vllm:request_decode_time_seconds_bucket",
                   "vllm:request_generation_tokens_bucket")),
    get("`/v1/models`", "/v1/models", lambda r: r.json["data"][0]["id"] == "bank", nim="yes"),
    get("`/v1/models` has `max_model_len`", "/v1/models",
        lambda r: r.json["data"][0]["max_model_len"] == 160),
    get("one model", "/v1/models/bank", lambda r: r.json["id"] == "bank", vllm="404",
        nim="yes"),
    get("an unknown path", "/v1/nothing", lambda r: r.status == 404, ours="404", vllm="404",
        nim="404"),
    get("`GET` of a path that takes `POST`", TEXT, lambda r: r.status == 405, ours="405",
        vllm="405", nim="405"),
    get("`/openapi.json`", "/openapi.json", lambda r: json.loads(r.response.text)["paths"]),
]  # fmt: skip

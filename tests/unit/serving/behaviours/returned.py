"""What a response holds: log-probabilities, token ids, usage, streams."""

from typing import Any

from tests.unit.serving.behaviours.case import ANSWER, TEXT, Case, Reply, ok, refused, says

USAGE = {"stream": True, "stream_options": {"include_usage": True}}
ALWAYS = {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}


def _content(reply: Reply) -> Any:
    return reply.choice["logprobs"]["content"]


def _streamed_ids(reply: Reply) -> list[int]:
    choices = [e["choices"][0] for e in reply.events if e["choices"]]
    return [i for choice in choices for i in choice.get("token_ids", [])]


CASES = [
    Case("`logprobs`", {"logprobs": True}, lambda r: _content(r)[0]["logprob"] <= 0, nim="yes"),
    Case("`top_logprobs`", {"logprobs": True, "top_logprobs": 3},
         lambda r: len(_content(r)[0]["top_logprobs"]) == 3, nim="yes"),
    Case("`top_logprobs` without `logprobs`", {"top_logprobs": 3}, refused("top_logprobs"),
         "400", "400", "400"),
    Case("`top_logprobs` above 20", {"logprobs": True, "top_logprobs": 21},
         refused("top_logprobs"), "400", "400", "400"),
    Case("`logprobs` of completions", {"prompt": "fee", "logprobs": 2},
         lambda r: len(r.choice["logprobs"]["top_logprobs"][0]) >= 2, nim="yes", path=TEXT),
    Case("`logprobs: 0` of completions", {"prompt": "fee", "logprobs": 0},
         lambda r: len(r.choice["logprobs"]["tokens"]) == 16, path=TEXT),
    Case("`text_offset` counts characters", {"prompt": "fee", "logprobs": 0},
         lambda r: r.choice["logprobs"]["text_offset"][0] == 0, path=TEXT),
    Case("`echo` repeats the prompt", {"prompt": "fee", "echo": True},
         lambda r: r.text.startswith("fee"), nim="yes", path=TEXT),
    Case("`echo` with `logprobs` scores the prompt",
         {"prompt": "fee fee", "echo": True, "logprobs": 1, "max_tokens": 0},
         lambda r: r.choice["logprobs"]["token_logprobs"][0] is None, path=TEXT),
    Case("`max_tokens: 0` without `echo`", {"prompt": "fee", "max_tokens": 0},
         refused("max_tokens"), "400", "400", path=TEXT),
    Case("`prompt_logprobs` of chats", {"prompt_logprobs": 1},
         lambda r: r.json["prompt_logprobs"][0] is None
         and all(len(p) in (1, 2) for p in r.json["prompt_logprobs"][1:])),
    Case("`prompt_logprobs` name rank and text", {"prompt_logprobs": 0},
         lambda r: set(next(iter(r.json["prompt_logprobs"][1].values())))
         == {"logprob", "rank", "decoded_token"}),
    Case("`prompt_logprobs` of completions", {"prompt": "fee fee", "prompt_logprobs": 0},
         lambda r: r.choice["prompt_logprobs"][0] is None, path=TEXT),
    Case("`prompt_logprobs` in a stream", {"prompt_logprobs": 1, "stream": True},
         refused("prompt_logprobs"), "400", "400"),
    Case("negative `prompt_logprobs`", {"prompt_logprobs": -2}, refused("prompt_logprobs"),
         "400", "400"),
    Case("`prompt_logprobs: -1` for the whole vocabulary", {"prompt_logprobs": -1},
         refused("prompt_logprobs"), "400", "400"),
    Case("`return_token_ids`", {"return_token_ids": True},
         lambda r: r.json["prompt_token_ids"] and r.choice["token_ids"]),
    Case("`return_token_ids` of completions", {"prompt": [5, 6], "return_token_ids": True},
         lambda r: r.choice["prompt_token_ids"] == [5, 6] and len(r.choice["token_ids"]) == 16,
         path=TEXT),
    Case("`return_token_ids` in a stream", {"return_token_ids": True, "stream": True},
         lambda r: "prompt_token_ids" in r.events[0] and len(_streamed_ids(r)) > 5),
    Case("prompt ids come in the first chunk only", {"return_token_ids": True, "stream": True},
         lambda r: not any("prompt_token_ids" in e for e in r.events[1:])),
    Case("`return_tokens_as_token_ids`", {"logprobs": True, "return_tokens_as_token_ids": True},
         lambda r: _content(r)[0]["token"].startswith("token_id:")),
    Case("`return_tokens_as_token_ids` of completions",
         {"prompt": "a", "logprobs": 1, "return_tokens_as_token_ids": True},
         lambda r: r.choice["logprobs"]["tokens"][0].startswith("token_id:"), path=TEXT),
    Case("`return_tokens_as_token_ids` without `logprobs`", {"return_tokens_as_token_ids": True},
         refused("return_tokens"), "400", "ignored", why="a field has an effect, or is refused"),
    Case("`request_id` is a part of the id", {"request_id": "r-1"},
         lambda r: r.json["id"] == "chatcmpl-r-1"),
    Case("`usage` counts prompt and answer", {},
         lambda r: r.json["usage"]["total_tokens"] == r.json["usage"]["prompt_tokens"]
         + r.json["usage"]["completion_tokens"], nim="yes"),
    Case("`usage.prompt_tokens_details.cached_tokens`", {},
         lambda r: r.json["usage"]["prompt_tokens_details"] == {"cached_tokens": 0},
         vllm="with a flag", why="always, as in OpenAI's API"),
    Case("a stream has the same text", {"stream": True}, says(ANSWER), nim="yes"),
    Case("a stream of completions", {"prompt": "fee", "stream": True}, ok, nim="yes", path=TEXT),
    Case("the first chunk has the role", {"stream": True},
         lambda r: r.events[0]["choices"][0]["delta"]["role"] == "assistant", nim="yes"),
    Case("the last chunk has the reason", {"stream": True},
         lambda r: r.events[-1]["choices"][0]["finish_reason"] == "stop", nim="yes"),
    Case("a stream ends with `[DONE]`", {"stream": True},
         lambda r: r.response.text.endswith("data: [DONE]\n\n"), nim="yes"),
    Case("`include_usage`: a last chunk without choices", USAGE,
         lambda r: r.events[-1]["choices"] == [] and r.events[-1]["usage"]["total_tokens"] > 0,
         nim="yes"),
    Case("`include_usage: false`", {"stream": True, "stream_options": {"include_usage": False}},
         lambda r: not any(e.get("usage") for e in r.events)),
    Case("`continuous_usage_stats`: each chunk has the usage so far", ALWAYS,
         lambda r: all(e["usage"]["prompt_tokens"] for e in r.events)),
    Case("`continuous_usage_stats` counts up", ALWAYS,
         lambda r: [e["usage"]["completion_tokens"] for e in r.events]
         == sorted(e["usage"]["completion_tokens"] for e in r.events)),
    Case("`stream_options` without `stream`", {"stream_options": {"include_usage": True}},
         refused("stream_options"), "400", "400", "400"),
    Case("streams of several choices are told apart by `index`", {"stream": True, "n": 2},
         lambda r: {c["index"] for e in r.events for c in e["choices"]} == {0, 1}, nim="yes"),
    Case("`created`, `id`, `model` and `object`", {},
         lambda r: (r.json["object"], r.json["model"]) == ("chat.completion", "bank"), nim="yes"),
    Case("`model` left out", {"model": None}, says(ANSWER)),
    Case("an unknown `model`", {"model": "gpt"}, refused("model", status=404), "404", "404", "404"),
]  # fmt: skip

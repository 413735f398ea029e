"""litellm, as an OpenAI and as an Anthropic client: python litellm_chat.py http://…/v1 demo"""

import json
import sys
from importlib.metadata import version

import litellm

url, model = sys.argv[1:]
ASKED = [{"role": "user", "content": "What does a domestic wire cost?"}]
OPENAI = {"model": f"openai/{model}", "api_base": url, "api_key": "none", "max_tokens": 60}
ANTHROPIC = {**OPENAI, "model": f"anthropic/{model}", "api_base": url.removesuffix("/v1")}

answers = []
for how in (OPENAI, ANTHROPIC):
    answer = litellm.completion(messages=ASKED, temperature=0, **how)
    pieces = litellm.completion(messages=ASKED, temperature=0, stream=True, **how)
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces)
    assert text == (answer.choices[0].message.content or "")
    assert answer.usage.completion_tokens > 0
    answers.append(text)
assert answers[0] == answers[1]
print(json.dumps({"version": version("litellm"), "answer": answers[0]}))

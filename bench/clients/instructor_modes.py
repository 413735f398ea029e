"""instructor, in its modes: python instructor_modes.py http://127.0.0.1:8000/v1 demo"""

import json
import sys
from importlib.metadata import version
from typing import Literal

import instructor
import openai
from pydantic import BaseModel, ConfigDict

url, model = sys.argv[1:]
ASKED = [{"role": "user", "content": "In which currency is a domestic wire paid?"}]


class Fee(BaseModel):
    """The fee of a transfer."""

    model_config = ConfigDict(extra="forbid")
    currency: Literal["USD", "EUR"]


passed = []
for mode in ("JSON_SCHEMA", "TOOLS", "TOOLS_STRICT", "RESPONSES_TOOLS"):
    client = instructor.from_openai(
        openai.OpenAI(base_url=url, api_key="none", max_retries=0), mode=instructor.Mode[mode]
    )
    try:
        fee = client.chat.completions.create(
            model=model, messages=ASKED, response_model=Fee, max_retries=0
        )
    except Exception as error:
        # The model's chat template may have no tools.
        if "does not support tools" not in str(error):
            raise
        continue
    assert fee.currency in ("USD", "EUR")
    passed.append(mode)
assert passed
print(json.dumps({"version": version("instructor"), "modes": passed}))

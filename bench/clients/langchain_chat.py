"""LangChain's ChatOpenAI: python langchain_chat.py http://127.0.0.1:8000/v1 demo"""

import json
import sys
from importlib.metadata import version
from typing import Literal

from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

url, model = sys.argv[1:]
chat = ChatOpenAI(base_url=url, api_key="none", model=model, temperature=0, max_retries=0)


class Fee(BaseModel):
    """The fee of a transfer."""

    amount: int
    currency: Literal["USD", "EUR"]


question = HumanMessage("What does a domestic wire cost?")
answer = chat.invoke([question])
assert answer.content
assert answer.usage_metadata["output_tokens"] > 0
assert "".join(chunk.content for chunk in chat.stream([question])) == answer.content
longer = [SystemMessage("Be brief."), question, AIMessage(answer.content), HumanMessage("Thanks!")]
assert chat.invoke(longer).content
assert len(chat.batch([[question]] * 4)) == 4
fee = chat.bind(seed=1).with_structured_output(Fee, method="json_schema").invoke([question])
assert isinstance(fee, Fee)
print(json.dumps({"version": version("langchain-openai"), "answer": answer.content}))

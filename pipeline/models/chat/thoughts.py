"""Thoughts of a conversation, as the model's chat template writes them.

Data sets name the field of a thought in different ways, and templates read one of the names. Many
templates drop the thoughts of earlier answers, since a model does not see them when it is asked
again.
"""

from collections.abc import Callable, Sequence

from pipeline.models.chat.messages import THOUGHT_FIELDS, Message

_BEGIN, _END = "<think>", "</think>"
Expand = Callable[[Sequence[Message]], str]


def answer_of(text: str, *, begun: bool = False) -> str:
    """The answer in what a model wrote, without a thought before it.

    begun: the prompt has begun the thought, so that all is a thought until its end.
    """
    if not (begun or text.lstrip().startswith(_BEGIN)):
        return text
    return text.partition(_END)[2].lstrip()


def as_written(
    messages: Sequence[Message], expand: Expand, *, has_marks: bool = False
) -> list[Message]:
    """The conversation with each thought in the field that the template reads.

    A thought that the template drops because later turns follow is left out, and its turn becomes
    context (weight 0): training on it would teach the model to answer without a thought. A thought
    that the template never writes stays, for the renderer to refuse.

    Args:
        expand: the conversation as text.
        has_marks: whether the template marks what to train on. Then its marks decide about turns
            whose thought it drops, too.
    """
    found = list(messages)
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        field = next((name for name in THOUGHT_FIELDS if message.get(name)), None)
        if field is not None:
            found[i] = _in_field(found, i, field, expand, has_marks)
        elif _END in message["content"] and not has_marks:
            found[i] = _in_content(found, i, expand)
    return found


def _in_field(
    messages: list[Message], turn: int, field: str, expand: Expand, has_marks: bool
) -> Message:
    message = messages[turn]
    plain = {k: v for k, v in message.items() if k != field}
    names = [field, *(name for name in THOUGHT_FIELDS if name != field)]
    renamed = [{**plain, name: message[field]} for name in names]
    before, after = messages[:turn], messages[turn + 1 :]
    without = expand([*before, plain, *after])
    thought = str(message[field]).strip()
    for one in renamed:
        if thought in expand([*before, one, *after]) and thought not in without:
            return one
    alone = expand([*before, plain])
    for one in renamed:
        if after and expand([*before, one]) != alone:
            # A template may write that there was one.
            kept = plain if expand([*before, one, *after]) == without else one
            return plain if has_marks else {**kept, "weight": 0}
    return message


def _in_content(messages: list[Message], turn: int, expand: Expand) -> Message:
    message = messages[turn]
    text = expand(messages)
    if turn == len(messages) - 1 or message["content"].strip() in text:
        return message
    answer = message["content"].rpartition(_END)[2].lstrip()
    plain = {**message, "content": answer, "weight": 0}
    same = expand([*messages[:turn], plain, *messages[turn + 1 :]]) == text
    return plain if same else message

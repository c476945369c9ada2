"""Conversations in the usual formats: OpenAI's and Hugging Face's messages, and ShareGPT's."""

import json
from typing import NamedTuple

from npgpt.data.fields import is_blank, text_under, valid
from npgpt.data.readers import json_name
from npgpt.runtime.errors import FormatError

MESSAGE = '{"role": "...", "content": "..."}'
PART = '{"type": "text", "text": "..."}'
CALL = '{"type": "function", "function": {"name": "...", "arguments": {...}}}'
# ShareGPT's names of the speakers -> the names in the other formats.
SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "function_call": "assistant", "observation": "tool"}
INSTRUCTING = ("system", "developer")  # their message may be blank, and is then left out
ANSWERING = ("tool", "function")       # their message may be blank: a call may return nothing


class Message(NamedTuple):
    """place: "path:line: message 3"; role, name (blank if there is none) and content: str."""

    place: str
    role: str
    name: str
    content: str


def has_messages(fields):
    """Tell whether a record is a conversation."""
    return "messages" in fields or "conversations" in fields


def read_messages(where, fields):
    """Return the Messages of a record.

    messages    list of {"role": ..., "content": ...}. Or ShareGPT's "conversations", a list of
                {"from": ..., "value": ...}: human is the user, gpt and function_call are the assistant, and observation
                is a tool
    system      of the record: the system message, if the messages do not begin with one
    content     a string, or a list of parts of the type text, which are joined
    tool_calls  of a message: each call becomes a line of JSON after the content, {"name": ..., "arguments": {...}}, as
                in transformers' chat templates; function_call is OpenAI's older form of one call
    name        of a message: for templates that have {name}

    A blank message of system or developer is left out. Any other role stays as it is. Fields that are not named here,
    such as the definitions of tools, are ignored.
    Raises FormatError for an entry that is not a message, and for a part that is not text.
    """
    found = fields.get("messages", fields.get("conversations"))
    if not isinstance(found, list) or not found:
        raise FormatError(f'{where}: no "messages" in a list; expected {{"messages": [{MESSAGE}, ...]}}')
    messages = [_message(f"{where}: message {i}", message) for i, message in enumerate(found, start=1)]
    system = fields.get("system")
    if isinstance(system, str) and messages[0].role != "system":
        messages.insert(0, Message(where, "system", "", valid(where, "system", system)))
    return [message for message in messages if not (message.role in INSTRUCTING and is_blank(message.content))]


def _message(place, message):
    """Return the Message of one entry of the list. Raises FormatError."""
    if not isinstance(message, dict):
        raise FormatError(f"{place} is {json_name(message)}; expected {MESSAGE}")
    of, text = ("from", "value") if message.get("role") is None and "from" in message else ("role", "content")
    role = text_under(place, message, of)
    if of == "from":
        role = SHAREGPT_ROLES.get(role, role)
    calls = _calls(place, message)
    if calls and message.get(text) is None:
        content = ""
    elif isinstance(message.get(text), list):
        content = _joined(place, message[text], text)
    else:
        content = text_under(place, message, text)
    if calls:
        content = valid(place, "tool_calls", "\n".join([*([] if is_blank(content) else [content]), *calls]))
    if is_blank(content) and role not in INSTRUCTING + ANSWERING:
        raise FormatError(f'{place}: its "{text}" is blank')
    return Message(place, role, "" if message.get("name") is None else text_under(place, message, "name"), content)


def _joined(place, parts, name):
    """Return the text of a list of parts."""
    texts = []
    for i, part in enumerate(parts, start=1):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text":
            what = f"of the type {kind!r}" if kind is not None else json_name(part)
            raise FormatError(f'{place}: part {i} of its "{name}" is {what}; only text can be learned: {PART}')
        texts.append(text_under(f'{place}: part {i} of its "{name}"', part, "text"))
    return "".join(texts)


def _calls(place, message):
    """Return each of the calls of a message as a line of JSON."""
    calls, lines = message.get("tool_calls"), []
    if calls is None:
        calls = []
    if message.get("function_call") is not None:
        calls = [message["function_call"]]
    for call in calls if isinstance(calls, list) else [calls]:
        inner = call.get("function") if isinstance(call, dict) else None
        function = call if inner is None else inner
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise FormatError(f'{place}: its "tool_calls" hold something that is not a call; expected [{CALL}, ...]')
        arguments = function.get("arguments")
        if isinstance(arguments, str):  # OpenAI writes JSON in a string, which transformers advises against
            try:
                arguments = json.loads(arguments)
            except (ValueError, RecursionError):
                pass
        lines.append(json.dumps({"name": function["name"], "arguments": {} if arguments is None else arguments},
                                ensure_ascii=False, default=str))
    return lines

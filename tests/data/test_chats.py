"""Conversations in the usual formats become messages."""

import pytest

from npgpt.data import END, Record, Template
from npgpt.data.chats import read_messages
from npgpt.runtime.errors import FormatError


def messages(fields):
    return [(message.role, message.content) for message in read_messages("f:1", fields)]


def content(**message):
    [(_, text)] = messages({"messages": [{"role": "user", **message}]})
    return text


def refusal(fields):
    with pytest.raises(FormatError) as caught:
        messages(fields)
    return str(caught.value)


def call(name, arguments):
    return {"id": "1", "type": "function", "function": {"name": name, "arguments": arguments}}


def test_content_may_be_a_list_of_parts():
    parts = [{"type": "text", "text": "What is "}, {"type": "text", "text": "this?", "image_url": None}]
    assert content(content=parts) == content(content="What is this?") == "What is this?"
    assert messages({"messages": [{"role": "tool", "content": []}]}) == [("tool", "")]


@pytest.mark.parametrize("part, message", [
    ({"type": "image_url", "image_url": {"url": "x"}}, "is of the type 'image_url'; only text can be learned: "
                                                       '{"type": "text", "text": "..."}'),
    ({"type": "image"}, "is of the type 'image'; only text"), ({"text": "a"}, "is an object; only text"),
    ("a", "is a string; only text"), (None, "is null; only text"),
    ({"type": "text"}, 'no "text"; it has "type"'), ({"type": "text", "text": 1}, 'its "text" is a number, expected'),
    ({"type": "text", "text": "\ud83d"}, 'its "text" is not valid Unicode'),
])
def test_a_part_that_is_no_text_is_named(part, message):
    given = {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, part]}]}
    assert refusal(given).startswith('f:1: message 1: part 2 of its "content"')
    assert message in refusal(given)


WEATHER = '{"name": "weather", "arguments": {"city": "K\u00f6ln", "days": 2}}'  # as Qwen's template has it


@pytest.mark.parametrize("message", [
    {"content": None, "tool_calls": [call("weather", {"city": "K\u00f6ln", "days": 2})]},
    {"tool_calls": [call("weather", '{"city":"K\\u00f6ln",\n "days":2}')]},
    {"content": "", "tool_calls": [{"name": "weather", "arguments": {"city": "K\u00f6ln", "days": 2}}]},
    {"content": [], "tool_calls": [call("weather", {"city": "K\u00f6ln", "days": 2})], "function_call": None},
    {"content": None, "tool_calls": None,
     "function_call": {"name": "weather", "arguments": '{"city": "K\u00f6ln", "days": 2}'}},
])
def test_calls_are_lines_of_json(message):
    assert content(**message) == WEATHER


def test_calls_follow_the_content():
    calls = [call("a", {}), call("b", None), call("c", "no JSON"), call("d", "[1]")]
    assert content(content="I ask.", tool_calls=calls).split("\n") == [
        "I ask.", '{"name": "a", "arguments": {}}', '{"name": "b", "arguments": {}}',
        '{"name": "c", "arguments": "no JSON"}', '{"name": "d", "arguments": [1]}']


@pytest.mark.parametrize("calls", [["a"], [None], [{"function": "a"}], [{"function": {"arguments": {}}}], "a", 1,
                                   [{"type": "function"}]])
def test_what_is_no_call_is_refused(calls):
    given = {"messages": [{"role": "assistant", "content": None, "tool_calls": calls}]}
    assert refusal(given).startswith('f:1: message 1: its "tool_calls" hold something that is not a call; expected [')


@pytest.mark.parametrize("message", [{"content": None}, {"content": None, "tool_calls": None},
                                     {"content": None, "tool_calls": []}])
def test_without_content_and_calls_there_is_nothing(message):
    assert refusal({"messages": [{"role": "assistant", **message}]}) == (
        'f:1: message 1: its "content" is null, expected a string')


def test_every_role_keeps_its_name():
    roles = ["system", "developer", "user", "assistant", "tool", "function", "critic"]
    given = {"messages": [{"role": role, "content": role[0]} for role in roles]}
    assert messages(given) == [(role, role[0]) for role in roles]


def test_what_may_be_blank():
    given = [{"role": "system", "content": ""}, {"role": "user", "content": "a"}, {"role": "developer", "content": " "},
             {"role": "tool", "content": ""}, {"role": "function", "content": ""}]
    assert messages({"messages": given}) == [("user", "a"), ("tool", ""), ("function", "")]
    assert messages({"messages": given[:1]}) == []
    for role in ("user", "assistant", "critic"):
        assert refusal({"messages": [{"role": role, "content": "\n"}]}) == 'f:1: message 1: its "content" is blank'


def test_sharegpt():
    speakers = ["system", "human", "gpt", "function_call", "observation", "tool", "bing"]
    given = {"conversations": [{"from": speaker, "value": speaker[0]} for speaker in speakers]}
    assert messages(given) == [("system", "s"), ("user", "h"), ("assistant", "g"), ("assistant", "f"), ("tool", "o"),
                               ("tool", "t"), ("bing", "b")]
    assert messages({"conversations": [{"role": "user", "content": "a"}]}) == [("user", "a")]
    assert messages({"messages": [{"from": "human", "value": "a", "role": None, "content": None}]}) == [("user", "a")]
    assert refusal({"conversations": [{"from": "gpt"}]}) == 'f:1: message 1: no "value"; it has "from"'
    assert refusal({"conversations": [{"from": "gpt", "value": ""}]}) == 'f:1: message 1: its "value" is blank'
    assert refusal({"conversations": {}}).startswith('f:1: no "messages" in a list')


def test_a_system_beside_the_messages_comes_first():
    """LLaMA-Factory writes ShareGPT's conversations so, and Anthropic its messages."""
    for name, given in (("conversations", {"from": "human", "value": "a"}),
                        ("messages", {"role": "user", "content": "a"})):
        assert messages({name: [given], "system": "s"}) == [("system", "s"), ("user", "a")]
        for system in ("", None, 3):
            assert messages({name: [given], "system": system}) == [("user", "a")]
    assert messages({"messages": [{"role": "system", "content": "b"}], "system": "s"}) == [("system", "b")]


def test_a_name_is_told_where_the_template_has_it():
    given = {"messages": [{"role": "user", "name": "Ann", "content": "a"}, {"role": "assistant", "content": "b"}]}

    def text(template):
        return "".join("|" if part is END else part for part, _ in
                       Template.of(Record("f:1", given), template).document(Record("f:1", given)).segments)

    assert text(None) == "### user:\na\n\n### assistant:\nb|"
    assert text("{role} {name}: {content}\n") == "user Ann: a\nassistant : b\n|"
    assert refusal({"messages": [{"role": "user", "name": 1, "content": "a"}]}) == (
        'f:1: message 1: its "name" is a number, expected a string')


def test_a_conversation_with_tools_is_learned_where_the_assistant_speaks():
    given = {"messages": [
        {"role": "user", "content": "Weather?"}, {"role": "assistant", "tool_calls": [call("w", {"x": 1})]},
        {"role": "tool", "name": "w", "content": '{"rain": true}'}, {"role": "assistant", "content": "Rain."}]}
    record = Record("f:1", given)
    assert Template.of(record).document(record).segments == [
        ("### user:\nWeather?\n\n### assistant:\n", False), ('{"name": "w", "arguments": {"x": 1}}', True), (END, True),
        ('\n\n### tool:\n{"rain": true}\n\n### assistant:\n', False), ("Rain.", True), (END, True)]

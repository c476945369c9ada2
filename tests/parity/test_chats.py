"""Conversations against a chat template of the same words, as transformers fills it in."""

import pytest

pytest.importorskip("torch")
pytest.importorskip("jinja2")

import transformers

import npgpt
from npgpt.data import END, Record, Template

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- ('' if loop.first else '\n\n') + '### ' + message.role + ':\n' -}}
{{- message.content or '' -}}
{%- for call in message.tool_calls or [] -%}
{{- ('\n' if message.content or not loop.first else '') + '{"name": "' + call.function.name + '", "arguments": ' -}}
{{- (call.function.arguments | tojson) + '}' -}}
{%- endfor -%}
{{- eos_token if message.role == 'assistant' else '' -}}
{%- endfor -%}"""

CALLS = [{"type": "function", "function": {"name": name, "arguments": arguments}}
         for name, arguments in (("f", {"q": "caf\u00e9 <b> 'x'", "n": [1, 2.5, None, True]}), ("g", {}))]


@pytest.mark.parametrize("messages", [
    [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": None, "tool_calls": CALLS},
     {"role": "tool", "name": "f", "content": "{}"}, {"role": "assistant", "content": "c", "tool_calls": CALLS[:1]}],
    [{"role": "developer", "content": "d"}, {"role": "user", "name": "Ann", "content": "a"},
     {"role": "assistant", "content": "b"}],
])
def test_a_conversation_is_the_text_of_a_chat_template(messages):
    inner = npgpt.Tokenizer.from_pretrained("tiny")._tokenizer
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|endoftext|>")
    expected = tokenizer.apply_chat_template(messages, chat_template=CHAT_TEMPLATE, tokenize=False)
    record = Record("f:1", {"messages": messages})
    segments = Template.of(record).document(record).segments
    assert "".join("<|endoftext|>" if text is END else text for text, _ in segments) == expected


@pytest.mark.parametrize("text", ["<|endoftext|>", "a<|endoftext|>b", " <|endoftext|> <|end", "no token"])
def test_special_tokens_as_plain_text_are_those_of_transformers(text):
    ours = npgpt.Tokenizer.from_pretrained("tiny")
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=ours._tokenizer, eos_token="<|endoftext|>")
    for split in (False, True):
        assert ours.encode(text, split_special_tokens=split).tolist() == theirs(
            text, split_special_tokens=split).input_ids

"""Records to segments of text, learned or not."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from npgpt.data import END, Documents, Record, Stream, Template, Text
from npgpt.runtime.errors import ConfigError, FormatError


def segments(fields, template=None, train_on_prompt=False):
    record = Record("f:1", fields)
    return Template.of(record, template, train_on_prompt).document(record).segments


def key(fields, template=None):
    record = Record("f:1", fields)
    return Template.of(record, template).document(record).key


def refusal(fields, first=None, template=None):
    with pytest.raises(FormatError) as caught:
        Template.of(Record("f:1", first or fields), template).document(Record("f:2", fields))
    return str(caught.value)


def messages(*pairs):
    return {"messages": [{"role": role, "content": content} for role, content in pairs]}


ALPACA = "Below is an instruction that describes a task. Write a response that appropriately completes the request."


@pytest.mark.parametrize("fields, expected", [
    ({"text": " a\nb "}, [(" a\nb ", True)]),
    ({"prompt": "a", "completion": "b", "id": 3}, [("a", False), ("b", True)]),
    ({"prompt": "a:  ", "completion": "b"}, [("a:", False), ("  b", True)]),
    ({"prompt": " ", "completion": "b"}, [(" b", True)]),
    ({"prompt": "", "completion": " b\n"}, [(" b\n", True)]),
    ({"prompt": "a\n", "completion": "b"}, [("a\n", False), ("b", True)]),
    ({"instruction": "Do.", "input": "x", "output": "y", "text": "all"}, [
        (f"{ALPACA}\n\n### Instruction:\nDo.\n\n### Input:\nx\n\n### Response:\n", False), ("y", True)]),
    ({"instruction": "Do.", "input": "", "output": "y"}, [
        (f"{ALPACA}\n\n### Instruction:\nDo.\n\n### Response:\n", False), ("y", True)]),
    ({"instruction": "Do.", "output": "y"}, [
        (f"{ALPACA}\n\n### Instruction:\nDo.\n\n### Response:\n", False), ("y", True)]),
    (messages(("user", "a"), ("assistant", "b")), [
        ("### user:\na\n\n### assistant:\n", False), ("b", True)]),
    (messages(("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")), [
        ("### system:\ns\n\n### user:\na\n\n### assistant:\n", False), ("b", True), (END, True),
        ("\n\n### user:\nc\n\n### assistant:\n", False), ("d", True)]),
])
def test_each_kind_of_record_has_a_template(fields, expected):
    assert segments(fields) == [*expected, (END, True)]
    assert segments(fields, train_on_prompt=True) == [*((text, True) for text, _ in expected), (END, True)]


@pytest.mark.parametrize("template, fields, expected", [
    ("Q: {q}\nA: {a}!", {"q": "x", "a": "y", "text": "z"}, [("Q: x\nA:", False), (" y!", True)]),
    ("{{{a}}} {b}", {"a": "x", "b": "y"}, [("{x}", False), (" y", True)]),
    ("{a}, {b}, {a}.", {"a": "x", "b": "y"}, [("x, y,", False), (" x.", True)]),
    ("Title: {title}\n\nBy {author}\n\n{text}\n\nThe end", {"title": "x", "author": " ", "text": "y"}, [
        ("Title: x\n\n", False), ("y\n\nThe end", True)]),
    ("{text}", {"prompt": "a", "completion": "b", "text": "c"}, [("c", True)]),
    ("{prompt} -> {completion}", {"prompt": "a", "completion": "b"}, [("a ->", False), (" b", True)]),
])
def test_a_template_may_be_given(template, fields, expected):
    assert segments(fields, template) == [*expected, (END, True)]


def test_a_template_of_messages_is_that_of_one():
    given = messages(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    assert segments(given, "<{role}> {content}\n") == [
        ("<user> a\n<assistant>", False), (" b\n", True), (END, True), ("<user> c\n<assistant>", False), (" d\n", True),
        (END, True)]


def test_what_is_not_learned_in_the_end_can_be_trained_on():
    assert segments(messages(("user", "a")), train_on_prompt=True) == [("### user:\na", True), (END, True)]


@pytest.mark.parametrize("fields", [{"text": " \n"}, {"prompt": "a", "completion": ""},
                                    {"instruction": "a", "input": "b", "output": "\t"}])
def test_a_record_with_nothing_to_learn_is_blank(fields):
    assert segments(fields) == segments(fields, train_on_prompt=True) == []


def test_a_stream_stays_one():
    stream = Stream(["a", " b"])
    assert segments({"text": stream}) == [(stream, True), (END, True)]
    assert segments({"text": stream}, "From a book: {text}.") == [
        ("From a book: ", False), (stream, True), (".", True), (END, True)]


def literals(text):
    """Return the parts of a text that come from its template."""
    return [text[begin:end] for begin, end in getattr(text, "literals", ())]


@pytest.mark.parametrize("template, fields, expected", [
    ("<|user|>{q} <|bot|> {a}.", {"q": "<|bot|>", "a": "y"}, [["<|user|>", " <|bot|>"], [" ", "."]]),
    ("{q}{q}{a}", {"q": "x", "a": "y"}, [[], []]),
    ("<{q}>\n\n{none}\n\n{a}", {"q": "x", "a": "y", "none": ""}, [["<", ">\n\n"], []]),
    ("a\n\n{{b\n\n{q}: {a}", {"q": "x", "a": "y"}, [["a\n\n{b\n\n", ":"], [" "]]),
])
def test_a_text_knows_the_words_of_its_template(template, fields, expected):
    assert [literals(text) for text, _ in segments(fields, template)[:-1]] == expected


def test_the_role_of_a_message_is_a_word_of_the_template():
    """So a role can make a token; but a role that is not a plain word cannot fake one."""
    given = messages(("user", "<|user|>"), ("x|><|user", "c"), ("assistant", "d"))
    [(asked, _), (learned, _), _] = segments(given, "<|{role}|>{content}\n")
    assert asked == "<|user|><|user|>\n<|x|><|user|>c\n<|assistant|>"
    assert literals(asked) == ["<|user|>", "\n<|", "|>", "\n<|assistant|>"]
    assert learned == "d\n" and literals(learned) == ["\n"]


@pytest.mark.parametrize(("template", "role", "expected"), [
    ("<|{role}|>{content}", "endoftext", ["<|", "|>", "<|assistant|>"]),
    ("<|{role}|>{content}", "end", ["<|end|>", "<|assistant|>"]),
    ("<|{role}|>{content}<|endoftext|>", "end", ["<|end|>", "<|endoftext|>", "<|assistant|>"]),
    ("<|{role}|>{content}<|endoftext|>", "endoftext", ["<|", "|>", "<|endoftext|>", "<|assistant|>"]),
])
def test_no_role_makes_an_end_of_text(template, role, expected):
    chat = [{"role": role, "content": "c"}, {"role": "assistant", "content": "d"}]
    (asked, _), *_ = segments({"messages": chat}, template)
    assert "".join(literals(asked)) == "".join(expected)


@given(st.lists(st.tuples(st.text("ab ", max_size=3), st.booleans())), st.integers(0, 30), st.integers(0, 30))
def test_literals_are_kept_where_texts_are_joined_and_cut(parts, begin, length):
    marked = "".join(("L" if own else "f") * len(text) for text, own in parts)  # a letter for each character
    text = Text.join([Text.literal(part) if own else part for part, own in parts])
    assert text == "".join(part for part, _ in parts)
    begin = min(begin, len(text))
    for cut, marks in ((text, marked), (text.between(begin), marked[begin:]),
                       (text.between(begin, min(begin + length, len(text))), marked[begin:begin + length])):
        assert cut == text[begin:begin + length] or cut in (text, text[begin:])
        assert "".join("L" if any(first <= i < last for first, last in cut.literals) else "f"
                       for i in range(len(cut))) == marks
        apart = [last < first for (_, last), (first, _) in itertools.pairwise(cut.literals)]
        assert all(apart), "literals that meet are one"


@pytest.mark.parametrize("template, expected", [
    ("<|user|>{prompt}<|bot|>{completion}", ["<|user|>"]), ("{prompt}{completion}", []),
    ("<|{prompt}|>{completion}", []), ("<|{role}|>\n{content}<end>", ["<|user|>", "<end>"]),
])
def test_the_special_tokens_of_a_template(template, expected):
    kind = "messages" if "role" in template else "prompt"
    assert Template(kind, template).spelled(["<|user|>", "<end>", "{prompt}"]) == expected


def test_records_that_ask_the_same_have_one_key():
    def prompt(a, b):
        return key({"prompt": a, "completion": b})

    assert prompt("a", "b") == prompt("a", "c") != prompt("b", "c")
    assert key({"text": "a"}) != key({"text": "b"})
    assert key({"instruction": "a", "input": "b", "output": "c"}) != key({"instruction": "a", "output": "c"})
    assert key({"text": "a", "title": "b"}, "Title: {text}") != key({"text": "b", "title": "b"}, "Title: {text}")
    conversations = [messages(("system", "s"), ("user", a), ("assistant", b), ("user", c), ("assistant", "d"))
                     for a, b, c in ("abc", "axy", "xbc")]
    assert key(conversations[0]) == key(conversations[1]) != key(conversations[2])


@pytest.mark.parametrize("fields, first, message", [
    ({"txet": "a"}, None, 'f:1: its fields are "txet"; expected those of a kind ("messages"; "instruction", "output"; '
                          '"prompt", "completion"; "text"), or a template that names others'),
    ({}, None, "f:1: its fields are none; expected"),
    ({"prompt": "a"}, {"prompt": "a", "completion": "b"}, 'f:2: no "completion"; it has "prompt"'),
    ({}, {"text": "a"}, 'f:2: no "text"; it has nothing'),
    ({"text": "a"}, {"prompt": "a", "completion": "b"},
     'f:2: a record with "text", but the records before have "prompt", "completion"; expected one kind'),
    (messages(("user", "a")), {"text": "a"}, 'f:2: a record with "messages", but the records before have "text"'),
    ({"text": 1}, None, 'f:2: its "text" is a number, expected a string'),
    ({"text": None}, None, 'f:2: its "text" is null'),
    ({"text": ["one"]}, None, 'f:2: its "text" is an array'),
    ({"prompt": {}, "completion": "a"}, None, 'f:2: its "prompt" is an object'),
    ({"instruction": "a", "input": False, "output": "b"}, None, 'f:2: its "input" is a truth value'),
    ({"text": "half a pair: \ud83d"}, None, 'f:2: its "text" is not valid Unicode'),
    ({"messages": "a"}, None, 'f:2: no "messages" in a list; expected {"messages": [{"role": "...", "content": "..."}'),
    ({"messages": []}, None, 'f:2: no "messages" in a list'),
    ({"messages": ["a"]}, None, 'f:2: message 1 is a string; expected {"role": "...", "content": "..."}'),
    ({"messages": [{"role": "user"}]}, None, 'f:2: message 1: no "content"; it has "role"'),
    (messages(("user", "a"), ("assistant", None)), None, 'f:2: message 2: its "content" is null'),
    (messages(("user", "a"), ("assistant", " ")), None, 'f:2: message 2: its "content" is blank'),
    (messages(("assistant", "a"), ("user", "b")), None, "f:2: the last message has the role 'user'; expected "
                                                        "'assistant', whose content is learned"),
])
def test_a_record_that_does_not_fit_is_named(fields, first, message):
    assert refusal(fields, first).startswith(message)


def test_a_template_says_which_fields_a_record_must_have():
    assert refusal({"a": "x"}, template="{a} {b}") == 'f:2: no "b"; it has "a"'


@pytest.mark.parametrize("template, reason", [
    ("no field", "it has no field such as {prompt}"), ("", "it has no field"),
    ("{a", "expected '}' before end of string"),
    ("a}", "Single '}' encountered"), ("{}", "a field has a name and nothing else"),
    ("{a:>3}", "a field has a name and nothing else"), ("{a!r}", "a field has a name and nothing else"),
])
def test_texts_that_are_no_templates(template, reason):
    with pytest.raises(ConfigError) as caught:
        Template("fields", template)
    assert str(caught.value).startswith(f"template {template!r}: {reason}")


@pytest.mark.parametrize("template", ["{content}", "{content} {role}", "{role} {content} {a}", "{role}{content}{name}"])
def test_a_template_of_messages_has_a_role_and_a_content(template):
    with pytest.raises(ConfigError, match=r"a message's template must have \{role\} and then \{content\}, and may"):
        Template("messages", template)


@pytest.mark.parametrize("kind, text, options, shown", [
    ("text", None, {}, "[{text}<end of text>]  (in brackets: learned)"),
    ("prompt", "Q: {q}\n\nA: {a}.", {}, r"Q: {q}\n\nA: [{a}.<end of text>]  (in brackets: learned)"),
    ("prompt", None, {"train_on_prompt": True}, "[{prompt}{completion}<end of text>]  (in brackets: learned)"),
    ("messages", None, {}, r"\n\n### {role}:\n[{content}<end of text>]  (each message; in brackets: learned, of the "
                           "role assistant)"),
])
def test_a_template_can_be_shown(kind, text, options, shown):
    assert str(Template(kind, text, **options)) == shown


# Files


def test_documents_can_be_read_again(written):
    path = written("data.txt", "a||b\n\nc||d\n")
    documents = Documents(path, separator="||")
    expected = [(f"{path}:1", [("a||", False), ("b", True), (END, True)], "a"),
                (f"{path}:3", [("c||", False), ("d", True), (END, True)], "c")]
    assert list(documents) == list(documents) == expected
    assert documents.template.text == "{prompt}||{completion}"
    assert Documents(written("other.txt", "a{}b"), separator="{}").template.text == "{prompt}{{}}{completion}"
    documents = Documents(path, separator="||", template="{prompt}: {completion}", train_on_prompt=True)
    assert [document.segments[:2] for document in documents] == [[("a:", True), (" b", True)],
                                                                  [("c:", True), (" d", True)]]


def test_a_file_without_records_is_an_error_at_once(written):
    for name in ("data.txt", "data.csv", "data.json", "data.jsonl"):
        with pytest.raises(FormatError, match=f"{name} holds no text"):
            Documents(written(name, "\n"))

"""How a run made its documents, kept beside its adapter."""

import dataclasses
import json

import pytest

from npgpt.data import Recipe, Template, documents_like, recipe
from npgpt.runtime.errors import FormatError

ASKED = Recipe("fields", "Q: {question}\nA: {answer}", max_length=64)


def segments(documents):
    return [[text if text is None else str(text) for text, _ in document.segments] for document in documents]


def test_it_is_read_as_it_was_written(tmp_path):
    for one in (ASKED, Recipe("prompt", "{prompt}||{completion}", True, "blank", "||", True, 99)):
        one.save(tmp_path)
        assert Recipe.load(tmp_path) == one
    assert one.made().text == one.template and one.made().train_on_prompt
    assert Recipe.load(tmp_path / "none") is None


@pytest.mark.parametrize("values", [{}, {"kind": "fields"}, {"kind": "nothing", "template": "{a}"},
                                    {"kind": "fields", "template": "none"}, {"kind": "fields", "template": 3},
                                    {"kind": "fields", "template": "{a}", "more": 1}])
def test_what_is_no_recipe_is_named(tmp_path, values):
    (tmp_path / recipe.FILE).write_text(json.dumps(values))
    with pytest.raises(FormatError, match=rf"{recipe.FILE}: expected kind, template, train_on_prompt, split"):
        Recipe.load(tmp_path)


def test_documents_are_made_as_the_recipe_says(written):
    path = written("qa.jsonl", '{"question": "a", "answer": "b"}\n')
    assert segments(documents_like(ASKED, path)) == [["Q: a\nA:", " b", None]]
    assert segments(documents_like(ASKED, path, template="{question}{answer}")) == [["a", "b", None]]
    assert segments(documents_like(ASKED, written("texts.txt", "one\n\ntwo\n"))) == [["one", None], ["two", None]]
    learned = documents_like(dataclasses.replace(ASKED, train_on_prompt=True), path)
    assert [learn for document in learned for _, learn in document.segments] == [True, True, True]
    chat = written("chat.jsonl", json.dumps(messages(("user", "a"), ("assistant", "b"))))
    own = Recipe("messages", "<{role}>{content}\n")
    assert segments(documents_like(own, chat)) == [["<user>a\n<assistant>", "b\n", None]]
    assert segments(documents_like(ASKED, chat)) == segments(documents_like(None, chat))
    assert segments(documents_like(own, path, template="{answer}")) == [["b", None]]


def test_texts_are_divided_as_the_recipe_says(written):
    divided = Recipe("prompt", "{prompt}||{completion}", split="blank", separator="||")
    path = written("pairs.txt", "a\n||b\n\nc||d\n")
    assert segments(documents_like(divided, path)) == [["a\n||", "b", None], ["c||", "d", None]]
    [document] = documents_like(divided, path, "none")
    assert "".join(document.segments[0][0]) == "a\n||b\n\nc||d"
    assert segments(documents_like(divided, written("plain.txt", "a\nb\n\nc"))) == [["a\nb", None], ["c", None]]


# Prompts, without an answer


def prompt(template, fields, text=None):
    from npgpt.data import Record
    return [text if text is None else str(text) for text in Template(template, text).prompt(Record("f:1", fields))]


def messages(*pairs):
    return {"messages": [{"role": role, "content": content} for role, content in pairs]}


@pytest.mark.parametrize("kind, text, fields, expected", [
    ("fields", "Q: {q}\nA: {a}", {"q": "x"}, ["Q: x\nA:"]),
    ("fields", "Q: {q}\nA: {a}", {"q": "x", "a": "y"}, ["Q: x\nA:"]),
    ("fields", "{q}\n\n### Answer:\n{a}", {"q": "x", "a": None}, ["x\n\n### Answer:\n"]),
    ("prompt", None, {"prompt": "one "}, ["one"]),
    ("text", None, {"text": "Once upon"}, ["Once upon"]),
    ("fields", "<{text}>", {"text": "Once"}, ["<Once"]),
    ("messages", None, messages(("user", "a")), ["### user:\na\n\n### assistant:\n"]),
    ("messages", None, messages(("user", "a"), ("assistant", "b")), ["### user:\na\n\n### assistant:\n"]),
    ("messages", None, messages(("user", "a"), ("assistant", "b"), ("user", "c")),
     ["### user:\na\n\n### assistant:\n", "b", None, "\n\n### user:\nc\n\n### assistant:\n"]),
])
def test_the_prompt_of_a_record(kind, text, fields, expected):
    assert prompt(kind, fields, text) == expected


def test_the_prompt_is_what_training_gives_before_the_answer():
    from npgpt.data import Record
    record = Record("f:1", {"instruction": "Do.", "input": "", "output": "y"})
    for learn in (False, True):
        template = Template("instruction", None, learn)
        asked = template.document(record).segments[0][0]
        assert template.prompt(Record("f:1", {"instruction": "Do."})) == [asked]
        assert template.prompt(Record("f:1", {"instruction": "Do."}))[0].literals == asked.literals
    with pytest.raises(FormatError, match='f:1: no "instruction"; it has "input"'):
        template.prompt(Record("f:1", {"input": "x"}))
    with pytest.raises(FormatError, match='f:1: no "messages" in a list'):
        Template("messages").prompt(Record("f:1", {"text": "x"}))

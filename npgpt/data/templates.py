"""Records to text: the template that a record's fields are put into, and which part of the text is learned.

Templates have the syntax of str.format, and string.Formatter parses them. Jinja2 would add a dependency, and it could
not tell which part of a text comes from which field.
"""

import re
import string
from typing import NamedTuple

from npgpt.data.chats import Message, has_messages, read_messages
from npgpt.data.fields import is_blank, quoted, text_under
from npgpt.data.readers import Stream
from npgpt.files.tokenizer import END_OF_TEXT
from npgpt.runtime.errors import ConfigError, FormatError, printable

END = None  # stands for the end-of-text token in a list of segments

# The fields that a record of each kind has, and the template of each kind. A record is of the first kind that fits.
KINDS = {
    "messages": ("messages",),
    "instruction": ("instruction", "output"),
    "prompt": ("prompt", "completion"),
    "text": ("text",),
}
TEMPLATES = {
    "messages": "\n\n### {role}:\n{content}",
    "instruction": (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n{output}"
    ),
    "prompt": "{prompt}{completion}",
    "text": "{text}",
}
OPTIONAL = ("input",)  # may be missing
LEARNED_ROLE = "assistant"
ANSWER = "?"  # stands for an answer that is not there yet


class Text(str):
    """A text that knows which of its parts are a template's own words: `literals`, ((begin, end), ...), in order.

    If a literal spells out a special token, it is this token. Everywhere else it is plain text, also in the results of
    `str`'s own methods.
    """

    literals = ()

    @classmethod
    def join(cls, parts):
        """Join str and Texts end to end; literals that touch become one."""
        text, literals, at = cls("".join(parts)), [], 0
        for part in parts:
            for begin, end in getattr(part, "literals", ()):
                if literals and literals[-1][1] == at + begin:
                    begin = literals.pop()[0] - at
                literals.append((at + begin, at + end))
            at += len(part)
        text.literals = tuple(literals)
        return text

    @classmethod
    def literal(cls, words):
        """Return a Text of a template's own words."""
        text = cls(words)
        text.literals = ((0, len(words)),) if words else ()
        return text

    def between(self, begin, end=None):
        """Return self[begin:end] with its literals, for 0 <= begin <= end <= len(self)."""
        end = len(self) if end is None else end
        text = Text(self[begin:end])
        text.literals = tuple((max(first, begin) - begin, min(last, end) - begin) for first, last in self.literals
                              if first < end and last > begin)
        return text


class Document(NamedTuple):
    """A record as text.

    where     "path:line"
    segments  list of (text, learned). A text is a str (a Text, if a template has its own words), a Stream, or END.
              The list is empty if the record is blank
    key       str: records with one key have the same question, and are held out together or not at all
    """

    where: str
    segments: list
    key: str


class Template:
    """Puts the fields of a record into a text.

    A field stands in braces, {prompt}; a literal brace is written twice. The last field is learned, with all that
    follows it and an end of text; the part before it is the prompt. A paragraph (between blank lines) is left out if
    all its fields are blank.

    For messages, the template is for one message. It has {role} and {content}, and may have {name}. The content of the
    role "assistant" is learned, with an end of text. White space before the first message is left out.
    `npgpt.data.chats` says what the content is.

    Spaces at the end of a prompt are learned, as a part of the text that follows. A token of GPT-2 begins with the
    space before its word, so a prompt must end without this space, in training as later in use.

    If the template spells out a special token, it is this token; in a field it is plain text. A message's role, if it
    is one word, counts as a part of the template: <|{role}|> is the token <|user|> if there is one. A role cannot make
    an end of text.
    """

    def __init__(self, kind, text=None, train_on_prompt=False):
        """kind: one of KINDS, or "fields" for other fields; text: None for TEMPLATES[kind]. Raises ConfigError."""
        self.kind, self.text, self.train_on_prompt = kind, TEMPLATES[kind] if text is None else text, train_on_prompt
        try:
            self._paragraphs = [_parsed(paragraph) for paragraph in self.text.split("\n\n")]
        except ValueError as error:
            raise ConfigError(f"template {self.text!r}: {error}; a field stands in braces, as in {{prompt}}, and a "
                              "literal brace is written twice") from error
        self.fields = [name for paragraph in self._paragraphs for _, name in paragraph if name is not None]
        if not self.fields:
            raise ConfigError(f"template {self.text!r}: it has no field such as {{prompt}}, so all records would be "
                              "the same")
        if kind == "messages" and ([field for field in self.fields if field != "name"] != ["role", "content"]
                                   or self.fields[-1] == "name"):
            raise ConfigError(f"template {self.text!r}: a message's template must have {{role}} and then {{content}}, "
                              "and may have {name} before {content}")

    def __str__(self):
        """The template in one line, with the learned part in brackets."""
        prompt, text, rest = self._fill({name: f"{{{name}}}" for name in self.fields})
        start = 0 if self.train_on_prompt else len(prompt)
        whole = f"{prompt}{text}{rest}<end of text>"
        line = printable(f"{whole[:start]}[{whole[start:]}]")
        each = "each message; " if self.kind == "messages" else ""
        role = f", of the role {LEARNED_ROLE}" if each and not self.train_on_prompt else ""
        return f"{line}  ({each}in brackets: learned{role})"

    def spelled(self, tokens):
        """Return those of the special tokens `tokens`, a list of str, that this template spells out for any role."""
        def texts(role):
            return ("".join(literal + {None: "", "role": role}.get(name, "\0") for literal, name in paragraph)
                    for paragraph in self._paragraphs)

        return [token for token in tokens
                if any(token in text for role in ["", *re.findall(r"\w+", token)] for text in texts(role))]

    @classmethod
    def of(cls, record, text=None, train_on_prompt=False):
        """Return the template of `text`, or else of the kind of `record`, the first one. Raises FormatError."""
        kind = _kind(record.fields)
        if text is not None and kind != "messages":
            kind = "fields"
        if kind is None:
            known = "; ".join(quoted(names) for names in KINDS.values())
            raise FormatError(f"{record.where}: its fields are {quoted(record.fields) or 'none'}; expected those of a "
                              f"kind ({known}), or a template that names others")
        return cls(kind, text, train_on_prompt)

    def document(self, record):
        """Return the Document of a record. Raises FormatError if the record is not of the template's kind."""
        where, fields = record
        kind = _kind(fields)
        if self.kind in KINDS and kind not in (self.kind, None):
            raise FormatError(f"{where}: a record with {quoted(KINDS[kind])}, but the records before have "
                              f"{quoted(KINDS[self.kind])}; expected one kind")
        if self.kind == "messages":
            segments, key = self._of_messages(where, read_messages(where, fields))
        else:
            segments, key = self._of_fields(where, fields)
        if self.train_on_prompt:
            segments = [(text, True) for text, _ in segments]
        return Document(where, segments, key)

    def prompt(self, record):
        """Return what a model trained with this template is given, so that it answers a record: list of Text and END.

        The record may lack the answer, which is the last field or the last message of the assistant. A template of one
        field has no prompt: there the record holds the beginning of the text. Raises FormatError.
        """
        where, fields = record
        if self.kind == "messages":
            asked = read_messages(where, fields)
            asked = asked[:-1] if asked and asked[-1].role == LEARNED_ROLE else asked
            segments, _ = self._of_messages(where, [*asked, Message(where, LEARNED_ROLE, "", ANSWER)])
        else:
            values = {name: _optional(where, fields, name) for name in self.fields[:-1]}
            if not values:
                before, text, _ = self._fill({self.fields[0]: text_under(where, fields, self.fields[0])})
                return [Text.join([before, text])]
            segments, _ = self._of_fields(where, values | {self.fields[-1]: ANSWER})
        return [text for text, _ in segments[:-2]]  # the last two are the answer and the end of text

    def _of_fields(self, where, fields):
        """Return (segments, key) of a record with a text under each name."""
        values = {name: _optional(where, fields, name) for name in self.fields}
        last = values[self.fields[-1]]
        if is_blank(last):
            return [], ""
        prompt, text, rest = self._fill(values)
        if isinstance(last, Stream):
            segments = [(prompt, False), (text, True), (rest, True), (END, True)]
            return [segment for segment in segments if segment[0] != ""], ""
        asked = [value for name, value in values.items() if name != self.fields[-1]]
        return [*_divided(prompt, [text, rest]), (END, True)], "\0".join(asked or [last])

    def _of_messages(self, where, messages):
        """Return (segments, key) of a record with these Messages."""
        segments, asked, key = [], Text(), []
        for i, message in enumerate(messages):
            values = message._asdict()
            prompt, text, rest = self._fill(values)
            if re.fullmatch(r"\w+", message.role) and not _more_ends(f"{prompt}{rest}", self.text):
                values["role"] = Text.literal(message.role)
                prompt, text, rest = self._fill(values)
            asked = Text.join([asked, prompt.between(len(prompt) - len(prompt.lstrip())) if i == 0 else prompt])
            if values["role"] == LEARNED_ROLE:
                segments += [*_divided(asked, [text, rest]), (END, True)]
                asked = Text()
            else:
                asked = Text.join([asked, text, rest])
                key += [] if segments else [values["content"]]
        if asked and not self.train_on_prompt:
            raise FormatError(f"{where}: the last message has the role {message.role!r}; expected "
                              f"{LEARNED_ROLE!r}, whose content is learned")
        return segments + ([(asked, True), (END, True)] if asked else []), "\0".join(key)

    def _fill(self, values):
        """Return the text before the last field, the field's value, and the text after it."""
        texts, last = [], 0
        for paragraph in self._paragraphs:
            names = [name for _, name in paragraph if name is not None]
            if names and all(is_blank(values[name]) for name in names):
                continue
            for literal, name in [("\n\n", None), *paragraph]:
                texts += [Text.literal(literal)] if name is None else [Text.literal(literal), values[name]]
                last = last if name is None else len(texts) - 1
        return Text.join(texts[1:last]), texts[last], Text.join(texts[last + 1:])


def _more_ends(text, template):
    """Tell whether the text spells more ends of text than the template."""
    return text.count(END_OF_TEXT) > template.count(END_OF_TEXT)


def _parsed(text):
    """Return [(literal, name of a field or None), ...]. Raises ValueError."""
    parts = list(string.Formatter().parse(text))
    for _, name, spec, conversion in parts:
        if name is not None and (not name or spec or conversion):
            raise ValueError("a field has a name and nothing else")
    return [(literal, name) for literal, name, _, _ in parts]


def _divided(prompt, learned):
    """Return the segments of a prompt and the learned texts after it; spaces at the prompt's end go to the latter."""
    n = len(prompt.rstrip(" "))
    return [*([(prompt.between(0, n), False)] if n else []), (Text.join([prompt.between(n), *learned]), True)]


def _kind(fields):
    """Return the kind of a record, or None if its fields fit none of KINDS."""
    if has_messages(fields):
        return "messages"
    return next((kind for kind, needed in KINDS.items() if all(name in fields for name in needed)), None)


def _optional(where, fields, name):
    """Return the text under `name`; blank if it is missing but optional."""
    return "" if name in OPTIONAL and fields.get(name) is None else text_under(where, fields, name)

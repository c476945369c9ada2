"""What generate continues: a text, or the prompt that a template makes of a record without its answer."""

import argparse
import sys
from typing import NamedTuple

import numpy as np

from npgpt import data
from npgpt.commands.flags import unescaped
from npgpt.data import END, Record, Template
from npgpt.data.templates import KINDS, OPTIONAL, TEMPLATES
from npgpt.files.tokenizer import END_OF_TEXT
from npgpt.runtime.encodings import decoded
from npgpt.runtime.errors import ConfigError, FileError, FormatError, NpgptError

NO_TEMPLATE = ("give --template, or an --adapter beside which finetune saved its template, or records that have "
               + " or ".join(names[0] for names in KINDS.values()))


class Prompt(NamedTuple):
    """text: str, to show; ids: int64 (T,); about: dict, what --json adds."""

    text: str
    ids: np.ndarray
    about: dict


# Text


def read_text(args):
    """Return the text of --prompt, --prompt-file or standard input. A file loses one line end at its end, which editors
    add."""
    if args.prompt not in (None, "-"):
        return args.prompt
    source = args.prompt_file or "standard input"
    try:
        text = decoded(args.prompt_file.read_bytes() if args.prompt_file else sys.stdin.buffer.read())
    except OSError as error:
        raise FileError(f"cannot read {source}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{source} is not {error.encoding.upper()} text: {error.reason} at byte {error.start}; save "
                          "it as UTF-8") from error
    text = text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n")
    if not text:
        raise ConfigError(f"the prompt from {source} is empty: give --prompt, or text in a file or on standard input")
    return text


def of_text(text, template, tokenizer):
    """Return the Prompt of a text: the text itself, or what the template makes of it as its only field."""
    if template is None:
        return Prompt(text, tokenizer.encode(text), {})
    return of_record(Record("--prompt", {_only_field(template, "--prompt"): text}), template, tokenizer)


def _only_field(template, what):
    """Return the field of a template that a text fills: the only one before the answer. Raises NpgptError."""
    names = [name for name in dict.fromkeys(template.fields[:-1] or template.fields) if name not in OPTIONAL]
    if template.kind == "messages" or len(names) != 1:
        raise NpgptError(f"{what} gives one text, but the template has {', '.join(map(repr, names))}: give each by "
                         "--field NAME=TEXT, or records by --records")
    return names[0]


# Records


def template_of(args, recipes):
    """Return the Template for --field and --records: of --template, or else of the adapters; None: there is none.

    recipes  the data.Recipe of each adapter, None for an adapter without one
    """
    if args.template is not None:
        messages = all(field in args.template for field in ("{role}", "{content}"))
        return Template("messages" if messages else "fields", args.template)
    known = list({recipe.template: recipe for recipe in recipes if recipe is not None}.values())
    if len(known) > 1:
        raise NpgptError("the adapters were trained with different templates: give --template, or one --adapter")
    return known[0].made() if known else None


def of_records(args, template, tokenizer, special_tokens):
    """Yield the Prompt of the record in --field, or of each record in --records."""
    if args.field:
        yield of_record(Record("--field", dict(args.field)), template, tokenizer, special_tokens)
        return
    for record in data.read_records(args.records):
        where, fields = record
        made = template or _default(record)
        if fields.keys() == {"text"} and "text" not in made.fields:  # a line of plain text
            record = Record(where, {_only_field(made, where): fields["text"]})
        yield of_record(record, made, tokenizer, special_tokens, {"record": fields})


def of_record(record, template, tokenizer, special_tokens=False, about=None):
    """Return the Prompt of a record: what the template has before the answer. Raises FormatError."""
    template = template or _default(record)
    texts = template.prompt(record)
    ids = data.encode_prompt(tokenizer, texts, not special_tokens) if texts else []
    if not len(ids):
        raise FormatError(f"{record.where}: its prompt is empty")
    return Prompt("".join(END_OF_TEXT if text is END else text for text in texts), ids, about or {})


def _default(record):
    """Return the Template of the first kind that a record fits, if an answer is added to it. Raises FormatError."""
    for kind in KINDS:
        if kind in record.fields or (kind == "messages" and "conversations" in record.fields):
            return Template(kind, TEMPLATES[kind])
    names = ", ".join(map(repr, record.fields))
    raise FormatError(f"{record.where}: no template for its fields {names}: {NO_TEMPLATE}")


def field(text):
    """Return (name, value) of NAME=TEXT, as --field takes it."""
    name, sign, value = text.partition("=")
    if not sign or not name:
        raise argparse.ArgumentTypeError(f"{text!r}: expected NAME=TEXT, such as question='Who?'")
    return name, unescaped(value)

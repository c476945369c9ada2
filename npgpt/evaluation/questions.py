"""Questions with known answers: LAMBADA, multiple choice, label words, and free answers."""

import hashlib
import json
import math
import re
from typing import NamedTuple

import numpy as np

from npgpt.data import Text, encode_prompt
from npgpt.evaluation import evaluate
from npgpt.evaluation.items import mean_score
from npgpt.evaluation.pairs import encode_pair
from npgpt.evaluation.tasks import LikelihoodTask, Measure, Task
from npgpt.generation.generate import before_stop, generate_batch
from npgpt.runtime.errors import ConfigError, FormatError

TOGETHER = 32  # prompts in a batch


# Answered by likelihood


class LastWord(LikelihoodTask):
    """LAMBADA: does the model predict the last word of a passage? items: (passage without the word, the word).

    accuracy     percentage of passages in which every token of the last word is the likeliest
    perplexity   e^(mean over passages of -log p of the last word, the sum over its tokens)

    Both are the same as in lm-evaluation-harness's lambada_openai, which gives 32.56 % and 40.06 for gpt2 (its issue
    2159). The GPT-2 paper has 45.99 % and 35.13, with a filter that forbids stop words as last words.
    Source    Paperno et al. 2016.
    """

    def __init__(self, tokenizer, items, split_special_tokens=True):
        self.items = items
        self._pairs = [encode_pair(tokenizer, context, word, split_special_tokens) for context, word in items]
        self.measures = {
            "accuracy": Measure(lambda records: _mean([100 * record["greedy"] for record in records]), mean_score),
            "perplexity": Measure(lambda records: _mean([record["nll"] for record in records]),
                                  lambda sums: evaluate.exponential(mean_score(sums))),
        }

    def windows(self, i, context):
        return [evaluate.continuation(*self._pairs[i], context)]

    def record(self, i, losses):
        [(nll, greedy)] = losses
        return {"nll": float(nll.sum()), "greedy": bool(greedy.all())}


class Question(NamedTuple):
    """context: str; choices: list of str, each of which continues the context; label: index of the right choice."""

    context: str
    choices: list
    label: int


class MultipleChoice(LikelihoodTask):
    """Which of several continuations is the likeliest? items: Questions.

    The model chooses the continuation with the smallest value of:
    accuracy                      -log p of the whole continuation
    accuracy, by characters       -log p / characters: lm-evaluation-harness's acc_norm
    accuracy, by tokens           -log p / tokens, as llm.c scores HellaSwag

    On HellaSwag, lm-evaluation-harness gives gpt2 28.92 and 31.14 %, with the same text as `read_questions` makes.
    """

    def __init__(self, tokenizer, items, split_special_tokens=True):
        self.items = items
        self._pairs = [[encode_pair(tokenizer, question.context, choice, split_special_tokens)
                        for choice in question.choices] for question in items]
        self.measures = {
            "accuracy": Measure(lambda records: self._right(records, lambda i: 1), mean_score),
            "accuracy, by characters": Measure(lambda records: self._right(records, self._characters), mean_score),
            "accuracy, by tokens": Measure(lambda records: self._right(records, self._tokens), mean_score),
        }

    def windows(self, i, context):
        return [evaluate.continuation(*pair, context) for pair in self._pairs[i]]

    def record(self, _i, losses):
        return {"nll": [float(nll.sum()) for nll, _ in losses]}

    def _characters(self, i):
        return [max(1, len(choice.removeprefix(" "))) for choice in self.items[i].choices]

    def _tokens(self, i):
        return [len(ids) for _, ids in self._pairs[i]]

    def _right(self, records, divisor):
        chosen = [int(np.argmin(np.divide(record["nll"], divisor(i)))) for i, record in enumerate(records)]
        return _mean([100 * (choice == question.label) for choice, question in zip(chosen, self.items, strict=True)])


class Classification(MultipleChoice):
    """Which of a fixed set of label words comes next? items: Questions with the same choices.

    accuracy    percentage of right answers
    macro-F1    mean over labels of 2 right / (times answered + times true), in percent, without the labels that are
                neither answered nor true
    """

    def __init__(self, tokenizer, items, split_special_tokens=True):
        super().__init__(tokenizer, items, split_special_tokens)
        self.measures = {"accuracy": self.measures["accuracy"], "macro-F1": Measure(self._confusion, _macro_f1)}

    def _confusion(self, records):
        """Return (n, L^2): for each item a flat (L, L) with a 1 at row = label, column = choice."""
        L = len(self.items[0].choices)
        cells = [question.label * L + int(np.argmin(record["nll"]))
                 for question, record in zip(self.items, records, strict=True)]
        return np.eye(L * L)[cells]


def _macro_f1(sums):
    confusion = sums.reshape(math.isqrt(sums.size), -1)
    given_and_true = confusion.sum(axis=0) + confusion.sum(axis=1)
    present = given_and_true > 0
    return float(np.mean(200 * confusion.diagonal()[present] / given_and_true[present]))


def _mean(values):
    """Return values (n,) as rows (n, 2) for `mean_score`."""
    return np.stack([np.asarray(values, np.float64), np.ones(len(values))], axis=1)


# Free answers


class Prompt(NamedTuple):
    """text: list of str, Text and END, the model's input; references: list of str, the right answers."""

    text: list
    references: list


class Answers(Task):
    """What does the model write after a prompt, by greedy decoding? items: Prompts.

    measures         dict name -> (rows(outputs, references), score), such as `metrics.METRICS`
    max_new_tokens   an answer ends after this many tokens, or earlier at an end of text
    stop             an answer also ends before this text; None: no such text
    """

    def __init__(self, tokenizer, items, measures, max_new_tokens=64, stop=None, split_special_tokens=True):
        self.items, self._tokenizer, self._new = items, tokenizer, max_new_tokens
        self._prompts = [encode_prompt(tokenizer, item.text, split_special_tokens) for item in items]
        self._stops = [stop] if stop else []
        self.measures = {name: Measure(lambda records, rows=rows: self._rows(records, rows), score)
                         for name, (rows, score) in measures.items()}

    def _rows(self, records, rows):
        return rows([record["output"] for record in records], [prompt.references for prompt in self.items])

    def key(self, i):
        asked = json.dumps([self._prompts[i].tolist(), self._new, self._stops])
        return hashlib.sha256(asked.encode()).hexdigest()[:16]

    def groups(self, _model):
        """Return the groups, the shortest prompts first."""
        order = sorted(range(len(self.items)), key=lambda i: len(self._prompts[i]))
        return [order[start:start + TOGETHER] for start in range(0, len(order), TOGETHER)]

    def records(self, model, group):
        prompts = [self._prompts[i] for i in group]
        texts = answers(model, self._tokenizer, prompts, self._new, self._stops, temperature=0)
        return [{"output": text.strip(), "references": self.items[i].references}
                for i, text in zip(group, texts, strict=True)]


def answers(model, tokenizer, prompts, max_new_tokens, stops=(), **sampling):
    """Return what the model writes after each prompt: list of str.

    prompts  list of arrays of ids; if a prompt leaves no room for max_new_tokens, only its end is read
    stops    an answer ends before the first of these texts, or at an end of text
    """
    room = model.config.n_positions - max_new_tokens
    if room < 1:
        raise ConfigError(f"max_new_tokens = {max_new_tokens} leaves no room for a prompt in this model's context of "
                          f"{model.config.n_positions}; ask for fewer tokens")
    prompts = [prompt[-room:] for prompt in prompts]
    out = generate_batch(model, prompts, max_new_tokens, eos_id=tokenizer.end_ids, stop_strings=list(stops),
                         tokenizer=tokenizer, **sampling)
    new = [ids[len(prompt):] for ids, prompt in zip(out, prompts, strict=True)]
    return [before_stop(tokenizer.decode(ids[~np.isin(ids, tokenizer.end_ids)]), stops)[0] for ids in new]


# Files


def read_passages(records):
    """LAMBADA's records -> items of `LastWord`. The last word begins after the last space of "text"."""
    items = []
    for where, fields in records:
        context, space, word = _text(where, fields, "text").rpartition(" ")
        if not context or not word:
            raise FormatError(f'{where}: its "text" does not end in a space and a word; expected a passage of several '
                              "words")
        items.append((context, space + word))
    return items


def read_questions(records):
    """HellaSwag's records, or {"context": "...", "choices": ["...", ...], "label": 0} -> Questions.

    For HellaSwag, the context is "activity_label: ctx_a ctx_b", where ctx_b begins with a capital letter, and WikiHow's
    marks ("[title]" and others in brackets) are removed, as in lm-evaluation-harness. Other records keep their text as
    it is. A space separates context and choice.
    """
    items = []
    for where, fields in records:
        if "endings" in fields:
            parts = [_text(where, fields, name) for name in ("activity_label", "ctx_a", "ctx_b")]
            context, name = _cleaned(f"{parts[0]}: {parts[1]} {parts[2].capitalize()}"), "endings"
        else:
            context, name = _text(where, fields, "context"), "choices"
        choices = fields.get(name)
        if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(choice, str) for choice in choices):
            raise FormatError(f'{where}: no "{name}" with at least two texts; expected {{"context": "...", "choices": '
                              '["...", "..."], "label": 0}')
        label = str(fields.get("label"))
        if not label.isdecimal() or int(label) >= len(choices):
            raise FormatError(f'{where}: its "label" is {label}; expected the number of the right choice, from 0 to '
                              f"{len(choices) - 1}")
        choices = [_cleaned(choice) for choice in choices] if name == "endings" else choices
        items.append(Question(context, [f" {choice}" for choice in choices], int(label)))
    return items


def _cleaned(text):
    """Return the text without WikiHow's marks. Source: the task hellaswag of lm-evaluation-harness."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def read_labelled(records, template="{text}\nLabel:", labels=None):
    """Records with a "text" and a "label" -> Questions: the filled template, then a space and a label word.

    template  str with the field {text}; a special token that is spelled out in it is read as that token
    labels    the label words; None: the labels of the records, sorted
    """
    found = [(where, _text(where, fields, "text"), _text(where, fields, "label")) for where, fields in records]
    labels = sorted({label for _, _, label in found}) if labels is None else list(labels)
    if len(labels) < 2:
        raise ConfigError(f"the labels are {', '.join(labels)}: expected at least two")
    for where, _, label in found:
        if label not in labels:
            raise FormatError(f"{where}: its label is {label!r}; expected one of {', '.join(labels)}")
    fields = set(re.findall(r"\{(\w+)\}", template))
    if fields != {"text"}:
        raise ConfigError(f"template {template!r} has the fields {sorted(fields)}: it must have {{text}} and no other")
    literals = [Text.literal(part) for part in template.split("{text}")]
    return [Question(Text.join([literals[0], *(part for literal in literals[1:] for part in (text, literal))]),
                     [f" {word}" for word in labels], labels.index(label)) for _, text, label in found]


def read_prompts(documents):
    """Documents (see `npgpt.data.Documents`) -> Prompts.

    The last part with loss is the answer; the parts before it are its prompt. Answers to the same prompt become the
    references of one item.
    """
    prompts = {}
    for where, segments, _ in documents:
        if not segments:  # a blank record
            continue
        learned = [i for i, (text, learn) in enumerate(segments) if learn and isinstance(text, str)]
        if not learned or not segments[:learned[-1]]:
            raise FormatError(f'{where}: no prompt before an answer; expected {{"prompt": "...", "completion": '
                              '"..."}, or a text with a separator between prompt and answer')
        asked = tuple(text for text, _ in segments[:learned[-1]])
        prompts.setdefault(asked, []).append(segments[learned[-1]][0].strip())
    return [Prompt(list(asked), references) for asked, references in prompts.items()]


def _text(where, fields, name):
    if not isinstance(fields.get(name), str):
        raise FormatError(f'{where}: "{name}" is missing or not a text; expected "{name}": "..."')
    return fields[name]

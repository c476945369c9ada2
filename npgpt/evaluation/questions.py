"""Questions with known answers: LAMBADA, multiple choice, label words, and answers in the model's own words."""

import hashlib
import json
import math
import re
from typing import NamedTuple

import numpy as np

from npgpt.data import Text, encode_prompt
from npgpt.evaluation import evaluate
from npgpt.evaluation.items import mean_score
from npgpt.evaluation.tasks import LikelihoodTask, Measure, Task
from npgpt.generation.generate import before_stop, generate_batch
from npgpt.runtime.errors import ConfigError, FormatError

TOGETHER = 32  # prompts answered at a time


# Answered by likelihood


def encode_pair(tokenizer, context, continuation, split_special_tokens=True):
    """Return (ids of the context, ids of the continuation), each at least one.

    The two are encoded together and cut where the context alone ends; white space that ends the context belongs to the
    continuation, as GPT-2's tokens begin with it. An empty context is an end-of-text id. Special tokens spelled out are
    plain text, but for those in the context's literals (`npgpt.data.Text`), unless split_special_tokens is False.
    Source    lm-evaluation-harness.
    """
    n = len(context.rstrip())
    asked = Text.join([context]).between(0, n)
    ids = encode_prompt(tokenizer, [asked], split_special_tokens) if asked else np.array([tokenizer.eos_id])
    whole = encode_prompt(tokenizer, [Text.join([context, continuation])], split_special_tokens)
    return ids, whole[len(ids):] if asked else whole


class LastWord(LikelihoodTask):
    """LAMBADA: is the last word of a passage what the model would say? items: (passage without it, the word).

    accuracy     percent of passages whose last word's tokens are each the likeliest
    perplexity   of the last word, e^(mean -log p), all its tokens together
    As in lm-evaluation-harness's lambada_openai, of which gpt2 has 32.56 % and 40.06 (issue 2159 there). The GPT-2
    paper has 45.99 % and 35.13, with stop words kept from being last words.
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
    """context and each of the choices are str that follow each other as they are; label: which choice is right."""

    context: str
    choices: list
    label: int


class MultipleChoice(LikelihoodTask):
    """Which of several continuations is the likeliest? items: Questions.

    accuracy                      by -log p of the whole continuation
    accuracy, by characters       by -log p / characters: lm-evaluation-harness's acc_norm
    accuracy, by tokens           by -log p / tokens, as llm.c scores HellaSwag
    For HellaSwag gpt2 has 28.92 and 31.14 % in lm-evaluation-harness, whose text `read_questions` makes.
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
    """Which of a fixed set of label words follows? items: Questions with the same choices.

    accuracy    percent right
    macro-F1    the mean over labels of 2 right / (times given + times true), in percent; labels that are neither given
                nor true are left out
    """

    def __init__(self, tokenizer, items, split_special_tokens=True):
        super().__init__(tokenizer, items, split_special_tokens)
        self.measures = {"accuracy": self.measures["accuracy"], "macro-F1": Measure(self._confusion, _macro_f1)}

    def _confusion(self, records):
        """(n, L^2): a 1 where row = label, column = choice."""
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
    """Values as rows whose score is `mean_score`."""
    return np.stack([np.asarray(values, np.float64), np.ones(len(values))], axis=1)


# Answered in the model's own words


class Prompt(NamedTuple):
    """text: list of str, Text and END, what the model is given; references: list of str, the right answers."""

    text: list
    references: list


class Answers(Task):
    """What does the model write after a prompt, taking the likeliest token each time? items: Prompts.

    measures         dict of name -> (rows(outputs, references), score), as `metrics.METRICS`
    max_new_tokens   an answer ends after so many, or with an end of text
    stop             or before this text, where there is one
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
        """The shortest prompts first."""
        order = sorted(range(len(self.items)), key=lambda i: len(self._prompts[i]))
        return [order[start:start + TOGETHER] for start in range(0, len(order), TOGETHER)]

    def records(self, model, group):
        prompts = [self._prompts[i] for i in group]
        texts = answers(model, self._tokenizer, prompts, self._new, self._stops, temperature=0)
        return [{"output": text.strip(), "references": self.items[i].references}
                for i, text in zip(group, texts, strict=True)]


def answers(model, tokenizer, prompts, max_new_tokens, stops=(), **sampling):
    """Return what the model writes after each of `prompts`, lists of ids: str, up to an end of text and to the first of
    the texts `stops`. Of a prompt that leaves no room for so many tokens, the end is read."""
    room = model.config.n_positions - max_new_tokens
    if room < 1:
        raise ConfigError(f"max_new_tokens = {max_new_tokens} leaves no room for a prompt in this model's context of "
                          f"{model.config.n_positions}")
    prompts = [prompt[-room:] for prompt in prompts]
    out = generate_batch(model, prompts, max_new_tokens, eos_id=tokenizer.eos_id, stop_strings=list(stops),
                         tokenizer=tokenizer, **sampling)
    new = [ids[len(prompt):] for ids, prompt in zip(out, prompts, strict=True)]
    return [before_stop(tokenizer.decode(ids[ids != tokenizer.eos_id]), stops)[0] for ids in new]


# Files


def read_passages(records):
    """LAMBADA's records -> items of `LastWord`: the last word is what follows the last space of "text"."""
    items = []
    for where, fields in records:
        context, space, word = _text(where, fields, "text").rpartition(" ")
        if not context or not word:
            raise FormatError(f'{where}: its "text" does not end in a space and a word; expected a passage, of which '
                              "the last word is asked")
        items.append((context, space + word))
    return items


def read_questions(records):
    """HellaSwag's records, or {"context": "...", "choices": ["...", ...], "label": 0} -> Questions.

    Of HellaSwag, the question is "activity_label: ctx_a ctx_b" with ctx_b's first letter a capital, and WikiHow's marks
    ("[title]" and others in brackets) are taken out, as in lm-evaluation-harness. Elsewhere texts are taken as they
    are. A space stands between context and choice.
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
            raise FormatError(f'{where}: its "label" is {label}; expected the number of the right one of '
                              f"{len(choices)} choices, counted from 0")
        choices = [_cleaned(choice) for choice in choices] if name == "endings" else choices
        items.append(Question(context, [f" {choice}" for choice in choices], int(label)))
    return items


def _cleaned(text):
    """Source: the task hellaswag of lm-evaluation-harness."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def read_labelled(records, template="{text}\nLabel:", labels=None):
    """Records with a "text" and a "label" -> Questions: the template with the text, then a space and a label word.

    labels    the words; None: those that occur, in the order of the alphabet

    Special tokens that the template spells out are those tokens.
    """
    found = [(where, _text(where, fields, "text"), _text(where, fields, "label")) for where, fields in records]
    labels = sorted({label for _, _, label in found}) if labels is None else list(labels)
    if len(labels) < 2:
        raise ConfigError(f"labels are {', '.join(labels)}: expected at least two to choose from")
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
    """Documents -> Prompts: the last part that is learned is an answer, and what stands before it its prompt. Answers
    to the same prompt are references of one item. See `npgpt.data.Documents`."""
    prompts = {}
    for where, segments, _ in documents:
        if not segments:  # a blank record
            continue
        learned = [i for i, (text, learn) in enumerate(segments) if learn and isinstance(text, str)]
        if not learned or not segments[:learned[-1]]:
            raise FormatError(f'{where}: no prompt before an answer; expected {{"prompt": "...", "completion": '
                              '"..."}, or a separator between the two')
        asked = tuple(text for text, _ in segments[:learned[-1]])
        prompts.setdefault(asked, []).append(segments[learned[-1]][0].strip())
    return [Prompt(list(asked), references) for asked, references in prompts.items()]


def _text(where, fields, name):
    if not isinstance(fields.get(name), str):
        raise FormatError(f'{where}: no "{name}" that is a text')
    return fields[name]

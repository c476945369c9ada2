"""Evaluation tasks: what a model is asked, item by item, and the measures that come of its answers.

A task has `items`, `measures`, and `results(model, indices)`, which yields (i, record) for each item as it is done. A
record is a small dict that JSON holds; `key(i)` names item i by its content, so that a record once made is found again
in a later run. Items are run in groups that are chosen over all of them, so a record's last digits do not depend on
which records were there already. A measure turns records into rows of numbers and their sums into a score, as in
`metrics`, so that each has its interval and its test (`npgpt.evaluation.bootstrap`).
"""

import hashlib
import math
from typing import NamedTuple

import numpy as np

from npgpt.evaluation import evaluate, wikitext
from npgpt.evaluation.items import mean_score
from npgpt.runtime.errors import ConfigError

UNBOUNDED = 1 << 40  # tokens


class Measure(NamedTuple):
    """rows(records) -> (n, k), of the records of all items in their order; score(sums (k,)) -> number."""

    rows: callable
    score: callable


class Task:
    """What tasks share. A subclass says which items are run together, `groups(model)`, lists of indices, and makes the
    records of such a group, `records(model, group)`."""

    def results(self, model, indices):
        """Yield (i, record) of each of `indices`. A group is run whole where one of its items is asked for: the same
        products in the same order give each record the same bits, whichever others are asked for."""
        asked = set(indices)
        for group in self.groups(model):
            if not asked.isdisjoint(group):
                records = self.records(model, group)
                yield from ((i, record) for i, record in zip(group, records, strict=True) if i in asked)


class LikelihoodTask(Task):
    """A task that asks how likely texts are. A subclass says in which windows of at most `context` tokens,
    `windows(i, context)`, and what becomes of their losses, `record(i, [(nll, greedy), ...])`."""

    def key(self, i):
        """Names item i by what is asked: hexadecimal digits."""
        digest = hashlib.sha256(type(self).__name__.encode())
        for window in self.windows(i, UNBOUNDED):
            digest.update(window.ids.tobytes() + b"|" + window.targets.tobytes())
        return digest.hexdigest()[:16]

    def groups(self, model):
        """Those with the most tokens first."""
        windows = (self.windows(i, model.config.n_positions) for i in range(len(self.items)))
        sizes = [sum(len(window.ids) for window in several) for several in windows]
        return list(evaluate.grouped(sizes, evaluate.BATCH_TOKENS))

    def records(self, model, group):
        windows = [self.windows(i, model.config.n_positions) for i in group]
        flat = [window for several in windows for window in several]
        losses = {at: (nll, greedy) for at, nll, greedy in evaluate.window_losses(model, flat)}
        found = iter(losses[at] for at in range(len(flat)))
        return [self.record(i, [next(found) for _ in several]) for i, several in zip(group, windows, strict=True)]


# Perplexity


class Corpus(NamedTuple):
    """Texts as two kinds of sequences of ids, and what their losses are divided by.

    stream     (T,), the texts end to end
    documents  list of arrays, each an end-of-text id and then a text
    words      of the texts as they were before any detokeniser
    bytes      of the same, in UTF-8
    """

    stream: np.ndarray
    documents: list
    words: int
    bytes: int

    @classmethod
    def of_texts(cls, tokenizer, texts, split_special_tokens=True):
        """In the stream, each text is closed by an end-of-text id. See `Tokenizer.encode` for the last argument."""
        documents = [np.append(tokenizer.eos_id, tokenizer.encode(text, split_special_tokens)) for text in texts]
        return cls(np.append(np.concatenate(documents)[1:], tokenizer.eos_id), documents,
                   sum(map(wikitext.words, texts)), sum(len(text.encode()) for text in texts))

    @classmethod
    def of_wikitext(cls, tokenizer, text, limit=None, split_special_tokens=True):
        """A WikiText file: in the stream as Hugging Face joins it, its pages as documents and detokenised."""
        pages = wikitext.pages(text)[:limit]
        stream = wikitext.joined(text if limit is None else "\n".join(pages))
        documents = [np.append(tokenizer.eos_id, tokenizer.encode(wikitext.detokenise(page), split_special_tokens))
                     for page in pages]
        return cls(tokenizer.encode(stream, split_special_tokens), documents, sum(map(wikitext.words, pages)),
                   sum(len(page.encode()) for page in pages))


class Perplexity(LikelihoodTask):
    """Perplexity of a Corpus by some of the protocols of `npgpt.evaluation.evaluate`.

    The items are windows. One that serves two protocols, as those of `disjoint` do `strided` where the stride divides
    the context, is run once. For each protocol, `tokens` says how many its text has, `predicted` how many of them are
    predicted, and `windows_of` in how many windows.
    `context` is at most the model's. Raises ConfigError where there is nothing to predict.
    """

    PROTOCOLS = ("disjoint", "strided", "document")

    def __init__(self, corpus, protocols, context, stride):
        self._sequences = [corpus.stream, *corpus.documents]
        spans = {
            "disjoint": lambda: [(0, *span) for span in evaluate.stream_spans(len(corpus.stream), context)],
            "strided": lambda: [(0, *span) for span in evaluate.stream_spans(len(corpus.stream), context, stride)],
            "document": lambda: [(d, *span) for d, ids in enumerate(corpus.documents, start=1)
                                 for span in evaluate.document_spans(len(ids), context)],
        }
        self._firsts, self.measures = {}, {}
        self.tokens, self.predicted, self.windows_of = {}, {}, {}  # of each protocol
        for protocol in protocols:
            found = spans[protocol]()
            for d, start, end, first in found:
                self._firsts.setdefault((d, start, end), {})[protocol] = first
            self.windows_of[protocol] = len(found)
            self.predicted[protocol] = sum(end - first for _, _, end, first in found)
            self.tokens[protocol] = (sum(len(ids) - 1 for ids in corpus.documents) if protocol == "document"
                                     else len(corpus.stream))
            self.measures |= _measures(protocol, self.tokens[protocol], corpus)
            if not found:
                raise ConfigError("nothing to predict: the text is a single token")
        self.items = list(self._firsts)

    def windows(self, i, _context):
        d, start, end = self.items[i]
        return [evaluate.window(self._sequences[d], start, end)]

    def key(self, i):
        start, firsts = self.items[i][1], self._firsts[self.items[i]]
        return super().key(i) + "".join(f" {protocol} {first - start}" for protocol, first in firsts.items())

    def record(self, i, losses):
        _, start, end = self.items[i]
        [(nll, _)] = losses
        sums = {protocol: evaluate.counted(nll, (start, end, first))
                for protocol, first in self._firsts[self.items[i]].items()}
        return {protocol: [float(total), targets] for protocol, (total, targets) in sums.items()}


def _measures(protocol, tokens, corpus):
    """The losses of a protocol, by token, word and byte.

    Tokens that are not predicted are charged at the mean of those that are, so that the loss of the whole text is what
    is divided by its words or bytes.
    """
    def rows(records):
        return np.array([record[protocol] for record in records if protocol in record])

    def per(units):
        return lambda sums: evaluate.exponential(mean_score(sums) * tokens / units)

    return {
        f"{protocol}: nats per token": Measure(rows, mean_score),
        f"{protocol}: perplexity per token": Measure(rows, per(tokens)),
        f"{protocol}: perplexity per word": Measure(rows, per(corpus.words)),
        f"{protocol}: perplexity per byte": Measure(rows, per(corpus.bytes)),
        f"{protocol}: bits per byte": Measure(
            rows, lambda sums: mean_score(sums) * tokens / corpus.bytes / math.log(2)),
    }

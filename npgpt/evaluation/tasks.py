"""Evaluation tasks: the items that a model is asked, and the measures of its answers.

A task has `items`, `measures`, and `results(model, indices)`, which yields (i, record) when item i is done. A record
is a small dict that JSON can hold. `key(i)` names item i by its content, so that a later run finds its record again.
The items run in groups. The groups depend on all items, so that the last digits of a record do not depend on which
records exist already. A measure turns records into rows of numbers, and their sums into a score, as in `items`. So
each measure has its interval and its test (`bootstrap`).
"""

import hashlib
import itertools
import math
from typing import NamedTuple

import numpy as np

from npgpt.batch import NO_TARGET
from npgpt.data import END, Stream, encode, encode_prompt
from npgpt.evaluation import evaluate, wikitext
from npgpt.evaluation.items import mean_score
from npgpt.runtime.errors import ConfigError

UNBOUNDED = 1 << 40  # tokens


class Measure(NamedTuple):
    """rows(records of all items, in their order) -> (n, k); score(sums of the rows (k,)) -> number."""

    rows: callable
    score: callable


class Task:
    """What all tasks share. A subclass has two methods: `groups(model)` returns lists of indices of items that run
    together, and `records(model, group)` returns the records of such a group."""

    def results(self, model, indices):
        """Yield (i, record) for each of `indices`.

        If one item of a group is asked for, the whole group runs. So the same products run in the same order, and a
        record has the same bits whichever other items are asked for.
        """
        asked = set(indices)
        for group in self.groups(model):
            if not asked.isdisjoint(group):
                records = self.records(model, group)
                yield from ((i, record) for i, record in zip(group, records, strict=True) if i in asked)


class LikelihoodTask(Task):
    """A task that asks how likely texts are. A subclass has two methods: `windows(i, context)` returns the windows of
    item i, of at most `context` tokens, and `record(i, [(nll, greedy), ...])` makes the record from their losses."""

    def key(self, i):
        """Return a name of item i, made from its windows: hexadecimal digits."""
        digest = hashlib.sha256(type(self).__name__.encode())
        for window in self.windows(i, UNBOUNDED):
            digest.update(window.ids.tobytes() + b"|" + window.targets.tobytes())
        return digest.hexdigest()[:16]

    def groups(self, model):
        """Return the groups, the items with the most tokens first."""
        windows = (self.windows(i, model.config.n_positions) for i in range(len(self.items)))
        sizes = [sum(len(window.ids) for window in several) for several in windows]
        return list(evaluate.group_by_tokens(sizes, evaluate.BATCH_TOKENS))

    def records(self, model, group):
        windows = [self.windows(i, model.config.n_positions) for i in group]
        flat = [window for several in windows for window in several]
        losses = {at: (nll, greedy) for at, nll, greedy in evaluate.window_losses(model, flat)}
        found = iter(losses[at] for at in range(len(flat)))
        return [self.record(i, [next(found) for _ in several]) for i, several in zip(group, windows, strict=True)]


# Perplexity


class Corpus(NamedTuple):
    """Texts as ids, in two forms, and the numbers that divide their losses.

    stream     (T,), all texts end to end
    documents  list of arrays: an end-of-text id, then the ids of one text
    words      number of words in the texts, before any detokeniser
    bytes      number of bytes in the same texts, in UTF-8
    learned    `data.Sequences` of the same texts, with masks of what a training learns; None: not known
    """

    stream: np.ndarray
    documents: list
    words: int
    bytes: int
    learned: object = None

    @classmethod
    def of_texts(cls, tokenizer, texts, split_special_tokens=True):
        """Make a Corpus. In the stream, an end-of-text id follows each text.

        split_special_tokens  see `Tokenizer.encode`
        """
        documents = [np.append(tokenizer.eos_id, *tokenizer.encode_batch([text], split_special_tokens))
                     for text in texts]
        return cls(np.append(np.concatenate(documents)[1:], tokenizer.eos_id), documents,
                   sum(map(wikitext.words, texts)), sum(len(text.encode()) for text in texts))

    @classmethod
    def of_documents(cls, tokenizer, documents, max_length, split_special_tokens=True, limit=None):
        """Make a Corpus of documents (see `data.Documents`), without the blank ones.

        max_length  of a learned sequence, as for `data.encode`
        limit       use only the first documents; None: use all
        """
        held = list(itertools.islice(filter(None, map(_in_memory, documents)), limit))
        texts = [[text for text, _ in document.segments[:-1]] for document in held]  # the last is the end of text
        spelled = ["".join("" if text is END else text for text in parts) for parts in texts]
        start = len(tokenizer.start_ids)
        ids = [np.append(tokenizer.eos_id, encode_prompt(tokenizer, parts, split_special_tokens)[start:])
               for parts in texts]
        if not ids:
            raise ConfigError("nothing to predict: all texts are blank")
        learned, _ = encode(tokenizer, held, max_length, 0.0, split_special_tokens)
        return cls(np.append(np.concatenate(ids)[1:], tokenizer.eos_id), ids, sum(map(wikitext.words, spelled)),
                   sum(len(text.encode()) for text in spelled), learned.sequences)

    @classmethod
    def of_wikitext(cls, tokenizer, text, limit=None, split_special_tokens=True):
        """Make a Corpus of a WikiText file. The stream joins its lines as Hugging Face does; the documents are its
        pages, detokenised.

        limit  use only the first pages; None: use all
        """
        pages = wikitext.pages(text)[:limit]
        stream = wikitext.joined(text if limit is None else "\n".join(pages))
        documents = [np.append(tokenizer.eos_id, *tokenizer.encode_batch([text], split_special_tokens))
                     for text in map(wikitext.detokenise, pages)]
        return cls(tokenizer.encode(stream, split_special_tokens), documents, sum(map(wikitext.words, pages)),
                   sum(len(page.encode()) for page in pages))


def _in_memory(document):
    """Return the document with each Stream as one text, or None if it is blank."""
    segments = [("".join(text) if isinstance(text, Stream) else text, learn) for text, learn in document.segments]
    return document._replace(segments=segments) if segments else None


class Perplexity(LikelihoodTask):
    """Perplexity of a Corpus by some of the protocols of `evaluate`.

    The items are windows. A window that two protocols need runs once: if the stride divides the context, `strided`
    needs all windows of `disjoint`. Three dicts have an entry for each protocol: `tokens`, the tokens of its text;
    `predicted`, the predicted tokens; and `windows_of`, its windows. `context` must not be longer than the model's.
    Raises ConfigError if there is nothing to predict.
    """

    PROTOCOLS = ("disjoint", "strided", "document", "completion")

    def __init__(self, corpus, protocols, context, stride):
        self._sequences, self._learned = [corpus.stream, *corpus.documents], corpus.learned
        of_texts = len(self._sequences)  # from this number on, they are those of `learned`
        spans = {
            "disjoint": lambda: [(0, *span) for span in evaluate.stream_spans(len(corpus.stream), context)],
            "strided": lambda: [(0, *span) for span in evaluate.stream_spans(len(corpus.stream), context, stride)],
            "document": lambda: [(d, *span) for d, ids in enumerate(corpus.documents, start=1)
                                 for span in evaluate.document_spans(len(ids), context)],
            "completion": lambda: [(of_texts + i, 0, int(length), 1) for i, length in enumerate(self._learned.lengths)],
        }
        self._firsts, self.measures = {}, {}
        self.tokens, self.predicted, self.windows_of = {}, {}, {}  # protocol -> number
        for protocol in protocols:
            found = spans[protocol]()
            for d, start, end, first in found:
                self._firsts.setdefault((d, start, end), {})[protocol] = first
            self.windows_of[protocol] = len(found)
            self.predicted[protocol] = (sum(end - first for _, _, end, first in found) if protocol != "completion" else
                                        sum(int(mask[1:].sum()) for mask in self._learned.loss_masks))
            self.tokens[protocol] = {"document": sum(len(ids) - 1 for ids in corpus.documents),
                                     "completion": self.predicted[protocol]}.get(protocol, len(corpus.stream))
            self.measures |= _measures(protocol, self.tokens[protocol], corpus)
            if not found:
                raise ConfigError("nothing to predict: the text has a single token; give a longer text")
        self.items = list(self._firsts)

    def windows(self, i, _context):
        d, start, end = self.items[i]
        if d < len(self._sequences):
            return [evaluate.window(self._sequences[d], start, end)]
        ids, mask = (values[d - len(self._sequences)] for values in (self._learned, self._learned.loss_masks))
        return [evaluate.Window(ids[:-1], np.where(mask[1:], ids[1:], NO_TARGET))]

    def key(self, i):
        start, firsts = self.items[i][1], self._firsts[self.items[i]]
        return super().key(i) + "".join(f" {protocol} {first - start}" for protocol, first in firsts.items())

    def record(self, i, losses):
        _, start, end = self.items[i]
        [(nll, _)] = losses
        sums = {protocol: evaluate.sum_of_counted(nll, (start, end, first))
                for protocol, first in self._firsts[self.items[i]].items()}
        return {protocol: [float(total), targets] for protocol, (total, targets) in sums.items()}


def _measures(protocol, tokens, corpus):
    """Return the measures of a protocol: its loss per token, word and byte.

    A token that is not predicted counts with the mean loss of the predicted tokens. So the words or bytes of the whole
    text divide the loss of the whole text.
    """
    def rows(records):
        return np.array([record[protocol] for record in records if protocol in record])

    def per(units):
        return lambda sums: evaluate.exponential(mean_score(sums) * tokens / units)

    measures = {
        f"{protocol}: nats per token": Measure(rows, mean_score),
        f"{protocol}: perplexity per token": Measure(rows, per(tokens)),
    }
    if protocol == "completion":  # which is of a part of the text's words
        return measures
    return measures | {
        f"{protocol}: perplexity per word": Measure(rows, per(corpus.words)),
        f"{protocol}: perplexity per byte": Measure(rows, per(corpus.bytes)),
        f"{protocol}: bits per byte": Measure(
            rows, lambda sums: mean_score(sums) * tokens / corpus.bytes / math.log(2)),
    }

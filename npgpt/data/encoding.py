"""Documents to sequences of ids with loss masks, in a file: memory does not grow with the data."""

import array
import contextlib
import functools
import hashlib
import os
import re
import tempfile
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from npgpt.batch import Batch
from npgpt.data.readers import Stream
from npgpt.data.templates import END, Document
from npgpt.runtime.errors import ConfigError, FileError

AT_ONCE = 1 << 18  # characters handed to the tokenizer together, for it to spread over the cores


class Slices(Sequence):
    """Parts of one long array, which may lie in a file; indexing reads one of them."""

    def __init__(self, values, starts, lengths, dtype):
        self._values, self._starts, self._lengths, self._dtype = values, starts, lengths, dtype

    def __len__(self):
        return len(self._lengths)

    def __getitem__(self, i):
        start, length = self._starts[i], self._lengths[i]
        return self._values[start:start + length].astype(self._dtype)


class Sequences(Slices):
    """Sequences of ids, each with a loss mask. Indexing gives the ids of one, int64 (T,).

    ids         (A,) unsigned integers, one text after another
    learned     (A,) uint8, 1 where the token, as a target, carries loss
    starts      (S,) int64, where in them each sequence begins; sequences may overlap
    lengths     (S,) int64
    loss_masks  the sequences' masks, each uint8 (T,)
    """

    def __init__(self, ids, learned, starts, lengths):
        super().__init__(ids, starts, lengths, np.int64)
        self.lengths = lengths
        self.loss_masks = Slices(learned, starts, lengths, np.uint8)

    @classmethod
    def of(cls, sequences, loss_masks=None):
        """Make them of lists of arrays, as `Batch.from_sequences` takes them."""
        masks = loss_masks or [np.ones(len(sequence)) for sequence in sequences]
        lengths = np.array([len(sequence) for sequence in sequences], np.int64)
        return cls(np.concatenate(sequences), np.concatenate(masks), np.cumsum(lengths) - lengths, lengths)

    def missing(self, ids):
        """Return those of `ids` that occur nowhere in the texts that the sequences are of."""
        left = set(ids)
        for start in range(0, len(self._values), AT_ONCE):
            if not left:
                break
            left -= set(np.unique(self._values[start:start + AT_ONCE]).tolist())
        return [i for i in ids if i in left]

    def batch(self, indices):
        """Return the Batch of the sequences `indices`, in this order."""
        return Batch.from_sequences([self[i] for i in indices], [self.loss_masks[i] for i in indices])


class Encoded(NamedTuple):
    """Documents as sequences, and what became of them."""

    sequences: Sequences  # of 2 to max_length ids, with something to learn in each
    texts: int    # how many documents went in; a stream counts as one to train on, whatever of it is held out
    tokens: int   # their ids, each end of text counted, those that open a later block not counted again
    targets: int  # how many ids are learned: marked so, and predicted
    split: int    # how many documents were too long for one sequence
    cut: int      # how many ids are in no sequence
    blank: int    # how many further documents had nothing to learn in them
    ended: int    # how many documents end in an end of text that is learned
    spelled: int  # how many special tokens are spelled out in them, and were taken for plain text
    highest: int  # the largest id
    fingerprint: str  # 64 hexadecimal digits, of the ids, the masks and the cuts


def encode(tokenizer, documents, max_length, val_fraction=0.0, split_special_tokens=True):
    """Return (Encoded to train on, Encoded held out), of sequences of at most `max_length` ids.

    documents     iterable of Document, each done with before the next is taken
    val_fraction  how much is held out, in [0, 1): a hash of its key says whether a document is, so that others come and
                  go without moving it; of a text that is a Stream, a hash of its ids says so of each block
    split_special_tokens  True: special tokens spelled out are plain text, but for those in a Text's literals. False:
                  each is its token wherever it stands

    A document is one sequence where it fits. A longer one is cut into blocks, each of which opens with the last id of
    the block before: a sequence of L ids predicts its last L - 1, so every id but the document's first is a target
    once, and none is lost at a cut. Of a prompt that such a document opens with, the end is kept: as much as leaves
    room for the rest, and at least half a sequence; later blocks go on without it. A block in which nothing is learned
    is left out. The ids that so come to be in no sequence are counted. A text that ends with an end of text gets no
    second one.

    The ids lie in a temporary file without a name (in TMPDIR), which goes when nothing uses it any more.
    Raises ConfigError for an unusable max_length or val_fraction, FileError where the file cannot be written.
    """
    if max_length < 2:
        raise ConfigError(f"max_length is {max_length}, expected at least 2: one id to predict from and one to predict")
    if not 0 <= val_fraction < 1:
        raise ConfigError(f"val_fraction is {val_fraction}, expected a number of at least 0 and less than 1")
    reader = _Reader(tokenizer, split_special_tokens)
    with _Writer(reader, tokenizer.eos_id, max_length, val_fraction) as writer:
        for group in _groups(documents):
            ids_of_texts = reader.ids([text for document in group for text, _ in document.segments
                                       if isinstance(text, str)])
            for document in group:
                writer.add(document, ids_of_texts)
        return writer.result()


def encode_texts(tokenizer, texts, max_length):
    """Return `texts`, all of which is learned, as Encoded; see `encode`."""
    documents = (Document(f"text {i}", [(text, True), (END, True)], text) for i, text in enumerate(texts))
    return encode(tokenizer, documents, max_length)[0]


def encode_prompt(tokenizer, texts, split_special_tokens=True):
    """Return the ids of texts one behind the other, str, Text or END, as `encode` has them: int64 (T,)."""
    ids = _Reader(tokenizer, split_special_tokens).ids([text for text in texts if text is not END])
    return np.concatenate([[tokenizer.eos_id] if text is END else next(ids)[0] for text in texts]).astype(np.int64)


class _Reader:
    """Turns texts into ids: what is plain text by the tokenizer, special tokens in literals into themselves."""

    def __init__(self, tokenizer, split_special_tokens):
        self._encode = functools.partial(tokenizer.encode_batch, split_special_tokens=split_special_tokens)
        self._special, self._split = tokenizer.special_tokens, split_special_tokens
        longest_first = sorted(self._special, key=len, reverse=True)
        self._spelled = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def ids(self, texts):
        """Yield (ids, how many special tokens are spelled out in them as plain text) of each of `texts`."""
        cut = [self._cut(text) for text in texts]
        ids = iter(self._encode([plain for parts in cut for plain in parts[::2]]))
        for parts in cut:
            spelled = sum(len(self._spelled.findall(plain)) for plain in parts[::2]) if self._split else 0
            found = [[self._special[part]] if i % 2 else next(ids) for i, part in enumerate(parts)]
            yield np.concatenate(found) if len(found) > 1 else found[0], spelled

    def _cut(self, text):
        """Return [plain text, special token, plain text, ...]: the tokens are those in its literals."""
        parts, at = [], 0
        for begin, end in getattr(text, "literals", ()):
            for token in self._spelled.finditer(text, begin, end):
                parts += [text[at:token.start()], token[0]]
                at = token.end()
        return [*parts, text[at:]]


def _groups(documents):
    """Yield lists of documents with about AT_ONCE characters; one with a Stream closes its list."""
    group, size = [], 0
    for document in documents:
        group.append(document)
        size += sum(AT_ONCE if isinstance(text, Stream) else len(text or "") for text, _ in document.segments)
        if size >= AT_ONCE:
            yield group
            group, size = [], 0
    yield group


class _Writer:
    """Writes ids and masks into two files, and keeps where the sequences of either side are."""

    def __init__(self, reader, eos_id, max_length, val_fraction):
        self._reader, self._max_length, self._val_fraction = reader, max_length, val_fraction
        self._eos_id, self._end = eos_id, (np.array([eos_id]), 0)
        self._size = self._highest = 0
        self._hashes = hashlib.sha256(), hashlib.sha256()
        self._sides = _Side(), _Side()

    def __enter__(self):
        with _writing():
            self._ids, self._learned = tempfile.TemporaryFile(), tempfile.TemporaryFile()
        return self

    def __exit__(self, *_):
        with _writing(), self._ids, self._learned:  # which closes them, after a last write; what is mapped stays mapped
            pass

    def add(self, document, ids_of_texts):
        """Write one document. ids_of_texts: iterator that gives of each of its texts what `_Reader.ids` does."""
        start, held, prompt, spelled, last = self._size, [], None, 0, None
        streamed = any(isinstance(text, Stream) for text, _ in document.segments)
        for text, learned in document.segments:
            if learned and prompt is None:
                prompt = self._size - start
            if isinstance(text, Stream):
                parts = (part for piece in text for part in self._reader.ids([piece]))
            elif text is END:
                parts = [self._end] if last != self._eos_id else []
            else:
                parts = [next(ids_of_texts)]
            for ids, found in parts:
                spelled, last = spelled + found, ids[-1] if len(ids) else last
                ids, mask = ids.astype(np.uint32), np.full(len(ids), learned, np.uint8)
                held += [] if streamed else [(ids, mask)]
                self._write(ids, mask)
        n = self._size - start
        if n < 2:
            self._sides[0].blank += 1
        elif streamed:
            self._cut_up(start, n, prompt, lambda begin, end: self._read(start + begin, start + end), None, spelled)
        else:
            ids, mask = (np.concatenate(parts) for parts in zip(*held, strict=True))
            self._cut_up(start, n, prompt, lambda begin, end: (ids[begin:end], mask[begin:end]), document.key.encode(),
                         spelled)

    def _cut_up(self, start, n, prompt, read, key, spelled):
        """Note the sequences of a document: n ids from `start` on, of which the first `prompt` are not learned.

        read     read(begin, end) -> (ids, mask) of a part of the document
        key      bytes that decide its side; None: the ids of each sequence decide the sequence's
        spelled  how many special tokens are spelled out in it
        """
        long = n > self._max_length
        first = max(0, prompt - max(self._max_length - (n - prompt), self._max_length // 2)) if long else 0
        own = side = self._sides[key is not None and self._is_held_out(key)]
        covered, cut = first, n
        for begin in range(first, n - 1, self._max_length - 1):
            end = min(begin + self._max_length, n)
            ids, mask = read(begin, end)
            targets = int(np.count_nonzero(mask[1:]))
            if targets:
                side = own if key is not None else self._sides[self._is_held_out(ids.tobytes())]
                side.starts.append(start + begin)
                side.lengths.append(end - begin)
                side.targets += targets
                side.tokens += end - max(begin, covered)
                side.ended += end == n and ids[-1] == self._eos_id and mask[-1] == 1
                cut -= end - max(begin, covered)
                covered = end
        own.texts += 1
        own.split += long
        own.tokens += cut
        own.cut += cut
        own.spelled += spelled

    def result(self):
        """Return (Encoded to train on, Encoded held out)."""
        with _writing():
            self._ids.flush()
            self._learned.flush()
            ids = np.memmap(self._ids, np.uint32, "r") if self._size else np.empty(0, np.uint32)
            learned = np.memmap(self._learned, np.uint8, "r") if self._size else np.empty(0, np.uint8)
        return tuple(side.encoded(ids, learned, int(self._highest), self._hashes) for side in self._sides)

    def _write(self, ids, mask):
        self._size += len(ids)
        self._highest = max(self._highest, ids.max(initial=0))
        for values, file, written in zip((ids, mask), (self._ids, self._learned), self._hashes, strict=True):
            written.update(values)
            with _writing():
                file.write(values)

    def _read(self, begin, end):
        with _writing():
            self._ids.flush()
            self._learned.flush()
            return (np.frombuffer(os.pread(self._ids.fileno(), 4 * (end - begin), 4 * begin), np.uint32),
                    np.frombuffer(os.pread(self._learned.fileno(), end - begin, begin), np.uint8))

    def _is_held_out(self, key):
        return int.from_bytes(hashlib.sha256(key).digest()[:8], "big") < self._val_fraction * 2**64


class _Side:
    """What an Encoded is made of, while it grows."""

    def __init__(self):
        self.starts, self.lengths = array.array("q"), array.array("q")
        self.texts = self.tokens = self.targets = self.split = self.cut = self.blank = self.ended = self.spelled = 0

    def encoded(self, ids, learned, highest, written):
        starts, lengths = np.array(self.starts), np.array(self.lengths)
        fingerprint = hashlib.sha256(b"".join([*(each.digest() for each in written), starts, lengths]))
        return Encoded(Sequences(ids, learned, starts, lengths), self.texts, self.tokens, self.targets, self.split,
                       self.cut, self.blank, self.ended, self.spelled, highest, fingerprint.hexdigest())


@contextlib.contextmanager
def _writing():
    try:
        yield
    except OSError as error:
        raise FileError(f"cannot write the tokens into a temporary file: {error.strerror or error}; TMPDIR names "
                        "another folder for it") from error

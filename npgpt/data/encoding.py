"""Documents to sequences of ids with loss masks. They lie in a file, so memory does not grow with the data."""

import array
import contextlib
import functools
import hashlib
import os
import re
import tempfile

import numpy as np

from npgpt.data.readers import Stream
from npgpt.data.sequences import Encoded, Sequences
from npgpt.data.templates import END, Document
from npgpt.runtime.errors import ConfigError, FileError

START = object()  # stands for the ids that begin every text, in a list of segments
AT_ONCE = 1 << 18  # characters that the tokenizer gets together, so that it can use all cores


def encode(tokenizer, documents, max_length, val_fraction=0.0, split_special_tokens=True):
    """Return (Encoded to train on, Encoded held out), with sequences of at most `max_length` ids.

    documents     iterable of Document; each is finished before the next is read
    val_fraction  the held-out fraction, in [0, 1). A hash of a document's key decides whether it is held out, so that
                  other documents do not change this. For a text that is a Stream, a hash of each block's ids decides
    split_special_tokens  True: a special token that is spelled out is plain text, except in a Text's literals. False:
                  it is the special token everywhere

    A document that fits is one sequence. A longer one is cut into blocks, and each block begins with the last id of the
    block before. A sequence of L ids predicts its last L - 1 ids, so every id but the document's first is a target
    once, and no target is lost at a cut. If a long document begins with a prompt, the end of the prompt is kept: as
    much as leaves room for the rest, and at least half a sequence. Later blocks do not repeat the prompt. A block with
    nothing to learn is left out. All ids that are in no sequence are counted. A text that ends with an end of text gets
    no second one.

    The ids lie in a temporary file without a name (in TMPDIR), which disappears when nothing uses it any more.
    Raises ConfigError for an unusable max_length or val_fraction, FileError if the file cannot be written.
    """
    if max_length < 2:
        raise ConfigError(f"max_length is {max_length}, expected at least 2: one id to predict from and one to predict")
    if not 0 <= val_fraction < 1:
        raise ConfigError(f"val_fraction is {val_fraction}, expected at least 0 and less than 1")
    reader = _Reader(tokenizer, split_special_tokens)
    with _Writer(reader, tokenizer, max_length, val_fraction) as writer:
        for group in _groups(documents):
            ids_of_texts = reader.ids([text for document in group for text, _ in document.segments
                                       if isinstance(text, str)])
            for document in group:
                writer.add(document, ids_of_texts)
        return writer.result()


def encode_texts(tokenizer, texts, max_length):
    """Return `texts` as Encoded, with all of each text learned; see `encode`."""
    documents = (Document(f"text {i}", [(text, True), (END, True)], text) for i, text in enumerate(texts))
    return encode(tokenizer, documents, max_length)[0]


def encode_prompt(tokenizer, texts, split_special_tokens=True):
    """Return the ids of `texts` (str, Text or END) end to end, the same as from `encode`: int64 (T,)."""
    ids = _Reader(tokenizer, split_special_tokens).ids([text for text in texts if text is not END])
    found = [[tokenizer.eos_id] if text is END else next(ids)[0] for text in texts]
    return np.concatenate([tokenizer.start_ids, *found]).astype(np.int64)


def is_held_out(key, val_fraction):
    """Tell whether a document with this key (bytes) belongs to the held-out fraction."""
    return int.from_bytes(hashlib.sha256(key).digest()[:8], "big") < val_fraction * 2**64


class _Reader:
    """Turns texts into ids. Special tokens in literals become their ids; the tokenizer does the rest, plain text."""

    def __init__(self, tokenizer, split_special_tokens):
        self._encode = functools.partial(tokenizer.encode_batch, split_special_tokens=split_special_tokens)
        self._special, self._split = tokenizer.special_tokens, split_special_tokens
        longest_first = sorted(self._special, key=len, reverse=True)
        self._spelled = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def ids(self, texts):
        """Yield (ids, number of special tokens that are spelled out as plain text) for each of `texts`."""
        cut = [self._cut(text) for text in texts]
        ids = iter(self._encode([plain for parts in cut for plain in parts[::2]]))
        for parts in cut:
            spelled = sum(len(self._spelled.findall(plain)) for plain in parts[::2]) if self._split else 0
            found = [[self._special[part]] if i % 2 else next(ids) for i, part in enumerate(parts)]
            yield np.concatenate(found) if len(found) > 1 else found[0], spelled

    def _cut(self, text):
        """Cut a text at the special tokens in its literals: [plain text, special token, plain text, ...]."""
        parts, at = [], 0
        for begin, end in getattr(text, "literals", ()):
            for token in self._spelled.finditer(text, begin, end):
                parts += [text[at:token.start()], token[0]]
                at = token.end()
        return [*parts, text[at:]]


def _groups(documents):
    """Yield lists of documents with about AT_ONCE characters. A document with a Stream is the last of its list."""
    group, size = [], 0
    for document in documents:
        group.append(document)
        size += sum(AT_ONCE if isinstance(text, Stream) else len(text or "") for text, _ in document.segments)
        if size >= AT_ONCE:
            yield group
            group, size = [], 0
    yield group


class _Writer:
    """Writes ids and masks into two files, and notes the sequences of both sides, to train on and held out."""

    def __init__(self, reader, tokenizer, max_length, val_fraction):
        self._reader, self._max_length, self._val_fraction = reader, max_length, val_fraction
        self._eos_id, self._end = tokenizer.eos_id, (np.array([tokenizer.eos_id]), 0)
        self._start = [(START, False)] * (len(tokenizer.start_ids) > 0), (tokenizer.start_ids, 0)
        self._size = self._highest = 0
        self._hashes = hashlib.sha256(), hashlib.sha256()
        self._sides = _Side(), _Side()

    def __enter__(self):
        with _writing():
            self._ids, self._learned = tempfile.TemporaryFile(), tempfile.TemporaryFile()
        return self

    def __exit__(self, *_):
        with _writing(), self._ids, self._learned:  # closes them, after a last write; maps of them stay
            pass

    def add(self, document, ids_of_texts):
        """Write one document. ids_of_texts: iterator of what `_Reader.ids` yields for its texts."""
        start, held, prompt, spelled, last = self._size, [], None, 0, None
        streamed = any(isinstance(text, Stream) for text, _ in document.segments)
        for text, learned in [*self._start[0], *document.segments]:
            if learned and prompt is None:
                prompt = self._size - start
            if isinstance(text, Stream):
                parts = (part for piece in text for part in self._reader.ids([piece]))
            elif text is START:
                parts = [self._start[1]]
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
        """Note the sequences of a document of n ids, which begins at `start`; its first `prompt` ids are not learned.

        read     read(begin, end) -> (ids, mask) of a part of the document
        key      bytes that decide the document's side; None: each sequence's ids decide the side of the sequence
        spelled  number of special tokens that the document spells out
        """
        long = n > self._max_length
        first = max(0, prompt - max(self._max_length - (n - prompt), self._max_length // 2)) if long else 0
        own = side = self._sides[key is not None and is_held_out(key, self._val_fraction)]
        covered, cut = first, n
        for begin in range(first, n - 1, self._max_length - 1):
            end = min(begin + self._max_length, n)
            ids, mask = read(begin, end)
            targets = int(np.count_nonzero(mask[1:]))
            if targets:
                side = own if key is not None else self._sides[is_held_out(ids.tobytes(), self._val_fraction)]
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


class _Side:
    """The parts of an Encoded while it grows."""

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
    """Turn an OSError inside this block into a FileError."""
    try:
        yield
    except OSError as error:
        raise FileError(f"cannot write the tokens into a temporary file: {error.strerror or error}; set TMPDIR to "
                        "another folder") from error

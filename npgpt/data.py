"""Texts from files, cut into sequences of ids, in a seeded order."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from npgpt.errors import ConfigError, FileError, FormatError
from npgpt.seeding import generator


def read_texts(path):
    """Return the texts in the file `path`, a non-empty list of non-blank str.

    A `.jsonl` file holds one JSON object a line, its text under "text"; any other file is UTF-8 text, one document a
    line. Blank lines and blank texts are skipped; a byte-order mark and white space at a line's end are dropped.
    Raises FileError (missing, unreadable) or FormatError, which names the line as path:line.
    """
    path = Path(path)
    parse = _json_text if path.suffix.lower() == ".jsonl" else str.rstrip
    texts = []
    for number, line in enumerate(_read(path).split("\n"), start=1):
        if line.strip():
            try:
                text = parse(line)
            except ValueError as error:
                raise FormatError(f"{path}:{number}: {error}") from error
            if text.strip():
                texts.append(text)
    if not texts:
        raise FormatError(f"{path} holds no text: expected at least one line that is not blank")
    return texts


def _read(path):
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        number = error.object.count(b"\n", 0, error.start) + 1
        raise FormatError(f"{path}:{number}: not UTF-8 text: {error.reason}") from error


def _json_text(line):
    """Return the text of one line of JSONL; ValueError says what is wrong with the line and what would be right."""
    try:
        text = json.loads(line)["text"]
        text.encode()  # JSON can spell half of a surrogate pair, which no tokenizer takes
        return text
    except KeyError:
        reason = 'no "text"'
    except (TypeError, AttributeError):
        reason = 'not an object, or its "text" is not a string'
    except RecursionError:
        reason = "nested too deeply"
    except UnicodeEncodeError:
        reason = 'its "text" is not valid Unicode'
    except ValueError as error:
        reason = f"not valid JSON: {getattr(error, 'msg', error)}"
    raise ValueError(f'{reason}; expected {{"text": "..."}}')


class Encoded(NamedTuple):
    """Texts as sequences of ids, and what became of them."""

    sequences: list  # of int64 arrays of 2 to max_length ids
    texts: int  # how many went in
    tokens: int  # their ids, each end-of-text counted, those that open a later block not counted again
    split: int  # how many texts were too long for one sequence

    @property
    def targets(self):
        """How many ids are predicted: all but the first of each sequence, hence all but the first of each text."""
        return sum(len(sequence) - 1 for sequence in self.sequences)


def encode_texts(tokenizer, texts, max_length):
    """Return `texts` as `Encoded` sequences of at most `max_length` ids, each text closed by the end-of-text id.

    A longer text is cut into blocks, each of which opens with the last id of the block before: a sequence of L ids
    predicts its last L - 1, so every id but a text's first is a target exactly once, and none is lost at a cut.
    A text without a single id would have nothing to predict, and gives no sequence.
    Raises ConfigError for max_length < 2, where nothing could be predicted.
    """
    if max_length < 2:
        raise ConfigError(f"max_length is {max_length}, expected at least 2: one id to predict from and one to predict")
    sequences, tokens, split = [], 0, 0
    for text in texts:
        ids = np.append(tokenizer.encode(text), tokenizer.eos_id)
        sequences += [ids[start : start + max_length] for start in range(0, len(ids) - 1, max_length - 1)]
        tokens += len(ids)
        split += len(ids) > max_length
    return Encoded(sequences, len(texts), tokens, split)


def batches(n, batch_size, seed, epoch):
    """Return the batches of an epoch: a list of int64 index arrays that together hold 0 .. n-1, each once, shuffled.

    Every batch has `batch_size` indices but the last, which has what is left. The order depends on n, seed and epoch
    alone, so a resumed run finds its place by counting. Raises ConfigError for batch_size < 1.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}, expected at least 1")
    order = generator(seed, "order", epoch).permutation(n)
    return [order[start : start + batch_size] for start in range(0, n, batch_size)]

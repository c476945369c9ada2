"""Sequences of ids with loss masks, which may lie in a file, and the result of encoding documents: an Encoded."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from npgpt.batch import Batch

AT_ONCE = 1 << 18  # ids that `missing` looks at together


class Slices(Sequence):
    """Parts of one long array, which may lie in a file. Indexing reads one part."""

    def __init__(self, values, starts, lengths, dtype):
        self._values, self._starts, self._lengths, self._dtype = values, starts, lengths, dtype

    def __len__(self):
        return len(self._lengths)

    def __getitem__(self, i):
        start, length = self._starts[i], self._lengths[i]
        return self._values[start:start + length].astype(self._dtype)


class Sequences(Slices):
    """Sequences of ids, each with a loss mask. Indexing gives the ids of one sequence, int64 (T,).

    ids         (A,) unsigned integers, one text after another
    learned     (A,) uint8, 1 for a token that carries loss as a target
    starts      (S,) int64, the place in `ids` at which each sequence begins; sequences may overlap
    lengths     (S,) int64
    loss_masks  the sequences' masks, each uint8 (T,)
    """

    def __init__(self, ids, learned, starts, lengths):
        super().__init__(ids, starts, lengths, np.int64)
        self.lengths = lengths
        self.loss_masks = Slices(learned, starts, lengths, np.uint8)

    @classmethod
    def of(cls, sequences, loss_masks=None):
        """Make Sequences from lists of arrays, as for `Batch.from_sequences`."""
        masks = loss_masks or [np.ones(len(sequence)) for sequence in sequences]
        lengths = np.array([len(sequence) for sequence in sequences], np.int64)
        return cls(np.concatenate(sequences), np.concatenate(masks), np.cumsum(lengths) - lengths, lengths)

    def missing(self, ids):
        """Return those of `ids` that occur nowhere in the texts of the sequences."""
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
    """Documents as sequences, with counts of what happened to them."""

    sequences: Sequences  # of 2 to max_length ids, each with something to learn
    texts: int    # documents in them; a stream counts as one document to train on, even if parts are held out
    tokens: int   # ids of the documents with their ends of text; the first id of a later block is not counted again
    targets: int  # ids that are learned: marked as such, and predicted
    split: int    # documents that were too long for one sequence
    cut: int      # ids that are in no sequence
    blank: int    # further documents, with nothing to learn in them
    ended: int    # documents that end with a learned end of text
    spelled: int  # special tokens that the documents spell out, and that became plain text
    highest: int  # the largest id
    fingerprint: str  # 64 hexadecimal digits, made of the ids, the masks and the cuts

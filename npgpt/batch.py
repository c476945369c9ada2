"""A batch: sequences laid end to end, with what each token should predict."""

import dataclasses
import itertools

import numpy as np

from npgpt.runtime.errors import ConfigError

NO_TARGET = -100  # the field's mark for a row that carries no loss


@dataclasses.dataclass(frozen=True)
class Batch:
    """B sequences, N tokens in all. There is no padding, and so nothing to mask.

    ids      (N,) int64, the sequences one after another
    targets  (N,) int64, the token each row should predict, or -100
    lengths  (B,) int64, summing to N
    """

    ids: np.ndarray
    targets: np.ndarray
    lengths: np.ndarray

    @classmethod
    def from_sequences(cls, sequences, loss_masks=None):
        """Let each sequence predict its own next tokens; the last row of each has no target.

        sequences   list of integer arrays, none empty
        loss_masks  list of 0/1 arrays of the same lengths, or None for all 1; a token is a target, and so carries loss,
                    if its mask is 1. The first token of a sequence is never a target.
        Raises ConfigError, naming the sequence.
        """
        if loss_masks is not None and len(loss_masks) != len(sequences):
            raise ConfigError(f"{len(loss_masks)} loss masks for {len(sequences)} sequences: give one for each")
        if len(sequences) == 0:
            raise ConfigError("a batch needs at least one sequence")
        ids, targets = [], []
        for i, sequence in enumerate(sequences):
            sequence = np.asarray(sequence)
            if sequence.ndim != 1 or sequence.size == 0 or sequence.dtype.kind not in "iu":
                raise ConfigError(f"sequence {i} has shape {sequence.shape}, {sequence.dtype}: it must be a 1-d array "
                                  "of integers with at least one token")
            following = np.append(sequence[1:], NO_TARGET).astype(np.int64)
            if loss_masks is not None:
                mask = np.asarray(loss_masks[i])
                if mask.shape != sequence.shape:
                    raise ConfigError(f"loss mask {i} has shape {mask.shape} for a sequence of {len(sequence)} tokens")
                following[:-1][mask[1:] == 0] = NO_TARGET
            ids.append(sequence.astype(np.int64))
            targets.append(following)
        lengths = np.array([len(sequence) for sequence in ids], np.int64)
        return cls(np.concatenate(ids), np.concatenate(targets), lengths)

    @property
    def n_targets(self):
        """How many rows carry loss."""
        return int(np.count_nonzero(self.targets != NO_TARGET))

    def split(self, parts):
        """Cut into at most `parts` batches of whole sequences, with about equal numbers of tokens: each cut is at the
        end of the sequence that is nearest to the cut of equal parts."""
        ends = np.cumsum(self.lengths)
        goals = ends[-1] * np.arange(1, parts) / parts
        halfway = (ends[:-2] + ends[1:-1]) / 2  # between two ends of sequences
        cuts = np.unique(np.searchsorted(halfway, goals) + 1)
        cuts = [0, *cuts[cuts < len(ends)].tolist(), len(ends)]
        edges = np.concatenate([[0], ends])
        return [Batch(self.ids[edges[a]:edges[b]], self.targets[edges[a]:edges[b]], self.lengths[a:b])
                for a, b in itertools.pairwise(cuts)]

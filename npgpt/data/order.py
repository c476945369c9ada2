"""The order of the data: which sequences each step sees."""

import numpy as np

from npgpt.runtime.errors import ConfigError
from npgpt.runtime.seeding import generator


class Order:
    """The sequences of each step. Every epoch takes each sequence once, in its own order.

    The sequences of a step depend only on all sequences' lengths, the seed and the step's number. So a resumed run
    finds its place by counting.
    """

    def __init__(self, lengths, seed, batch_size, batch_tokens=None):
        """Plan for sequences of these lengths.

        batch_size    sequences in a step; the last step of an epoch may have fewer
        batch_tokens  tokens in a step, instead of batch_size: an epoch is cut, between sequences, into steps of about
                      equal size, and into as few as possible with at most batch_tokens on average

        Raises ConfigError if batch_tokens is less than the longest sequence.
        """
        self._lengths, self._seed, self._batch_size = np.asarray(lengths), seed, batch_size
        n, self._tokens = len(self._lengths), int(np.sum(lengths))
        longest = max(lengths, default=0)
        if batch_tokens is not None and batch_tokens < longest:
            raise ConfigError(f"batch_tokens = {batch_tokens}: it must be at least {longest}, the length of the "
                              "longest sequence")
        self._by_tokens = batch_tokens is not None
        self.steps_per_epoch = -(-self._tokens // batch_tokens) if self._by_tokens else -(-n // batch_size)
        self._epoch = self._permutation = self._edges = None

    def __getitem__(self, step):
        """Return the indices of a step's sequences, int64. Steps are numbered from 0 through all epochs."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._epoch != epoch:
            self._permutation = generator(self._seed, "order", epoch).permutation(len(self._lengths))
            self._edges = self._cut(self._lengths[self._permutation])
            self._epoch = epoch
        return _balanced(self._permutation[self._edges[place]:self._edges[place + 1]], self._lengths)

    def _cut(self, lengths):
        """Return the edges of an epoch's steps, in sequences of these lengths: step i is edges[i] to edges[i + 1]."""
        n, steps = len(lengths), self.steps_per_epoch
        if not self._by_tokens:
            return np.minimum(np.arange(steps + 1) * self._batch_size, n)
        ends = np.cumsum(lengths)
        goals = self._tokens * np.arange(1, steps) / steps
        nearest = np.searchsorted((ends[:-1] + ends[1:]) / 2, goals) + 1
        # Two goals may be nearest to the same end, but each step needs a sequence: push edges right, then back left.
        before = np.arange(1, steps)
        nearest = np.maximum.accumulate(nearest - before) + before
        nearest = np.minimum(nearest, n - steps + before)
        return np.concatenate([[0], nearest, [n]])


def _balanced(indices, lengths):
    """Order the indices so that parts with equal numbers of sequences have about equal numbers of tokens.

    If the tokens so far are at most their share, the longest remaining sequence comes next, and otherwise the shortest.
    So the tokens never differ from their share by more than one sequence.
    """
    left = indices[np.argsort(lengths[indices], kind="stable")].tolist()
    share = lengths[indices].sum() / max(len(left), 1)
    order, ahead, first = [], 0.0, 0
    while first < len(left):
        if ahead <= 0:
            order.append(left.pop())
        else:
            order.append(left[first])
            first += 1
        ahead += lengths[order[-1]] - share
    return np.array(order, np.int64)

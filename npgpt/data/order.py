"""Which sequences each step sees."""

import numpy as np

from npgpt.runtime.errors import ConfigError
from npgpt.runtime.seeding import generator


class Order:
    """The sequences of each step: every epoch takes each once, in an order of its own.

    What a step sees depends on the lengths of the sequences, the seed and the step's number alone, so a run that goes
    on finds its place by counting.
    """

    def __init__(self, lengths, seed, batch_size, batch_tokens=None):
        """Plan for sequences of these lengths.

        batch_size    sequences a step; the last of an epoch may have fewer
        batch_tokens  tokens a step instead: an epoch is cut, where sequences end, into as few steps of about equal
                      size as keep to it on average

        Raises ConfigError for fewer tokens than the longest sequence has.
        """
        self._lengths, self._seed, self._batch_size = np.asarray(lengths), seed, batch_size
        n, self._tokens = len(self._lengths), int(np.sum(lengths))
        longest = max(lengths, default=0)
        if batch_tokens is not None and batch_tokens < longest:
            raise ConfigError(f"batch_tokens = {batch_tokens}: it must be at least {longest}, as many as the longest "
                              "sequence has")
        self._by_tokens = batch_tokens is not None
        self.steps_per_epoch = -(-self._tokens // batch_tokens) if self._by_tokens else -(-n // batch_size)
        self._epoch = self._permutation = self._edges = None

    def __getitem__(self, step):
        """Return the indices of the sequences of a step, int64; steps are numbered from 0 through all epochs."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._epoch != epoch:
            self._permutation = generator(self._seed, "order", epoch).permutation(len(self._lengths))
            self._edges = self._cut(self._lengths[self._permutation])
            self._epoch = epoch
        return _balanced(self._permutation[self._edges[place]:self._edges[place + 1]], self._lengths)

    def _cut(self, lengths):
        """Return where the steps of an epoch begin and, at last, end, in sequences of these lengths."""
        n, steps = len(lengths), self.steps_per_epoch
        if not self._by_tokens:
            return np.minimum(np.arange(steps + 1) * self._batch_size, n)
        ends = np.cumsum(lengths)
        goals = self._tokens * np.arange(1, steps) / steps
        nearest = np.searchsorted((ends[:-1] + ends[1:]) / 2, goals) + 1
        # Two goals may be nearest to one end: each step has a sequence at least, pushed on from the left, then back.
        before = np.arange(1, steps)
        nearest = np.maximum.accumulate(nearest - before) + before
        nearest = np.minimum(nearest, n - steps + before)
        return np.concatenate([[0], nearest, [n]])


def _balanced(indices, lengths):
    """Return the indices so that a batch can be cut in parts of about equal numbers of tokens, wherever it is cut.

    The longest sequence comes next while the tokens so far are no more than their share, else the shortest; so they
    are never off their share by more than a sequence.
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

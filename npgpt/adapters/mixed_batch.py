"""One batch, several adapters: each sequence goes through its own."""

import contextlib
import dataclasses

import numpy as np

from npgpt.adapters.stack import disable_adapter, stacks, updates
from npgpt.autograd import Tensor, no_grad
from npgpt.runtime.errors import ConfigError


@contextlib.contextmanager
def mixed_batch(model, names, lengths=None):
    """Inside this block each sequence of a batch goes through its own adapter. For model.logits and
    model.hidden_states. Nothing is recorded. Generation and evaluation put sequences in their own order, and refuse.

    names    for each sequence, the name of an adapter, or None for the base
    lengths  (B,), tokens in each sequence; None: all are equally long, as in model.logits of (B, T)

    Raises ConfigError if the model has no such adapter, or if one of several adapters changes the head, which is used
    for all rows at once.
    """
    for name in filter(None, names):
        updates(model, name)
    found = stacks(model)
    head = found.get("lm_head")
    if head and head.adapters.keys() & set(names) and len(set(names)) > 1:
        raise ConfigError("a batch cannot mix adapters if one of them changes the head (lm_head): run each one alone")
    routes = Routes(names, lengths)
    with disable_adapter(model), no_grad():
        for stack in found.values():
            stack.routes = routes
        if head:  # its table is the same for all rows, so all sequences have the same adapter
            head.active = {name: 1 for name in set(names) & head.adapters.keys()}
        try:
            yield model
        finally:
            for stack in found.values():
                stack.routes = None


def check_not_mixed(model):
    """Raise ConfigError inside a `mixed_batch`: for code that puts sequences in its own order."""
    if any(stack.routes for stack in stacks(model).values()):
        raise ConfigError("in a mixed_batch the adapter of a sequence depends on its place in the batch, which "
                          "model.logits and model.hidden_states keep; generation and evaluation do not: run the "
                          "adapters one by one")


@dataclasses.dataclass(frozen=True)
class Routes:
    """Which adapter each row goes through. See `mixed_batch`."""

    names: list
    lengths: list | None

    def output(self, stack, layer, x, *others):
        """What the layer computes for each row of x, (N, C) or (N,), under the row's own adapter."""
        y = None
        for active, rows in self.rows(len(x.data if isinstance(x, Tensor) else x)):
            part = stack.output(active, layer, Tensor(x.data[rows]) if isinstance(x, Tensor) else x[rows], *others).data
            y = np.empty((len(rows), part.shape[1]), part.dtype) if y is None else y
            y[rows] = part
        return Tensor(y)

    def rows(self, count):
        """Yield ({name: 1} or {}, bool array (count,)): the rows of each adapter among `count` rows."""
        B = len(self.names)
        lengths = np.full(B, count // max(B, 1)) if self.lengths is None else np.asarray(self.lengths)
        if len(lengths) != B or lengths.sum() != count:
            raise ConfigError(f"{B} adapter names for {count} tokens in sequences of {lengths.tolist()}: give one name "
                              "for each sequence, and the lengths if they differ")
        sequence = np.repeat(np.arange(B), lengths)
        for name in dict.fromkeys(self.names):
            wanted = np.array([each == name for each in self.names])
            yield {} if name is None else {name: 1}, wanted[sequence]

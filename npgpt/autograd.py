"""Reverse-mode differentiation that knows no operation.

An operation computes its result with NumPy. It gives `record` three things: the result, the tensors it read, and a rule
that turns the gradient at the result into the gradients at those tensors. The records form a graph from the loss down
to the trainable leaves. `backward` walks the graph once, from the loss, and applies the chain rule in one place:

    the gradient at a tensor is the sum, over the operations that read it, of what their rules send back.

Why it is built this way:
- Gradients are returned, not stored. Nothing has to be zeroed, and threads can differentiate the same leaves at once.
- A record holds its parents' records and the arrays its rule needs, but no Tensor between leaf and loss. An activation
  that no rule needs is freed when the forward pass has used it, and there are no reference cycles.
- An operation with no trainable tensor below it records nothing.
- The graph is used once. The walk empties each record as it passes it, so memory falls while backward runs.
- The walk keeps its own stack, so a long graph meets no recursion limit.
"""

import contextlib
import threading

import numpy as np

from npgpt.runtime.errors import ConfigError


class Tensor:
    """An array and where its gradient goes.

    data       NumPy array of floats
    trainable  True for a leaf (a parameter) whose gradient `backward` returns; it may change at any time
    record     the operation that made this tensor; None for a leaf, and if nothing trainable is below
    """

    __slots__ = ("data", "record", "trainable")

    def __init__(self, data, trainable=False):
        self.data = np.asarray(data)
        self.trainable = trainable
        self.record = None

    @property
    def shape(self):
        return self.data.shape

    @property
    def dtype(self):
        return self.data.dtype

    def __repr__(self):
        return f"Tensor(shape={self.shape}, dtype={self.dtype}, trainable={self.trainable})"


class Record:
    """One operation that was done.

    name     for messages
    parents  for each input a pair: where its gradient goes (a Record, a trainable leaf Tensor, or None if it needs no
             gradient), and the shape and dtype that the gradient must have
    rule     rule(dy) -> a gradient per input
    """

    __slots__ = ("name", "parents", "rule")

    def __init__(self, name, parents, rule):
        self.name, self.parents, self.rule = name, parents, rule


_thread = threading.local()  # each thread has its own switch: see no_grad


@contextlib.contextmanager
def no_grad():
    """Record nothing inside this block (in this thread): for evaluation and generation."""
    before = getattr(_thread, "recording", True)
    _thread.recording = False
    try:
        yield
    finally:
        _thread.recording = before


def needs_grad(*tensors):
    """Tell, for each tensor, whether a gradient has to reach it. None (an absent bias) needs none."""
    recording = getattr(_thread, "recording", True)
    return tuple(recording and t is not None and (t.trainable or t.record is not None) for t in tensors)


def record(name, data, inputs, rule):
    """Return `data` as a Tensor. Remember how it was made if something below it is trainable.

    name    the operation's name, for messages
    inputs  the Tensors (or None) the operation read
    rule    rule(dy) -> a sequence of gradients, one for each input; it may have anything for an input that needs none.
            Other rules may get the same dy, so a rule never writes into it.
    """
    needed = needs_grad(*inputs)
    output = Tensor(data)
    if any(needed):
        parents = [(t.record or t, (t.shape, t.dtype)) if need else (None, None)
                   for t, need in zip(inputs, needed, strict=True)]
        output.record = Record(name, parents, rule)
    return output


def backward(output, dy=None):
    """Return the gradient of `output` at every trainable leaf it depends on: dict Tensor -> array.

    output  Tensor, a scalar unless dy is given
    dy      gradient arriving at `output`, of its shape (default 1); the result is linear in it

    The graph is then used up. Raises ConfigError if there is none: nothing is trainable, or it was used before.
    """
    root = output.record
    if root is None or root.rule is None:
        reason = "it depends on nothing trainable" if root is None else "its graph was already used"
        raise ConfigError(f"cannot differentiate {output!r}: {reason}; run the forward pass on trainable parameters")
    if dy is None:
        if output.data.size != 1:
            raise ConfigError(f"cannot differentiate {output!r} without dy: only a scalar has an implied gradient of 1")
        dy = 1.0
    if np.shape(dy) != output.shape and output.data.size != 1:
        raise ConfigError(f"dy has shape {np.shape(dy)}: a gradient arriving at {output!r} has its shape")
    gradients = {root: np.broadcast_to(np.asarray(dy, output.dtype), output.shape)}

    # How many operations read each record. Its gradient is complete when all of them have sent their part.
    readers, stack = {root: 0}, [root]
    while stack:
        for parent, _ in stack.pop().parents:
            if isinstance(parent, Record):
                if parent.rule is None:
                    raise ConfigError(f"cannot differentiate {output!r}: another backward used a part of its graph "
                                      f"({parent.name}) already; run the forward pass again")
                if parent not in readers:
                    readers[parent] = 0
                    stack.append(parent)
                readers[parent] += 1

    summed = set()  # nodes whose gradient is a sum made here: further terms can be added in place
    ready = [root]
    while ready:
        node = ready.pop()
        arriving = gradients.pop(node)
        leaving = node.rule(arriving)
        parents = node.parents
        node.rule, node.parents = None, ()  # frees what the rule saved
        for (parent, expected), gradient in zip(parents, leaving, strict=True):
            if parent is None:
                continue
            if getattr(gradient, "shape", None) != expected[0] or gradient.dtype != expected[1]:
                raise AssertionError(f"{node.name} returned a gradient of {_describe(gradient)} "
                                     f"for an input of shape {expected[0]}, {expected[1]}")
            if parent not in gradients:
                gradients[parent] = gradient
            elif parent in summed:
                gradients[parent] += gradient
            else:
                gradients[parent] = gradients[parent] + gradient
                summed.add(parent)
            if isinstance(parent, Record):
                readers[parent] -= 1
                if readers[parent] == 0:
                    ready.append(parent)
    return gradients


def _describe(gradient):
    return f"shape {gradient.shape}, {gradient.dtype}" if isinstance(gradient, np.ndarray) else repr(gradient)

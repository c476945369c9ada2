"""What an adapter does to the token table and the head when a vocabulary has grown.

PEFT has two forms of it, which go together as well:

    trainable_token_indices    rows that train, in the place of some rows of the table: TrainedRows
    save_embedding_layers      the whole table as it was under the adapter, which does not train: OnTable

Where the head is tied to the token table, both hold for the head as well: TiedRows.
"""

import copy

import numpy as np

from npgpt import ops
from npgpt.adapters.updates import Update, output
from npgpt.autograd import Tensor
from npgpt.nn import parameter


class TrainedRows(Update):
    """Rows of its own in the place of rows `indices` (K,) of a table W (V, C).

        T = index_copy(W, indices, rows),  y = T[ids]

    The rows start as W[indices]. PEFT calls them trainable_tokens_delta, though they are added to nothing.
    A look-up replaces rows of y instead, which gives the same and does not copy the table. A tied head needs all of T,
    and its gradient costs what that of a trained table costs: the logits are made twice (see `ops.cross_entropy`).
    """

    def __init__(self, config, layer, indices):
        self.config, self.indices = config, np.array(indices, np.int64)
        self.trainable_tokens_delta = parameter((len(indices), layer.weight.shape[1]), layer.weight.dtype)

    def initialise(self, layer, rng):
        self.trainable_tokens_delta.data[...] = layer.weight.data[self.indices]

    def __call__(self, layer, ids=None):
        """ids (N,) -> (N, C); without ids, as the head is used, the table (V, C)."""
        if ids is None:
            return ops.index_copy(layer.weight, self.indices, self.trainable_tokens_delta)
        order = np.argsort(self.indices)
        place = order[np.searchsorted(self.indices, ids, sorter=order).clip(max=len(order) - 1)]
        replaced = np.flatnonzero(self.indices[place] == ids)
        rows = ops.embedding(self.trainable_tokens_delta, place[replaced])
        return ops.index_copy(layer(ids), replaced, rows)

    def delta(self, layer):
        delta = np.zeros_like(layer.weight.data)
        delta[self.indices] = self.trainable_tokens_delta.data - layer.weight.data[self.indices]
        return {"weight": delta}

    def plain(self):
        return {"trainable_tokens_delta": self.trainable_tokens_delta.data}, None, None


class OnTable(Update):
    """An update of a table W that its adapter saved whole: in the place of W stands `table` (V, C), frozen.

    inner  the update of that table, or None where the table is all there is
    """

    def __init__(self, config, table, inner=None):
        self.config, self.inner = config, inner
        self.table = (Tensor(table),)  # in a tuple: it is no parameter

    def parameters(self):
        return {} if self.inner is None else self.inner.parameters()

    def _on(self, layer):
        """The layer with the saved table in it."""
        other = copy.copy(layer)
        (other.weight,) = self.table
        return other

    def __call__(self, layer, *inputs):
        return (self.inner or output)(self._on(layer), *inputs)

    def delta(self, layer):
        delta = {} if self.inner is None else self.inner.delta(self._on(layer))
        (table,) = self.table
        return {**delta, "weight": table.data - layer.weight.data + delta.get("weight", 0)}

    def plain(self):
        arrays, rank, alpha = ({}, None, None) if self.inner is None else self.inner.plain()
        between = {type(None): "", TrainedRows: "token_adapter.base_layer.", TiedRows: "token_adapter.base_layer."}
        name = between.get(type(self.inner), "base_layer.") + "weight"
        (table,) = self.table
        return {**arrays, name: table.data}, rank, alpha


class TiedRows(Update):
    """What `update` makes of the token table, for the head that is tied to it. It has no parameters of its own."""

    def __init__(self, update):
        self.config, self._update = update.config, (update,)  # in a tuple: its parameters are listed once, at the table

    @property
    def update(self):
        return self._update[0]

    def initialise(self, layer, rng):
        """Nothing: the update is initialised where it belongs."""

    def __call__(self, layer):
        return self.update(layer)

    def delta(self, layer):
        return self.update.delta(layer)

    def plain(self):
        """What PEFT writes under the head's name as well: a saved table and what lies on it, but not rows alone."""
        return self.update.plain() if isinstance(self.update, OnTable) else ({}, None, None)

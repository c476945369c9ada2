"""What an adapter does to the token table and the head, above all after the vocabulary has grown.

PEFT has two forms, which can be combined:

    trainable_token_indices    some rows of the table are replaced by rows that train: TrainedRows
    save_embedding_layers      the whole table is saved with the adapter, and does not train: OnTable

If the head is tied to the token table, both forms hold for the head as well: TiedRows.
"""

import numpy as np

from npgpt import ops
from npgpt.adapters.index_copy import index_copy
from npgpt.adapters.updates import Update, output, with_parameters
from npgpt.autograd import Tensor
from npgpt.lora import LoraLayer
from npgpt.nn import parameter


class LoraHead(LoraLayer):
    """The head with its updates. The model reads the head's weight, a table: here, the table that the adapters in force
    make of it. If the head is tied to the token table, the token table is the base layer, and is listed once in the
    model's parameters, under its own name."""

    def __init__(self, base_layer, stack, tied):
        super().__init__(base_layer, stack)
        self.tied = tied

    def parameters(self):
        found = super().parameters()
        return {name: tensor for name, tensor in found.items() if not (self.tied and name == "weight")}

    @property
    def weight(self):
        return self.update.output(self.update.active, self.base_layer)


class TrainedRows(Update):
    """Trained rows that replace the rows `indices` (K,) of a table W (V, C).

        T = index_copy(W, indices, rows),  y = T[ids]

    The rows start as W[indices]. PEFT calls them trainable_tokens_delta, although nothing adds them to anything. A
    look-up replaces rows of y instead of rows of W: this gives the same and does not copy the table. A tied head needs
    all of T, and then its gradient costs as much as that of a trained table: the logits are computed twice (see
    `ops.cross_entropy`).
    """

    def __init__(self, config, layer, indices):
        self.config, self.indices = config, np.array(indices, np.int64)
        self.trainable_tokens_delta = parameter((len(indices), layer.weight.shape[1]), layer.weight.dtype)

    def initialise(self, layer, rng):
        self.trainable_tokens_delta.data[...] = layer.weight.data[self.indices]

    def __call__(self, layer, ids=None):
        """ids (N,) -> (N, C); without ids, as for the head, the table (V, C)."""
        if ids is None:
            return index_copy(layer.weight, self.indices, self.trainable_tokens_delta)
        order = np.argsort(self.indices)
        place = order[np.searchsorted(self.indices, ids, sorter=order).clip(max=len(order) - 1)]
        replaced = np.flatnonzero(self.indices[place] == ids)
        rows = ops.embedding(self.trainable_tokens_delta, place[replaced])
        return index_copy(layer(ids), replaced, rows)

    def delta(self, layer):
        delta = np.zeros_like(layer.weight.data)
        delta[self.indices] = self.trainable_tokens_delta.data - layer.weight.data[self.indices]
        return {"weight": delta}

    def plain(self):
        return {"trainable_tokens_delta": self.trainable_tokens_delta.data}, None, None


class OnTable(Update):
    """A saved table (V, C), frozen, that replaces the layer's table, and an update of the saved table.

    inner  the update of the saved table, or None if the adapter holds the table alone
    """

    def __init__(self, config, table, inner=None):
        self.config, self.inner = config, inner
        self.table = (Tensor(table),)  # in a tuple, so that it is no parameter

    def parameters(self):
        return {} if self.inner is None else self.inner.parameters()

    def _on(self, layer):
        """The layer with the saved table in it."""
        (table,) = self.table
        return with_parameters(layer, {"weight": table})

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
    """The update of a head that is tied to the token table: what `update` does to the token table. It has no parameters
    of its own."""

    def __init__(self, update):
        self.config, self._update = update.config, (update,)  # in a tuple: the table lists the parameters, once

    @property
    def update(self):
        return self._update[0]

    def initialise(self, layer, rng):
        """Do nothing: the token table initialises the update."""

    def __call__(self, layer):
        return self.update(layer)

    def delta(self, layer):
        return self.update.delta(layer)

    def plain(self):
        """What PEFT writes under the head's name as well: a saved table and its update, but not rows alone."""
        return self.update.plain() if isinstance(self.update, OnTable) else ({}, None, None)

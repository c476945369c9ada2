"""Rows of a table, looked up by number."""

import numpy as np

from npgpt.autograd import record


def embedding(weight, ids):
    """Look up one row of the table for each id.

    Shapes    weight (V, C), ids (N,) integers in [0, V) -> y (N, C)
    Forward   y_n = weight[ids_n]: the product of one-hot rows with the table
    Backward  row v of the table reaches every y_n with ids_n = v, with slope 1:
              dweight_v = sum of dy_n over the n with ids_n = v
    Saves     ids.
    In code   a stable sort brings equal ids together, and each run of them is summed (`dweight[ids] += dy` would lose
              all but one of several equal ids; `np.add.at` is right but slower).
    """
    shape, dtype = weight.shape, weight.dtype

    def rule(dy):
        dweight = np.zeros(shape, dtype)
        order = np.argsort(ids, kind="stable")
        present, starts = np.unique(ids[order], return_index=True)
        dweight[present] = np.add.reduceat(dy[order], starts, axis=0)
        return (dweight,)

    return record("embedding", weight.data[ids], (weight,), rule)

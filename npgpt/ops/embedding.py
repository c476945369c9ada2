"""Rows of a table by number: looked up, and replaced."""

import numpy as np

from npgpt.autograd import needs_grad, record


def embedding(weight, ids):
    """Look up one row of the table for each id.

    Shapes    weight (V, C), ids (N,) integers in [0, V) -> y (N, C)
    Forward   y_n = weight[ids_n]: the product of one-hot rows with the table
    Backward  row v of the table reaches every y_n with ids_n = v, with slope 1:
              dweight_v = sum of dy_n over the n with ids_n = v
    Saves     ids.
    In code   equal ids are brought together by a stable sort and summed run by run (`dweight[ids] += dy` would lose
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


def index_copy(weight, ids, rows):
    """Return the table with some of its rows replaced.

    Shapes    weight (V, C), ids (K,) distinct integers in [0, V), rows (K, C) -> y (V, C)
    Forward   y[ids_k] = rows_k;  every other row of y is that of weight
    Backward  row v of y is either rows_k, where v = ids_k, or weight_v, with slope 1:
              drows_k = dy[ids_k];  dweight_v = dy_v, and 0 where v is one of ids
    Saves     ids.
    Source    torch.Tensor.index_copy, along dimension 0.
    """
    need_weight, need_rows = needs_grad(weight, rows)
    y = weight.data.copy()
    y[ids] = rows.data

    def rule(dy):
        dweight = dy.copy() if need_weight else None
        if need_weight:
            dweight[ids] = 0
        return dweight, dy[ids] if need_rows else None

    return record("index_copy", y, (weight, rows), rule)

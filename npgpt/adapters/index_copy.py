"""Rows of a table, replaced by others: the operation under trainable_token_indices."""

from npgpt.autograd import needs_grad, record


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

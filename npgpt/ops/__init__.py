"""The differentiable operations of a model: formula, shapes, derivation, forward and backward on one screen.

The model runs the fused operations. `primitives` has ten small operations; the tests build every fused operation again
from these ten and compare. Two rooms have operations of their own: adapters/ (DoRA, replaced rows), training/
(recomputation).

Read the files in this order. A file imports only from files above it:

    primitives.py     add, mul, matmul, sum, exp, log, tanh, reshape, transpose, take
    dropout.py        dropout, if and only if a random generator is passed
    linear.py         y = x W + b, and the same with a low-rank update (LoRA)
    layer_norm.py     layer normalisation
    activations.py    the MLP's nonlinearities: gelu_new, gelu, relu, silu
    attention.py      causal self-attention over sequences laid end to end
    embedding.py      rows of a table, looked up by number
    cross_entropy.py  the output head and the softmax cross-entropy together

This room may import from `autograd` and `runtime`.
"""

from npgpt.ops.activations import ACTIVATIONS, gelu, gelu_new, relu, silu
from npgpt.ops.attention import causal_attention
from npgpt.ops.cross_entropy import cross_entropy
from npgpt.ops.dropout import dropout
from npgpt.ops.embedding import embedding
from npgpt.ops.layer_norm import layer_norm
from npgpt.ops.linear import linear, lora_linear
from npgpt.ops.primitives import add, exp, log, matmul, mul, reshape, sum, take, tanh, transpose

__all__ = [
    "ACTIVATIONS", "add", "causal_attention", "cross_entropy", "dropout", "embedding", "exp", "gelu",
    "gelu_new", "layer_norm", "linear", "log", "lora_linear", "matmul", "mul", "relu", "reshape", "silu",
    "sum", "take", "tanh", "transpose",
]

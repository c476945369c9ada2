"""Every differentiable operation: its formula, shapes, derivation, forward and backward on one screen.

The fused operations are what the model runs; `primitives` is the small alphabet from which the tests rebuild them.
"""

from npgpt.ops.activations import ACTIVATIONS, gelu, gelu_new, relu, silu
from npgpt.ops.attention import causal_attention
from npgpt.ops.cross_entropy import cross_entropy
from npgpt.ops.dora import dora_linear
from npgpt.ops.dropout import dropout
from npgpt.ops.embedding import embedding, index_copy
from npgpt.ops.layer_norm import layer_norm
from npgpt.ops.linear import linear, lora_linear
from npgpt.ops.primitives import add, exp, log, matmul, mul, reshape, sum, take, tanh, transpose

__all__ = [
    "ACTIVATIONS", "add", "causal_attention", "cross_entropy", "dora_linear", "dropout", "embedding", "exp", "gelu",
    "gelu_new", "index_copy", "layer_norm", "linear", "log", "lora_linear", "matmul", "mul", "relu", "reshape", "silu",
    "sum", "take", "tanh", "transpose",
]

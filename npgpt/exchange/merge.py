"""A model with adapters -> a folder of plain weights, tensor by tensor, and a certificate that the two agree.

`merge_lora` makes all merged layers at once, in memory. Here only one merged layer exists at a time: it is made when
its turn comes to be written. Everything else goes directly from the base's mapped file to the new file. So merging
needs little more memory than the largest layer.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import numpy as np

from npgpt.adapters.stack import unties
from npgpt.files import checkpoint
from npgpt.files.checkpoint import cast
from npgpt.lora import adapted_layers
from npgpt.runtime.errors import ConfigError

DTYPES = ("float32", "float16")
WINDOW = 256  # tokens that both models read at once for a certificate
ROWS = 64     # of logits in float64 at a time


class Pending(NamedTuple):
    """An array that is made when NumPy asks for it; its shape and dtype are known earlier."""

    shape: tuple
    dtype: np.dtype
    make: object  # () -> array

    @property
    def nbytes(self):
        return math.prod(self.shape) * self.dtype.itemsize

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.make(), dtype)


def save_merged(model, folder, dtype="float32", max_shard_size=None):
    """Merge the active adapters of `model` into its weights, and write these as `checkpoint.write` does.

    dtype           of the numbers in the file, "float32" or "float16"; the merging uses the model's dtype
    max_shard_size  bytes of tensors in one file; None: all in one file

    The model does not change. Raises ConfigError for another dtype, FormatError if a number is too large for the dtype,
    FileError if the folder cannot be written.
    """
    config, tensors = merged_tensors(model, dtype)
    checkpoint.write(folder, config, tensors, max_shard_size)


def merged_tensors(model, dtype):
    """Return the GPT2Config and the tensors of the merged model: dict parameter name -> Pending."""
    if dtype not in DTYPES:
        raise ConfigError(f"dtype = {dtype!r}: a merged model is written in {' or '.join(DTYPES)}")
    dtype, layers = np.dtype(dtype), adapted_layers(model)
    plain, config = model.parameters(), model.config
    for module, layer in layers.items():
        for key in layer.parameters().keys() - layer.base_layer.parameters().keys():
            del plain[f"{module}.{key}"]
    if unties(model):
        config = dataclasses.replace(config, tie_word_embeddings=False)  # as merge_lora does
        plain["lm_head.weight"] = plain["wte.weight"]

    @functools.lru_cache(maxsize=1)  # a layer's weight and bias are written one after the other
    def merged(module):
        return layers[module].merged().parameters()

    def pending(name, tensor):
        module, _, key = name.rpartition(".")

        def make():
            return cast(name, (merged(module)[key] if module in layers else tensor).data, dtype, copy=False)

        return Pending(tensor.shape, dtype, make)

    return config, {name: pending(name, tensor) for name, tensor in plain.items()}


class TextLoss(NamedTuple):
    """nll: mean negative log-likelihood of a text, nats a predicted token; tokens: how many were predicted."""

    nll: float
    tokens: int

    @property
    def ppl(self):
        """Perplexity, e^nll; infinite if a float cannot hold it."""
        return math.exp(self.nll) if self.nll < 709 else math.inf


class Certificate(NamedTuple):
    """How much a merged model differs from the model with its adapters on the tokens of a text.

    difference  the largest |Δlogit|
    largest     the largest |logit| of the unmerged model
    kl          mean KL divergence of the merged model's prediction from the unmerged model's, nats a token
    unmerged    the loss of the model with its adapters
    merged      the loss of the merged model
    """

    difference: float
    largest: float
    kl: float
    unmerged: TextLoss
    merged: TextLoss

    @property
    def relative(self):
        """The largest |Δlogit|, divided by the largest |logit|."""
        return self.difference / self.largest


def certify(unmerged, merged, ids):
    """Compare two models of one vocabulary on the tokens `ids` (T,), T >= 2, in windows of 256 side by side.

    Logits are compared at every position. The first token of each window is not predicted. Sums are in float64, so even
    a divergence as small as the square of float32's rounding is measured. Raises ConfigError.
    """
    ids = np.asarray(ids)
    if ids.ndim != 1 or len(ids) < 2:
        raise ConfigError(f"ids of shape {ids.shape}: a certificate needs at least two tokens in one row")
    width = min(WINDOW, unmerged.config.n_positions)
    difference = largest = kl = 0.0
    nll, rows, targets = np.zeros(2), 0, 0
    for start in range(0, len(ids), width):
        window = ids[start : start + width]
        logits = [model.logits(window) for model in (unmerged, merged)]
        for row in range(0, len(window), ROWS):
            a, b = (each[row : row + ROWS].astype(np.float64) for each in logits)
            difference, largest = max(difference, np.abs(a - b).max()), max(largest, np.abs(a).max())
            a, b = (log_softmax(each) for each in (a, b))
            kl += (np.exp(a) * (a - b)).sum()
            following = window[row + 1 : row + ROWS + 1]
            nll -= [each[np.arange(len(following)), following].sum() for each in (a, b)]
            targets += len(following)
        rows += len(window)
    losses = (TextLoss(each / targets, targets) for each in nll.tolist())
    return Certificate(float(difference), float(largest), float(kl / rows), *losses)


def log_softmax(logits):
    """Turn logits (N, V) into log-probabilities, in the same memory."""
    logits -= logits.max(axis=1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return logits

"""A model with adapters -> a folder of plain weights, tensor by tensor, and a certificate that the two agree.

`merge_lora` makes every merged layer at once, in memory. Here the merged weight of one layer exists at a time: it is
made when it is its turn to be written. All else goes from the mapped file of the base straight into the new one, so
merging takes little more memory than the largest layer does.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import numpy as np

from npgpt.adapters.stack import unties
from npgpt.evaluation.evaluate import Perplexity
from npgpt.files import checkpoint
from npgpt.files.checkpoint import cast
from npgpt.lora import adapted_layers
from npgpt.runtime.errors import ConfigError

DTYPES = ("float32", "float16")
WINDOW = 256  # tokens that a certificate has both models read at once
ROWS = 64     # of logits in float64 at a time


class Pending(NamedTuple):
    """An array that is made when NumPy asks for it; its shape and dtype are known before."""

    shape: tuple
    dtype: np.dtype
    make: object  # () -> array

    @property
    def nbytes(self):
        return math.prod(self.shape) * self.dtype.itemsize

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.make(), dtype)


def save_merged(model, folder, dtype="float32", max_shard_size=None):
    """Write `model`, with the adapters that are in force merged into its weights, as `checkpoint.write` does.

    dtype           of the numbers in the file, "float32" or "float16"; the merging itself is done in the model's
    max_shard_size  bytes of tensors a file, or None for one file

    The model is left as it is. Raises ConfigError for another dtype, FormatError where a number is too large for it,
    FileError where the folder cannot be written.
    """
    config, tensors = merged_tensors(model, dtype)
    checkpoint.write(folder, config, tensors, max_shard_size)


def merged_tensors(model, dtype):
    """Return configuration and tensors of the plain model: a GPT2Config, and dict parameter name -> Pending."""
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

    @functools.lru_cache(maxsize=1)  # for a layer's weight and bias, which are written one after the other
    def merged(module):
        return layers[module].merged().parameters()

    def pending(name, tensor):
        module, _, key = name.rpartition(".")

        def make():
            return cast(name, (merged(module)[key] if module in layers else tensor).data, dtype, copy=False)

        return Pending(tensor.shape, dtype, make)

    return config, {name: pending(name, tensor) for name, tensor in plain.items()}


class Certificate(NamedTuple):
    """How far a merged model is from the model with its adapters, over the tokens of a text.

    difference  the largest |Δlogit|
    largest     the largest |logit| of the unmerged model
    kl          mean KL divergence of the merged model's prediction from the unmerged one's, nats a token
    unmerged    Perplexity of the text under the model with its adapters; merged, under the other
    """

    difference: float
    largest: float
    kl: float
    unmerged: Perplexity
    merged: Perplexity

    @property
    def relative(self):
        """The largest |Δlogit| as a part of the largest |logit|."""
        return self.difference / self.largest


def certify(unmerged, merged, ids):
    """Compare two models of one vocabulary on the tokens `ids` (T,), T >= 2, in windows of 256 side by side.

    Logits are compared at every position; the first token of each window is not predicted. Sums are in float64, so that
    a divergence as small as the square of float32's rounding is still seen. Raises ConfigError.
    """
    ids = np.asarray(ids)
    if ids.ndim != 1 or len(ids) < 2:
        raise ConfigError(f"ids of shape {ids.shape}: a certificate takes at least two tokens in one row")
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
    perplexities = (Perplexity(each / targets, targets) for each in nll.tolist())
    return Certificate(float(difference), float(largest), float(kl / rows), *perplexities)


def log_softmax(logits):
    """logits (N, V) -> log-probabilities (N, V), in the same memory."""
    logits -= logits.max(axis=1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return logits

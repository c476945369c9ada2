"""What a golden file holds, and the rule that its weights are drawn by. Shared by both sides; needs NumPy alone.

NAME.json is the question: versions, configuration, adapter, seed of the weights, sequences, how to train.
NAME.npz is the answer, all in float64. N tokens in all, C width, V vocabulary, L layers:
    logits (N, V), hidden (L + 1, N, C), loss ()
    gradients/PARAMETER                     of that loss, for every trainable parameter
    losses, grad_norms, learning_rates (S,) of S optimiser steps; the norms before clipping
    trained/PARAMETER                       every trainable parameter after the last step
"""

import hashlib
import json
import math
import zlib
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))


def weight(name, shape, seed):
    """Return the float64 weight of parameter `name`: uniform in (-3/8, 3/8), and 1 more for a layer norm's scale.

    Weights are drawn, not stored, so everyone has to draw the same ones. NumPy may change its distributions from one
    version to the next, but not the raw bits of PCG64, and from there on all arithmetic is exact: each weight is an
    odd multiple of 3 / 2^19. It is therefore exact in float32 too, and both precisions run the very same model. The
    standard deviation is 0.22: GPT-2's own 0.02 leaves attention nearly uniform and the activation nearly linear, which
    hides errors.
    """
    bits = np.random.PCG64([seed, zlib.crc32(name.encode())]).random_raw(math.prod(shape))
    whole = (bits >> np.uint64(48)).astype(np.float64)  # the upper 16 of 64 bits
    drawn = ((2 * whole - 65535) * (3 / 2**19)).reshape(shape)
    return 1 + drawn if name.endswith(("ln_1.weight", "ln_2.weight", "ln_f.weight")) else drawn


def digest(weights):
    """Return the SHA-256 of a dict name -> float64 array: in the order of names, each name and its array's bytes."""
    sha = hashlib.sha256()
    for name in sorted(weights):
        sha.update(name.encode())
        sha.update(np.ascontiguousarray(weights[name], "<f8").tobytes())
    return sha.hexdigest()


def read(name):
    """Return (question, answer) of a golden: the object of its .json, and the dict of arrays of its .npz."""
    question = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    with np.load(FOLDER / f"{name}.npz") as arrays:
        return question, dict(arrays)


def write(name, question, answer):
    """Write both files. The same content gives the same bytes."""
    lines = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in question.items())
    (FOLDER / f"{name}.json").write_text("{" + ",\n ".join(lines) + "}\n", encoding="utf-8")
    np.savez_compressed(FOLDER / f"{name}.npz", **answer)


def part(answer, prefix):
    """Return the arrays called `prefix`/..., under the rest of their names."""
    return {key.removeprefix(f"{prefix}/"): array for key, array in answer.items() if key.startswith(f"{prefix}/")}

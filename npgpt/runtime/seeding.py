"""Random generators by name: a seed and a purpose decide every draw in npgpt.

Nothing is stored between draws, so a run can resume at any step and gets the same draws as without the interruption.
Two purposes never share a stream, so more draws for one (the data order, say) do not change the draws for another.
"""

import zlib

import numpy as np

from npgpt.runtime.errors import ConfigError


def generator(seed, purpose, *index):
    """Return the `np.random.Generator` of this seed, purpose and index.

    seed      int >= 0
    purpose   str, what the draw is for ("dropout", "order", a parameter's name)
    index     ints >= 0 that number the draws for one purpose (step, epoch, head); one purpose always has as many

    Philox is counter-based: its state is a key and a counter, so making one costs microseconds.
    Raises ConfigError for a negative seed.
    """
    if seed < 0:
        raise ConfigError(f"seed = {seed}: it must be at least 0")
    key = np.random.SeedSequence([seed, zlib.crc32(purpose.encode()), *index])
    return np.random.Generator(np.random.Philox(key))

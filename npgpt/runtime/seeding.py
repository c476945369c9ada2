"""Random generators by name: every draw in npgpt is keyed by a seed and by what the draw is for.

Nothing is stored between draws, so a run can resume at any step and draw what it would have drawn; and two purposes
never share a stream, so changing the number of draws of one (the data order, say) leaves the others alone.
"""

import zlib

import numpy as np

from npgpt.runtime.errors import ConfigError


def generator(seed, purpose, *index):
    """Return the `np.random.Generator` of this seed, purpose and index.

    seed      int >= 0
    purpose   str, what is drawn ("dropout", "order", a parameter's name)
    index     ints >= 0 that number the draws of one purpose (step, epoch, head), always as many for one purpose

    Philox is counter-based: its state is a key and a counter, so making one costs microseconds.
    Raises ConfigError for a negative seed.
    """
    if seed < 0:
        raise ConfigError(f"seed = {seed}: it must be at least 0")
    key = np.random.SeedSequence([seed, zlib.crc32(purpose.encode()), *index])
    return np.random.Generator(np.random.Philox(key))

"""LoRA+: another learning rate for B than for A."""

import math
import re

from npgpt.runtime.errors import ConfigError


def loraplus(params, ratio):
    """Return dict name -> ratio, for AdamW: the B matrices and the vectors (biases, magnitudes) of `params`.

    A and B differ in size and in how they start, and B learns best at a rate several times that of A: 16 is usual.
    Source    Hayou et al. 2024 (LoRA+). PEFT's create_loraplus_optimizer chooses the same parameters, except that it
              gives embeddings a rate of their own.
    """
    if not 0 < ratio < math.inf:
        raise ConfigError(f"the learning rate of B is to be {ratio:g} times that of A: the ratio must be positive")
    return {name: ratio for name, tensor in params.items()
            if re.search(r"\.lora_B(\.|$)", name) or len(tensor.shape) == 1}

"""A context and its continuation as ids."""

import numpy as np

from npgpt.data import Text, encode_prompt
from npgpt.runtime.errors import ConfigError


def encode_pair(tokenizer, context, continuation, split_special_tokens=True):
    """Return (ids of the context, ids of the continuation), at least one id in each.

    Context and continuation are encoded together. The cut is at the length of the context encoded alone. White space
    at the end of the context goes to the continuation, because GPT-2's tokens begin with their space.

    - A token may hold the end of the context and the beginning of the continuation. Then there may be no token after
      the cut, and the continuation is encoded alone.
    - If the context is empty, an end-of-text id takes its place. If the continuation begins with one, it is that one.
    - A special token that is spelled out is plain text, except in the literals of the context (`npgpt.data.Text`). With
      split_special_tokens=False it is always that token.

    Raises ConfigError if the continuation is empty.
    Source    lm-evaluation-harness, which ends with an error if there is no token after the cut.
    """
    both, n, start = Text.join([context, continuation]), len(context.rstrip()), len(tokenizer.start_ids)
    if not both[n:]:
        raise ConfigError(f"the continuation of {context[-40:]!r} is empty: there is nothing to predict")
    whole = encode_prompt(tokenizer, [both], split_special_tokens)
    if n:
        asked = encode_prompt(tokenizer, [both.between(0, n)], split_special_tokens)
        answer = whole[len(asked):]
        alone = encode_prompt(tokenizer, [both.between(n)], split_special_tokens)[start:]
        return asked, answer if len(answer) else alone
    whole = whole[start:]
    begins = whole[0] == tokenizer.eos_id and len(whole) > 1
    return (whole[:1], whole[1:]) if begins else (np.array([tokenizer.eos_id]), whole)

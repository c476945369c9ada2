"""How the next token is chosen: the settings, and the order in which the rules of `warpers` apply."""

import dataclasses
import itertools

import numpy as np

from npgpt.generation import warpers
from npgpt.runtime.errors import ConfigError, NpgptError


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Settings, with Hugging Face's names and, but for top_k (50 there), its defaults. None and 0 leave a rule out.

    The rules apply in the order given here below the temperature, then temperature, top_k, top_p, min_p and typical_p,
    each to what the one before has left. Each is a function of `warpers`, with its formula and source.
    """

    temperature: float = 1.0                # 0 takes the likeliest token each time ("greedy")
    top_k: int | None = None                # keep only the k likeliest tokens
    top_p: float | None = None              # keep only the likeliest tokens whose probabilities reach p together
    min_p: float | None = None              # keep only tokens at least p times as likely as the likeliest
    typical_p: float | None = None          # keep only the tokens of typical surprise that reach p together
    logit_bias: dict | None = None          # id -> what is added to its score
    repetition_penalty: float = 1.0         # above 1: what has occurred, in the prompt too, becomes less likely
    frequency_penalty: float = 0.0          # taken off for each occurrence among the new tokens
    presence_penalty: float = 0.0           # taken off once for what is among the new tokens
    no_repeat_ngram_size: int | None = None     # no n tokens occur twice in the same order
    bad_words_ids: tuple = ()               # sequences of ids that may not be completed
    min_new_tokens: int = 0                 # no end of text before so many new tokens

    def __post_init__(self):
        def check(name, holds, right):
            if not holds:
                raise ConfigError(f"{name} = {getattr(self, name)}: it must be {right}")

        check("temperature", 0 <= self.temperature < float("inf"), "at least 0 (0 is greedy)")
        check("top_k", self.top_k is None or self.top_k >= 1, "at least 1")
        for name in ("top_p", "min_p", "typical_p"):
            check(name, getattr(self, name) is None or 0 < getattr(self, name) <= 1, "above 0 and at most 1")
        check("repetition_penalty", 0 < self.repetition_penalty < float("inf"), "above 0 (1: none)")
        for name in ("frequency_penalty", "presence_penalty"):
            check(name, abs(getattr(self, name)) < float("inf"), "a finite number")
        check("no_repeat_ngram_size", self.no_repeat_ngram_size is None or self.no_repeat_ngram_size >= 1, "at least 1")
        check("bad_words_ids", all(len(word) for word in self.bad_words_ids), "sequences of at least one id")
        check("min_new_tokens", self.min_new_tokens >= 0, "at least 0")

    def check_vocabulary(self, size):
        """Raise ConfigError where an id of logit_bias or bad_words_ids is outside a vocabulary of this size."""
        words = itertools.chain(*self.bad_words_ids)
        for name, token in [("logit_bias", i) for i in self.logit_bias or ()] + [("bad_words_ids", i) for i in words]:
            if not 0 <= token < size:
                raise ConfigError(f"{name} names token id {token}, outside this model's vocabulary of {size}")

    def scores(self, logits, ids=(), prompt_length=0, eos_id=None):
        """What `probabilities` is the softmax of: logits (V,) -> scores (V,), float64, -inf for what cannot come.

        ids            the tokens so far, prompt included
        prompt_length  how many of them are the prompt's
        eos_id         the end of text, which min_new_tokens puts off

        Raises NpgptError where the logits are not numbers, and where the rules leave no token.
        """
        if np.isnan(logits).any():
            raise NpgptError("the model's logits are not numbers: its weights, or those of its adapter, hold NaN, as "
                             "after a training that diverged; train again with a smaller learning rate")
        z, new = logits.astype(np.float64), ids[prompt_length:]
        if self.logit_bias:
            z = warpers.logit_bias(z, self.logit_bias)
        if self.repetition_penalty != 1 and len(ids):
            z = warpers.repetition_penalty(z, ids, self.repetition_penalty)
        if (self.frequency_penalty or self.presence_penalty) and len(new):
            z = warpers.frequency_penalty(z, new, self.frequency_penalty, self.presence_penalty)
        if self.no_repeat_ngram_size:
            z = warpers.no_repeat_ngram(z, ids, self.no_repeat_ngram_size)
        if self.bad_words_ids:
            z = warpers.bad_words(z, ids, self.bad_words_ids)
        if eos_id is not None and len(new) < self.min_new_tokens:
            z = warpers.forbid(z, [eos_id])
        if z.max() == -np.inf:
            raise NpgptError("no token can come next: no_repeat_ngram_size, bad_words_ids, logit_bias and "
                             "min_new_tokens forbid them all")
        if self.temperature:
            z = warpers.temperature(z, self.temperature)
            for name in ("top_k", "top_p", "min_p", "typical_p"):
                if getattr(self, name) is not None:
                    z = getattr(warpers, name)(z, getattr(self, name))
        return z

    def probabilities(self, logits, *context):
        """The distribution (V,), float64, that is sampled from; the arguments are those of `scores`."""
        return warpers.softmax(self.scores(logits, *context))

    def draw(self, logits, rng, *context):
        """Choose the next token: int. The arguments are those of `scores`, and a random generator."""
        z = self.scores(logits, *context)
        if self.temperature == 0:
            return int(z.argmax())
        possible = np.flatnonzero(z > -np.inf)
        sums = np.cumsum(warpers.softmax(z[possible]))
        return int(possible[np.searchsorted(sums, rng.random() * sums[-1], side="right")])

"""How the next token is chosen: the settings, the order in which the rules of `warpers` apply, and the draw."""

import dataclasses
import itertools

import numpy as np

from npgpt.generation import warpers
from npgpt.runtime.errors import ConfigError, NpgptError


@dataclasses.dataclass(frozen=True)
class Sampling:
    """The settings of the draw. Names and defaults are Hugging Face's, except top_k (50 there).

    With its default value a rule does nothing. The rules from logit_bias to min_new_tokens apply first, in the order
    below. Then come temperature, top_k, top_p, min_p and typical_p. Each rule sees the scores that the rule before it
    returned. Each is a function of `warpers`, with its formula and source.
    """

    temperature: float = 1.0                # divides the scores; 0 takes the likeliest token each time ("greedy")
    top_k: int | None = None                # keep only the k likeliest tokens
    top_p: float | None = None              # keep only the likeliest tokens whose probabilities sum to p
    min_p: float | None = None              # keep only tokens at least p times as likely as the likeliest
    typical_p: float | None = None          # keep only the most typical tokens whose probabilities sum to p
    logit_bias: dict | None = None          # id -> number that is added to its score
    repetition_penalty: float = 1.0         # above 1: tokens of the prompt and of the new text become less likely
    frequency_penalty: float = 0.0          # subtracted once for each time the token occurs in the new text
    presence_penalty: float = 0.0           # subtracted once if the token occurs in the new text
    no_repeat_ngram_size: int | None = None     # no run of n tokens occurs twice
    bad_words_ids: tuple = ()               # sequences of ids that must not occur
    min_new_tokens: int = 0                 # no end of text before this many new tokens

    def __post_init__(self):
        def check(name, holds, right):
            if not holds:
                raise ConfigError(f"{name} = {getattr(self, name)}: it must be {right}")

        check("temperature", 0 <= self.temperature < float("inf"), "at least 0 (0 is greedy)")
        check("top_k", self.top_k is None or self.top_k >= 1, "at least 1")
        for name in ("top_p", "min_p", "typical_p"):
            check(name, getattr(self, name) is None or 0 < getattr(self, name) <= 1, "above 0 and at most 1")
        check("repetition_penalty", 0 < self.repetition_penalty < float("inf"), "above 0 (1: no penalty)")
        for name in ("frequency_penalty", "presence_penalty"):
            check(name, abs(getattr(self, name)) < float("inf"), "a finite number")
        check("no_repeat_ngram_size", self.no_repeat_ngram_size is None or self.no_repeat_ngram_size >= 1, "at least 1")
        check("bad_words_ids", all(len(word) for word in self.bad_words_ids), "sequences of at least one id")
        check("min_new_tokens", self.min_new_tokens >= 0, "at least 0")

    def check_vocabulary(self, size):
        """Raise ConfigError if logit_bias or bad_words_ids has an id outside a vocabulary of this size."""
        words = itertools.chain(*self.bad_words_ids)
        for name, token in [("logit_bias", i) for i in self.logit_bias or ()] + [("bad_words_ids", i) for i in words]:
            if not 0 <= token < size:
                raise ConfigError(f"{name} has token id {token}: this model's ids go from 0 to {size - 1}")

    def scores(self, logits, ids=(), prompt_length=0, eos_id=None):
        """Apply the rules: logits (V,) -> scores (V,), float64, -inf for a forbidden token.

        ids            the tokens so far, with the prompt
        prompt_length  how many of them belong to the prompt
        eos_id         the end of text, or several, which min_new_tokens delays

        Raises NpgptError if the logits hold NaN or if the rules leave no token.
        """
        if np.isnan(logits).any():
            raise NpgptError("the model's logits are NaN: the weights of the model or of its adapter hold NaN, as "
                             "after a training run that diverged; train again with a smaller learning rate")
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
        if len(new) < self.min_new_tokens and (ends := several(eos_id)):
            z = warpers.forbid(z, ends)
        if z.max() == -np.inf:
            raise NpgptError("no token can come next: no_repeat_ngram_size, bad_words_ids, logit_bias and "
                             "min_new_tokens forbid them all; relax one of these")
        if self.temperature:
            z = warpers.temperature(z, self.temperature)
            for name in ("top_k", "top_p", "min_p", "typical_p"):
                if getattr(self, name) is not None:
                    z = getattr(warpers, name)(z, getattr(self, name))
        return z

    def probabilities(self, logits, *context):
        """Return the distribution (V,), float64, that `draw` samples from. Takes the same arguments as `scores`."""
        return warpers.softmax(self.scores(logits, *context))

    def draw(self, logits, rng, *context):
        """Draw the next token with the generator `rng`: int. The other arguments are the same as for `scores`."""
        z = self.scores(logits, *context)
        if self.temperature == 0:
            return int(z.argmax())
        possible = np.flatnonzero(z > -np.inf)
        sums = np.cumsum(warpers.softmax(z[possible]))
        return int(possible[np.searchsorted(sums, rng.random() * sums[-1], side="right")])


def several(eos_id):
    """Return the list of ids that end a text. `eos_id` is None, an id or several."""
    return [] if eos_id is None else np.atleast_1d(eos_id).tolist()

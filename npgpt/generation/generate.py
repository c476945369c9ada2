"""Generate text, one token after another: for one prompt or many, all at once or piece by piece."""

import numpy as np

from npgpt.generation.decoding import Decoder
from npgpt.generation.sampling import Sampling, several
from npgpt.runtime.errors import ConfigError
from npgpt.runtime.seeding import generator


def generate(model, ids, max_new_tokens=50, temperature=1.0, top_k=None, top_p=None, seed=None, eos_id=None,
             stop_strings=(), tokenizer=None, context="whole", **rules):
    """Continue a prompt. Returns the prompt and the new ids, int64 (T + new,).

    ids              the prompt, integers (T,), T >= 1
    max_new_tokens   the most tokens to add
    temperature      divides the logits; 0 takes the likeliest token each time ("greedy")
    top_k            keep only the k likeliest tokens
    top_p            keep only the likeliest tokens whose probabilities sum to p; applied after top_k
    seed             int: the same seed gives the same text; None: another text each time
    eos_id           stop after this token, or after one of several; None: no early stop
    stop_strings     stop after the token that completes one of these strings in the new text; needs `tokenizer`
    context          "whole": prompt and new tokens must fit into n = n_positions. "slide": any number of tokens. When
                     the context is full, its older half is dropped, and the rest is read again from position 0. So of
                     t > n tokens the model sees all but the first h ceil((t - n) / h), h = n // 2
    rules            the other settings of `sampling.Sampling`: min_p, typical_p, logit_bias, repetition_penalty,
                     frequency_penalty, presence_penalty, no_repeat_ngram_size, bad_words_ids, min_new_tokens

    Raises ConfigError for unusable arguments and for a prompt and new tokens that do not fit into n_positions.
    """
    return generate_batch(model, [ids], max_new_tokens, temperature, top_k, top_p, seed, eos_id, stop_strings,
                          tokenizer, context, **rules)[0]


def generate_batch(model, prompts, max_new_tokens=50, temperature=1.0, top_k=None, top_p=None, seed=None, eos_id=None,
                   stop_strings=(), tokenizer=None, context="whole", **rules):
    """Continue many prompts of any lengths together. Returns a list: for each prompt, what `generate` returns.

    prompts  list of integer arrays (T,); repeat a prompt for several samples: it is read once
    seed     int or None: prompt i gets the text that `generate` writes with seed + i

    The other arguments and the errors are the same as for `generate`. A sequence that has ended leaves the batch. A
    batch changes only the rounding: a text can differ from the text made alone only if two tokens are equally likely
    to the last digits of float32.
    """
    sampling = Sampling(temperature, top_k, top_p, **rules)
    out = [np.asarray(prompt).tolist() for prompt in prompts]
    for i, token, _ in tokens(model, prompts, max_new_tokens, sampling, seed, eos_id, stop_strings, tokenizer, context):
        out[i].append(token)
    return [np.array(ids, np.int64) for ids in out]


def stream(model, tokenizer, prompt, max_new_tokens=50, temperature=1.0, top_k=None, top_p=None, seed=None,
           stop_strings=(), context="whole", **rules):
    """Continue a text and yield the new text piece by piece.

    prompt        str; a special token that is spelled out, such as <|endoftext|>, is read as that token
    stop_strings  the text ends before the first of these

    The other arguments and the errors are the same as for `generate`. The text also ends at the tokenizer's end of
    text. A token may hold part of a character, but a piece holds only whole characters. The beginning of a stop string
    is held back until the next tokens decide whether the string is complete.
    """
    made = tokens(model, [tokenizer.encode(prompt)], max_new_tokens, Sampling(temperature, top_k, top_p, **rules), seed,
                  tokenizer.end_ids, stop_strings, tokenizer, context)
    yield from pieces((token for _, token, _ in made), tokenizer, stop_strings)


def pieces(made, tokenizer, stop_strings=()):
    """Turn an iterable of new tokens into pieces of text, which `stream` yields."""
    new, shown = [], 0
    for token in made:
        if token not in tokenizer.end_ids:
            new.append(token)
        text, stopped = before_stop(tokenizer.decode(new), stop_strings)
        end = len(text) if stopped else final_length(text, stop_strings)
        if end > shown:
            yield text[shown:end]
            shown = end
    text, _ = before_stop(tokenizer.decode(new), stop_strings)
    if text[shown:]:
        yield text[shown:]


def before_stop(text, stop_strings):
    """Return (the text before its first stop string, True), or (text, False) if it has none."""
    found = [at for at in map(text.find, stop_strings) if at >= 0]
    return (text[:min(found)], True) if found else (text, False)


def final_length(text, stop_strings):
    """Return how many characters of `text` are final, whatever tokens follow.

    A last character U+FFFD is not final: it stands for the first bytes of a character. (Unicode recommends one U+FFFD
    for such bytes, so at most one stands at the end.) An end that begins a stop string is not final either.
    """
    end = len(text) - text.endswith("\ufffd")
    begun = [n for stop in stop_strings for n in range(1, len(stop)) if text[:end].endswith(stop[:n])]
    return end - max(begun, default=0)


def tokens(model, prompts, max_new_tokens, sampling, seed=None, eos_id=None, stop_strings=(), tokenizer=None,
           context="whole"):
    """Return an iterator over (i, token, logits (V,)): the next token of each prompt i, then the token after it, ...

    All functions above use this one. It checks the arguments now, before the first token is made.

    sampling  Sampling; the other arguments and the errors are the same as for `generate_batch`
    """
    texts = check_prompts(model, prompts, max_new_tokens, sampling, context)
    if seed is not None and seed < 0:
        raise ConfigError(f"seed = {seed}: it must be at least 0")
    if stop_strings and (tokenizer is None or isinstance(stop_strings, str) or not all(stop_strings)):
        raise ConfigError(f"stop_strings = {stop_strings!r}: expected a list of strings that are not empty, together "
                          "with tokenizer=")
    return _draw_tokens(model, texts, max_new_tokens, sampling, seed, eos_id, stop_strings, tokenizer)


def _draw_tokens(model, texts, max_new_tokens, sampling, seed, eos_id, stop_strings, tokenizer):
    """Yield the tokens for `tokens`."""
    if max_new_tokens == 0 or not texts:
        return
    rngs = [np.random.default_rng() if seed is None else generator(seed + i, "sample") for i in range(len(texts))]
    lengths = [len(text) for text in texts]
    ends = several(eos_id)
    going = sorted(range(len(texts)), key=lambda i: lengths[i])  # puts equal lengths side by side: see Decoder
    limit = model.config.n_positions
    decoder = Decoder(model, len(texts), min(limit, max(lengths) + max_new_tokens))
    logits = decoder.read([window(texts[i], limit) for i in going])
    for left in range(max_new_tokens - 1, -1, -1):
        stay = []
        for row, i in enumerate(going):
            token = sampling.draw(logits[row], rngs[i], texts[i], lengths[i], ends)
            texts[i].append(token)
            yield i, token, logits[row]
            if token not in ends and not (stop_strings and before_stop(tokenizer.decode(texts[i][lengths[i]:]),
                                                                       stop_strings)[1]):
                stay.append(row)
        if not stay or left == 0:
            return
        if len(stay) < len(going):
            decoder.keep(stay)
            going = [going[row] for row in stay]
        if decoder.lengths.max() < limit:
            logits = decoder.step([texts[i][-1] for i in going])
        else:
            logits = decoder.read([window(texts[i], limit) for i in going])


def window(ids, limit):
    """Return the part of `ids` that a model with `limit` positions sees: see `context` of `generate`."""
    hop = max(limit // 2, 1)
    beyond = max(len(ids) - limit, 0)
    return ids[-(-beyond // hop) * hop:]


def check_prompts(model, prompts, max_new_tokens, sampling, context="whole"):
    """Return the prompts as lists. Raise ConfigError if one of the arguments is unusable."""
    if max_new_tokens < 0:
        raise ConfigError(f"max_new_tokens = {max_new_tokens}: it must be at least 0")
    if context not in ("whole", "slide"):
        raise ConfigError(f"context = {context!r}: it must be 'whole' or 'slide'")
    sampling.check_vocabulary(model.config.vocab_size)
    texts, limit = [], model.config.n_positions
    for prompt in prompts:
        ids = np.asarray(prompt)
        if ids.ndim != 1 or ids.size == 0 or ids.dtype.kind not in "iu":
            raise ConfigError(f"the prompt has shape {ids.shape} and dtype {ids.dtype}: expected integers (T,), T >= 1")
        total = len(ids) + max_new_tokens
        if total > limit and context == "whole":
            raise ConfigError(f"a prompt of {len(ids)} tokens and {max_new_tokens} new ones make {total}, more than "
                              f"this model's context of {limit}; shorten the prompt, ask for fewer tokens, or use "
                              "--context slide")
        model.check_ids(ids, min(len(ids), limit))
        texts.append(ids.tolist())
    return texts

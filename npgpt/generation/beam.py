"""Beam search: look for the continuation that is likeliest as a whole, with a limited number of candidates."""

import numpy as np

from npgpt.generation import warpers
from npgpt.generation.decoding import Decoder
from npgpt.generation.generate import check_prompts
from npgpt.generation.sampling import Sampling, several
from npgpt.runtime.errors import ConfigError


def beam_search(model, ids, num_beams=5, max_new_tokens=50, length_penalty=1.0, early_stopping=False, eos_id=None,
                **rules):
    """Search for likely continuations of a prompt.

    Returns a list of at most num_beams pairs (score, prompt and new ids int64 (T + new,)), the best first.

    A beam is an unfinished text. Each step continues every beam by every token and takes the 2 num_beams likeliest
    candidates. Candidates among the first num_beams that end are finished. The first num_beams candidates that do not
    end are the next beams. A finished text of n new tokens, counting the end of text, has the score

        (sum of their log-probabilities) / n^length_penalty

    Log-probabilities are negative, so a larger penalty favours longer texts; the field uses this misleading name. The
    search ends when num_beams texts are finished and the best beam, scored at its present length, is no better than
    the worst of them. With early_stopping it ends as soon as num_beams texts are finished.

    rules     settings of `sampling.Sampling` without temperature, top_k, top_p, min_p and typical_p; they act on
              log-probabilities
    Source    Hugging Face's generate(num_beams=...) makes the same choices.

    Raises ConfigError as `generate` does.
    """
    if num_beams < 1:
        raise ConfigError(f"num_beams = {num_beams}: it must be at least 1")
    sampling = Sampling(temperature=0, **rules)
    (prompt,) = check_prompts(model, [ids], max_new_tokens, sampling)
    decoder = Decoder(model, num_beams, len(prompt) + max_new_tokens)
    beams, finished, ends = [(0.0, prompt)], [], several(eos_id)
    for n in range(1, max_new_tokens + 1):
        logits = decoder.step([text[-1] for _, text in beams]) if n > 1 else decoder.read([prompt])
        scores = np.stack([
            score + sampling.scores(np.log(warpers.softmax(row.astype(np.float64))), text, len(prompt), eos_id)
            for (score, text), row in zip(beams, logits, strict=True)])
        going = []
        for rank, (score, row, token) in enumerate(_candidates(scores, 2 * num_beams)):
            text = [*beams[row][1], token]
            if token not in ends and n < max_new_tokens:
                going.append((score, text, row))
            elif rank < num_beams:
                finished.append((score / n ** length_penalty, text))
        finished = sorted(finished, key=lambda pair: -pair[0])[:num_beams]
        going = going[:num_beams]
        full = len(finished) == num_beams
        if not going or (full and (early_stopping or going[0][0] / n ** length_penalty <= finished[-1][0])):
            break
        beams = [(score, text) for score, text, _ in going]
        decoder.keep([row for _, _, row in going])
    return [(score, np.array(text, np.int64)) for score, text in finished or [(0.0, prompt)]]


def _candidates(scores, most):
    """Return the highest of `scores` (beams, V), at most `most`, as (score, beam, token). -inf is no candidate."""
    places = np.argsort(-scores, axis=None, kind="stable")[:most].tolist()
    found = [(float(scores.flat[place]), *divmod(place, scores.shape[1])) for place in places]
    return [candidate for candidate in found if candidate[0] > -np.inf]

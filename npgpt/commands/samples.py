"""What the samples of a run begin with: the user's own prompts, or the first held-out texts."""

import itertools

from npgpt import data
from npgpt.commands import prompts
from npgpt.commands.flags import unescaped
from npgpt.commands.settings import PROMPTS
from npgpt.runtime.errors import ConfigError, NpgptError

OPENING = 8  # tokens of a text without a prompt that a sample begins with


def prompts_of(settings, documents, training, held_out, model, tokenizer):
    """Return [(text, ids), ...]: what the samples of a run begin with, at most --samples of them.

    With --sample-prompts, those of that file. With --data, the prompts of the first texts that are held out, or else of
    the first ones that are learned; of a text without a prompt, its first words. Otherwise the package's own.
    """
    if settings["sample_prompts"] is not None:
        found = _of_file(settings, documents[0][1].template, tokenizer)
    elif settings["data"] is not None:
        found = _of_sequences((held_out or training).sequences, tokenizer)
    else:
        found = _of_texts(PROMPTS, tokenizer)
    longest = model.config.n_positions // 2
    return [(text, ids[-longest:]) for text, ids in itertools.islice(found, settings["samples"])]


def _of_file(settings, template, tokenizer):
    """Yield the prompts of a file: its lines as they are, or its records in the run's template."""
    path = data.readable_again(settings["sample_prompts"])
    if data.is_text(path):
        texts = [unescaped(record.fields["text"]) for record in data.read_records(path, "line")]
        found = list(_of_texts(texts, tokenizer))
    else:
        made = (prompts.of_record(record, template, tokenizer, settings["special_tokens"])
                for record in data.read_records(path))
        found = [(prompt.text, prompt.ids) for prompt in made]
    if not found:
        raise NpgptError(f"--sample-prompts {path}: it holds no prompt that this tokenizer can spell")
    return found


def _of_sequences(sequences, tokenizer):
    """Yield what is not learned at the start of each sequence, or its first words if all is learned; each only once."""
    known = set()
    for i in range(len(sequences)):
        ids = sequences[i]
        first = int(sequences.loss_masks[i][1:].argmax()) + 1  # the first learned token
        ids = ids[:first if first > 1 else _opening(ids, tokenizer)]
        text = tokenizer.decode(ids)
        if text not in known:
            known.add(text)
            yield text, ids


def _opening(ids, tokenizer):
    """Return how many ids the first words of a text are: at most OPENING, and half of the text."""
    most = max(1, min(OPENING, len(ids) // 2))
    return next((n for n in range(most, 0, -1) if tokenizer.token(int(ids[n]))[:1].isspace()), most)


def _of_texts(texts, tokenizer):
    """Yield the texts that the vocabulary can spell; a vocabulary of characters may not spell them all."""
    for text in texts:
        try:
            yield text, tokenizer.encode(text)
        except ConfigError:
            continue

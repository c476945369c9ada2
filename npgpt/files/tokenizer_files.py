"""A tokenizer's files -> a `tokenizers.Tokenizer`, with errors of that library in one line."""

import contextlib
from pathlib import Path

from npgpt.runtime.encodings import decoded
from npgpt.runtime.errors import ConfigError, FileError, FormatError, NpgptError

END_OF_TEXT = "<|endoftext|>"


@contextlib.contextmanager
def library(place, what):
    """Turn an error of `tokenizers` inside this block into a FormatError or ConfigError.

    place  the tokenizer's file, for the message
    what   what cannot be done

    `tokenizers` has no exception class of its own. If its Rust code panics, it raises a PanicException, which is not
    even an Exception. The file can cause one at the first use, for example with a rule that replaces the empty text.
    """
    try:
        yield
    except NpgptError:
        raise
    except BaseException as error:
        if type(error).__name__ == "PanicException":
            raise FormatError(f"{place}: {what}: the library `tokenizers` fails on this file ({error}); use the "
                              "tokenizer.json of another release of the model") from error
        if not isinstance(error, Exception):  # Ctrl-C
            raise
        reason = "it is not a string of valid Unicode" if isinstance(error, TypeError) else error
        raise ConfigError(f"{what} with {place}: {reason}") from error


def from_json(path):
    """Return the tokenizer of a tokenizer.json. `tokenizers` itself opens no file whose name is not UTF-8."""
    import tokenizers  # here, not above: a run that needs only weights should not wait for it

    return tokenizers.Tokenizer.from_str(decoded(Path(path).read_bytes()))


def from_vocab(vocab, merges):
    """Return GPT-2's tokenizer from its two original files; it equals the one from tokenizer.json."""
    import tokenizers

    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE.from_file(vocab, merges))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    if tokenizer.token_to_id(END_OF_TEXT) is not None:  # a new token would have no row in the model's token table
        tokenizer.add_special_tokens([END_OF_TEXT])
    return tokenizer


def load(build, *paths):
    """Return build(*paths). Raises FileError, and FormatError if `tokenizers` cannot read a file."""
    try:
        for path in paths:
            with open(path, "rb"):
                pass
        tokenizer = build(*map(str, paths))
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from error
    except BaseException as error:  # `tokenizers` raises plain Exception; its panics are not even Exceptions
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        names = " and ".join(map(str, paths))
        raise FormatError(f"{names}: not a tokenizer that `tokenizers` can read: {error}") from error
    # `tokenizers` accepts any ids. But if two tokens have one id, saving loses one; and an id of billions needs as much
    # memory.
    ids = tokenizer.get_vocab().values()
    if len(set(ids)) < len(ids) or max(ids, default=0) > 2 * len(ids):
        raise FormatError(f"{paths[0]}: {len(ids)} tokens have {len(set(ids))} different ids up to {max(ids)}; the "
                          "ids must be the numbers from 0 on, one for each token")
    return tokenizer

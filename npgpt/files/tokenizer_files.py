"""A tokenizer's files -> a `tokenizers.Tokenizer`, as transformers makes it of them.

    tokenizer.json           everything: vocabulary, merges, added tokens
    vocab.json, merges.txt   the two original files, if there is no tokenizer.json
    added_tokens.json        {token: id} of tokens that are not in vocab.json
    special_tokens_map.json  which tokens are special, and what they are for
    tokenizer_config.json    the same in newer files ("added_tokens_decoder"), and settings
    config.json, generation_config.json    eos_token_id: the tokens that end a text

Source: transformers 5.24, PreTrainedTokenizerBase._from_pretrained, TokenizersBackend and GPT2Tokenizer.
"""

import contextlib
from pathlib import Path
from typing import NamedTuple

from npgpt.files import hub
from npgpt.files.atomic import read_json
from npgpt.files.content import POINTER, refuse_pointer
from npgpt.files.model_config import GENERATION, GENERATION_CONFIG, warn_of_unused
from npgpt.runtime.encodings import decoded
from npgpt.runtime.errors import ConfigError, FileError, FormatError, NpgptError

END_OF_TEXT = "<|endoftext|>"
NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
LISTS = ("additional_special_tokens", "extra_special_tokens")
FLAGS = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")  # of a token in a file
# Keys of tokenizer_config.json that are used, or that change no token of a text.
SETTINGS = {
    *NAMES, *LISTS, "add_bos_token", "add_prefix_space", "added_tokens_decoder", "auto_map", "backend", "chat_template",
    "clean_up_tokenization_spaces", "errors", "from_slow", "init_inputs", "is_local", "legacy", "local_files_only",
    "max_len", "max_length", "merges_file", "model_input_names", "model_max_length", "model_specific_special_tokens",
    "name_or_path", "pad_to_multiple_of", "pad_token_type_id", "padding_side", "processor_class",
    "special_tokens_map_file", "stride", "tokenizer_class", "tokenizer_file", "trim_offsets", "truncation_side",
    "truncation_strategy", "use_fast", "verbose", "vocab_file",
}  # fmt: skip
CLASSES = ("GPT2Tokenizer", "GPT2TokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend", "AutoTokenizer", None)


class Found(NamedTuple):
    """A `tokenizers.Tokenizer`, and what the files say about it.

    end    the id that ends a text; None: there is none
    ends   the ids that end generation, `end` among them
    start  the ids that every text begins with
    place  the file that it was read from
    """

    tokenizer: object
    end: int | None
    ends: list
    start: list
    place: object


def find(name, revision=None, local_files_only=False):
    """Read the tokenizer of the model `name`. Arguments and errors are those of `Tokenizer.from_pretrained`."""
    # The optional files of a model in the cache are in the cache too: another look for them would need the network.
    offline = local_files_only or hub.cached(name, revision)

    def path_of(filename):
        return hub.file(name, filename, revision=revision, local_files_only=local_files_only)

    def values(filename):
        path = hub.optional(name, filename, revision, offline)
        return (path, {}) if path is None else (path, read_json(path))

    path = path_of(("tokenizer.json", "vocab.json"))  # both at once: a cache with one of them is enough
    merges = path_of("merges.txt") if path and path.name == "vocab.json" else None
    if not path or (path.name == "vocab.json" and not merges):
        raise FileError(f"no tokenizer in {name}: expected tokenizer.json, or vocab.json and merges.txt")
    place, settings = values("tokenizer_config.json")
    given = settings
    if "added_tokens_decoder" not in settings:
        given = settings | values("special_tokens_map.json")[1]
    with hub.reading(name, "vocab.json merges.txt" if merges else "tokenizer.json", revision):
        if merges:
            tokenizer = _load(_from_vocab, path, merges)
        else:
            tokenizer = _load(_from_json, path)
    where = place or path
    if place is not None:
        known = SETTINGS | ({"add_eos_token"} if not merges else set())
        known -= {"tokenizer_class"} if settings.get("tokenizer_class") not in CLASSES else set()
        warn_of_unused(place, settings, known)
    with library(where, "cannot add the tokens of the files"):
        _add_tokens(tokenizer, where, given, *values("added_tokens.json"))
    _set_prefix_space(tokenizer, settings, merges)
    ids = {key: tokenizer.token_to_id(_content(given[key])) for key in NAMES if given.get(key) is not None}
    start = [ids.get("bos_token", tokenizer.token_to_id(END_OF_TEXT))] if merges and given.get("add_bos_token") else []
    generation = values("generation_config.json")
    if generation[0] is not None:
        warn_of_unused(*generation, GENERATION_CONFIG, GENERATION)
    end, ends = _ends(tokenizer, ids.get("eos_token"), generation[1], values("config.json")[1])
    return Found(tokenizer, end, ends, [i for i in start if i is not None], path)


def _ends(tokenizer, named, *configurations):
    """Return (the id that ends a text, all ids that end generation).

    named           the id of the tokenizer's eos_token, or None
    configurations  generation_config.json and config.json; the first that has ids in the vocabulary counts
    """
    size, ends = tokenizer.get_vocab_size(), []
    for values in configurations:
        said = values.get("eos_token_id")
        said = [i for i in (said if isinstance(said, list) else [said]) if type(i) is int and 0 <= i < size]
        ends = ends or said
    end = next((i for i in (named, tokenizer.token_to_id(END_OF_TEXT), *ends) if i is not None), None)
    return end, [] if end is None else list(dict.fromkeys([end, *ends]))


def _add_tokens(tokenizer, where, given, added_place, added):
    """Add the tokens that the files name and the tokenizer does not have as added tokens, in transformers' order.

    given  the fields of tokenizer_config.json and special_tokens_map.json
    added  the content of added_tokens.json, which is read if tokenizer_config.json does not list the tokens
    """
    import tokenizers

    special = [token for key in NAMES if (token := given.get(key)) is not None]
    for key in LISTS:
        tokens = given.get(key) or []
        special += tokens if isinstance(tokens, list) else tokens.values() if isinstance(tokens, dict) else [tokens]
    if not all(isinstance(_content(token), str) and _content(token) for token in special):
        raise FormatError(f"{where}: the special tokens must be strings, or objects with content")
    names = {_content(token) for token in special}
    decoder = given.get("added_tokens_decoder")
    try:
        if decoder is None:
            listed = {int(i): {"content": token, "special": token in names, "normalized": token not in names}
                      for token, i in added.items()}
        else:
            listed = {int(i): token for i, token in decoder.items()}
        tokens = [listed[i] for i in sorted(listed)] + special
        tokens = [tokenizers.AddedToken(**{"special": True} | {key: token[key] for key in FLAGS if key in token})
                  if isinstance(token, dict) else tokenizers.AddedToken(token, special=True) for token in tokens]
    except (TypeError, ValueError, AttributeError) as error:
        raise FormatError(f"{added_place or where}: the added tokens must map tokens to ids ({error})") from error
    have = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    new = {}
    for token in tokens:
        new.setdefault(token.content, token)
    tokenizer.add_tokens([token for token in new.values() if token.content not in have])
    for i, token in listed.items():
        if (got := tokenizer.token_to_id(token["content"])) != i:
            raise FormatError(f"{added_place or where}: token {token['content']!r} must have id {i}, but the next id "
                              f"of the vocabulary is {got}; the files must come from one model")


def _content(token):
    """Return the text of a special token, which a file holds as a string or as an object."""
    return token.get("content") if isinstance(token, dict) else token


def _set_prefix_space(tokenizer, settings, merges):
    """Let the tokenizer put a space before each text if the settings ask for it.

    transformers uses the setting with a tokenizer.json too, but only if a class of GPT-2 is named.
    """
    import tokenizers

    asked = settings.get("add_prefix_space")
    if merges or (isinstance(asked, bool) and str(settings.get("tokenizer_class")).startswith("GPT2")
                  and isinstance(tokenizer.pre_tokenizer, tokenizers.pre_tokenizers.ByteLevel)):
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=bool(asked))


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


def _from_json(path):
    """Return the tokenizer of a tokenizer.json. `tokenizers` itself opens no file whose name is not UTF-8."""
    import tokenizers  # here, not above: a run that needs only weights should not wait for it

    return tokenizers.Tokenizer.from_str(decoded(Path(path).read_bytes()))


def _from_vocab(vocab, merges):
    """Return GPT-2's tokenizer from its two original files; it equals the one from tokenizer.json."""
    import tokenizers

    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE.from_file(vocab, merges))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    if tokenizer.token_to_id(END_OF_TEXT) is not None:  # a new token would have no row in the model's token table
        tokenizer.add_special_tokens([END_OF_TEXT])
    return tokenizer


def _load(build, *paths):
    """Return build(*paths). Raises FileError, and FormatError if `tokenizers` cannot read a file."""
    try:
        for path in paths:
            with open(path, "rb") as file:
                refuse_pointer(path, file.read(len(POINTER)))
        tokenizer = build(*map(str, paths))
    except FormatError:
        raise
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

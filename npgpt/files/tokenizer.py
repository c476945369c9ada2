"""Text to ids and back. The `tokenizers` library does the work; this is a thin layer above it."""

import functools
import json
from pathlib import Path

import numpy as np

from npgpt.files import tokenizer_files
from npgpt.files.atomic import replacing, write_json
from npgpt.files.tokenizer_files import END_OF_TEXT, library
from npgpt.runtime.errors import ConfigError


class Tokenizer:
    """Turns text into ids and ids into text. `from_pretrained` makes one from files."""

    def __init__(self, tokenizer, eos_id=None, end_ids=(), start_ids=(), place="the tokenizer"):
        """Wrap a `tokenizers.Tokenizer`.

        eos_id     the id that ends a text; None: the id of <|endoftext|>, if there is one
        end_ids    more ids that end generation
        start_ids  ids that `encode` puts before every text
        place      where the tokenizer comes from, for messages
        """
        # A file may switch these on for another program's batches. Here nothing is padded, and no text is cut silently.
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._tokenizer, self._place = tokenizer, place
        self._start = np.array(start_ids, np.int64)
        self._eos_id = tokenizer.token_to_id(END_OF_TEXT) if eos_id is None else eos_id
        self._ends = list(end_ids)
        self._plain = None  # `_reading` makes it when it is needed

    @classmethod
    def from_pretrained(cls, name, revision=None, local_files_only=False):
        """Load a tokenizer: the `tokenizer.json` of `name`, else its `vocab.json` and `merges.txt`; see
        `npgpt.files.tokenizer_files` for the files beside them.

        name               "tiny" (the embedded model), a folder, or a hub id such as "gpt2"
        revision           branch, tag or commit on the hub
        local_files_only   use the folder or the cache, never the network

        Raises FileError (no such files), FormatError (corrupt), HubError (unknown id, no network).
        """
        return cls(*tokenizer_files.find(name, revision, local_files_only))

    def encode(self, text, split_special_tokens=False):
        """Return the ids of `text`, int64 (T,).

        Nothing is added before or after. Only if the model has vocab.json and merges.txt, and its tokenizer_config.json
        says add_bos_token, a text begins with the bos_token, as in transformers.

        split_special_tokens  transformers' name. False: the thirteen characters <|endoftext|> become the one
                              end-of-text id, as in the official GPT-2 tokenizer, and any other special token becomes
                              its id. True: they are plain text, so that no text can end a turn or fake another

        Added tokens that are not special are ordinary words, and are found in both cases.
        Raises ConfigError if the vocabulary has no token for a part of the text (byte-level BPE always has one).
        """
        with library(self._place, f"cannot encode {ascii(text)[:60]}"):
            encoding = self._reading(split_special_tokens).encode(text, add_special_tokens=False)
            return np.concatenate([self._start, np.array(encoding.ids, dtype=np.int64)])

    def encode_batch(self, texts, split_special_tokens=False):
        """Return the ids of each of `texts`, which may be parts of a text: no bos_token is put before them.

        It works on all cores (on one with TOKENIZERS_PARALLELISM=0).
        """
        with library(self._place, f"cannot encode {ascii(texts[:3])[:60]}"):
            encodings = self._reading(split_special_tokens).encode_batch_fast(texts, add_special_tokens=False)
            return [np.array(encoding.ids, dtype=np.int64) for encoding in encodings]

    def _reading(self, split_special_tokens):
        """Return the `tokenizers.Tokenizer` that splits special tokens, or the one that does not.

        In `tokenizers`, this is a setting of the object. Another thread may be using the object, so there are two.
        """
        if not split_special_tokens:
            return self._tokenizer
        if self._plain is None:
            plain = type(self._tokenizer).from_str(self._tokenizer.to_str())
            end = None if self._eos_id is None else plain.id_to_token(self._eos_id)
            if end is not None:  # it ends texts, even if the file does not call it special
                plain.add_special_tokens([end])
            plain.encode_special_tokens = True
            self._plain = plain
        return self._plain

    def decode(self, ids):
        """Return the text of `ids` with special tokens, so that decode(encode(text)) == text.

        Bytes that are not UTF-8 become U+FFFD, for example if a character is cut in two. An id beyond the vocabulary
        becomes nothing. Raises ConfigError unless `ids` is one row of integers >= 0.
        """
        with library(self._place, "cannot decode ids"):
            try:
                return self._tokenizer.decode(np.asarray(ids).tolist(), skip_special_tokens=False)
            except (TypeError, ValueError, OverflowError) as error:
                raise ConfigError(f"cannot decode ids: expected one row of integers >= 0 ({error})") from error

    def token(self, i):
        """Return the text of the one token `i`. A part of a character is written as bytes, \\xf0\\x9f.

        Raises ConfigError if there is no such token.
        """
        if not 0 <= i < self.vocab_size:
            raise ConfigError(f"there is no token {i}: ids go from 0 to {self.vocab_size - 1}")
        text = self.decode([i])
        if "\N{REPLACEMENT CHARACTER}" not in text:
            return text
        alphabet, letters = _byte_level_alphabet(), self._tokenizer.id_to_token(i)
        if not set(letters) <= alphabet.keys():  # no byte-level vocabulary: the token holds U+FFFD itself
            return text
        return bytes(alphabet[letter] for letter in letters).decode("utf-8", "backslashreplace")

    def add_tokens(self, tokens):
        """Add tokens such as "<|user|>", which are never split, and return the ids of the new ones. In place.

        tokens  str, or several; a token that the vocabulary has already stays as it is

        The new tokens are special tokens, and their ids follow the last id. The model then needs rows for them:
        `model.resize_token_embeddings(tokenizer.vocab_size)`. Raises ConfigError.
        """
        import tokenizers

        tokens = [tokens] if isinstance(tokens, str) else list(tokens)
        for token in tokens:
            if not isinstance(token, str) or not token.strip() or not token.isprintable():
                raise ConfigError(f"cannot add the token {token!a}: it must be a string of printable characters, and "
                                  "not blank")
        known = self._tokenizer.get_vocab()
        new = [token for token in dict.fromkeys(tokens) if token not in known]
        with library(self._place, "cannot add tokens"):
            self._tokenizer.add_special_tokens([tokenizers.AddedToken(token, normalized=False) for token in new])
        self._plain = None
        ids = [self._tokenizer.token_to_id(token) for token in new]
        if len(set(ids) | set(known.values())) < len(ids) + len(known):
            raise ConfigError(f"cannot add tokens to this tokenizer: its ids are not the numbers from 0 to "
                              f"{len(known) - 1}, so a new token got the id of another token")
        return ids

    def around(self, other):
        """Return this tokenizer with the tokens of `other` around a text: `eos_id`, `end_ids` and `start_ids`."""
        return Tokenizer(self._tokenizer, other.end_id, other.end_ids, other.start_ids, self._place)

    def to_dict(self):
        """Return the content of `tokenizer.json` as `tokenizers` writes it: vocabulary, merges, added tokens, .."""
        return json.loads(self._tokenizer.to_str())

    def save(self, folder):
        """Write `tokenizer.json` into `folder`. Raises FileError if this fails.

        If another token than <|endoftext|> ends a text, tokenizer_config.json says so, unless it is there already.
        """
        path = Path(folder) / "tokenizer_config.json"
        if self._eos_id != self._tokenizer.token_to_id(END_OF_TEXT) and not path.exists():
            write_json(path, {"eos_token": self._tokenizer.id_to_token(self._eos_id)})
        with replacing(Path(folder) / "tokenizer.json") as temporary:
            temporary.write_text(self._tokenizer.to_str(pretty=True), encoding="utf-8")

    @property
    def eos_id(self):
        """The end-of-text id: the tokenizer's eos_token, else <|endoftext|> or the model's eos_token_id."""
        if self._eos_id is None:
            raise ConfigError(
                f"the tokenizer has no end-of-text token: expected {END_OF_TEXT} in its vocabulary, "
                "or a config.json beside it whose eos_token_id is in the vocabulary"
            )
        return self._eos_id

    @property
    def end_id(self):
        """The same as `eos_id`, but None if there is no such token, as in a vocabulary of characters."""
        return self._eos_id

    @property
    def end_ids(self):
        """The ids that end generation: `eos_id`, and the eos_token_id of the model's files, which may be several."""
        return list(dict.fromkeys([*([] if self._eos_id is None else [self._eos_id]), *self._ends]))

    @property
    def start_ids(self):
        """The ids that `encode` puts before every text."""
        return self._start

    @property
    def special_tokens(self):
        """The special tokens and the end-of-text token: dict text -> id."""
        added = self._tokenizer.get_added_tokens_decoder()
        return {token.content: i for i, token in added.items() if token.special or i in self.end_ids}

    @property
    def vocab_size(self):
        """The number of tokens, with the special ones."""
        return self._tokenizer.get_vocab_size()


@functools.cache
def _byte_level_alphabet():
    """Return dict character -> its byte in GPT-2's vocabulary.

    A printable byte is its own character. The other bytes have the characters from 256 on (a space is "\u0120").
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}

"""Shared by the tests of data."""

import numpy as np
import pytest


class Characters:
    """A tokenizer whose ids are code points. The end of text is 0, a space has no id, and <a> and <b> are special."""

    eos_id, end_ids, start_ids = 0, [0], ()
    special_tokens = {"<a>": 1, "<b>": 2, "<end>": 0}  # noqa: RUF012

    def encode(self, text, split_special_tokens=False):
        for token, i in self.special_tokens.items() if not split_special_tokens else ():
            text = text.replace(token, chr(i))
        return np.array([ord(character) for character in text if character != " "], dtype=np.int64)

    def encode_batch(self, texts, split_special_tokens=False):
        return [self.encode(text, split_special_tokens) for text in texts]


@pytest.fixture(scope="session")
def characters():
    return Characters()


@pytest.fixture
def written(tmp_path):
    """written(name, content): the path of a new file with this content, bytes or str."""
    def write(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write

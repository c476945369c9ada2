"""Shared by the tests of data."""

import numpy as np
import pytest


class Characters:
    """A tokenizer whose ids are code points; the end of a text is 0. A space has no id."""

    eos_id = 0

    def encode(self, text):
        return np.array([ord(character) for character in text if character != " "], dtype=np.int64)

    def encode_batch(self, texts):
        return [self.encode(text) for text in texts]


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

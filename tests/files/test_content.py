"""Mapping is one way to read a file; a pointer of Git LFS is named in every kind of file."""

import json
import mmap
import shutil

import numpy as np
import pytest

from npgpt import GPT2, Tokenizer, load_adapter
from npgpt.checking.gradcases import small_model
from npgpt.data import text_files
from npgpt.files import pickles, safetensors, torchfile
from npgpt.files.hub import TINY
from npgpt.runtime.errors import FileError, FormatError
from tests.files.test_torchfile import saved

POINTER = (b"version https://git-lfs.github.com/spec/v1\n"
           b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n")
TENSORS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.arange(3, dtype=np.float64)}


@pytest.mark.parametrize("error", [OSError(19, "No such device"), ValueError("cannot mmap")])
def test_files_that_cannot_be_mapped_are_read(tmp_path, monkeypatch, error):
    safetensors.write(tmp_path / "x.safetensors", TENSORS)
    (tmp_path / "x.bin").write_bytes(saved(TENSORS))

    def no_map(*_, **__):
        raise error

    monkeypatch.setattr(mmap, "mmap", no_map)
    for read, name in ((safetensors.read, "x.safetensors"), (torchfile.read, "x.bin")):
        found = read(tmp_path / name)
        assert all(np.array_equal(found[key], array) and not found[key].flags.writeable
                   for key, array in TENSORS.items())
    assert GPT2.from_pretrained("tiny").logits([1, 2]).shape == (2, 3072)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_pointer_in_a_models_folder(tmp_path, name):
    for path in TINY.iterdir():
        shutil.copy(path, tmp_path)
    (tmp_path / name).write_bytes(POINTER)
    with pytest.raises(FormatError, match=rf"^{tmp_path}/{name} is a Git LFS pointer, .* git lfs pull"):
        GPT2.from_pretrained(tmp_path)
        Tokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt", "tokenizer_config.json", "generation_config.json",
                                  "added_tokens.json"])
def test_a_pointer_in_a_tokenizers_folder(tmp_path, name):
    vocab = json.loads((TINY / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / name).write_bytes(POINTER)
    with pytest.raises(FormatError, match=rf"^{tmp_path}/{name} is a Git LFS pointer"):
        Tokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize("read, name", [(torchfile.read, "x.bin"), (pickles.read, "meta.pkl"),
                                        (text_files.open_file, "x.txt")])
def test_a_pointer_in_other_files(tmp_path, read, name):
    (tmp_path / name).write_bytes(POINTER)
    with pytest.raises(FormatError, match=f"^{tmp_path}/{name} is a Git LFS pointer"):
        read(tmp_path / name)
    for text in (b"", b"v", b"version", b"version of a text\n"):
        (tmp_path / "t.txt").write_bytes(text)
        with text_files.open_file(tmp_path / "t.txt") as file:
            assert file.read() == text


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_pointer_in_an_adapters_folder(tmp_path, name):
    fields = {"peft_type": "LORA", "r": 1}
    (tmp_path / "adapter_config.json").write_text(json.dumps(fields))
    (tmp_path / name).write_bytes(POINTER)
    with pytest.raises(FormatError, match=rf"{name} is a Git LFS pointer"):
        load_adapter(small_model(), tmp_path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_link_to_nothing(tmp_path, name):
    for path in TINY.iterdir():
        shutil.copy(path, tmp_path)
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("../blobs/1234")
    with pytest.raises(FileError, match=rf"{name} is a link to \.\./blobs/1234, where no file is: fetch"):
        GPT2.from_pretrained(tmp_path)

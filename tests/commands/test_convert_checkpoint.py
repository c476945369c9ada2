"""convert_checkpoint.py turns a checkpoint of nanoGPT or minGPT into a folder that the other commands take."""

import shutil

import pytest

from tests.exchange.test_nanogpt import ARGUMENTS, state
from tests.files.test_torchfile import saved
from tests.goldens import golden


@pytest.fixture
def folder(tmp_path):
    """Where the commands run, with the checkpoints in it."""
    for path in (golden.FOLDER / "nanogpt").iterdir():
        shutil.copy(path, tmp_path)
    return tmp_path


def test_a_model_of_characters(folder, script):
    stdout = script("convert_checkpoint.py", "ckpt.pt", "--tokenizer", "meta.pkl", "--out", "new")
    first, second = stdout.splitlines()
    assert first == "converted ckpt.pt: 2 layers, 2 heads, width 8, vocabulary 29, context 12, gelu, head tied: new"
    assert second.startswith("its vocabulary has no token for the end of text, which fine-tuning and evaluation need")
    text = script("generate.py", "--model", "new", "--prompt", "abc de", "--max-new-tokens", 5, "--seed", 0)
    assert text.startswith("abc de") and len(text) == len("abc de") + 5 + 1
    text = script("generate.py", "--model", "new", "--prompt", "abc de", "--max-new-tokens", 5, "--json")
    assert '"ended": "length"' in text
    config = folder / "new" / "config.json"
    config.write_text(config.read_text().replace('"eos_token_id": null', '"eos_token_id": 0'))
    (folder / "texts.txt").write_text("abc\nde\n")
    stdout = script("finetune.py", "--model", "new", "--data", "texts.txt", "--max-steps", 1, "--out", "run 1")
    assert "\nab\n  before   " in stdout  # the prompts of samples are of the data, whose characters it has
    assert "--adapter 'run 1/adapter' --prompt" in stdout


def test_other_files(folder, script):
    none = "it has no tokenizer yet: --tokenizer gpt2 writes one too, or --tokenizer meta.pkl for characters\n"
    stdout = script("convert_checkpoint.py", "model.pt", "--n-head", 2, "--activation", "gelu_new", "--out", "new")
    assert stdout.endswith(f"context 12, gelu_new, head of its own: new\n{none}")


def test_ids_beyond_the_tokenizer(folder, script, model):
    """What nanoGPT pads GPT-2's vocabulary with."""
    tensors = state(vocab_size=320)
    (folder / "padded.pt").write_bytes(saved(tensors, under="model", model_args=ARGUMENTS | {"vocab_size": 320}))
    stdout = script("convert_checkpoint.py", "padded.pt", "--tokenizer", model, "--out", "new")
    assert stdout.endswith(": new\nthe model pads its vocabulary: ids from 257 on are not in the tokenizer\n")
    assert script("generate.py", "--model", "new", "--prompt", "a", "--max-new-tokens", 9, "--temperature", 0)


def test_what_cannot_be_converted(folder, refused, model):
    script = "convert_checkpoint.py"
    assert "model.pt has no model_args" in refused(script, "model.pt", "--out", "new")
    assert "--n-head 4, but the model_args" in refused(script, "ckpt.pt", "--n-head", 4, "--out", "new")
    assert "invalid choice: 'relu'" in refused(script, "ckpt.pt", "--activation", "relu", "--out", "new")
    assert "exists already" in refused(script, "ckpt.pt", "--out", model)
    assert "cannot read nowhere.pt" in refused(script, "nowhere.pt", "--out", "new")
    old = "ckpt-compiled-no-bias.pt"  # several pickles one after another
    assert f"{old}: more bytes follow" in refused(script, "ckpt.pt", "--tokenizer", old, "--out", "new")
    assert "the tokenizer has 257 tokens" in refused(script, "ckpt.pt", "--tokenizer", model, "--out", "new")

"""Tokens that were added, from PEFT's user to npgpt's and back. What each form computes is in test_matrix.py."""

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")

import peft
import torch
import transformers

import npgpt
from npgpt.adapters.pretrained import base_of
from tests.commands.conftest import CONFIG, save_model

from .reference import assert_close, torch_ids

BOUND = 1e-5  # float32, relative to the largest logit, as in test_matrix.py
TOKENS = ["<|user|>", "<|assistant|>", "<|end|>"]
pytestmark = [pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning")]


@pytest.fixture
def base(tmp_path):
    """The folder of a small model with a tokenizer."""
    save_model(tmp_path / "base")
    return tmp_path / "base"


def resized(folder, seed):
    """transformers' model of the folder with three more tokens, whose rows are drawn with `seed`."""
    torch.manual_seed(seed)
    model = transformers.GPT2LMHeadModel.from_pretrained(folder)
    model.resize_token_embeddings(CONFIG.vocab_size + len(TOKENS))
    return model.eval()


def logits(model, ids):
    with torch.no_grad():
        return model(torch_ids(ids)).logits[0].numpy()


def randomise(model):
    draw = np.random.default_rng(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += torch.tensor(0.2 * draw.standard_normal(tuple(parameter.shape)), dtype=torch.float32)


def test_peft_finds_out_itself_that_the_vocabulary_has_grown(base, tmp_path):
    """save_embedding_layers = "auto", PEFT's default, compares with the config.json of the base."""
    theirs = peft.get_peft_model(resized(base, 0), peft.LoraConfig(r=4, task_type="CAUSAL_LM", fan_in_fan_out=True))
    randomise(theirs)
    theirs.save_pretrained(tmp_path / "adapter")
    with pytest.warns(UserWarning, match=r"tokens were added for this adapter, but it has no tokenizer\.json"):
        model, _ = base_of(base, adapters=[tmp_path / "adapter"])
    ids = [1, 257, 5, 258, 259]
    npgpt.load_adapter(model, tmp_path / "adapter")
    assert_close(model.logits(ids), logits(theirs, ids), BOUND, "logits")


def test_the_mean_row_is_the_mean_of_transformers_draws(base):
    """transformers draws new rows about the mean of the old ones, with a billionth of their covariance."""
    model = npgpt.GPT2.from_pretrained(base)
    model.resize_token_embeddings(CONFIG.vocab_size + len(TOKENS))
    theirs = resized(base, 0).transformer.wte.weight.detach().numpy()
    assert_close(model.wte.weight.data[-3:], theirs[-3:], 1e-3, "rows")
    assert np.array_equal(model.wte.weight.data[:-3], theirs[:-3])


def test_a_run_with_added_tokens_is_loaded_as_peft_users_do(base, tmp_path, monkeypatch):
    """The tokenizer from the adapter's folder, the base resized to it, the adapter; and the merged folder alone."""
    from npgpt.commands import finetune, merge

    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts.txt").write_text("<|user|>many hands<|assistant|>make light work<|end|>\n")
    finetune.main(finetune.parse_arguments(
        ["--model", str(base), "--data", "texts.txt", "--special-tokens", "--epochs", "5", "--lr", "0.02", "--out",
         "run", "--samples", "0", "--quiet", "--add-tokens", *TOKENS]))
    merge.main(merge.parse_arguments(["--model", str(base), "--adapter", "run/adapter", "--out", "merged"]))
    ours, tokenizer = base_of(base, adapters=["run/adapter"])
    npgpt.load_adapter(ours, "run/adapter")
    text = "<|user|>many hands<|assistant|>make<|end|>"
    ids = tokenizer.encode(text)
    assert set(ids) > {257, 258, 259}
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file="run/adapter/tokenizer.json")
    model = resized(base, 1)
    assert theirs.encode(text, add_special_tokens=False) == ids.tolist()
    assert len(theirs) == model.config.vocab_size
    expected = ours.logits(ids)
    assert_close(logits(peft.PeftModel.from_pretrained(model, "run/adapter").eval(), ids), expected, BOUND, "logits")
    merged = transformers.AutoModelForCausalLM.from_pretrained("merged")
    assert_close(logits(merged, ids), expected, BOUND, "merged logits")
    theirs = transformers.AutoTokenizer.from_pretrained("merged")
    assert theirs.encode(text, add_special_tokens=False) == ids.tolist()

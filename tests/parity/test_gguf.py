"""GGUF files: read back by llama.cpp's own package, and run by llama.cpp where llama-cpp-python is installed."""

import numpy as np
import pytest

pytest.importorskip("gguf")

import gguf as llama_gguf

import npgpt
from npgpt.commands import export_gguf
from npgpt.exchange import gguf

TEXT = "The arguments that don't fit raise <|endoftext|> a naïve ValueError: 3.14, or   12345."
NAMES = {
    "wte": "token_embd", "wpe": "position_embd", "ln_f": "output_norm", "lm_head": "output", "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output", "ln_2": "ffn_norm", "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}  # fmt: skip


def adapted_tiny():
    """The model in the package under an adapter that changes what it says."""
    model = npgpt.GPT2.from_pretrained("tiny")
    npgpt.add_lora(model, npgpt.LoraConfig(r=4, target_modules="all-linear"))
    draw = np.random.default_rng(0)
    for name, tensor in model.parameters().items():
        if name.endswith("lora_B"):
            tensor.data[...] = draw.normal(0, 0.02, tensor.shape)
    return model


def theirs(name):
    """llama.cpp's name of the parameter."""
    module, _, kind = name.rpartition(".")
    if module.startswith("h."):
        _, layer, module = module.split(".", 2)
        return f"blk.{layer}.{NAMES[module]}.{kind}"
    return f"{NAMES[module]}.{kind}"


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_tensors_and_sizes_that_are_read_back(tmp_path, dtype):
    model = adapted_tiny()
    gguf.export(model, npgpt.Tokenizer.from_pretrained("tiny"), tmp_path / "tiny.gguf", dtype)
    reader = llama_gguf.GGUFReader(tmp_path / "tiny.gguf")
    held = {tensor.name: tensor.data for tensor in reader.tensors}
    merged = npgpt.merge_lora(model).parameters()
    assert held.keys() == {theirs(name) for name in merged}
    for name, tensor in merged.items():
        expected = tensor.data.T if name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")) else tensor.data
        kept = "float32" if expected.ndim == 1 or name == "wpe.weight" else dtype
        np.testing.assert_array_equal(held[theirs(name)], expected.astype(kept), err_msg=name, strict=True)

    def value(key):
        return reader.get_field(key).contents()

    config = model.config
    assert value("general.architecture") == value("tokenizer.ggml.model") == "gpt2"
    assert value("tokenizer.ggml.pre") == "gpt-2"
    assert value("general.file_type") == (1 if dtype == "float16" else 0)
    for key, field in (("block_count", config.n_layer), ("context_length", config.n_positions),
                       ("embedding_length", config.n_embd), ("feed_forward_length", 4 * config.n_embd),
                       ("attention.head_count", config.n_head)):
        assert value(f"gpt2.{key}") == field
    assert value("gpt2.attention.layer_norm_epsilon") == np.float32(config.layer_norm_epsilon)
    assert value("tokenizer.ggml.eos_token_id") == config.eos_token_id
    assert value("tokenizer.ggml.tokens")[config.eos_token_id] == "<|endoftext|>"
    assert len(value("tokenizer.ggml.tokens")) == len(value("tokenizer.ggml.token_type")) == config.vocab_size
    assert value("tokenizer.ggml.token_type")[config.eos_token_id] == llama_gguf.TokenType.CONTROL


@pytest.mark.parametrize("kind", ["tied", "untied, rows to spare"])
def test_llama_cpp_computes_the_same(tmp_path, kind):
    """Tokens, logits and 50 greedy tokens. Its GELU goes through a table in float16, hence the bound."""
    llama_cpp = pytest.importorskip("llama_cpp")
    model, tokenizer = adapted_tiny(), npgpt.Tokenizer.from_pretrained("tiny")
    if kind != "tied":
        npgpt.merge_lora(model)
        config = npgpt.GPT2Config.from_dict(model.config.to_dict() | {"tie_word_embeddings": False, "vocab_size": 3080})
        other = npgpt.GPT2(config, seed=5)
        for name, tensor in other.parameters().items():
            if name not in ("lm_head.weight", "wte.weight"):
                tensor.data = model.parameters()[name].data
        other.wte.weight.data[:3072] = model.wte.weight.data
        other.lm_head.weight.data[...] = other.wte.weight.data[::-1]
        model = other
    ids = tokenizer.encode(TEXT)
    expected = npgpt.generate(model, ids[:8], 50, temperature=0)
    for dtype, bound in (("float32", 1e-3), ("float16", 2e-3)):
        gguf.export(model, tokenizer, tmp_path / "tiny.gguf", dtype)
        llama = llama_cpp.Llama(str(tmp_path / "tiny.gguf"), n_ctx=256, logits_all=True, verbose=False, n_threads=1,
                                type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32)
        assert llama.tokenize(TEXT.encode(), add_bos=False, special=True) == ids.tolist()
        llama.eval(ids.tolist())
        ours = model.logits(ids)
        assert np.abs(llama.scores[: len(ids)] - ours).max() <= bound * np.abs(ours).max()
        llama.reset()
        found = ids[:8].tolist()
        for token in llama.generate(list(found), temp=0):
            found.append(token)
            if len(found) == len(expected):
                break
        assert found == expected.tolist()
        llama.close()


def test_the_command(tmp_path, capsys):
    npgpt.save_adapter(adapted_tiny(), tmp_path / "adapter")
    out = tmp_path / "new" / "tiny.gguf"
    arguments = ["--model", "tiny", "--adapter", str(tmp_path / "adapter"), "--out", str(out), "--dtype", "float32"]
    export_gguf.main(export_gguf.parse_arguments(arguments))
    assert capsys.readouterr().out == f"wrote tiny + {tmp_path / 'adapter'}: {out} (float32, 9.8 MB)\n"
    gguf.export(adapted_tiny(), npgpt.Tokenizer.from_pretrained("tiny"), tmp_path / "tiny.gguf", "float32")
    assert out.read_bytes() == (tmp_path / "tiny.gguf").read_bytes()


def test_tokens_that_were_added(tmp_path):
    """They are control tokens, and rows beyond the tokenizer's are unused."""
    model, tokenizer = npgpt.GPT2.from_pretrained("tiny"), npgpt.Tokenizer.from_pretrained("tiny")
    n = tokenizer.vocab_size
    tokenizer.add_tokens(["<|user|>", "<|assistant|>"])
    model.resize_token_embeddings(n + 4)
    gguf.export(model, tokenizer, tmp_path / "tiny.gguf")
    reader = llama_gguf.GGUFReader(tmp_path / "tiny.gguf")
    tokens, kinds = (reader.get_field(f"tokenizer.ggml.{what}").contents() for what in ("tokens", "token_type"))
    assert tokens[n:n + 2] == ["<|user|>", "<|assistant|>"]
    assert kinds[n:] == [gguf.CONTROL, gguf.CONTROL, gguf.UNUSED, gguf.UNUSED]
    (table,) = (tensor for tensor in reader.tensors if tensor.name == "token_embd.weight")
    assert table.data.shape == (n + 4, model.config.n_embd)

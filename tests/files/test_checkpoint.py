import json
import re
from pathlib import Path

import numpy as np
import pytest

from npgpt import GPT2, GPT2Config, LoraConfig, add_lora
from npgpt.files import safetensors
from npgpt.runtime.errors import ConfigError, FileError, FormatError

CONFIG = GPT2Config(n_layer=2, n_head=2, n_embd=8, vocab_size=11, n_positions=6, bos_token_id=None, eos_token_id=0)
UNTIED = GPT2Config(**{**vars(CONFIG), "tie_word_embeddings": False})
IDS = [[1, 2, 3], [10, 0, 4]]
REAL = Path(__file__).parents[3] / "shared" / "models" / "chemts-zinc-gpt2-0.2m"


def weights(model):
    return {name: tensor.data for name, tensor in model.parameters().items()}


def put(folder, tensors, config=CONFIG, **fields):
    """Write a model folder with these tensors and this configuration."""
    safetensors.write(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps({**config.to_dict(), **fields}))
    return folder


def put_shards(folder, weight_map, shards):
    (folder / "config.json").write_text(json.dumps(CONFIG.to_dict()))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    for name, tensors in shards.items():
        safetensors.write(folder / name, tensors)
    return folder


def assert_same(model, other):
    assert model.config == other.config
    assert model.parameters().keys() == other.parameters().keys()
    for name, array in weights(model).items():
        np.testing.assert_array_equal(array, weights(other)[name], err_msg=name)


def refused(folder, kind=FormatError):
    """Return the message of the error in loading; it is one line and names the folder."""
    with pytest.raises(kind) as caught:
        GPT2.from_pretrained(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder) in message
    return message


@pytest.fixture(params=[CONFIG, UNTIED], ids=["tied", "untied"])
def model(request):
    return GPT2(request.param, seed=1)


@pytest.fixture
def tied():
    return GPT2(CONFIG, seed=1)


def test_save_and_load(tmp_path, model):
    model.save_pretrained(tmp_path / "new" / "folder")
    loaded = GPT2.from_pretrained(tmp_path / "new" / "folder")
    assert_same(loaded, model)
    assert loaded.name_or_path == str(tmp_path / "new" / "folder")
    np.testing.assert_array_equal(loaded.logits(IDS), model.logits(IDS))
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == ["config.json", "model.safetensors"]


def test_what_is_written_is_what_transformers_writes(tmp_path, model):
    model.save_pretrained(tmp_path)
    head = ["lm_head.weight"] if not model.config.tie_word_embeddings else []
    inside = [f"transformer.{name}" for name in model.parameters() if name != "lm_head.weight"]
    assert safetensors.read(tmp_path / "model.safetensors").keys() == {*head, *inside}
    assert b'{"__metadata__":{"format":"pt"},' in (tmp_path / "model.safetensors").read_bytes()[:64]
    config = json.loads((tmp_path / "config.json").read_text())
    assert config.pop("architectures") == ["GPT2LMHeadModel"]
    assert config.pop("dtype") == "float32"
    assert config == model.config.to_dict()


def test_a_model_can_be_saved_over_the_file_it_is_mapped_from(tmp_path, tied):
    tied.save_pretrained(tmp_path)
    loaded = GPT2.from_pretrained(tmp_path)
    loaded.save_pretrained(tmp_path)
    assert_same(GPT2.from_pretrained(tmp_path), tied)
    assert_same(loaded, tied)


def test_weights_of_the_model_dtype_are_the_mapped_file(tmp_path, tied):
    tied.save_pretrained(tmp_path)
    for array in weights(GPT2.from_pretrained(tmp_path)).values():
        assert not array.flags.writeable
        assert not array.flags.owndata
    double = GPT2.from_pretrained(tmp_path, dtype=np.float64)
    assert {array.dtype for array in weights(double).values()} == {np.dtype(np.float64)}
    assert_same(double, tied)
    double.save_pretrained(tmp_path)
    assert_same(GPT2.from_pretrained(tmp_path), tied)
    with pytest.raises(ConfigError, match="float32 or float64 would be right"):
        GPT2.from_pretrained(tmp_path, dtype=np.float16)


def test_half_precision_is_widened(tmp_path, tied):
    put(tmp_path, {name: array.astype(np.float16) for name, array in weights(tied).items()})
    for name, array in weights(GPT2.from_pretrained(tmp_path)).items():
        np.testing.assert_array_equal(array, weights(tied)[name].astype(np.float16).astype(np.float32))


@pytest.mark.parametrize("prefix", [
    "", "transformer.", "model.", "gpt.", "module.transformer.", "model.transformer.", "_orig_mod.module.transformer.",
    "pretrained_model.transformer.",
])
def test_prefixes_and_masks(tmp_path, model, prefix):
    tensors = {name if name == "lm_head.weight" else prefix + name: array for name, array in weights(model).items()}
    for layer in range(2):
        tensors[f"{prefix}h.{layer}.attn.bias"] = np.tri(6, dtype=[bool, np.uint8][layer]).reshape(1, 1, 6, 6)
        tensors[f"{prefix}h.{layer}.attn.masked_bias"] = np.float32(-1e4)
    put(tmp_path, {key: np.asarray(array) for key, array in tensors.items()}, model.config)
    assert_same(GPT2.from_pretrained(tmp_path), model)


def test_wrappers_around_blocks(tmp_path, model):
    """torch.compile, FSDP and activation checkpointing may wrap each block, with the masks inside it."""
    put(tmp_path, {f"transformer.{name}".replace(".attn.", "._orig_mod.attn._fsdp_wrapped_module."): array
                   for name, array in weights(model).items() if name != "lm_head.weight"}
        | {"transformer.h.0._orig_mod.attn.bias": np.ones((1, 1, 6, 6), np.uint8)}
        | ({} if model.config.tie_word_embeddings else {"_orig_mod.lm_head.weight": weights(model)["lm_head.weight"]}),
        model.config)
    assert_same(GPT2.from_pretrained(tmp_path), model)


@pytest.mark.parametrize("key", ["lm_head.weight", "lm_head.decoder.weight", "module.lm_head.weight"])
def test_the_head(tmp_path, key):
    tied, untied = GPT2(CONFIG, seed=1), GPT2(UNTIED, seed=1)
    body = {f"transformer.{name}": array for name, array in weights(tied).items()}
    same, other = weights(tied)["wte.weight"], weights(untied)["lm_head.weight"]
    assert_same(GPT2.from_pretrained(put(tmp_path, body | {key: same})), tied)
    assert_same(GPT2.from_pretrained(put(tmp_path, body | {key: other}, UNTIED)), untied)

    put(tmp_path, body | {key: other})
    assert f"'{key}' differs from 'transformer.wte.weight', but config.json ties them" in refused(tmp_path)
    assert '"tie_word_embeddings": false' in refused(tmp_path)

    put(tmp_path, body, UNTIED)
    assert "1 missing: 'lm_head.weight'" in refused(tmp_path)

    del body["transformer.wte.weight"]  # a shared tensor that was stored once, under the other of its names
    assert_same(GPT2.from_pretrained(put(tmp_path, body | {key: same})), tied)


def test_two_keys_for_one_parameter(tmp_path, tied):
    tensors = weights(tied)
    put(tmp_path, tensors | {"transformer.ln_f.bias": tensors["ln_f.bias"]})
    assert "'ln_f.bias' and 'transformer.ln_f.bias' both mean ln_f.bias" in refused(tmp_path)
    put(tmp_path, tensors | {"h.0._orig_mod.ln_1.bias": tensors["h.0.ln_1.bias"]})
    assert "'h.0._orig_mod.ln_1.bias' and 'h.0.ln_1.bias' both mean h.0.ln_1.bias" in refused(tmp_path)


def test_missing_and_unexpected_tensors_are_listed(tmp_path, tied):
    tensors = weights(tied)
    del tensors["h.1.attn.c_attn.bias"]
    put(tmp_path, tensors)
    assert refused(tmp_path).endswith("does not hold this GPT-2: 1 missing: 'h.1.attn.c_attn.bias'")
    extra = {name: np.zeros(1, np.float32) for name in ("h.0.attn.c_attn.lora", "head.weight", "a", "b", "c")}
    put(tmp_path, tensors | extra)
    assert refused(tmp_path).endswith(
        "1 missing: 'h.1.attn.c_attn.bias'; 5 unexpected: 'a', 'b', 'c', 'h.0.attn.c_attn.lora', .. (5 in all)"
    )
    # neither of these is a causal mask
    for name in ("h.0.mlp.bias", "h.0.attn.bias.bias", "h.x.attn.bias", "attn.bias"):
        put(tmp_path, weights(tied) | {name: np.zeros(1, np.float32)})
        assert name in refused(tmp_path)


@pytest.mark.parametrize("names", [
    ["v_head.summary.weight", "v_head.summary.bias"],  # TRL's value head
    ["multiple_choice_head.summary.weight", "multiple_choice_head.summary.bias"],  # GPT2DoubleHeadsModel
    ["score.weight"],  # GPT2ForSequenceClassification
    ["classifier.bias", "classifier.weight"],  # GPT2ForTokenClassification
    ["qa_outputs.bias", "qa_outputs.weight"],  # GPT2ForQuestionAnswering
])
@pytest.mark.parametrize("prefix", ["", "pretrained_model."])
def test_heads_beside_the_language_model_s_are_left_out_by_name(tmp_path, tied, names, prefix):
    body = {f"{prefix}transformer.{name}": array for name, array in weights(tied).items()}
    put(tmp_path, body | {name: np.ones(3, np.float32) for name in names})
    with pytest.warns(UserWarning) as found:
        assert_same(GPT2.from_pretrained(tmp_path), tied)
    (warning,) = found
    assert str(warning.message) == (f"{tmp_path}/model.safetensors: left out {', '.join(map(repr, sorted(names)))}, of "
                                    "a head beside the language model's; the model is read as a language model")


def test_a_classifier_without_the_head_that_its_configuration_asks_for(tmp_path, tied):
    put(tmp_path, weights(tied) | {"score.weight": np.ones((2, 8), np.float32)}, tie_word_embeddings=False)
    with pytest.warns(UserWarning, match=r"left out 'score\.weight'"):
        assert "1 missing: 'lm_head.weight'" in refused(tmp_path)


UNFIT = {
    "under LoRA": ("base_model.model.transformer.h.0.attn.c_attn.lora_A.default.weight", np.ones((2, 8), "f4"),
                   "belongs to LoRA that was not merged: make a plain model with PEFT's merge_and_unload()"),
    "ZeRO-3": ("transformer.wpe.weight", np.ones(0, "f4"), "holds no numbers: DeepSpeed's ZeRO-3 saves such a tensor"),
    "int8": ("transformer.h.0.attn.c_attn.weight", np.ones((24, 8), "i1"),
             "holds int8 numbers; weights must be F64, F32, F16 or BF16; if the model is quantised, load it with the"),
    "4 bits": ("transformer.h.0.attn.c_attn.weight", np.ones((96, 1), "u1"), "holds uint8 numbers; weights must be"),
    "GPTQ": ("transformer.h.0.attn.c_attn.qweight", np.ones((1, 24), "i4"), "holds int32 numbers; weights must be F64"),
}


@pytest.mark.parametrize("kind", UNFIT)
def test_what_is_no_plain_language_model_is_named(tmp_path, tied, kind):
    key, array, message = UNFIT[kind]
    put(tmp_path, {f"transformer.{name}": array for name, array in weights(tied).items()} | {key: array})
    assert f"model.safetensors: '{key}' {message}" in refused(tmp_path)


def test_a_quantised_model_is_refused_by_its_configuration(tmp_path, tied):
    for said, method in (({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"), ("fp8", "fp8")):
        put(tmp_path, weights(tied), quantization_config=said)
        message = f"config.json: quantization_config: the weights are quantised ({method}), and npgpt reads floats"
        assert message in refused(tmp_path, ConfigError)
    put(tmp_path, weights(tied), quantization_config=None)
    assert_same(GPT2.from_pretrained(tmp_path), tied)


def test_general_names_in_the_configuration(tmp_path, tied):
    """transformers accepts them. If npgpt ignored them, nobody would notice a wrong number of heads."""
    put(tmp_path, weights(tied))
    fields = json.loads((tmp_path / "config.json").read_text())
    names = {"n_embd": "hidden_size", "n_positions": "max_position_embeddings", "n_head": "num_attention_heads",
             "n_layer": "num_hidden_layers"}
    (tmp_path / "config.json").write_text(json.dumps({names.get(name, name): value for name, value in fields.items()}))
    assert_same(GPT2.from_pretrained(tmp_path), tied)
    (tmp_path / "config.json").write_text(json.dumps(fields | {"num_attention_heads": 2}))
    assert_same(GPT2.from_pretrained(tmp_path), tied)
    (tmp_path / "config.json").write_text(json.dumps(fields | {"num_attention_heads": 4}))
    assert "n_head = 2 and num_attention_heads = 4 are two names of one field" in refused(tmp_path, ConfigError)


def test_wrong_shapes(tmp_path, tied):
    tensors = weights(tied)
    put(tmp_path, tensors | {"h.0.attn.c_attn.weight": tensors["h.0.attn.c_attn.weight"].T.copy()})
    assert "(out, in), like nanoGPT and MLX; GPT-2's are (in, out); convert the file with" in refused(tmp_path)
    put(tmp_path, tensors | {"h.1.attn.c_attn.weight": tensors["h.1.attn.c_attn.weight"].T.copy()})
    assert "h.1.attn.c_attn.weight has shape (24, 8), but this configuration needs (8, 24)" in refused(tmp_path)
    put(tmp_path, tensors | {"ln_f.bias": np.zeros((1, 8), np.float32), "ln_f.weight": np.zeros(9, np.float32)})
    assert "ln_f.bias has shape (1, 8)" in refused(tmp_path)
    assert "(2 wrong: 'ln_f.bias', 'ln_f.weight')" in refused(tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("vocab_size", 12, "wte.weight has 11 rows, but config.json says vocab_size 12"),
        ("vocab_size", 10**15, "wte.weight has 11 rows, but config.json says vocab_size 1000000000000000"),
        ("n_embd", 12, "wte.weight has 8 columns, but config.json says n_embd 12"),
        ("n_positions", 1024, "wpe.weight has 6 rows, but config.json says n_positions 1024"),
        ("n_inner", 10**15, "h.0.mlp.c_fc.weight has 32 columns, but config.json says n_inner 1000000000000000"),
        ("n_layer", 10**9, "missing layers: it has 2, but config.json says n_layer 1000000000"),
        ("n_layer", 1, "12 unexpected: 'h.1.attn.c_attn.bias', "),
    ],
)
def test_sizes_that_config_and_weights_disagree_on(tmp_path, tied, field, value, message):
    assert message in refused(put(tmp_path, weights(tied), **{field: value}))


def test_what_is_no_gpt2(tmp_path, tied):
    put(tmp_path, {"encoder.weight": np.zeros((2, 2), np.float32)})
    assert "missing matrix wte.weight; every GPT-2 has it, and this file has 'encoder.weight'" in refused(tmp_path)
    put(tmp_path, weights(tied) | {"wpe.weight": np.zeros(48, np.float32)})
    assert "missing matrix wpe.weight" in refused(tmp_path)
    put(tmp_path, weights(tied) | {"wte.weight": np.zeros((11, 8), np.int32)})
    assert "'wte.weight' holds int32 numbers; weights must be F64, F32, F16 or BF16" in refused(tmp_path)
    put(tmp_path, weights(tied), model_type="llama")
    (tmp_path / "model.safetensors").unlink()  # refused by its config.json, before any weights would be downloaded
    assert f"{tmp_path / 'config.json'}: model_type = 'llama'" in refused(tmp_path, ConfigError)


def test_missing_and_corrupt_files(tmp_path, tied):
    assert "has no config.json; a GPT-2 folder has config.json and model.safetensors" in refused(tmp_path, FileError)
    put(tmp_path, weights(tied))
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert "data_offsets must be" in refused(tmp_path)
    assert "hf download" not in refused(tmp_path)  # that is for what came from the hub
    path.unlink()
    assert "has no weights that npgpt reads: none of model.safetensors, model.saf" in refused(tmp_path, FileError)
    (tmp_path / "config.json").write_text("{")
    path.write_bytes(b"")
    assert "config.json is not valid JSON" in refused(tmp_path)
    assert "there is no folder" in refused(tmp_path / "none", FileError)


def test_what_is_read_where_there_is_more_than_one(tmp_path, tied):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG.to_dict()))
    for name, content, message in (
        ("pytorch_model.bin.index.json", "{}", "weight_map must map each tensor to a .bin file beside the index"),
        ("pytorch_model.bin", "PK", "is not a file that torch.save writes"),
        ("model.safetensors.index.json", "{}", "weight_map must map each tensor to a .safetensors file beside the ind"),
        ("model.safetensors", "{}", "is not a whole safetensors file"),
    ):
        (tmp_path / name).write_text(content)
        assert re.search(f"{name}:? {message}", refused(tmp_path))
    tied.save_pretrained(tmp_path)
    assert_same(GPT2.from_pretrained(tmp_path), tied)


def test_shards(tmp_path, tied):
    tensors = {f"transformer.{name}": array for name, array in weights(tied).items()}
    names = sorted(tensors)
    shards = {f"model-0000{i}-of-00003.safetensors": {k: tensors[k] for k in names[i - 1 :: 3]} for i in (1, 2, 3)}
    weight_map = {key: shard for shard, held in shards.items() for key in held}
    assert_same(GPT2.from_pretrained(put_shards(tmp_path, weight_map, shards)), tied)

    moved = weight_map | {names[0]: weight_map[names[1]]}
    put_shards(tmp_path, moved, shards)
    assert f"disagree on '{names[0]}'; each shard must hold exactly" in refused(tmp_path)
    put_shards(tmp_path, {key: shard for key, shard in weight_map.items() if key != names[0]}, shards)
    assert f"disagree on '{names[0]}'" in refused(tmp_path)
    put_shards(tmp_path, weight_map | {"more": weight_map[names[0]]}, shards)
    assert "disagree on 'more'" in refused(tmp_path)

    put_shards(tmp_path, weight_map, {})
    (tmp_path / weight_map[names[0]]).unlink()
    assert "lists model-00001-of-00003.safetensors, which is missing" in refused(tmp_path, FileError)


@pytest.mark.parametrize("shard", [None, 3, "../x.safetensors", "/x.safetensors", "a/x.safetensors", "x.bin", "x\n"])
def test_an_index_that_points_elsewhere(tmp_path, shard):
    put_shards(tmp_path, {"wte.weight": shard}, {})
    assert "weight_map must map each tensor to a .safetensors file beside the index" in refused(tmp_path)


def test_a_model_with_lora_is_not_saved(tmp_path, tied):
    add_lora(tied, LoraConfig(r=2, target_modules=["c_attn"]), seed=0)
    with pytest.raises(ConfigError, match=r"it has LoRA layers; call merge_lora\(model\) first, or save_adapter"):
        tied.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_failed_save_leaves_the_old_model(tmp_path, tied, monkeypatch):
    tied.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    other = GPT2(UNTIED, seed=2)
    other.wte.weight.data = np.zeros(1, complex)
    with pytest.raises(ConfigError, match="cannot write tensor"):
        other.save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    with pytest.raises(FileError, match=r"cannot write .*config.json"):
        tied.save_pretrained(tmp_path / "config.json")


if REAL.is_dir():

    def test_the_real_model_agrees_with_transformers():
        reference = np.load(REAL / "reference.npz")
        logits = GPT2.from_pretrained(REAL).logits(reference["input_ids"])
        np.testing.assert_allclose(logits, reference["logits"], atol=1e-4, rtol=0)

    def test_the_real_file_is_written_again_byte_for_byte(tmp_path):
        GPT2.from_pretrained(REAL).save_pretrained(tmp_path)
        assert (tmp_path / "model.safetensors").read_bytes() == (REAL / "model.safetensors").read_bytes()


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused_by_name(tmp_path, tied, dtype, bad):
    tensors = {name: array.astype(dtype) for name, array in weights(tied).items()}
    put(tmp_path, tensors)
    GPT2.from_pretrained(tmp_path)
    tensors["h.1.mlp.c_fc.weight"][3, 5] = bad
    put(tmp_path, tensors)
    assert "model.safetensors: h.1.mlp.c_fc.weight holds NaN or infinity, 1 of 256 numbers: " in refused(tmp_path)


def test_numbers_whose_sum_overflows_are_read(tmp_path, tied):
    tensors = weights(tied) | {"ln_f.bias": np.full(8, 3e38, np.float32)}
    put(tmp_path, tensors)
    assert GPT2.from_pretrained(tmp_path).ln_f.bias.data[0] == np.float32(3e38)


def test_keys_of_the_configuration_that_are_not_used_are_named_in_one_warning(tmp_path, tied):
    put(tmp_path, weights(tied), rotary_pct=0.25, zzz="\x1b[2J", pruned_heads={}, is_decoder=False, n_ctx=16,
        torch_dtype="float32", task_specific_params={"text-generation": {"do_sample": True}}, top_k=5, num_beams=1)
    with pytest.warns(UserWarning) as found:
        GPT2.from_pretrained(tmp_path)
    (warning,) = found
    assert str(warning.message) == (f"{tmp_path}/config.json: npgpt does not use rotary_pct = 0.25, top_k = 5, zzz = "
                                    r"'\x1b[2J'; with transformers the result may be another one")
    with pytest.warns(UserWarning, match="rotary_pct"):
        GPT2.from_pretrained(put(tmp_path, weights(tied), rotary_pct=0.25))

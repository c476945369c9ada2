import json

import numpy as np
import pytest

from npgpt import GPT2, Batch, GPT2Config, LoraConfig, add_lora, backward, load_adapter, merge_lora, save_adapter
from npgpt.adapters.stack import adapter_names, updates
from npgpt.files import safetensors
from npgpt.runtime.errors import ConfigError, FileError, FormatError
from tests.files.test_torchfile import archive, legacy, saved

SIZE = {"n_layer": 2, "n_head": 2, "n_embd": 8, "vocab_size": 11, "n_positions": 16}
IDS = np.arange(11)

# adapter_config.json as PEFT 0.21.2 wrote it for r 2, lora_alpha 8, c_attn, on a GPT-2 without a name.
WRITTEN_BY_PEFT = """{
  "alora_invocation_tokens": null,
  "alpha_pattern": {},
  "arrow_config": null,
  "auto_mapping": null,
  "base_model_name_or_path": null,
  "bias": "none",
  "corda_config": null,
  "ensure_weight_tying": false,
  "eva_config": null,
  "exclude_modules": null,
  "fan_in_fan_out": true,
  "inference_mode": true,
  "init_lora_weights": true,
  "kasa_config": null,
  "layer_replication": null,
  "layers_pattern": null,
  "layers_to_transform": null,
  "loftq_config": {},
  "lora_alpha": 8,
  "lora_bias": false,
  "lora_dropout": 0.0,
  "lora_ga_config": null,
  "megatron_config": null,
  "megatron_core": "megatron.core",
  "modules_to_save": null,
  "monteclora_config": null,
  "peft_type": "LORA",
  "peft_version": "0.21.2",
  "qalora_group_size": 16,
  "r": 2,
  "rank_pattern": {},
  "revision": null,
  "target_modules": [
    "c_attn"
  ],
  "target_parameters": null,
  "task_type": "CAUSAL_LM",
  "trainable_token_indices": null,
  "use_bdlora": null,
  "use_dora": false,
  "use_qalora": false,
  "use_rslora": false,
  "velora_config": null
}
"""


def base(dtype=np.float32, **changes):
    """A small model with weights of order 0.2, the same at every call."""
    model = GPT2(GPT2Config(**SIZE | changes), seed=None, dtype=dtype)
    draw = np.random.default_rng(0)
    for tensor in model.parameters().values():
        tensor.data = (0.2 * draw.standard_normal(tensor.shape)).astype(dtype)
    return model


def adapted(targets=("c_attn",), r=2, lora_alpha=8, name="default", model=None):
    """A small model with an adapter. Its B is not zero, so that it has an effect."""
    model = add_lora(model or base(), LoraConfig(r, lora_alpha, 0.0, targets), seed=1, name=name)
    draw = np.random.default_rng(2)
    for update in updates(model, name).values():
        update.lora_B.data[...] = 0.2 * draw.standard_normal(update.lora_B.shape)
    return model


def arrays(model):
    return {name: tensor.data for name, tensor in model.parameters().items()}


def assert_same_bits(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name, strict=True)


@pytest.fixture
def folder(tmp_path):
    """A saved adapter: r 2 on c_attn of two layers of width 8."""
    save_adapter(adapted(), tmp_path / "adapter")
    return tmp_path / "adapter"


def edit_config(folder, **fields):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def edit_weights(folder, edit):
    """Replace the weights by the result of edit(dict key -> array)."""
    path = folder / "adapter_model.safetensors"
    safetensors.write(path, edit({key: array.copy() for key, array in safetensors.read(path).items()}))


# What is written


def test_config_is_the_one_peft_writes(folder):
    assert (folder / "adapter_config.json").read_text() == WRITTEN_BY_PEFT


def test_config_holds_the_adapters_settings(tmp_path):
    model = base()
    model.name_or_path = "gpt2"
    add_lora(model, LoraConfig(3, 7.5, 0.25, ["mlp.c_proj", "c_attn", "c_attn"]))
    save_adapter(model, tmp_path)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    expected = {"r": 3, "lora_alpha": 7.5, "lora_dropout": 0.25, "target_modules": ["c_attn", "mlp.c_proj"],
                "base_model_name_or_path": "gpt2"}
    assert written == json.loads(WRITTEN_BY_PEFT) | expected


@pytest.mark.parametrize(
    ("targets", "kinds"),
    [
        ("all-linear", ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]),
        (r".*\.attn\.c_.*", ["attn.c_attn", "attn.c_proj"]),
    ],
)
def test_targets_given_by_a_pattern_are_written_out(tmp_path, targets, kinds):
    save_adapter(adapted(targets), tmp_path)
    written = json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"]
    assert written == [f"transformer.h.{layer}.{kind}" for layer in range(2) for kind in kinds]


def test_weights_are_peft_s_keys_in_float32(tmp_path):
    model = adapted(["c_attn", "mlp.c_proj"], model=base(np.float64))
    save_adapter(model, tmp_path)
    written = safetensors.read(tmp_path / "adapter_model.safetensors")
    assert {key: array.shape for key, array in written.items()} == {
        f"base_model.model.transformer.h.{layer}.{module}.{parameter}.weight": shape
        for layer in range(2)
        for module, parameter, shape in [
            ("attn.c_attn", "lora_A", (2, 8)), ("attn.c_attn", "lora_B", (24, 2)),
            ("mlp.c_proj", "lora_A", (2, 32)), ("mlp.c_proj", "lora_B", (8, 2)),
        ]
    }  # fmt: skip
    for key, array in written.items():
        name = key.removeprefix("base_model.model.transformer.").removesuffix(".weight")
        np.testing.assert_array_equal(array, model.parameters()[name].data.astype(np.float32), strict=True)
    header = (tmp_path / "adapter_model.safetensors").read_bytes()[8:]
    assert header.startswith(b'{"__metadata__":{"format":"pt"}')


def test_another_name_is_a_folder_of_its_own(tmp_path):
    model = adapted(name="poet")
    save_adapter(model, tmp_path, name="poet")
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")) == [
        "poet/adapter_config.json", "poet/adapter_model.safetensors",
    ]  # fmt: skip
    for place in (tmp_path, tmp_path / "poet"):
        loaded = load_adapter(base(), place, name="poet")
        assert_same_bits(arrays(loaded), arrays(model))
        assert adapter_names(loaded) == ["poet"]
    with pytest.raises(FileError, match=r"adapter_config\.json"):
        load_adapter(base(), tmp_path)


def test_saving_what_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="no adapter called 'default': it has none; add_lora makes one"):
        save_adapter(base(), tmp_path)
    with pytest.raises(ConfigError, match="no adapter called 'default': its adapters are poet"):
        save_adapter(adapted(name="poet"), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["..", "a/b", "a\\b", ""])
def test_a_name_cannot_leave_the_folder(tmp_path, name):
    with pytest.raises(ConfigError, match="cannot name an adapter"):
        save_adapter(adapted(name=name), tmp_path / "inner", name=name)
    with pytest.raises(ConfigError, match="cannot name an adapter"):
        load_adapter(base(), tmp_path / "inner", name=name)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(FileError, match="cannot write"):
        save_adapter(adapted(), tmp_path / "file")
    assert (tmp_path / "file").read_text() == "kept"


def test_weights_come_before_the_config_and_nothing_is_half_written(folder, monkeypatch):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(FileError, match=r"adapter_model\.safetensors: No space left on device"):
        save_adapter(adapted(r=4), folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


# What is read


@pytest.mark.parametrize(
    "targets", [["c_attn"], ["c_proj"], ["attn.c_proj", "h.1.mlp.c_fc"], "all-linear", r".*1.*c_fc"]
)
def test_round_trip(tmp_path, targets):
    model = adapted(targets, r=3, lora_alpha=5)
    save_adapter(model, tmp_path / "first")
    loaded = load_adapter(base(), tmp_path / "first")
    assert_same_bits(arrays(loaded), arrays(model))
    np.testing.assert_array_equal(loaded.logits(IDS), model.logits(IDS))
    assert np.abs(model.logits(IDS) - base().logits(IDS)).max() > 0.001  # the adapter has an effect at all
    save_adapter(loaded, tmp_path / "second")
    for path in (tmp_path / "first").iterdir():
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes()
    np.testing.assert_array_equal(merge_lora(loaded).logits(IDS), merge_lora(model).logits(IDS))


def test_a_loaded_adapter_trains_and_the_base_does_not(folder):
    model = load_adapter(base(), folder)
    assert model.trainable_parameters().keys() == {
        f"h.{layer}.attn.c_attn.{parameter}" for layer in range(2) for parameter in ("lora_A", "lora_B")
    }
    assert set(backward(model.loss(Batch.from_sequences([IDS])))) == set(model.trainable_parameters().values())
    for tensor in model.trainable_parameters().values():
        tensor.data += 1  # the memory-mapped file is read-only; its copy is not
    assert load_adapter(base(), folder, trainable=False).trainable_parameters() == {}


def test_settings_are_read(folder):
    edit_config(folder, lora_alpha=3, lora_dropout=0.5)
    model = load_adapter(base(), folder)
    config = updates(model)["h.0.attn.c_attn"].config
    assert config == LoraConfig(2, 3, 0.5, ("c_attn",))


def test_absent_fields_have_peft_s_defaults(tmp_path):
    save_adapter(adapted(r=8, lora_alpha=8), tmp_path)
    expected = load_adapter(base(), tmp_path)
    for text in ('{"peft_type": "LORA"}', '{"peft_type": "LORA", "target_modules": null}'):
        (tmp_path / "adapter_config.json").write_text(text)
        model = load_adapter(base(), tmp_path)
        np.testing.assert_array_equal(model.logits(IDS), expected.logits(IDS))
        assert updates(model)["h.0.attn.c_attn"].config == LoraConfig(8, 8, 0.0, ("c_attn",))


@pytest.mark.parametrize(
    "spell",
    [
        lambda key: key.replace("transformer.", ""),
        lambda key: key.replace(".weight", ".default.weight"),
        lambda key: key.replace(".weight", ".some_name.weight"),
        lambda key: key.removeprefix("base_model.model."),
        lambda key: key.replace("transformer.", "_orig_mod.transformer."),
        lambda key: key.replace(".attn.", "._orig_mod.attn."),
        lambda key: f"module.{key.replace('.c_attn.', '.module.c_attn._orig_mod.').replace('.weight', '.a.weight')}",
        lambda key: "pretrained_model." + key,
        lambda key: key.replace("base_model.model.", "base_model.model.model."),
    ],
    ids=["model without a head", "default in the key", "a name in the key", "no prefix", "compiled", "compiled blocks",
         "several wrappers", "TRL's value head", "a Lightning module"],
)
def test_other_spellings_of_keys(folder, spell):
    edit_weights(folder, lambda tensors: {spell(key): array for key, array in tensors.items()})
    assert_same_bits(arrays(load_adapter(base(), folder)), arrays(adapted()))


def test_names_of_wrapped_modules_in_the_configuration(tmp_path):
    """PEFT lists the modules of "all-linear". If each block was compiled, the names have a wrapper's."""
    model = adapted(["mlp.c_fc", "h.1.attn.c_attn"], model=base())
    save_adapter(model, tmp_path)
    edit_weights(tmp_path, lambda tensors: {key.replace(".h.1.", ".h.1._orig_mod."): tensors[key] for key in tensors})
    edit_config(tmp_path, target_modules=["transformer.h.0.mlp.c_fc", "transformer.h.1._orig_mod.mlp.c_fc",
                                          "_orig_mod.transformer.h.1._orig_mod.attn.c_attn"],
                rank_pattern={"h.1._orig_mod.mlp.c_fc": 2}, r=3)
    refused(tmp_path, r"lora_A\.weight' has shape \(2, 8\), float32, but \(3, 8\)")
    edit_config(tmp_path, rank_pattern={"_orig_mod.mlp.c_fc": 2, "h.1._orig_mod.attn.c_attn": 2},
                alpha_pattern={"h.1._orig_mod.attn.c_attn": 8})
    assert_same_bits(arrays(load_adapter(base(), tmp_path)), arrays(model))


def test_pattern_of_a_model_without_a_head(tmp_path):
    """There, modules have names such as h.0.attn.c_attn, and the regular expression was written for them."""
    model = adapted(["h.1.attn.c_attn"])
    save_adapter(model, tmp_path)
    edit_weights(tmp_path, lambda tensors: {key.replace("transformer.", ""): tensors[key] for key in tensors})
    edit_config(tmp_path, target_modules=r"h\.1\.attn\.c_attn|nothing")
    assert_same_bits(arrays(load_adapter(base(), tmp_path)), arrays(model))


@pytest.mark.parametrize(
    "targets", [["c_attn", "v_proj"], ["transformer.h.0.attn.c_attn", "h.1.attn.c_attn"], r"transformer\.h\.\d.*c_attn"]
)
def test_target_modules_as_peft_allows_them(folder, targets):
    edit_config(folder, target_modules=targets)
    assert_same_bits(arrays(load_adapter(base(), folder)), arrays(adapted()))


@pytest.mark.parametrize("word", ["all-linear", "ALL-LINEAR"])
def test_all_linear(tmp_path, word):
    model = adapted("all-linear")
    save_adapter(model, tmp_path)
    edit_config(tmp_path, target_modules=word)
    assert_same_bits(arrays(load_adapter(base(), tmp_path)), arrays(model))


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_weights_are_taken_to_the_models_dtype(folder, dtype):
    edit_weights(folder, lambda tensors: {key: array.astype(dtype) for key, array in tensors.items()})
    for model_dtype in (np.float32, np.float64):
        model = load_adapter(base(model_dtype), folder)
        assert {tensor.dtype for tensor in model.parameters().values()} == {np.dtype(model_dtype)}
        exact = adapted().parameters()["h.1.attn.c_attn.lora_B"].data.astype(dtype).astype(model_dtype)
        np.testing.assert_array_equal(model.parameters()["h.1.attn.c_attn.lora_B"].data, exact)


@pytest.mark.parametrize("form", [archive, legacy])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_older_file_of_weights(folder, form, dtype):
    """adapter_model.bin, read without unpickling, gives the same as a safetensors file with the same numbers."""
    def narrow(array):
        return (array.view(np.uint32) >> 16).astype(np.uint16) if dtype == "bfloat16" else array.astype(dtype)

    def widen(array):
        return (array.astype(np.uint32) << 16).view(np.float32) if dtype == "bfloat16" else array

    path = folder / "adapter_model.safetensors"
    tensors = {key: narrow(array) for key, array in safetensors.read(path).items()}
    edit_weights(folder, lambda _: {key: widen(array) for key, array in tensors.items()})
    expected = arrays(load_adapter(base(), folder))
    path.unlink()
    (folder / "adapter_model.bin").write_bytes(saved(tensors, form))
    assert_same_bits(arrays(load_adapter(base(), folder)), expected)


def test_unknown_fields_are_named(folder):
    edit_config(folder, new_in_peft=True, another=None)
    with pytest.warns(UserWarning, match="does not know 'another', 'new_in_peft'") as caught:
        load_adapter(base(), folder)
    assert caught[0].filename == __file__


@pytest.mark.parametrize("version", ["0.2", "0.12"])
def test_files_of_older_versions(folder, version):
    """A file with all fields of such a version, also those that PEFT has dropped since, gives no warning."""
    path = folder / "adapter_config.json"
    fields = json.loads(path.read_text())
    old = {"base_model_name_or_path", "bias", "fan_in_fan_out", "inference_mode", "lora_alpha", "lora_dropout",
           "modules_to_save", "peft_type", "r", "target_modules", "task_type"}
    if version == "0.2":
        fields = {field: fields[field] for field in old} | {"enable_lora": None, "merge_weights": True}
    else:
        fields = {field: fields[field] for field in (*old, "rank_pattern", "alpha_pattern", "use_dora", "loftq_config")}
        fields["runtime_config"] = {"ephemeral_gpu_offload": False}
    path.write_text(json.dumps(fields))
    assert_same_bits(arrays(load_adapter(base(), folder)), arrays(adapted()))


def test_a_base_of_another_name_is_pointed_out(folder):
    edit_config(folder, base_model_name_or_path="openai-community/gpt2")
    model = base()
    model.name_or_path = "models/gpt2"
    load_adapter(model, folder)
    model = base()
    model.name_or_path = "microsoft/DialoGPT-small"
    with pytest.warns(UserWarning, match="for 'openai-community/gpt2', but this model is 'microsoft/DialoGPT-small'"):
        load_adapter(model, folder)


# What is refused: with one line, and with the model as it was


def refused(folder, match, error=FormatError, model=None):
    model = model or base()
    modules, before = list(model.named_modules()), arrays(model)
    with pytest.raises(error, match=match) as caught:
        load_adapter(model, folder)
    assert "\n" not in str(caught.value)
    assert list(model.named_modules()) == modules
    assert len(model.trainable_parameters()) == len(before)
    assert_same_bits(arrays(model), before)


UNSUPPORTED = {
    "enable_lora": [[True, False, True], [], False],
    "alora_invocation_tokens": [[1, 2]],
    "arrow_config": [{"top_k": 2}],
    "kasa_config": [{"beta": 0.1}],
    "layer_replication": [[[0, 2]]],
    "megatron_config": [{"a": 1}],
    "monteclora_config": [{"a": 1}],
    "target_parameters": [["h.0.attn.c_attn.weight"]],
    "use_bdlora": [{"a": 1}],
    "use_qalora": [True],
    "velora_config": [{"a": 1}],
    "init_lora_weights": ["pissa_niter_16", "olora", "corda", "loftq", "lora_ga", "newer", 3],
    "task_type": ["SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS"],
}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field in UNSUPPORTED for value in UNSUPPORTED[field]])
def test_fields_that_change_the_result(folder, field, value):
    edit_config(folder, **{field: value})
    refused(folder, rf"adapter_config.json: {field} = ")


def test_the_same_fields_switched_off(folder):
    off = {field: False for field in ("use_bdlora", "use_dora", "use_qalora", "use_rslora", "lora_bias")}
    off |= {field: [] for field in ("exclude_modules", "layers_pattern", "layers_to_transform", "modules_to_save")}
    off |= {"init_lora_weights": "gaussian", "task_type": None, "rank_pattern": None, "eva_config": {"rho": 2.0}}
    edit_config(folder, **off)
    assert_same_bits(arrays(load_adapter(base(), folder)), arrays(adapted()))


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"peft_type": "IA3"}, "peft_type = 'IA3', but npgpt reads only 'LORA'"),
        ({"peft_type": None}, "peft_type = None"),
        ({"base_model_name_or_path": 3}, "base_model_name_or_path = 3: it must be a string or null"),
        ({"r": 0}, r"adapter_config.json: .*r = 0"),
        ({"r": "8"}, "r = '8'"),
        ({"lora_alpha": "16"}, "lora_alpha = '16'"),
        ({"lora_dropout": 1.5}, "lora_dropout = 1.5"),
        ({"trainable_token_indices": [1, 1]}, r"trainable_token_indices = \[1, 1\]: it must be a list of different"),
        ({"trainable_token_indices": {"c_attn": [1]}}, "'c_attn' in trainable_token_indices is not the name of a"),
        ({"trainable_token_indices": [0]}, r"missing wte\.trainable_tokens_delta"),
        ({"target_modules": 3}, "target_modules = 3: it must be a list of names or a regular expression"),
        ({"exclude_modules": 3}, "exclude_modules = 3: it must be a list of names or a regular expression"),
        ({"exclude_modules": ["c_attn"]}, "leave no module to adapt"),
        ({"exclude_modules": "("}, "is not a regular expression"),
        ({"layers_to_transform": 2}, "layers_to_transform names layer 2; this model has layers 0 to 1"),
        ({"layers_to_transform": ["0"]}, "layers_to_transform = .*: it must be a layer's number"),
        ({"layers_pattern": "h"}, "layers_pattern = 'h' without layers_to_transform"),
        ({"modules_to_save": "ln_f"}, "modules_to_save = 'ln_f': it must be a list of names"),
        ({"modules_to_save": ["score"]}, "'score' in modules_to_save is no module of this model"),
        ({"bias": "some"}, "bias = 'some': it must be 'none', 'all' or 'lora_only'"),
        ({"use_dora": 1}, "use_dora = 1: it must be true or false"),
        ({"use_dora": True, "lora_bias": True}, "lora_bias does not go together with use_dora"),
        ({"rank_pattern": {"c_attn": 0}}, r"rank_pattern\['c_attn'\] = 0"),
        ({"rank_pattern": ["c_attn"]}, "rank_pattern = .*: it must be a dict"),
        ({"alpha_pattern": {"c_attn": -1}}, r"alpha_pattern\['c_attn'\] = -1"),
        ({"alpha_pattern": {"(": 1}}, "is not a regular expression"),
        ({"target_modules": ["c_attn", 3]}, "it must be a list of names or a regular expression"),
        ({"target_modules": []}, "target_modules is empty"),
        ({"target_modules": ["q_proj", "v_proj"]}, "adapter_config.json: target 'q_proj' matches no module"),
        ({"target_modules": ["ln_f"]}, "adapter_config.json: target 'transformer.ln_f' is of class LayerNorm"),
        ({"target_modules": "c_attn"}, "adapter_config.json: target 'c_attn' matches no module as a regular"),
        ({"target_modules": "(c_attn"}, "adapter_config.json: .* is not a regular expression"),
    ],
)
def test_fields_that_cannot_be_used(folder, fields, match):
    edit_config(folder, **fields)
    refused(folder, match)


KEY = "base_model.model.transformer.h.1.attn.c_attn.lora_A.weight"


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        (lambda t: {key: t[key] for key in t if key != KEY}, r"missing h\.1\.attn\.c_attn\.lora_A$"),
        (lambda t: {key: t[key] for key in t if ".h.1." not in key}, r"missing h\.1\.attn\.c_attn\.lora_A and 1 more$"),
        (lambda t: {}, "is not a whole adapter, it holds no tensors: it was saved without its weights"),
        (lambda t: {key: np.zeros(0, "f4") for key in t}, "'base_model.*lora_A.weight' in it holds no numbers: it"),
        (lambda t: t | {KEY: np.zeros((2, 0), "f4")}, "'base_model.*h.1.*lora_A.weight' in it holds no numbers: it"),
        (lambda t: t | {"base_model.model.lm_head.weight": t[KEY]}, r"lm_head\.weight' has shape \(2, 8\), .* table"),
        (lambda t: t | {"h.2.attn.c_attn.lora_A.weight": t[KEY]}, r"not expected 'h\.2.*lora_A\.weight'$"),
        (lambda t: t | {"h.1.attn.c_attn.lora_A.weight": t[KEY]}, "not expected .*lora_A.weight'$"),
        (lambda t: t | {KEY.replace("h.1", "h.1._orig_mod"): t[KEY]}, "not expected .*h.1.*lora_A.weight'$"),
        (lambda t: t | {KEY: t[KEY].T.copy()}, r"lora_A\.weight' has shape \(8, 2\), .* but \(2, 8\) of floats"),
        (lambda t: t | {KEY: t[KEY].astype(np.int32)}, r"has shape \(2, 8\), int32, but \(2, 8\) of floats"),
        (lambda t: t | {"two\nlines": t[KEY]}, r"not expected 'two\\nlines'$"),
        (lambda t: t | {KEY.replace("lora_A", "lora_C"): t[KEY]}, "not expected .*lora_C.weight'$"),
    ],
    ids=["tensor less", "layer less", "none", "placeholders", "a placeholder", "head", "layer more", "twice",
         "twice, wrapped", "transposed", "integers", "odd", "other"],
)
def test_every_tensor_is_accounted_for(folder, edit, match):
    edit_weights(folder, edit)
    refused(folder, match)


@pytest.mark.parametrize("form", [archive, legacy])
def test_an_empty_file_of_the_older_form(folder, form):
    """443 bytes without tensors: PEFT 0.3 wrote such files if a script had replaced the model's state_dict."""
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(form({}, {}))
    refused(folder, r"adapter_model\.bin is not a whole adapter, it holds no tensors: .* or a replaced state_dict")


def test_a_file_that_holds_its_base_as_well(folder):
    """The state of a whole PeftModel, saved as the adapter. PEFT would replace weights by equal ones."""
    model = base()
    whole = {f"base_model.model.transformer.{name.replace('c_attn.', 'c_attn.base_layer.')}": tensor.data
             for name, tensor in model.parameters().items()}
    whole["base_model.model.lm_head.weight"] = model.wte.weight.data
    edit_weights(folder, lambda tensors: whole | tensors)
    assert_same_bits(arrays(load_adapter(base(), folder)), arrays(adapted()))
    key = "base_model.model.transformer.h.0.ln_1.weight"
    edit_weights(folder, lambda tensors: tensors | {key: tensors[key] + 1})
    refused(folder, "not expected 'base_model.model.transformer.h.0.ln_1.weight'$")


def test_rank_of_the_file_and_of_the_config(folder):
    edit_config(folder, r=4)
    refused(folder, r"h\.0\.attn\.c_attn\.lora_A\.weight' has shape \(2, 8\), float32, but \(4, 8\) .* and 3 more$")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"n_layer": 1}, r"with n_layer 1 and n_embd 8: not expected .*h\.1.*lora_A\.weight' and 1 more$"),
        ({"n_layer": 3}, r"with n_layer 3 and n_embd 8: missing h\.2\.attn\.c_attn\.lora_A and 1 more$"),
        ({"n_embd": 4}, r"with n_layer 2 and n_embd 4: .*h\.0.*lora_A\.weight' has shape \(2, 8\), .*\(2, 4\)"),
    ],
)
def test_an_adapter_for_another_base(folder, changes, match):
    refused(folder, r"an adapter for '\(not named\)', does not fit this model, '\(not named\)' " + match,
            model=base(**changes))
    edit_config(folder, base_model_name_or_path="gpt2")
    model = base(**changes)
    model.name_or_path = "distilgpt2"
    refused(folder, "an adapter for 'gpt2', does not fit this model, 'distilgpt2' " + match, model=model)


def test_a_model_that_has_an_adapter(folder):
    model = adapted()
    before = arrays(model)
    with pytest.raises(ConfigError, match="an adapter called 'default' already"):
        load_adapter(model, folder)
    assert_same_bits(arrays(model), before)


def test_missing_and_corrupt_files(folder, tmp_path):
    refused(tmp_path / "nowhere", "cannot read .*nowhere.adapter_config.json", FileError)
    (tmp_path / "run" / "adapter").mkdir(parents=True)
    (tmp_path / "run" / "config.json").write_text("{}")
    refused(tmp_path / "run", "run is the folder of a model, not of an adapter: there is no adapter_config", FileError)
    (tmp_path / "run" / "checkpoints").mkdir()
    refused(tmp_path / "run", "run is the folder of a run that has no adapter", FileError)
    (tmp_path / "run" / "adapter" / "adapter_config.json").write_text("{}")
    refused(tmp_path / "run", "run is the folder of a run; its adapter is .*run.adapter$", FileError)
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "cannot read .*empty.adapter_config.json", FileError)
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1])
    refused(folder, "adapter_model.safetensors")
    weights.unlink()
    refused(folder, "cannot read .*adapter_model.safetensors", FileError)
    (folder / "adapter_model.bin").write_bytes(content)
    refused(folder, "adapter_model.bin is not a file that torch.save writes")
    weights.write_bytes(content)
    load_adapter(base(), folder)
    config.write_text("{")
    refused(folder, "adapter_config.json is not valid JSON")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_are_refused_by_name(folder, bad):
    def edit(tensors):
        tensors["base_model.model.transformer.h.1.attn.c_attn.lora_B.weight"][0, 0] = bad
        return tensors

    edit_weights(folder, edit)
    model = GPT2(GPT2Config(**SIZE), seed=1)
    with pytest.raises(FormatError, match=r"safetensors: lora_B of h.1.attn.c_attn holds NaN or infinity, "
                                          "1 of 48 numbers"):
        load_adapter(model, folder)
    assert adapter_names(model) == []

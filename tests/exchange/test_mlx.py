"""MLX's files compute the same here as in MLX, and wrong files are refused."""

import json
import shutil

import numpy as np
import pytest

from npgpt import GPT2, LoraConfig, add_lora, load_adapter
from npgpt.exchange import mlx, nanogpt
from npgpt.files import safetensors
from npgpt.runtime.errors import ConfigError, FileError, FormatError
from tests.goldens import golden
from tests.goldens.test_adapter_goldens import base

FOLDER = golden.FOLDER / "mlx"
with np.load(FOLDER / "answers.npz") as answers:
    ANSWERS = dict(answers)


@pytest.fixture
def folder(tmp_path):
    """A LoRA adapter that MLX wrote."""
    shutil.copytree(FOLDER / "lora", tmp_path / "lora")
    return tmp_path / "lora"


def edit(folder, change):
    """Replace the tensors by the result of change(dict key -> array)."""
    path = folder / "adapters.safetensors"
    safetensors.write(path, change({key: array.copy() for key, array in safetensors.read(path).items()}))


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_what_mlx_wrote_computes_the_same_here(tmp_path, assert_close, kind):
    with pytest.raises(FormatError, match=r"adapter_config\.json is MLX's, not PEFT's; convert its folder with"):
        load_adapter(base(), FOLDER / kind)
    fields = mlx.convert(FOLDER / kind, tmp_path)
    assert (fields["r"], fields["lora_alpha"], fields["lora_dropout"]) == (2, 20.0, 0.25)
    assert fields["use_dora"] == (kind == "dora")
    modules = ["attn.c_attn", "mlp.c_proj"]
    assert fields["target_modules"] == (modules if kind == "lora" else [f"transformer.h.1.{name}" for name in modules])
    assert_close(load_adapter(base(), tmp_path).logits(ANSWERS["ids"]), ANSWERS[kind], 1e-5, "logits")
    assert np.abs(ANSWERS[kind] - ANSWERS["model"]).max() > 0.1, "an adapter without effect"


def test_numbers_are_the_same(tmp_path, folder):
    mlx.convert(folder, tmp_path / "new")
    theirs = safetensors.read(folder / "adapters.safetensors")
    ours = safetensors.read(tmp_path / "new" / "adapter_model.safetensors")
    assert len(ours) == len(theirs) == 8
    for part, name in (("lora_a", "lora_A"), ("lora_b", "lora_B")):
        np.testing.assert_array_equal(ours[f"base_model.model.transformer.h.1.mlp.c_proj.{name}.weight"],
                                      theirs[f"model.h.1.mlp.c_proj.{part}"].T)


def test_a_whole_model(tmp_path, assert_close):
    """Linear weights are (out, in): loading a model refuses them, and nanoGPT's converter transposes them."""
    path = FOLDER / "model.safetensors"
    (tmp_path / "config.json").write_text(json.dumps(base().config.to_dict()))
    shutil.copy(path, tmp_path)
    with pytest.raises(FormatError, match=r"stores the weights of linear layers as \(out, in\), like nanoGPT and"):
        GPT2.from_pretrained(tmp_path)
    model = nanogpt.convert(path, tmp_path / "new", n_head=2, activation="gelu_new")
    assert_close(GPT2.from_pretrained(tmp_path / "new").logits(ANSWERS["ids"]), ANSWERS["model"], 1e-5, "logits")
    for name, tensor in base().parameters().items():
        np.testing.assert_array_equal(model.parameters()[name].data, tensor.data)


KEY = "model.h.1.mlp.c_proj.lora_a"


@pytest.mark.parametrize(("change", "message"), [
    (lambda t: {}, "holds no tensors"),
    (lambda t: {key: t[key] for key in t if key != KEY}, r"h\.1\.mlp\.c_proj must have lora_a .* it has lora_b$"),
    (lambda t: t | {KEY: t[KEY][:, :1].copy()}, r"must have lora_a \(in, r\), lora_b \(r, out\) with r = 2"),
    (lambda t: t | {KEY: t[KEY].ravel()}, "must have lora_a"),
    (lambda t: t | {KEY: t[KEY][:0].copy()}, "must have lora_a"),
    (lambda t: t | {KEY[:-6] + "m": np.ones(16, "f4")}, "it has lora_a, lora_b, m$"),
    (lambda t: t | {KEY[:-6] + "bias": np.ones(16, "f4")}, "has no place in PEFT's adapter"),
    (lambda t: t | {"model.wte.lora_a": np.ones((53, 2), "f4")}, "'model.wte.lora_a' has no place"),
    (lambda t: t | {KEY.removeprefix("model."): t[KEY]}, "has no place in PEFT's adapter: .* each once"),
])
def test_tensors_that_cannot_be_converted(tmp_path, folder, change, message):
    edit(folder, change)
    with pytest.raises(FormatError, match=message):
        mlx.convert(folder, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_dora_wants_its_magnitudes(tmp_path, folder):
    fields = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(fields | {"fine_tune_type": "dora"}))
    with pytest.raises(FormatError, match=r"must have lora_a \(in, r\), lora_b \(r, out\) and m \(out,\) with r = 2"):
        mlx.convert(folder, tmp_path / "new")


@pytest.mark.parametrize("fields", [
    {"fine_tune_type": "full"}, {"lora_parameters": None}, {"lora_parameters": {"rank": 2}},
    {"lora_parameters": {"scale": "10"}}, {"lora_parameters": {"scale": float("nan")}},
    {"lora_parameters": {"scale": 1.0, "dropout": None}},
])
def test_a_configuration_of_something_else(tmp_path, folder, fields):
    old = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(old | fields))
    with pytest.raises(FormatError, match=r"adapter_config\.json does not describe an MLX adapter: fine_tune_type"):
        mlx.convert(folder, tmp_path / "new")
    with pytest.raises(FileError, match="cannot read"):
        mlx.convert(tmp_path / "nowhere", tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_what_mlx_wrote_is_written_again(tmp_path, kind):
    mlx.convert(FOLDER / kind, tmp_path / "peft")
    fields = mlx.export(load_adapter(base(), tmp_path / "peft"), tmp_path / "mlx")
    theirs = safetensors.read(FOLDER / kind / "adapters.safetensors")
    ours = safetensors.read(tmp_path / "mlx" / "adapters.safetensors")
    assert ours.keys() == theirs.keys()
    for key, array in theirs.items():
        np.testing.assert_array_equal(ours[key], array)
    written = json.loads((FOLDER / kind / "adapter_config.json").read_text())
    assert fields["fine_tune_type"] == written["fine_tune_type"]
    assert fields["lora_parameters"]["scale"] == written["lora_parameters"]["scale"]
    assert json.loads((tmp_path / "mlx" / "adapter_config.json").read_text()) == fields


@pytest.mark.parametrize("fields", [
    {"rank_pattern": {"c_attn": 1, "h.1.mlp.c_proj": 5}, "alpha_pattern": {"c_attn": 3}}, {"use_rslora": True},
    {"use_dora": True, "rank_pattern": {"c_attn": 1}}, {"init_lora_weights": "olora"},
])
def test_an_adapter_of_any_ranks_and_scales_computes_the_same_after_mlx(tmp_path, assert_close, fields):
    config = LoraConfig(**{"r": 2, "lora_alpha": 6, "target_modules": ["c_attn", "c_proj"], "init_lora_weights": False,
                           **fields})
    model = add_lora(base(), config, seed=3)
    written = mlx.export(model, tmp_path / "mlx")
    assert written["num_layers"] == model.config.n_layer
    assert written["lora_parameters"]["keys"] == ["attn.c_attn", "attn.c_proj", "mlp.c_proj"]
    mlx.convert(tmp_path / "mlx", tmp_path / "peft")
    if fields.get("init_lora_weights") != "olora":
        assert np.abs(model.logits(ANSWERS["ids"]) - ANSWERS["model"]).max() > 1e-3
    assert_close(load_adapter(base(), tmp_path / "peft").logits(ANSWERS["ids"]), model.logits(ANSWERS["ids"]), 1e-5, "")


@pytest.mark.parametrize("fields", [{"bias": "lora_only"}, {"target_modules": ["c_attn", "wte"]}, {"lora_bias": True},
                                    {"modules_to_save": ["ln_f"]}])
def test_what_mlx_has_no_place_for(tmp_path, fields):
    with pytest.raises(ConfigError, match="MLX has no place for "):
        mlx.export(add_lora(base(), LoraConfig(r=2, **fields)), tmp_path / "mlx")
    assert not (tmp_path / "mlx").exists()

"""loralib's checkpoints, compared with its formulas: each third of c_attn has its own matrices."""

import json

import numpy as np
import pytest

from npgpt import GPT2, GPT2Config, load_adapter
from npgpt.exchange import loralib
from npgpt.files import safetensors
from npgpt.runtime.errors import ConfigError, FileError, FormatError
from tests.files.test_torchfile import legacy, saved

CONFIG = GPT2Config(n_layer=2, n_head=2, n_embd=8, vocab_size=11, n_positions=16, initializer_range=0.2)
IDS = np.arange(11)
R, ALPHA = 3, 12
THIRDS = {"q": slice(0, 8), "k": slice(8, 16), "v": slice(16, 24)}


def base(dtype=np.float64):
    return GPT2(CONFIG, seed=1, dtype=dtype)


def checkpoint(enabled="qv", prefix="transformer.", layers=2, seed=2):
    """Return the tensors of a checkpoint, and c_attn's weight in each layer with its updates added."""
    draw = np.random.default_rng(seed)
    tensors, weights = {}, {}
    for layer in range(layers):
        weight = base().h[layer].attn.c_attn.weight.data.copy()
        A, B = (draw.normal(0, 0.2, (len(enabled), *shape)).astype(np.float32) for shape in ((R, 8), (8, R)))
        for third, a, b in zip(enabled, A, B, strict=True):
            weight[:, THIRDS[third]] += ALPHA / R * (b.astype(np.float64) @ a).T
        name = f"{prefix}h.{layer}.attn.c_attn"
        tensors |= {f"{name}.lora_A": A.reshape(-1, 8), f"{name}.lora_B": B.reshape(-1, R)}
        weights[layer] = weight
    return tensors, weights


def logits_under(weights):
    model = base()
    for layer, weight in weights.items():
        model.h[layer].attn.c_attn.weight.data = weight
    return model.logits(IDS)


def convert(tmp_path, tensors, enable_lora=("q", "v"), form=None, model=None):
    (tmp_path / "model.pt").write_bytes(saved(tensors, under="model_state_dict", **({"form": form} if form else {})))
    return loralib.convert(tmp_path / "model.pt", tmp_path / "adapter", ALPHA, enable_lora, model)


@pytest.mark.parametrize("enabled", ["qv", "q", "k", "v", "kv", "qkv"])
def test_a_checkpoint_computes_the_same_as_an_adapter(tmp_path, assert_close, enabled):
    tensors, weights = checkpoint(enabled)
    fields = convert(tmp_path, tensors, tuple(enabled))
    assert (fields["r"], fields["lora_alpha"]) == (R * len(enabled), ALPHA * len(enabled))
    model = load_adapter(base(), tmp_path / "adapter")
    assert_close(model.logits(IDS), logits_under(weights))
    held = safetensors.read(tmp_path / "adapter" / "adapter_model.safetensors")
    np.testing.assert_array_equal(held["base_model.model.transformer.h.1.attn.c_attn.lora_A.weight"],
                                  tensors["transformer.h.1.attn.c_attn.lora_A"])


@pytest.mark.parametrize("prefix", ["", "module.transformer.", "transformer.", "_orig_mod.module.transformer."])
@pytest.mark.parametrize("form", [None, legacy])
def test_spellings_and_files(tmp_path, assert_close, prefix, form):
    tensors, weights = checkpoint(prefix=prefix)
    convert(tmp_path, tensors, form=form)
    assert_close(load_adapter(base(), tmp_path / "adapter").logits(IDS), logits_under(weights))
    safetensors.write(tmp_path / "model.safetensors", tensors)
    fields = loralib.convert(tmp_path / "model.safetensors", tmp_path / "again", ALPHA)
    assert fields == json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "adapter" / name).read_bytes()


def test_the_older_form_of_peft(tmp_path, assert_close):
    """adapter_model.bin of PEFT until 0.2: B is a convolution's, and load_adapter refuses the configuration."""
    tensors, weights = checkpoint(prefix="base_model.model.transformer.")
    tensors = {f"{key}.weight": array[:, :, None] if key.endswith("B") else array for key, array in tensors.items()}
    (tmp_path / "adapter_model.bin").write_bytes(saved(tensors))
    (tmp_path / "adapter_config.json").write_text(json.dumps({
        "peft_type": "LORA", "r": R, "lora_alpha": ALPHA, "lora_dropout": 0.1, "target_modules": ["c_attn"],
        "enable_lora": [True, False, True], "merge_weights": False, "fan_in_fan_out": True, "bias": "none",
    }))
    with pytest.raises(FormatError, match=r"enable_lora = \[True, False, True\] means A and B for each of q, k and v"
                                          r".*; convert the folder with convert_adapter\.py"):
        load_adapter(base(), tmp_path)
    loralib.convert(tmp_path / "adapter_model.bin", tmp_path / "adapter", ALPHA)
    assert_close(load_adapter(base(), tmp_path / "adapter").logits(IDS), logits_under(weights))


def test_fields_of_the_configuration(tmp_path):
    assert convert(tmp_path, checkpoint()[0])["target_modules"] == ["attn.c_attn"]
    tensors = {key: array for key, array in checkpoint()[0].items() if ".h.1." in key}
    fields = convert(tmp_path, tensors)
    assert fields["target_modules"] == ["transformer.h.1.attn.c_attn"]
    assert fields["bias"] == "none"
    assert fields["base_model_name_or_path"] is None


def test_modules_of_another_rank(tmp_path):
    """loralib's Linear is in PEFT's form already. Beside MergedLinear, its rank and alpha become exceptions."""
    tensors = checkpoint()[0]
    for layer in range(2):
        name = f"transformer.h.{layer}.mlp.c_fc"
        tensors |= {f"{name}.lora_A": np.ones((R, 8), "f4"), f"{name}.lora_B": np.full((32, R), 0.1, "f4")}
    fields = convert(tmp_path, tensors)
    names = ["transformer.h.0.mlp.c_fc", "transformer.h.1.mlp.c_fc"]
    assert (fields["r"], fields["lora_alpha"]) == (2 * R, 2 * ALPHA)
    assert fields["rank_pattern"] == dict.fromkeys(names, R)
    assert fields["alpha_pattern"] == dict.fromkeys(names, ALPHA)
    assert fields["target_modules"] == ["attn.c_attn", "mlp.c_fc"]
    held = safetensors.read(tmp_path / "adapter" / "adapter_model.safetensors")
    assert held["base_model.model.transformer.h.0.mlp.c_fc.lora_B.weight"].shape == (32, R)
    # On c_attn such a matrix has a row for each of its outputs, whatever enable_lora says.
    whole = {f"h.0.attn.c_attn.lora_{part}": np.ones(shape, "f4") for part, shape in (("A", (R, 8)), ("B", (24, R)))}
    assert convert(tmp_path, whole)["r"] == R


def test_trained_biases(tmp_path):
    """lora_state_dict(bias="lora_only") and "all". loralib saves masks as biases too, but they are not biases."""
    tensors = checkpoint()[0]
    for layer in range(2):
        tensors[f"transformer.h.{layer}.attn.bias"] = np.ones((1, 1, 16, 16), "f4")
        tensors[f"transformer.h.{layer}.attn.c_attn.bias"] = np.full(24, layer, "f4")
    assert convert(tmp_path, tensors)["bias"] == "lora_only"
    held = safetensors.read(tmp_path / "adapter" / "adapter_model.safetensors")
    assert len(held) == 6
    np.testing.assert_array_equal(held["base_model.model.transformer.h.1.attn.c_attn.base_layer.bias"], np.ones(24))
    assert convert(tmp_path, tensors | {"transformer.ln_f.bias": np.zeros(8, "f4")})["bias"] == "all"
    held = safetensors.read(tmp_path / "adapter" / "adapter_model.safetensors")
    assert held["base_model.model.transformer.ln_f.bias"].shape == (8,)


def test_a_whole_model_is_compared_with_the_base(tmp_path):
    """The program of the published results saves the whole model at the end."""
    tensors, _ = checkpoint()
    model = base(np.float32)
    whole = tensors | {f"transformer.{name}": tensor.data for name, tensor in model.parameters().items()}
    whole["lm_head.decoder.weight"] = model.wte.weight.data
    with pytest.raises(FormatError, match=r"model\.pt holds \d+ tensors of the base too \('wte\.weight'\): name"):
        convert(tmp_path, whole)
    assert convert(tmp_path, whole, model=model)["bias"] == "none"
    assert len(safetensors.read(tmp_path / "adapter" / "adapter_model.safetensors")) == 4
    whole["transformer.ln_f.bias"] = np.ones(8, "f4")
    assert convert(tmp_path, whole, model=model)["bias"] == "all"
    whole["transformer.ln_f.weight"] = np.zeros(8, "f4")
    with pytest.raises(FormatError, match=r"'ln_f\.weight' differs from None: the base is another one, or its weights"):
        convert(tmp_path, whole, model=model)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda A, B: {}, "no tensor whose name ends in .lora_A"),
        (lambda A, B: {"h.0.attn.c_attn.lora_A": A}, r"must have a lora_A .*; it has \(6, 8\) and none"),
        (lambda A, B: {"h.0.attn.c_attn.lora_B": B}, r"it has none and \(16, 3\)"),
        (lambda A, B: {"h.0.attn.c_attn.lora_A": A[:4], "h.0.attn.c_attn.lora_B": B}, r"\(4, 8\) and \(16, 3\)"),
        (lambda A, B: {"h.0.attn.c_attn.lora_A": A[0], "h.0.attn.c_attn.lora_B": B}, r"it has \(8,\) and"),
        (lambda A, B: {"h.0.attn.c_attn.lora_A": A[:3], "h.0.attn.c_attn.lora_B": B[:8]},
         "are 1 updates of rank 3, but enable_lora names 2 of q, k, v"),
        (lambda A, B: {"h.0.attn.c_attn.lora_A": A, "h.0.attn.c_attn.lora_B": B[:8]}, "are 2 updates of rank 3, but"),
        (lambda A, B: {"h.0.attn.c_attn.lora_A": A, "h.0.attn.c_attn.lora_B": B[:, :, None, None]},
         r"it has \(6, 8\) and \(16, 3, 1, 1\)"),
        (lambda A, B: {"h.0.attn.c_attn.lora_A": A, "h.0.attn.c_attn.lora_B": np.stack([B, B], 2)},
         r"it has \(6, 8\) and \(16, 3, 2\)"),
        (lambda A, B: {"h.0.attn.c_attn.lora_A": A, "h.0.attn.c_attn.lora_B": B, "_orig_mod.h.0.attn.c_attn.lora_A": A},
         "'_orig_mod.h.0.attn.c_attn.lora_A' is not the only tensor for h.0.attn.c_attn.lora_A"),
        (lambda A, B: {"h.0.mlp.c_fc.lora_A": A, "h.0.mlp.c_fc.lora_B": B}, "but only c_attn can have that"),
    ],
)
def test_what_is_no_such_checkpoint_is_refused(tmp_path, edit, message):
    A, B = list(checkpoint()[0].values())[:2]
    with pytest.raises(FormatError, match=message):
        convert(tmp_path, edit(A, B) or {"wte.weight": A})
    assert not (tmp_path / "adapter").exists()


def test_a_checkpoint_itself_is_no_adapter(tmp_path):
    (tmp_path / "model.pt").write_bytes(saved(checkpoint()[0]))
    with pytest.raises(FileError, match=r"model\.pt is a file, .*; convert a loralib checkpoint with convert_adapter"):
        load_adapter(base(), tmp_path / "model.pt")


@pytest.mark.parametrize(("alpha", "enable"), [(0, "qv"), (float("nan"), "qv"), (1, ""), (1, "x"), (1, ("q", "x"))])
def test_arguments_that_cannot_be(tmp_path, alpha, enable):
    with pytest.raises(ConfigError, match="lora_alpha = " if enable == "qv" else "enable_lora = "):
        loralib.convert(tmp_path / "model.pt", tmp_path, alpha, tuple(enable))

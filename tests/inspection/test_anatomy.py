"""The anatomy of an adapter, against the adapter that was written."""

import dataclasses

import numpy as np
import pytest

from npgpt import GPT2, GPT2Config, LoraConfig, add_lora, load_adapter, merge_lora, save_adapter
from npgpt.files import safetensors
from npgpt.inspection.anatomy import compare, dissect
from npgpt.lora import adapted_layers
from npgpt.runtime.errors import FileError, FormatError
from tests.adapters.test_peft import edit_config, edit_weights

CONFIG = GPT2Config(n_layer=2, n_head=2, n_embd=8, vocab_size=11, n_positions=16, initializer_range=0.2)
TARGETS = ["c_attn", "mlp.c_fc"]
MODULES = ["h.0.attn.c_attn", "h.0.mlp.c_fc", "h.1.attn.c_attn", "h.1.mlp.c_fc"]


def base():
    model = GPT2(CONFIG, seed=1)
    model.name_or_path = "some/base"
    return model


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "adapter")


def write(folder, seed=2, targets=TARGETS, r=3, lora_alpha=12):
    """An adapter whose B is not zero."""
    model = add_lora(base(), LoraConfig(r, lora_alpha, 0.0, targets), seed=seed)
    draw = np.random.default_rng(seed)
    for name, tensor in model.parameters().items():
        if name.endswith("lora_B"):
            tensor.data[...] = 0.2 * draw.standard_normal(tensor.shape)
    save_adapter(model, folder)
    return folder


def key(module, part):
    return f"base_model.model.transformer.{module}.{part}.weight"


def test_the_files_alone(folder):
    found = dissect(folder)
    tensors = safetensors.read(folder / "adapter_model.safetensors")
    assert list(found.parts) == MODULES
    for module, part in found.parts.items():
        A, B = tensors[key(module, "lora_A")], tensors[key(module, "lora_B")]
        assert (part.rank, part.alpha, part.scale, part.with_dora) == (3, 12, 4, False)
        assert part.norm_A == pytest.approx(np.linalg.norm(A))
        assert part.norm_B == pytest.approx(np.linalg.norm(B))
        assert part.update.norm == pytest.approx(np.linalg.norm(4 * B @ A), rel=1e-5)
        assert part.relative is part.amplification is None
    assert found.fields["base_model_name_or_path"] == "some/base"
    assert found.size == (folder / "adapter_model.safetensors").stat().st_size
    assert found.numbers == sum(array.size for array in tensors.values())
    assert (found.dtypes, found.others, found.refused, found.hazards) == (["float32"], {}, [], [])


def test_an_adapter_of_a_compiled_model(folder):
    """The names of wrappers, in keys and in the configuration, change nothing."""
    expected = dissect(folder, base())
    edit_weights(folder, lambda tensors: {name.replace(".h.1.", ".h.1._orig_mod."): tensors[name] for name in tensors})
    edit_config(folder, lora_alpha=1, alpha_pattern={"_orig_mod.mlp.c_fc": 12, "h.0.mlp.c_fc": 12, "attn.c_attn": 12},
                target_modules=["c_attn", "h.0.mlp.c_fc", "_orig_mod.transformer.h.1._orig_mod.mlp.c_fc"])
    found = dissect(folder, base())
    assert found.parts.keys() == expected.parts.keys() and found.hazards == expected.hazards
    assert [part.scale for part in found.parts.values()] == [4, 4, 4, 4]
    assert [part.relative for part in found.parts.values()] == [part.relative for part in expected.parts.values()]


def test_with_the_base(folder):
    """The updates are compared with the weights that they change, and the base stays unchanged."""
    model = base()
    before = {name: tensor.data.copy() for name, tensor in model.parameters().items()}
    found = dissect(folder, model)
    assert not adapted_layers(model)
    for name, tensor in model.parameters().items():
        np.testing.assert_array_equal(tensor.data, before[name])
    merged = merge_lora(load_adapter(base(), folder)).parameters()
    for module, part in found.parts.items():
        W = before[f"{module}.weight"]
        change = merged[f"{module}.weight"].data - W
        assert part.relative == pytest.approx(np.linalg.norm(change) / np.linalg.norm(W), rel=1e-5)
        U, _, Vt = np.linalg.svd(change.astype(np.float64))
        within = np.linalg.norm(U[:, :3].T @ W @ Vt[:3].T)
        assert part.amplification == pytest.approx(np.linalg.norm(change) / within, rel=1e-4)
    assert not found.refused


def test_scales_of_patterns_and_rslora(folder):
    edit_config(folder, alpha_pattern={"h.1.mlp.c_fc": 30, "c_fc": 6}, use_rslora=True)
    found = dissect(folder)
    assert [found.parts[module].alpha for module in MODULES] == [12, 6, 12, 30]
    assert found.parts["h.1.mlp.c_fc"].scale == pytest.approx(30 / 3**0.5)
    (pattern,) = (hazard for hazard in found.hazards if "alpha_pattern" in hazard)
    assert pattern.startswith("alpha_pattern: 'h.1.mlp.c_fc' (30) and 'c_fc' (6) match h.1.mlp.c_fc; PEFT takes the ")
    assert any(hazard.startswith("rsLoRA: its scale is alpha / sqrt(r)") for hazard in found.hazards)


def spoil(name, value=None):
    """Set every element of the tensors whose key ends in `name` to `value`; None: remove the tensors."""
    def edit(tensors):
        for each in [each for each in tensors if each.endswith(name)]:
            if value is None:
                del tensors[each]
            else:
                tensors[each][...] = value
        return tensors

    return edit


@pytest.mark.parametrize(
    ("edit", "hazard"),
    [
        (spoil("h.0.attn.c_attn.lora_B.weight", 0), "A or B is all zero, so the update changes nothing, in h.0.attn"),
        (spoil("h.1.mlp.c_fc.lora_A.weight", np.nan), f"NaN or infinity in {key('h.1.mlp.c_fc', 'lora_A')}"),
        (spoil("c_fc.lora_B.weight", 9), "the update is larger than the weight itself in h.0."),
        (lambda tensors: {name.replace("transformer.", ""): each for name, each in tensors.items()},
         "its keys have no 'transformer.'"),
    ],
)
def test_hazards_of_the_tensors(folder, edit, hazard):
    edit_weights(folder, edit)
    found = dissect(folder, base())
    assert [each for each in found.hazards if each.startswith(hazard)], found.hazards
    assert sorted(found.parts) == MODULES


@pytest.mark.parametrize(
    ("fields", "hazard"),
    [
        ({"base_model_name_or_path": None}, "it does not name its base"),
        ({"target_modules": ["c_attn", "mlp.c_fc", "v_proj"]}, "target 'v_proj' has no tensors in the file"),
        ({"rank_pattern": {"h.7.mlp.c_fc": 3}}, "rank_pattern: 'h.7.mlp.c_fc' matches no module"),
    ],
)
def test_hazards_of_the_configuration(folder, fields, hazard):
    edit_config(folder, **fields)
    (found,) = dissect(folder).hazards
    assert found.startswith(hazard)


def test_tables_and_other_tensors(folder):
    """LoRA on the token table, a separate head, and a bias, as in PEFT's files."""
    draw = np.random.default_rng(0)

    def edit(tensors):
        prefix = "base_model.model"
        return tensors | {
            f"{prefix}.transformer.wte.lora_embedding_A": draw.standard_normal((2, 11)).astype("f4"),
            f"{prefix}.transformer.wte.lora_embedding_B": draw.standard_normal((8, 2)).astype("f4"),
            f"{prefix}.lm_head.base_layer.weight": np.ones((11, 8), "f4"),
            f"{prefix}.transformer.h.0.attn.c_attn.lora_magnitude_vector": np.ones(24, "f4"),
            f"{prefix}.transformer.h.0.attn.c_attn.base_layer.bias": np.ones(24, "f4"),
        }

    edit_weights(folder, edit)
    found = dissect(folder)
    assert found.parts["wte"].rank == 2
    assert [module for module, part in found.parts.items() if part.with_dora] == ["h.0.attn.c_attn"]
    assert list(found.others.values()) == [(24,), (11, 8)] or list(found.others.values()) == [(11, 8), (24,)]
    assert any("one matrix; a merge must split it in two" in hazard for hazard in found.hazards)
    assert any("MB of its file are whole matrices" in hazard and "lm_head" in hazard for hazard in found.hazards)


@pytest.mark.parametrize("tied", [True, False])
def test_with_the_base_on_tables_and_under_dora(tmp_path, tied):
    """The relative change is right for each orientation of the matrix and with DoRA."""
    config = dataclasses.replace(CONFIG, tie_word_embeddings=tied)
    model = add_lora(GPT2(config, seed=1), LoraConfig(2, 8, 0.0, ["wte", "lm_head", "c_fc"], use_dora=True))
    draw = np.random.default_rng(0)
    for tensor in model.trainable_parameters().values():
        tensor.data = tensor.data + draw.normal(0, 0.2, tensor.shape).astype("f4")
    save_adapter(model, tmp_path)
    base = GPT2(config, seed=1)
    weights = {name: tensor.data for name, tensor in base.parameters().items()}
    weights.setdefault("lm_head.weight", weights["wte.weight"])
    found = dissect(tmp_path, base)
    merged = merge_lora(model).parameters()
    assert list(found.parts) == ["wte", "h.0.mlp.c_fc", "h.1.mlp.c_fc", "lm_head"]
    for module, part in found.parts.items():
        W = weights[f"{module}.weight"]
        change = np.linalg.norm(merged[f"{module}.weight"].data - W)
        assert part.with_dora
        assert part.relative == pytest.approx(change / np.linalg.norm(W), rel=1e-5), module
        assert 0 < part.amplification < np.inf
    assert not found.refused


def test_layers_are_in_order_of_their_numbers(tmp_path):
    model = add_lora(GPT2(GPT2Config(**{**vars(CONFIG), "n_layer": 11})), LoraConfig(2, target_modules=TARGETS))
    save_adapter(model, tmp_path)
    assert list(dissect(tmp_path).parts) == [f"h.{i}.{kind}" for i in range(11) for kind in ("attn.c_attn", "mlp.c_fc")]


def test_what_cannot_be_honoured_is_all_named(folder):
    edit_config(folder, use_qalora=True, layer_replication=[[0, 1]], init_lora_weights="lora_ga")
    found = dissect(folder)
    assert [each.split(" ")[0] for each in found.refused] == ["layer_replication", "use_qalora", "init_lora_weights"]
    assert sorted(found.parts) == MODULES


def test_a_base_that_it_does_not_fit(folder):
    model = GPT2(GPT2Config(**{**vars(CONFIG), "n_embd": 16}))
    (reason,) = dissect(folder, model).refused
    assert "does not fit this model" in reason
    assert not adapted_layers(model)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda folder: edit_config(folder, peft_type="IA3"), "peft_type = 'IA3': expected 'LORA'"),
        (lambda folder: edit_config(folder, lora_alpha="8"), "lora_alpha = '8': it must be a number"),
        (lambda folder: edit_config(folder, alpha_pattern=[1]), "it must map names to numbers"),
        (lambda folder: edit_config(folder, rank_pattern={"(": 1}), "rank_pattern: '\\(' is not a regular expression"),
        (lambda folder: edit_weights(folder, spoil("c_fc.lora_B.weight")), "h.0.mlp.c_fc: A and B have the shapes"),
    ],
)
def test_what_is_no_adapter(folder, edit, message):
    edit(folder)
    with pytest.raises(FormatError, match=message):
        dissect(folder)


def test_nothing_there(tmp_path):
    with pytest.raises(FileError, match=r"cannot read .*adapter_config\.json"):
        dissect(tmp_path)


# Two adapters


def test_an_adapter_is_like_itself(folder, tmp_path):
    found = dissect(folder)
    other = write(tmp_path / "other", lora_alpha=24)  # the update is twice as large
    for each in compare(found, dissect(other)).values():
        assert (each.reads, each.writes, each.cosine) == pytest.approx((1, 1, 1))
    edit_weights(other, lambda tensors: {name: -each if "lora_B" in name else each for name, each in tensors.items()})
    for each in compare(found, dissect(other)).values():
        assert (each.reads, each.writes, each.cosine) == pytest.approx((1, 1, -1))


def test_two_adapters(folder, tmp_path):
    """Ranks and targets may differ. The modules that both change are compared; here against the whole updates."""
    other = write(tmp_path / "other", seed=9, targets=["mlp.c_fc", "mlp.c_proj"], r=2)
    alike = compare(dissect(folder), dissect(other))
    assert list(alike) == ["h.0.mlp.c_fc", "h.1.mlp.c_fc"]
    for module, each in alike.items():
        updates = []
        for place, scale in ((folder, 4), (other, 6)):
            tensors = safetensors.read(place / "adapter_model.safetensors")
            updates.append(scale * tensors[key(module, "lora_B")].astype(float) @ tensors[key(module, "lora_A")])
        (U, _, Vt), (P, _, Qt) = map(np.linalg.svd, updates)
        assert each.writes == pytest.approx(np.square(U[:, :3].T @ P[:, :2]).sum() / 2)
        assert each.reads == pytest.approx(np.square(Vt[:3] @ Qt[:2].T).sum() / 2)
        assert (each.reads_by_chance, each.writes_by_chance) == (3 / 8, 3 / 32)
        cosine = (updates[0] * updates[1]).sum() / np.linalg.norm(updates[0]) / np.linalg.norm(updates[1])
        assert each.cosine == pytest.approx(cosine)


def test_adapters_of_models_of_different_sizes(folder, tmp_path):
    model = add_lora(GPT2(GPT2Config(**{**vars(CONFIG), "n_embd": 16})), LoraConfig(target_modules=TARGETS))
    for layer in adapted_layers(model).values():
        layer.update.adapters["default"].lora_B.data[...] = 1
    save_adapter(model, tmp_path / "other")
    with pytest.raises(FormatError, match="are for models of different sizes: h"):
        compare(dissect(folder), dissect(tmp_path / "other"))

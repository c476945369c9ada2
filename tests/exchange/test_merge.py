"""A model that is merged tensor by tensor equals `merge_lora`'s, and the certificate measures what it promises."""

import dataclasses
import json

import numpy as np
import pytest

from npgpt import GPT2, GPT2Config, LoraConfig, add_lora, merge_lora, perplexity
from npgpt.adapters.stack import set_adapter
from npgpt.exchange import merge
from npgpt.files import safetensors
from npgpt.runtime.errors import ConfigError, FormatError

CONFIG = GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=23, n_positions=300, initializer_range=0.2)
FIELDS = {"r": 2, "lora_alpha": 2, "target_modules": "all-linear"}
IDS = np.random.default_rng(3).integers(0, 23, 700)


def adapted(config=CONFIG, names=("default",), **fields):
    """A model with active adapters. All numbers of the adapters differ from their start."""
    model, draw = GPT2(config, seed=1), np.random.default_rng(2)
    for i, name in enumerate(names):
        add_lora(model, LoraConfig(**FIELDS | fields), seed=i, name=name)
        for tensor in model.trainable_parameters().values():
            tensor.data = tensor.data + draw.normal(0, 0.2, tensor.shape).astype(tensor.dtype)
    set_adapter(model, list(names), trainable=False)
    return model


def arrays(model):
    return {name: tensor.data.copy() for name, tensor in model.parameters().items()}


def assert_same_bits(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name, strict=True)


@pytest.mark.parametrize("names", [("default",), ("poet", "critic")])
@pytest.mark.parametrize("tied", [True, False])
def test_the_folder_is_that_of_the_merged_model(tmp_path, names, tied):
    model = adapted(dataclasses.replace(CONFIG, tie_word_embeddings=tied), names)
    before = arrays(model)
    merge.save_merged(model, tmp_path / "ours")
    assert_same_bits(arrays(model), before)
    merge_lora(model).save_pretrained(tmp_path / "expected")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "expected" / name).read_bytes()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("fields", "unties"),
    [
        ({"use_dora": True}, False),
        ({"lora_bias": True, "use_rslora": True}, False),
        ({"bias": "all"}, False),
        ({"bias": "lora_only", "target_modules": ["c_attn"]}, False),
        ({"init_lora_weights": "pissa"}, False),
        ({"modules_to_save": ["ln_f", "wte"]}, True),
        ({"modules_to_save": ["lm_head"]}, True),
        ({"target_modules": ["wte", "c_attn"]}, True),
        ({"target_modules": ["wte", "lm_head"], "use_dora": True}, True),
    ],
    ids=str,
)
def test_every_feature_of_an_adapter(tmp_path, assert_close, fields, unties, tied):
    """Also for the token table and the head: they become two matrices, and the configuration says so."""
    model = adapted(dataclasses.replace(CONFIG, tie_word_embeddings=tied), **fields)
    expected = model.logits(IDS[:50])
    merge.save_merged(model, tmp_path / "ours")
    merge_lora(model).save_pretrained(tmp_path / "expected")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "expected" / name).read_bytes()
    merged = GPT2.from_pretrained(tmp_path / "ours")
    assert merged.config.tie_word_embeddings == (tied and not unties)
    assert_close(merged.logits(IDS[:50]), expected, 1e-5)


def test_float16(tmp_path):
    model = adapted()
    merge.save_merged(model, tmp_path, "float16")
    held = safetensors.read(tmp_path / "model.safetensors")
    merged = merge_lora(model).parameters()
    assert_same_bits(held, {f"transformer.{name}": each.data.astype(np.float16) for name, each in merged.items()})
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float16"


def test_a_number_too_large_for_float16(tmp_path):
    model = adapted()
    model.ln_f.weight.data[3] = 1e6
    with pytest.raises(FormatError, match=r"ln_f\.weight holds numbers that are too large for float16"):
        merge.save_merged(model, tmp_path, "float16")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigError, match="dtype = 'int8': a merged model is written in float32 or float16"):
        merge.save_merged(model, tmp_path, "int8")


def test_shards(tmp_path):
    model = adapted()
    merge.save_merged(model, tmp_path, max_shard_size=6000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    count = len(list(tmp_path.glob("model-*.safetensors")))
    assert count > 3
    merged = arrays(merge_lora(model))
    assert index["metadata"] == {"total_parameters": sum(each.size for each in merged.values()),
                                 "total_size": sum(each.nbytes for each in merged.values())}
    assert sorted(set(index["weight_map"].values())) == [
        f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    sizes, firsts = [], []  # of each shard, and of the first of its tensors in the model's order
    for shard in sorted(set(index["weight_map"].values())):
        held = safetensors.read(tmp_path / shard)
        sizes.append(sum(each.nbytes for each in held.values()))
        firsts.append(next(each.nbytes for name, each in merged.items() if f"transformer.{name}" in held))
        assert len(held) == 1 or sizes[-1] <= 6000
    assert all(size + first > 6000 for size, first in zip(sizes, firsts[1:], strict=False)), "two would fit into one"
    assert_same_bits(arrays(GPT2.from_pretrained(tmp_path)), merged)


def test_one_merged_layer_exists_at_a_time(tmp_path, memory):
    config = GPT2Config(n_layer=8, n_head=2, n_embd=128, vocab_size=20, n_positions=8)
    GPT2(config, seed=1).save_pretrained(tmp_path / "base")
    model = GPT2.from_pretrained(tmp_path / "base")  # mapped
    add_lora(model, LoraConfig(r=1, target_modules="all-linear"))
    largest = model.h[0].mlp.c_fc.base_layer.weight.data.nbytes
    _, _, most = memory(lambda: merge.save_merged(model, tmp_path / "merged", "float16"))
    assert most < 5 * largest < (tmp_path / "base" / "model.safetensors").stat().st_size / 4


# The certificate


def test_certificate_of_a_model_against_itself():
    model = adapted()
    found = merge.certify(model, model, IDS)
    assert (found.difference, found.kl, found.relative) == (0, 0, 0)
    expected = perplexity(model, IDS, context=256)
    assert found.merged == found.unmerged
    assert found.merged.tokens == expected.tokens
    assert abs(found.merged.nll - expected.nll) < 1e-6


def test_what_a_certificate_measures():
    one, two = adapted(), GPT2(CONFIG, seed=5)
    found = merge.certify(one, two, IDS)
    windows = [IDS[:256], IDS[256:512], IDS[512:]]
    logits = [np.concatenate([model.logits(window) for window in windows]).astype(np.float64) for model in (one, two)]
    p, q = (np.exp(each) / np.exp(each).sum(axis=1, keepdims=True) for each in logits)
    assert found.difference == np.abs(logits[0] - logits[1]).max()
    assert found.largest == np.abs(logits[0]).max()
    assert found.kl == pytest.approx((p * np.log(p / q)).sum(axis=1).mean(), rel=1e-9)
    predicted = np.arange(1, 700)[np.arange(1, 700) % 256 != 0]
    for each, probabilities in ((found.unmerged, p), (found.merged, q)):
        assert each.tokens == len(predicted)
        assert each.nll == pytest.approx(-np.log(probabilities[predicted - 1, IDS[predicted]]).mean(), rel=1e-9)
        assert each.ppl == np.exp(each.nll)


def test_a_perplexity_beyond_floats_is_infinite():
    assert merge.TextLoss(800.0, 1).ppl == np.inf


def test_certificate_of_a_merged_folder(tmp_path):
    model = adapted(names=("poet", "critic"))
    for dtype, least, most in (("float32", 0, 1e-4), ("float16", 1e-4, 1e-2)):
        merge.save_merged(model, tmp_path / dtype, dtype)
        found = merge.certify(model, GPT2.from_pretrained(tmp_path / dtype), IDS)
        assert least <= found.relative <= most
        assert 0 <= found.kl <= found.difference


@pytest.mark.parametrize("ids", [[], [1], [[1, 2]]])
def test_a_certificate_needs_a_text(ids):
    model = GPT2(CONFIG)
    with pytest.raises(ConfigError, match="at least two tokens in one row"):
        merge.certify(model, model, ids)

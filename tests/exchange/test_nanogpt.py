"""nanoGPT's and minGPT's checkpoints: files that torch wrote, with their models' results, and files made here."""

import json
import pickle

import numpy as np
import pytest

from npgpt import GPT2, Tokenizer
from npgpt.exchange import nanogpt
from npgpt.runtime.errors import ConfigError, FileError, FormatError
from tests.files.test_torchfile import archive, legacy, saved
from tests.goldens import golden

FOLDER = golden.FOLDER / "nanogpt"
MINGPT = {"n_head": 2, "activation": "gelu_new"}
WRITTEN = {"ckpt": {}, "ckpt-compiled-no-bias": {}, "model": MINGPT}
SIZES = {"n_layer": 2, "n_head": 2, "n_embd": 8, "block_size": 12, "vocab_size": 29}
ARGUMENTS = {**SIZES, "bias": True, "dropout": 0.0}
C = 8


@pytest.mark.parametrize("name", WRITTEN)
def test_what_torch_wrote_computes_the_same_here(tmp_path, assert_close, name):
    with np.load(FOLDER / "answers.npz") as answers:
        ids, expected = answers["ids"], answers[name]
    model = nanogpt.convert(FOLDER / f"{name}.pt", tmp_path / "model", **WRITTEN[name])
    loaded = GPT2.from_pretrained(tmp_path / "model")
    assert loaded.config == model.config
    assert_close(loaded.logits(ids), expected, 1e-5, "logits")  # float32, relative to the largest
    assert (loaded.config.tie_word_embeddings, loaded.config.activation_function) == \
        ((False, "gelu_new") if name == "model" else (True, "gelu"))
    assert loaded.config.attn_pdrop == loaded.config.resid_pdrop == (0.1 if name == "model" else 0.25)
    other = {"gelu": "gelu_new", "gelu_new": "gelu"}[loaded.config.activation_function]
    model = nanogpt.convert(FOLDER / f"{name}.pt", tmp_path / "other", n_head=2, activation=other)
    assert np.abs(model.logits(ids) - expected).max() > 1e-4, "the activation would make no difference"


def state(bias=True, tied=True, prefix="transformer.", vocab_size=29, positions=12):
    """Return the tensors of such a model; linear layers' weights are (out, in)."""
    draw = np.random.default_rng(0)
    shapes = {"wte.weight": (vocab_size, C), "wpe.weight": (positions, C), "ln_f.weight": (C,), "ln_f.bias": (C,)}
    for layer in range(2):
        for name, shape in {"ln_1": (C,), "attn.c_attn": (3 * C, C), "attn.c_proj": (C, C), "ln_2": (C,),
                            "mlp.c_fc": (4 * C, C), "mlp.c_proj": (C, 4 * C)}.items():
            shapes |= {f"h.{layer}.{name}.weight": shape, f"h.{layer}.{name}.bias": shape[:1]}
    tensors = {prefix + name: draw.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()
               if bias or not name.endswith(".bias")}
    head = tensors[f"{prefix}wte.weight"] if tied else draw.normal(0, 0.3, (vocab_size, C)).astype(np.float32)
    return tensors | {prefix.replace("transformer.", "") + "lm_head.weight": head}


@pytest.fixture
def write(tmp_path):
    """write(tensors, model_args, form) -> path of a checkpoint; without model_args, it holds only the tensors."""
    def put(tensors, arguments=None, form=archive):
        beside = {} if arguments is None else {"under": "model", "model_args": arguments, "iter_num": 5}
        (tmp_path / "ckpt.pt").write_bytes(saved(tensors, form, **beside))
        return tmp_path / "ckpt.pt"

    return put


@pytest.mark.parametrize("form", [archive, legacy])
def test_every_number_is_in_its_place(tmp_path, write, form):
    tensors = state()
    model = nanogpt.convert(write(tensors, ARGUMENTS, form), tmp_path / "model")
    for name, tensor in model.parameters().items():
        stored = tensors[f"transformer.{name}"]
        linear = name.endswith("weight") and (".attn." in name or ".mlp." in name)
        np.testing.assert_array_equal(tensor.data, stored.T if linear else stored, err_msg=name)
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["config.json", "model.safetensors"]


def test_without_biases_they_are_zero(tmp_path, write):
    model = nanogpt.convert(write(state(bias=False), ARGUMENTS | {"bias": False}), tmp_path / "model")
    biases = [tensor.data for name, tensor in model.parameters().items() if name.endswith(".bias")]
    assert len(biases) == 13 and not any(map(np.any, biases))


@pytest.mark.parametrize("prefix", ["_orig_mod.transformer.", "module._orig_mod.transformer.", "transformer."])
def test_spellings(tmp_path, write, prefix):
    expected = nanogpt.convert(write(state(), ARGUMENTS), tmp_path / "plain").logits([1, 2, 3])
    tensors = state(prefix=prefix) | {f"{prefix}h.{layer}.attn.bias": np.ones((1, 1, 12, 12), "f4") for layer in (0, 1)}
    model = nanogpt.convert(write(tensors, ARGUMENTS), tmp_path / "model")
    np.testing.assert_array_equal(model.logits([1, 2, 3]), expected)


def test_the_activation(tmp_path, write):
    """model_args without "bias" are older than the exact form; an argument takes precedence."""
    for i, (arguments, given, activation) in enumerate([
        (ARGUMENTS, None, "gelu"), (SIZES, None, "gelu_new"), (ARGUMENTS, "gelu_new", "gelu_new"),
        (SIZES, "gelu", "gelu"), (None, "gelu", "gelu"),
    ]):
        path = write(state(), arguments)
        config = nanogpt.convert(path, tmp_path / str(i), 2, given).config
        assert config.activation_function == activation


def test_a_head_of_its_own(tmp_path, write):
    tensors = state(tied=False)
    model = nanogpt.convert(write(tensors), tmp_path / "model", **MINGPT)
    assert not model.config.tie_word_embeddings
    np.testing.assert_array_equal(model.head().data, tensors["lm_head.weight"])
    del tensors["lm_head.weight"]
    assert nanogpt.convert(write(tensors), tmp_path / "tied", **MINGPT).config.tie_word_embeddings


def test_a_padded_vocabulary_is_kept(tmp_path, write):
    for i, (rows, end) in enumerate([(50256, None), (50257, 50256), (50304, 50256)]):
        path = write(state(vocab_size=rows), ARGUMENTS | {"vocab_size": rows})
        config = nanogpt.convert(path, tmp_path / str(i)).config
        assert (config.vocab_size, config.eos_token_id, config.bos_token_id) == (rows, end, end)


def without(tensors, *names):
    return {name: array for name, array in tensors.items() if name not in names}


REFUSED = {
    "no model_args": (state(), None, {}, ConfigError, "tensors tell neither the number of heads nor the activation"),
    "a variant": (state(), ARGUMENTS | {"use_rmsnorm": True}, {}, FormatError, "have 'use_rmsnorm', which nanoGPT"),
    "arguments of another type": (state(), ["n_head"], {}, FormatError, "which nanoGPT does not have"),
    "number as a name": (state(), {5: 1, **ARGUMENTS}, {}, FormatError, "model_args have '5'"),
    "layers": (state(), ARGUMENTS | {"n_layer": 3}, {}, FormatError, "n_layer = 3, but its tensors 2"),
    "context": (state(), ARGUMENTS | {"block_size": 16}, {}, FormatError, "block_size = 16, but its tensors 12"),
    "bias said": (state(bias=False), ARGUMENTS, {}, FormatError, "bias = True, but its tensors False"),
    "bias there": (state(), ARGUMENTS | {"bias": False}, {}, FormatError, "bias = False, but its tensors True"),
    "heads differ": (state(), ARGUMENTS, {"n_head": 4}, ConfigError, "n_head = 4, but the model_args of .* say 2"),
    "heads": (state(), ARGUMENTS | {"n_head": 3}, {}, ConfigError, "ckpt.pt: n_head = 3 in .*: it must be a divisor"),
    "no heads": (state(), without(ARGUMENTS, "n_head"), {}, ConfigError, "n_head = None"),
    "activation": (state(), ARGUMENTS, {"activation": "swoosh"}, ConfigError, "activation_function = 'swoosh'"),
    "dropout": (state(), ARGUMENTS | {"dropout": 2}, {}, ConfigError, "resid_pdrop = 2"),
    "no table": (without(state(), "transformer.wte.weight"), ARGUMENTS, {}, FormatError, "missing matrix wte.weight"),
    "empty": ({}, ARGUMENTS, {}, FormatError, "missing matrix wte.weight, .* this file has no tensors"),
    "a tensor less": (without(state(), "transformer.h.1.ln_1.bias"), ARGUMENTS, {}, FormatError,
                      r"1 missing: 'h\.1\.ln_1\.bias'"),
    "a tensor more": (state() | {"score.weight": np.ones((1, C), "f4")}, ARGUMENTS, {}, FormatError,
                      "1 unexpected: 'score.weight'"),
    "another width": (state() | {"transformer.wte.weight": np.ones((1, 10**6), "f2")}, ARGUMENTS, {},
                      FormatError, r"c_attn.weight has shape \(24, 8\), but \(3000000, 1000000\) is right"),
    "another shape": (state() | {"transformer.h.0.mlp.c_proj.weight": np.ones((C, C), "f4")}, ARGUMENTS, {},
                      FormatError, r"h\.0\.mlp\.c_proj\.weight has shape \(8, 8\), but"),
    "twice": (state() | {"_orig_mod.lm_head.weight": np.ones((29, C), "f4")}, ARGUMENTS, {}, FormatError,
              "'_orig_mod.lm_head.weight' is not the only tensor for lm_head.weight"),
    "whole numbers": (state() | {"transformer.ln_f.bias": np.ones(C, "i4")}, ARGUMENTS, {}, FormatError,
                      "'transformer.ln_f.bias' holds int32 numbers"),
    "transformers' own": (state() | {"transformer.h.0.attn.c_attn.weight": np.ones((C, 3 * C), "f4")}, ARGUMENTS, {},
                          FormatError, r"stores its weights as \(in, out\), like transformers"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_such_checkpoint(tmp_path, write, kind):
    tensors, arguments, given, error, message = REFUSED[kind]
    path = write(tensors, arguments)
    with pytest.raises(error, match=message) as caught:
        nanogpt.convert(path, tmp_path / "model", **given)
    assert "\n" not in str(caught.value) and "ckpt.pt" in str(caught.value)
    assert [each.name for each in tmp_path.iterdir()] == ["ckpt.pt"]


def test_a_folder_that_is_there_is_left_alone(tmp_path, write):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "file").write_text("kept")
    with pytest.raises(FileError, match=r"cannot write .*model: it exists already"):
        nanogpt.convert(write(state(), ARGUMENTS), tmp_path / "model")
    assert [each.name for each in (tmp_path / "model").iterdir()] == ["file"]


# Characters


def test_a_vocabulary_of_characters(tmp_path):
    tokenizer = nanogpt.character_tokenizer(FOLDER / "meta.pkl")
    nanogpt.convert(FOLDER / "ckpt.pt", tmp_path / "model", tokenizer=tokenizer)
    ids = pickle.loads((FOLDER / "meta.pkl").read_bytes())["stoi"]
    text = "a line,\nand 'another'  \u00e9\n".replace(",", "")
    for each in (tokenizer, Tokenizer.from_pretrained(tmp_path / "model")):
        assert each.encode(text).tolist() == [ids[character] for character in text]
        assert each.decode(each.encode(text)) == text
        assert each.vocab_size == 29 and each.end_id is None
        with pytest.raises(ConfigError, match="cannot encode 'X'"):
            each.encode("X")
        with pytest.raises(ConfigError, match="no end-of-text token"):
            _ = each.eos_id
    fields = json.loads((tmp_path / "model" / "config.json").read_text())
    assert fields["eos_token_id"] is None
    fields = json.loads((tmp_path / "model" / "tokenizer_config.json").read_text())
    assert fields == {"tokenizer_class": "PreTrainedTokenizerFast"}


def test_a_tokenizer_of_tokens(tmp_path, write):
    tiny = Tokenizer.from_pretrained("tiny")
    with pytest.raises(ConfigError, match=r"the tokenizer has 3,072 tokens, but .*ckpt\.pt has 29: the model was trai"):
        nanogpt.convert(write(state(), ARGUMENTS), tmp_path / "model", tokenizer=tiny)
    path = write(state(vocab_size=3100), ARGUMENTS | {"vocab_size": 3100})
    assert nanogpt.convert(path, tmp_path / "model", tokenizer=tiny).config.eos_token_id == tiny.eos_id
    assert Tokenizer.from_pretrained(tmp_path / "model").to_dict() == tiny.to_dict()
    assert not (tmp_path / "model" / "tokenizer_config.json").exists()


@pytest.mark.parametrize("meta", [
    [], {}, {"stoi": None}, {"stoi": {"ab": 0}}, {"stoi": {"a": 1}}, {"stoi": {"a": 0, "b": 0}}, {"stoi": {"a": "0"}},
    {"stoi": {0: "a"}}, {"stoi": {"a": True, "b": 0}},
])
def test_what_is_no_vocabulary_of_characters(tmp_path, meta):
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(meta))
    with pytest.raises(FormatError, match=r"meta\.pkl is not nanoGPT's meta\.pkl: its 'stoi' must map characters"):
        nanogpt.character_tokenizer(tmp_path / "meta.pkl")

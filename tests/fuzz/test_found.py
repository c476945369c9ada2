"""The errors that fuzzing has found, each as one small file."""

import json
import re
import tracemalloc
import warnings

import numpy as np
import pytest
import tokenizers

from npgpt import GPT2, AdamW, GPT2Config, LoraConfig, NpgptError, Tokenizer, add_lora, data, load_adapter, save_adapter
from npgpt.files import safetensors, torchfile
from npgpt.runtime.errors import LONGEST, ConfigError, FileError, FormatError
from npgpt.training.run import Run

CONFIG = GPT2Config(n_layer=2, n_head=2, n_embd=8, vocab_size=11, n_positions=6)


def tensors(path, header, data=b""):
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize("content", ['\v{"text": "one"}', '[{"text": "one"}\f]', '[\u2028]', '{"text": "one"}\xa0'])
def test_json_has_four_kinds_of_white_space(tmp_path, content):
    (tmp_path / "x.json").write_text(content, encoding="utf-8")
    with pytest.raises(FormatError, match=r"x.json:1: not valid JSON"):
        list(data.read_records(tmp_path / "x.json"))


@pytest.mark.parametrize("name, split", [("x.json", None), ("x.txt", "none"), ("x.txt", "line")])
@pytest.mark.parametrize("content", [b"\xef", b"\xef\xbb"])
def test_a_part_of_a_byte_order_mark_is_no_text(tmp_path, name, split, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FormatError, match=rf"{name}:1: not UTF-8 text: unexpected end of data"):
        list(data.read_records(tmp_path / name, split))


@pytest.fixture
def model_folder(tmp_path):
    GPT2(CONFIG, seed=1).save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def adapter_folder(tmp_path):
    save_adapter(add_lora(GPT2(CONFIG, seed=1), LoraConfig(r=2)), tmp_path)
    return tmp_path


def edit(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def edit_tensors(path, **changed):
    """Write the file again with new tensors: each replaces the tensor whose name has this end."""
    held = {name: array.copy() for name, array in safetensors.read(path).items()}
    for end, array in changed.items():
        name = next(name for name in held if name.endswith(end))
        held[name] = array
    safetensors.write(path, held)


# Messages


def test_a_message_is_one_printable_line_that_ends(tmp_path):
    assert str(FormatError("caf\u00e9 \u2603: two\nlines\x1b[31m \u2028\ud800")) == (
        "caf\u00e9 \u2603: two\\nlines\\x1b[31m \\u2028\\ud800")
    message = str(FileError("the beginning " + "\n" * 100_000 + " and the end"))
    assert len(message) <= LONGEST and message.isprintable()
    assert message.startswith("the beginning \\n") and message.endswith("\\n and the end")
    path = tensors(tmp_path / "x", {"a": entry("x" * 100_000, [], 0, 0)})
    with pytest.raises(FormatError, match=r"dtype 'xxx.* \[\.\.\] .*supported are BOOL"):
        safetensors.read(path)


def test_warnings_about_an_adapter_end_too(adapter_folder):
    edit(adapter_folder / "adapter_config.json", **{"x" * 100_000: 1})
    with pytest.warns(UserWarning, match="and ignores this$") as caught:
        load_adapter(GPT2(CONFIG, seed=1), adapter_folder)
    assert len(str(caught[0].message)) <= LONGEST


# Tensors


def test_a_bf16_tensor_without_dimensions(tmp_path):
    found = safetensors.read(tensors(tmp_path / "x", {"a": entry("BF16", [], 0, 2)}, b"\x80\x3f"))["a"]
    assert (found.shape, found.dtype, float(found)) == ((), np.float32, 1.0)
    assert not found.flags.writeable


def test_a_bf16_tensor_that_only_its_file_could_hold(tmp_path):
    path = tensors(tmp_path / "x", {"a": entry("BF16", [0, 2**61], 0, 0)})
    with pytest.raises(FormatError, match="sizes that memory can hold"):
        safetensors.read(path)


def test_a_name_that_is_no_text(tmp_path):
    path = tensors(tmp_path / "x", {"\ud800": entry("U8", [0], 0, 0)})
    with pytest.raises(FormatError, match=r"header is not valid JSON: .*surrogates not allowed"):
        safetensors.read(path)


def test_numbers_that_float32_does_not_reach(model_folder):
    edit_tensors(model_folder / "model.safetensors", **{"ln_f.bias": np.full(8, 1e39)})
    with pytest.raises(FormatError, match=r"model.safetensors: ln_f.bias holds numbers that are too large for float32"):
        GPT2.from_pretrained(model_folder)
    assert GPT2.from_pretrained(model_folder, dtype=np.float64).ln_f.bias.data[0] == 1e39
    edit_tensors(model_folder / "model.safetensors", **{"ln_f.bias": np.array([np.inf, np.nan] * 4)})
    with pytest.raises(FormatError, match=r"model.safetensors: ln_f.bias holds NaN or infinity, 8 of 8 numbers"):
        GPT2.from_pretrained(model_folder)


def test_an_adapter_with_numbers_that_float32_does_not_reach(adapter_folder):
    edit_tensors(adapter_folder / "adapter_model.safetensors", **{"1.attn.c_attn.lora_A.weight": np.full((2, 8), 1e39)})
    model = GPT2(CONFIG, seed=1)
    with pytest.raises(FormatError, match=r"safetensors: lora_A of h.1.attn.c_attn holds numbers that are too large"):
        load_adapter(model, adapter_folder)
    assert len(model.trainable_parameters()) == len(model.parameters())


@pytest.mark.parametrize("name", ["h.{}.x", "h.{}.mlp.c_fc.weight", "h.{}.mlp.c_fc.bias"])
def test_layers_that_are_there_by_name_only(tmp_path, name):
    shapes = {"wte.weight": (1, 64), "wpe.weight": (1, 64), "h.0.mlp.c_fc.weight": (64, 256)}
    shapes |= {name.format(layer): 1 for layer in range(1, 3000)}
    safetensors.write(tmp_path / "model.safetensors", {key: np.zeros(shape) for key, shape in shapes.items()})
    config = CONFIG.to_dict() | {"n_layer": 3000, "n_embd": 64, "vocab_size": 1, "n_positions": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    tracemalloc.start()
    with pytest.raises(FormatError, match=r"missing layers: it has 1, but config\.json says n_layer 3000"):
        GPT2.from_pretrained(tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


def test_strings_with_odd_escapes_in_a_pickle(tmp_path):
    start = b"\x80\2\x8a\x0a" + (0x1950A86A20F9469CFC6C).to_bytes(10, "little")
    (tmp_path / "x").write_bytes(start + b".\x80\2M\xe9\3.\x80\2}.\x80\2S'\\/'\n.")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(FormatError, match="x: "):
            torchfile.read(tmp_path / "x")


def test_a_shard_whose_name_no_file_can_have(model_folder):
    (model_folder / "model.safetensors").unlink()
    index = {"weight_map": {"wte.weight": "a" * 300 + ".safetensors"}}
    (model_folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FileError, match=r"lists a.*which is missing"):
        GPT2.from_pretrained(model_folder)


# Configurations


@pytest.mark.parametrize(
    ("field", "value"),
    [("activation_function", ["gelu"]), ("activation_function", {}), ("layer_norm_epsilon", 10**400),
     ("initializer_range", 10**400), ("eos_token_id", [[50256]]), ("bos_token_id", "0"), ("eos_token_id", True)],
)
def test_fields_of_a_model(model_folder, field, value):
    edit(model_folder / "config.json", **{field: value})
    with pytest.raises(ConfigError, match=f"config.json: {field} = "):
        GPT2.from_pretrained(model_folder)


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"lora_alpha": 10**400}, "lora_alpha = 1000"),
     ({"target_modules": "a{9999999999}"}, "not a regular expression: the repetition number is too large"),
     ({"target_modules": "(" * 5000}, "not a regular expression: "),
     ({"target_modules": "((" * 300 + "))" * 300}, "regular expression"),
     ({"target_modules": "[[a]"}, "matches no module")],  # of which Python warns
)  # fmt: skip
def test_fields_of_an_adapter(adapter_folder, fields, message):
    edit(adapter_folder / "adapter_config.json", **fields)
    with pytest.raises(FormatError, match=rf"adapter_config.json: .*{message}"):
        load_adapter(GPT2(CONFIG, seed=1), adapter_folder)


# The state of a run


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [("steps", np.array(np.nan), "steps has dtype float64, expected int64"),
     ("steps", np.array(-1), "steps is -1, expected 0"),
     ("exp_avg.h.0.attn.c_attn.lora_B", np.zeros((24, 2)), "has dtype float64, expected float32")],
)  # fmt: skip
def test_the_state_of_a_run(tmp_path, name, array, message):
    model = add_lora(GPT2(CONFIG, seed=1), LoraConfig(r=2))
    opt = AdamW(model.trainable_parameters())
    run = Run(tmp_path)
    run.write_config({})
    run.save_checkpoint(model, opt)
    edit_tensors(run.checkpoint(0) / "state.safetensors", **{name: array})
    with pytest.raises(FormatError, match=message):
        run.load_checkpoint(0, opt)


# Tokenizers


@pytest.fixture
def tokenizer_folder(tmp_path):
    vocab = {character: i for i, character in enumerate(sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()))}
    model = tokenizers.models.BPE(vocab | {"ab": 256}, [("a", "b")])
    tokenizers.Tokenizer(model).save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def edit_model(folder, **fields):
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"] |= fields
    (folder / "tokenizer.json").write_text(json.dumps(content))


@pytest.mark.parametrize("other", [5, 2**31])
def test_ids_that_are_taken_twice_or_far_away(tokenizer_folder, other):
    """The second would take gigabytes when the tokenizer is saved."""
    vocab = json.loads((tokenizer_folder / "tokenizer.json").read_text())["model"]["vocab"]
    edit_model(tokenizer_folder, vocab=vocab | {"ab": other})
    with pytest.raises(FormatError, match=rf"257 tokens have 25\d different ids up to {max(255, other)}; "):
        Tokenizer.from_pretrained(tokenizer_folder)


def test_a_panic_is_an_error(tokenizer_folder, capfd):
    edit_model(tokenizer_folder, continuing_subword_prefix="##")
    with pytest.raises(FormatError, match=r"tokenizer.json: not a tokenizer that `tokenizers` can read: "):
        Tokenizer.from_pretrained(tokenizer_folder)
    capfd.readouterr()  # `tokenizers` has its own say on standard error


def test_ctrl_c_is_not(tokenizer_folder, monkeypatch):
    def pressed(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("tokenizers.Tokenizer.from_str", pressed, raising=False)
    with pytest.raises(KeyboardInterrupt):
        Tokenizer.from_pretrained(tokenizer_folder)


def test_a_token_of_two_lines(tokenizer_folder):
    edit_model(tokenizer_folder, merges=["a\n b"])
    with pytest.raises(NpgptError, match=re.escape(r"Token `a\n` out of vocabulary")):
        Tokenizer.from_pretrained(tokenizer_folder)

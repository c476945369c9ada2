"""convert_adapter.py turns a checkpoint of loralib into an adapter that the other commands take."""

import json

import numpy as np

from npgpt.files import safetensors
from tests.files.test_torchfile import saved
from tests.goldens import golden

C = 16  # the width of the scripts' small model


def write(path, r=2):
    draw = np.random.default_rng(0)
    tensors = {}
    for layer in range(2):
        for part, shape in (("lora_A", (2 * r, C)), ("lora_B", (2 * C, r))):
            tensors[f"transformer.h.{layer}.attn.c_attn.{part}"] = draw.normal(0, 0.5, shape).astype(np.float32)
    path.write_bytes(saved(tensors, under="model_state_dict"))


def test_a_checkpoint_becomes_an_adapter(script, tmp_path, model):
    write(tmp_path / "gpt2.pt")
    stdout = script("convert_adapter.py", "gpt2.pt", "--alpha", 8, "--out", "adapter")
    assert stdout == ("converted gpt2.pt: rank 4, alpha 16, scale 4, targets attn.c_attn, bias none: adapter\n")
    prompt = ["generate.py", "--model", model, "--prompt", "many hands", "--temperature", 0]
    assert script(*prompt, "--adapter", "adapter") != script(*prompt)


def test_an_adapter_of_mlx(script, refused, tmp_path):
    folder = golden.FOLDER / "mlx" / "lora"
    stdout = script("convert_adapter.py", folder, "--out", "adapter")
    assert stdout == (f"converted {folder}: rank 2, alpha 20, scale 10, targets attn.c_attn, mlp.c_proj, bias none: "
                      "adapter\n")
    assert "holds an adapter already" in refused("convert_adapter.py", folder, "--out", "adapter")
    assert "adapter/adapter_config.json: enable_lora is not set, so the adapter is in PEFT's form already" in refused(
        "convert_adapter.py", "adapter", "--out", "new")
    assert f"is part of an adapter's folder: give the folder, {folder}" in refused(
        "convert_adapter.py", folder / "adapters.safetensors", "--out", "new")
    for flag in ("--alpha", "--enable", "--model"):
        assert f"{flag} is for a loralib file; an adapter's folder holds this already" in refused(
            "convert_adapter.py", folder, flag, "1", "--out", "new")


def test_an_adapter_of_peft_until_0_2(script, refused, tmp_path):
    folder = tmp_path / "old"
    folder.mkdir()
    write(folder / "adapter_model.bin")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 8, "enable_lora": [True, False, True]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    write(tmp_path / "gpt2.pt")
    script("convert_adapter.py", "old", "--out", "one")
    script("convert_adapter.py", "gpt2.pt", "--alpha", 8, "--enable", "q,v", "--out", "two")
    one, two = ((tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two
    (folder / "adapter_config.json").write_text(json.dumps(config | {"enable_lora": [True]}))
    assert "enable_lora = [True], lora_alpha = 8: they must be a list of three truth values" in refused(
        "convert_adapter.py", "old", "--out", "three")


def test_what_cannot_be_converted(refused, tmp_path, model, adapter):
    write(tmp_path / "gpt2.pt")
    arguments = ["convert_adapter.py", "gpt2.pt", "--alpha", 8, "--out"]
    assert "holds an adapter already" in refused(*arguments, adapter)
    assert "enable_lora = ['q', 'x']" in refused(*arguments, "new", "--enable", "q,x")
    assert "are 2 updates of rank 2, but enable_lora names 3" in refused(*arguments, "new", "--enable", "q,k,v")
    assert "arguments are required: --alpha" in refused("convert_adapter.py", "gpt2.pt", "--out", "new")
    assert "cannot read nowhere.pt" in refused("convert_adapter.py", "nowhere.pt", "--alpha", 8, "--out", "new")


def test_to_mlx_and_back(script, refused, tmp_path, adapter, model):
    out = script("convert_adapter.py", adapter, "--to", "mlx", "--out", "mlx")
    assert out.startswith(f"converted {adapter} to MLX's format: rank 8, scale 2, modules ")
    script("convert_adapter.py", "mlx", "--out", "again")
    one, two = (safetensors.read(folder / "adapter_model.safetensors") for folder in (adapter, tmp_path / "again"))
    assert one.keys() == two.keys() and all(np.array_equal(one[key], two[key]) for key in one)
    script("convert_adapter.py", adapter, "--to", "mlx", "--model", model, "--out", "named")
    write(tmp_path / "gpt2.pt")
    assert "--to mlx needs the folder of an adapter" in refused(
        "convert_adapter.py", "gpt2.pt", "--to", "mlx", "--out", "x")

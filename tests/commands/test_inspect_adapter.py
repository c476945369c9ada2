"""inspect_adapter.py says in one screen what an adapter is."""

import json
import re
import sys

import numpy as np
import pytest

from npgpt.commands import inspect_adapter
from npgpt.files import safetensors
from npgpt.inspection import anatomy
from npgpt.runtime.errors import ConfigError

KINDS = ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]
MODULES = [f"h.{layer}.{kind}" for layer in range(2) for kind in KINDS]


@pytest.fixture(scope="module")
def other(tmp_path_factory, run_script, model, texts):
    cwd = tmp_path_factory.mktemp("other")
    result = run_script(cwd, "finetune.py", "--model", model, "--data", texts, "--out", "run", "--lr", "0.03", "--rank",
                        "3", "--epochs", "1", "--quiet", "--samples", "0", "--seed", "5")
    assert result.returncode == 0, result.stderr
    return cwd / "run" / "adapter"


def test_one_screen(script, model, adapter):
    lines = script("inspect_adapter.py", adapter).splitlines()
    assert lines[0].startswith(f"adapter    {adapter}: LoRA for '{model}', ")
    assert "rank 8, alpha 16, " in lines[1]
    assert lines[2] == f"           on {', '.join(f'{kind} of 2 layers' for kind in KINDS)}"
    rows = {line.split()[0]: line.split()[1:] for line in lines if re.match(r"h\.\d", line)}
    assert list(rows) == MODULES
    for rank, alpha, scale, *_ in rows.values():
        assert (rank, alpha, scale) == ("8", "16", "2")
    most = max(rows, key=lambda module: float(rows[module][5]))
    (moved,) = (line for line in lines if line.startswith("moved most"))
    assert moved.startswith(f"moved most {most} (")
    assert [line for line in lines if line.startswith("layers     h.0")]
    assert lines[-2:] == ["refused    none", "hazards    none"]
    assert "of |W|" not in "".join(lines)


def test_with_the_base_and_another(script, model, adapter, other):
    stdout = script("inspect_adapter.py", adapter, "--model", model, "--compare", other)
    assert re.search(r"\|sBA\|   of \|W\|  amplifies  eff\. rank", stdout)
    assert re.search(r"^h\.0\.mlp\.c_fc .* +\d+\.\d\d% +\d+\.\dx ", stdout, re.M)
    compared = stdout.partition("compared with")[2]
    assert re.findall(r"^h\S+", compared, re.M) == ["h.0.attn.c_attn", "h.1.attn.c_attn"]
    assert f"only in {adapter}: h.0.attn.c_proj, h.0.mlp.c_fc, h.0.mlp.c_proj and 3 more" in compared


def test_json(script, model, adapter, other):
    report = json.loads(script("inspect_adapter.py", adapter, "--model", model, "--compare", other, "--json"))
    assert list(report["modules"]) == MODULES
    tensors = safetensors.read(adapter / "adapter_model.safetensors")
    key = "base_model.model.transformer.h.1.mlp.c_proj.lora_"
    expected = np.linalg.svd(2.0 * tensors[f"{key}B.weight"] @ tensors[f"{key}A.weight"], compute_uv=False)[:8]
    module = report["modules"]["h.1.mlp.c_proj"]
    np.testing.assert_allclose(module["singular_values"], expected, rtol=1e-3)
    assert module["norm_update"] == pytest.approx(np.linalg.norm(expected), rel=1e-5)
    assert 1 <= module["effective_rank"] <= 8
    assert module["relative"] > 0
    assert report["fields"]["r"] == 8
    assert report["refused"] == []
    assert report["hazards"][0].startswith("the update is larger than the weight itself in h.0.attn.c_proj")
    assert report["compare"]["modules"].keys() == {"h.0.attn.c_attn", "h.1.attn.c_attn"}


def test_numbers_that_are_none(script, tmp_path, adapter):
    """JSON has no NaN, and a table of what is left is still of use."""
    tensors = {name: each.copy() for name, each in safetensors.read(adapter / "adapter_model.safetensors").items()}
    tensors["base_model.model.transformer.h.0.mlp.c_fc.lora_B.weight"][0, 0] = np.nan
    safetensors.write(tmp_path / "bad" / "adapter_model.safetensors", tensors)
    (tmp_path / "bad" / "adapter_config.json").write_bytes((adapter / "adapter_config.json").read_bytes())

    def no_constant(name):
        raise AssertionError(name)

    report = json.loads(script("inspect_adapter.py", "bad", "--json"), parse_constant=no_constant)
    assert report["modules"]["h.0.mlp.c_fc"]["norm_B"] is None
    stdout = script("inspect_adapter.py", "bad")
    assert re.search(r"^h\.0\.mlp\.c_fc .* not finite$", stdout, re.M)
    assert "hazards    NaN or infinity in base_model" in stdout


def test_wrong_requests(refused, adapter, tmp_path):
    assert "cannot read none/adapter_config.json" in refused("inspect_adapter.py", "none")
    assert "cannot read none/adapter_config.json" in refused("inspect_adapter.py", adapter, "--compare", "none")


def test_a_plot_without_matplotlib(tmp_path, monkeypatch, adapter):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"pip install '\.\[plot\]'"):
        inspect_adapter.plot(anatomy.dissect(adapter), str(tmp_path / "x.png"), "adapter")

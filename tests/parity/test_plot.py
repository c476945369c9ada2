"""The picture of an adapter, where matplotlib is installed."""

import numpy as np
import pytest

pytest.importorskip("matplotlib")

import npgpt
from npgpt.commands import inspect_adapter
from npgpt.runtime.errors import FileError


@pytest.fixture
def folder(tmp_path):
    model = npgpt.add_lora(npgpt.GPT2.from_pretrained("tiny"), npgpt.LoraConfig(r=4, target_modules="all-linear"))
    draw = np.random.default_rng(0)
    for name, tensor in model.parameters().items():
        if name.endswith("lora_B"):
            tensor.data[...] = draw.normal(0, 0.02, tensor.shape)
    npgpt.save_adapter(model, tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize(("name", "start"), [("x.png", b"\x89PNG"), ("x.svg", b"<?xml"), ("x.PDF", b"%PDF")])
@pytest.mark.parametrize("base", [[], ["--model", "tiny"]])
def test_a_picture_is_drawn(folder, tmp_path, capsys, name, start, base):
    """With and without the base. The SVG's words say what is drawn."""
    arguments = [str(folder), "--plot", str(tmp_path / name), *base]
    inspect_adapter.main(inspect_adapter.parse_arguments(arguments))
    content = (tmp_path / name).read_bytes()
    assert content.startswith(start)
    assert len(content) > 5000
    assert capsys.readouterr().out.endswith(f"plot       {tmp_path / name}\n")
    if name.endswith("svg"):
        size = "|sBA| / |W|" if base else "|sBA|"
        for text in ("size of the updates", "singular values, one line for each layer",
                     "place of the singular value, the largest first", "singular value of sBA (log scale)",
                     "attn.c_attn", size):
            assert f"<!-- {text} -->".encode() in content, text


def test_another_kind_of_file(folder, tmp_path):
    arguments = inspect_adapter.parse_arguments([str(folder), "--plot", str(tmp_path / "x.doc")])
    with pytest.raises(FileError, match=r"x\.doc: its name must end in \.png, \.svg or \.pdf"):
        inspect_adapter.main(arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]

"""The base that an adapter was made for, from its configuration."""

import json

import pytest

from npgpt import LoraConfig, add_lora, load_adapter, save_adapter
from npgpt.adapters import place
from npgpt.adapters.pretrained import base_name
from npgpt.checking.gradcases import small_model
from npgpt.files import hub
from npgpt.runtime.errors import ConfigError, FileError, HubError


@pytest.fixture
def adapter(tmp_path):
    def make(name, base):
        save_adapter(add_lora(small_model(), LoraConfig(r=1)), tmp_path / name)
        path = tmp_path / name / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": base}))
        return str(tmp_path / name)
    return make


def test_the_base_that_adapters_name(adapter, tmp_path):
    assert base_name([]) is None and base_name([adapter("none", None)]) is None
    assert base_name([adapter("a", "tiny")]) == base_name([adapter("none", None), adapter("b", "tiny")]) == "tiny"
    assert base_name([adapter("c", "openai-community/gpt2")]) == "openai-community/gpt2"
    assert base_name([adapter("d", str(tmp_path))]) == str(tmp_path)
    with pytest.raises(ConfigError, match="made for 'tiny' and for 'gpt2': say with --model which base to use"):
        base_name([adapter("a", "tiny"), adapter("e", "gpt2")])
    with pytest.raises(ConfigError, match=r"adapter_config\.json names the base '/home/x/gpt2', which is not here"):
        base_name([adapter("f", "/home/x/gpt2")])
    with pytest.raises(FileError, match=r"cannot read nowhere.adapter_config\.json"):
        base_name(["nowhere"])


def test_an_adapter_on_the_hub(adapter, tmp_path, monkeypatch):
    """tests/hub/test_download.py downloads one."""
    snapshot, asked = adapter("snapshot", "tiny"), []

    def file(name, filename, revision=None, local_files_only=False):
        asked.append((name, filename, revision))
        names = (filename,) if isinstance(filename, str) else filename
        return next((path for each in names if (path := tmp_path / "snapshot" / each).exists()), None)

    monkeypatch.setattr(hub, "file", file)
    monkeypatch.setattr(hub, "optional", lambda name, filename, revision=None, cached=False: asked.append(filename))
    assert str(place.folder_of("owner/name")) == snapshot
    assert asked == [("owner/name", "adapter_config.json", None), ("owner/name", place.WEIGHTS_FILES, "snapshot"),
                     *place.BESIDE]
    assert base_name(["owner/name"]) == "tiny"
    load_adapter(small_model(), "owner/name")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (tmp_path / "snapshot" / name).unlink()
        with pytest.raises(HubError, match=r"on the hub (has neither adapter_model|is not an adapter: it has no)"):
            place.folder_of("owner/name")
    asked.clear()
    for path in (tmp_path, tmp_path / "x/y", "name", "./a/b", "a/b/c", "../b", "/a/b"):
        place.folder_of(path)
    assert asked == []

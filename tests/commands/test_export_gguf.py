"""export_gguf.py keeps what is there. What it writes: tests/parity/test_gguf.py."""


def test_what_is_there_is_kept(refused, tmp_path, model):
    (tmp_path / "model.gguf").write_text("mine")
    assert "model.gguf is there already" in refused("export_gguf.py", "--model", model, "--out", "model.gguf")

"""inspect_text.py writes one page, of the model or of what an adapter changes."""

import re
from pathlib import Path

import pytest

INSPECT = ["inspect_text.py", "--prompt", "a <b> stitch"]


def test_a_page(script, model, tmp_path):
    stdout = script(*INSPECT, "--model", model)
    assert re.fullmatch(r"inside.html: 12 tokens; \d+ kB, open it in a browser\n", stdout)
    page = (tmp_path / "inside.html").read_text(encoding="utf-8")
    assert f"<title>Inside {'/'.join(Path(model).parts[-2:])}</title>" in page  # and not the whole path
    assert "12 tokens; the model predicts all except the first" in page
    assert "What the adapter changed" not in page


def test_with_an_adapter(script, model, adapter, tmp_path):
    script(*INSPECT, "--model", model, "--adapter", adapter, "--out", "some/page.html")
    page = (tmp_path / "some" / "page.html").read_text(encoding="utf-8")
    assert re.search(r"<title>Inside [^/<]+/[^/<]+ with [^/<]+/[^/<]+</title>", page)
    without, with_it = map(float, re.search(r"([\d.]+) nats .* without the adapter; ([\d.]+) nats", page).groups())
    assert with_it < without - 0.1  # it was trained on these words


@pytest.mark.parametrize("flags, shown, rest", [(["--max-tokens", "5"], 5, "; 7 more were left out, see --max-tokens"),
                                                (["--prompt", "long " * 20], 64, "; 36 more were left out")])
def test_a_long_prompt_is_cut(script, model, flags, shown, rest):
    assert f"inside.html: {shown} tokens{rest}" in script(*INSPECT, "--model", model, *flags)


@pytest.mark.parametrize("flags, message", [
    (["--prompt", ""], "--prompt is empty: give at least one word to look at"),
    (["--max-tokens", "0"], "--max-tokens 0: it must be at least 1"),
    (["--adapter", "none"], "cannot read none/adapter_config.json"),
    (["--out", "folder"], "cannot write folder: Is a directory"),
])
def test_what_is_refused(refused, model, tmp_path, flags, message):
    (tmp_path / "folder").mkdir()
    assert message in refused(*INSPECT, "--model", model, *flags)

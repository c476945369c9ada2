"""The report of a run: its contents, and that it needs no other file."""

import html
import re
from typing import NamedTuple

import numpy as np
import pytest

import npgpt
from npgpt.training.report import write_report
from npgpt.training.run import Run

NASTY = "</td><script>alert(1)</script> & 'quoted'"


class Figures(NamedTuple):
    step: int
    loss: float
    lr: float = 0.1
    grad_norm: float = 2.0
    tokens: int = 100
    seconds: float = 0.5


@pytest.fixture(params=[False, True], ids=["adapter", "full"])
def reported(tmp_path, request):
    """(text of the page, the model, whether all weights were trained)."""
    full = request.param
    model = npgpt.GPT2(npgpt.GPT2Config(vocab_size=31, n_positions=16, n_embd=16, n_layer=2, n_head=2))
    if not full:
        npgpt.add_lora(model, npgpt.LoraConfig(target_modules=["c_attn", "mlp.c_fc"]))
        model.parameters()["h.1.mlp.c_fc.lora_B"].data[...] = 0.5
    run = Run.create(tmp_path / "mine & yours")
    data = {"texts": 7, "tokens": 1234, "learned": 1227, "fingerprint": "0123456789abcdef" * 2}
    run.write_config({
        "settings": {"model": NASTY, "rank": 8, "adapter": None, "full": full, "data": None, "lr": 0.1},
        "data": {"training": data, "held_out": None if full else data}, "model": {"fingerprint": "f" * 32},
        "versions": {"numpy": "2.9.9"}, "machine": {"processor": "an abacus", "threads": 2}})
    for step in range(1, 21):
        run.log(Figures(step, 4 - step / 10), **({} if full or step % 5 else {"val_loss": 5 - step / 10}))
    for moment, loss in (("before", 5.0), ("after", 3.0)):
        run.record(moment, {"val_loss": None if full else loss, "samples": [["Once", f"{moment} {NASTY}"]]})
    write_report(run, model)
    path = run.report
    assert path == run.folder / "report.html"
    return path.read_text(encoding="utf-8"), model, full


def test_the_page_says_what_happened(reported):
    page, model, full = reported
    text = re.sub(r"<[^>]*>", " ", re.sub(r"<style>.*?</style>", "", page, flags=re.S))
    for part in ("mine &amp; yours", "in 20 steps on 2,000 tokens. It took 0:00:10 hours (200 tokens per second)",
                 "an abacus", "2.9.9", "1,234", "Once"):
        assert part in text, part
    held_out = ("The held-out loss was 5.000 before training (perplexity 148.4) and 3.000 after it (perplexity 20.1). "
                "It was lowest after step 20.")
    assert (held_out in text) is not full
    assert ("What the adapter changed" in text) is not full
    if not full:
        update = 2 * np.full((64, 8), 0.5) @ model.parameters()["h.1.mlp.c_fc.lora_A"].data
        ratio = np.linalg.norm(update) / np.linalg.norm(model.parameters()["h.1.mlp.c_fc.weight"].data)
        row = re.search(r"<tr><td>h.1</td>(.*?)</tr>", page)[1]
        assert re.findall(r">([^<]+)</td>", row) == ["0", f"{ratio:.4g}"]


def test_the_page_is_one_file(reported):
    page, _, full = reported
    assert "<script" not in page
    assert not re.search(r"(src|href)=|url\(|@import", page)
    assert page.count('class="chart wider"') == page.count('class="chart narrow"') == 3
    assert NASTY not in page
    assert page.count('class="line ') == 2 * (5 if not full else 4) + (3 if not full else 2)  # lines, and their legend


def test_the_held_out_curve_begins_before_training(reported):
    page, _, full = reported
    table = page[page.index("Numbers: nats per token by step"):page.index("<h2>Gradient norm")]
    rows = [re.findall(r"<td[^>]*>([^<]*)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", table)]
    measured = [(row[0], row[3]) for row in rows if len(row) == 4 and row[3]]
    assert measured == ([] if full else [("0", "5.0"), ("5", "4.5"), ("10", "4.0"), ("15", "3.5"), ("20", "3.0")])


def test_samples_and_settings_are_readable(reported):
    page, _, _ = reported
    text = re.sub(r"<[^>]*>", "", re.sub(r"<style>.*?</style>", "", page, flags=re.S))
    assert f"“Once”before: “before {html.escape(NASTY)}”after: “after" in text
    assert "norm (log scale)" in text
    names = re.findall(r"<tr><td>(\w+)</td>", page[page.index("<h2>Settings"):page.index("<h2>Data")])
    assert names == ["model", "rank", "full", "data", "lr"]
    assert "<tr><td>data</td><td>the texts in the package</td></tr>" in page

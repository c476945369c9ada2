"""evaluate.py prints what `npgpt.perplexity` measures."""

import json
import re

import numpy as np
import pytest

import npgpt
from npgpt.data import read_texts


def measured(model, adapter, texts, *window):
    gpt2, tokenizer = npgpt.GPT2.from_pretrained(model), npgpt.Tokenizer.from_pretrained(model)
    if adapter is not None:
        npgpt.load_adapter(gpt2, adapter)
    ids = np.concatenate([np.append(tokenizer.encode(text), tokenizer.eos_id) for text in read_texts(texts)])
    return npgpt.perplexity(gpt2, ids, *window)


@pytest.mark.parametrize("adapted", [False, True], ids=["base", "adapter"])
@pytest.mark.parametrize("flags, window", [
    ([], (64, 64)), (["--context", 32], (32, 32)), (["--context", 32, "--stride", 8], (32, 8)),
    (["--stride", 16], (64, 16)),
])
def test_json(script, model, adapter, texts, adapted, flags, window):
    adapter = adapter if adapted else None
    stdout = script("evaluate.py", "--model", model, *(["--adapter", adapter] if adapted else []), "--data", texts,
                    "--json", *flags)
    assert stdout.count("\n") == 1
    report = json.loads(stdout)
    expected = measured(model, adapter, texts, *window)
    assert report == {"model": str(model), "adapter": str(adapter) if adapted else None, "data": str(texts),
                      "context": window[0], "stride": window[1], "tokens": expected.tokens, "nll": report["nll"],
                      "ppl": report["ppl"]}
    assert report["nll"] == pytest.approx(expected.nll, rel=1e-6)
    assert report["ppl"] == pytest.approx(expected.ppl, rel=1e-6)


def test_the_same_in_words(script, model, adapter, texts):
    base, adapted = (script("evaluate.py", "--model", model, *more, "--data", texts)
                     for more in ([], ["--adapter", adapter]))
    for stdout, expected in ((base, measured(model, None, texts)), (adapted, measured(model, adapter, texts))):
        found = re.fullmatch(r"(\d+) tokens, context 64, stride 64: (\S+) nats a token, perplexity (\S+)\n", stdout)
        assert int(found[1]) == expected.tokens
        assert float(found[2]) == pytest.approx(expected.nll, abs=6e-5)
        assert float(found[3]) == pytest.approx(expected.ppl, abs=6e-3)
    assert measured(model, adapter, texts).nll < 0.9 * measured(model, None, texts).nll


def test_each_text_predicts_its_end(script, model, tmp_path):
    """A text of one token is enough: its end is predicted."""
    (tmp_path / "one.txt").write_text("a\n")
    assert json.loads(script("evaluate.py", "--model", model, "--data", "one.txt", "--json"))["tokens"] == 1
    (tmp_path / "two.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    assert json.loads(script("evaluate.py", "--model", model, "--data", "two.jsonl", "--json"))["tokens"] == 3

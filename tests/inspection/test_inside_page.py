"""The page about a text shows the numbers of `inside`, and a text's own markup stays text."""

import base64
import html
import json
import re

import numpy as np
import pytest

import npgpt
from npgpt.inspection import inside, inside_page
from npgpt.runtime.seeding import generator

CONFIG = npgpt.GPT2Config(vocab_size=3072, n_positions=64, n_embd=16, n_layer=2, n_head=4, initializer_range=0.2)
PROMPT = "A </script><b>list</b> &amp; a\n\n\tlist  of 😀 \u200b lists"


@pytest.fixture(scope="module")
def tokenizer():
    return npgpt.Tokenizer.from_pretrained("tiny")


@pytest.fixture(scope="module")
def model():
    return npgpt.GPT2(CONFIG, seed=1)


@pytest.fixture(scope="module")
def adapted_model():
    model = npgpt.add_lora(npgpt.GPT2(CONFIG, seed=1), npgpt.LoraConfig(target_modules="all-linear"), seed=0)
    for name, tensor in model.trainable_parameters().items():
        if name.endswith("lora_B"):
            tensor.data[...] = generator(0, name).normal(0, 0.1, tensor.shape)
    return model


@pytest.fixture(scope="module")
def ids(tokenizer):
    return tokenizer.encode(PROMPT)


def section(page, heading):
    """Return the part of the page under a heading."""
    return re.search(rf"<section><h2>{heading}</h2>(.*?)</section>", page, re.S)[1]


def rows(part):
    """Return the cells of the table in a part of the page, row by row, without tags."""
    body = re.search(r"<tbody>(.*?)</tbody>", part, re.S)[1]
    return [[html.unescape(re.sub("<.*?>", "", cell)) for cell in re.findall(r"<td.*?</td>", row, re.S)]
            for row in re.findall(r"<tr>.*?</tr>", body, re.S)]


@pytest.mark.parametrize("with_adapter", [False, True])
def test_every_tag_is_closed_and_none_is_the_prompts(read_html, tokenizer, model, adapted_model, ids, with_adapter):
    base, adapted = inside.look(model, ids), inside.look(adapted_model, ids) if with_adapter else None
    page = read_html(inside_page.build("A <title>", tokenizer, model, base, adapted))
    tags = [tag for tag, _ in page.tags]
    assert tags.count("script") == 2
    assert "b" not in tags
    assert ("What the adapter changed" in page.text) == with_adapter
    assert page.text.count("A <title>") == 2
    for text in ("😀", "\\u200b", "◂ is a token that belongs to the character before it", "⏎", "⇥", "list", "</"):
        assert text in page.text
    assert not any({"src", "href"} & attributes.keys() for _, attributes in page.tags)


def test_losses_and_ranks(tokenizer, model, ids):
    seen = inside.look(model, ids)
    page = inside_page.build("", tokenizer, model, seen)
    assert "\\xf0" not in section(page, "The text")  # several tokens make one character
    losses, ranks = inside.losses(seen), inside.ranks(seen)
    *tokens, last = rows(section(page, "Token by token"))
    assert [row[0] for row in tokens] == [str(t) for t in range(1, len(ids))]
    assert [row[2] for row in tokens] == [f"{loss:.2f}" for loss in losses]
    assert [row[3] for row in tokens] == [f"{rank:,}" for rank in ranks]
    assert last[:2] == [str(len(ids)), "(next token)"]
    top, p = inside.likeliest(seen.logits, 5)
    names = inside_page._Names(tokenizer, ids)
    assert [row[1] for row in tokens] == [names.alone(t) for t in range(1, len(ids))]
    for t, (row, expected, shares) in enumerate(zip([*tokens, last], top, p, strict=True)):
        chips = [f"{names.after(t, i)}{100 * share:.{0 if share > 0.1 else 1}f} %  "
                 for i, share in zip(expected, shares, strict=True)]
        assert row[4] == "".join(chips)
    assert (f"{len(ids)} tokens; the model predicts all except the first. Mean loss: {losses.mean():.3f} nats per token"
            in page)
    assert f"loss {losses[3]:.2f}, rank {ranks[3]:,}" in section(page, "The text")


@pytest.mark.parametrize("with_adapter", [False, True])
def test_attention(tokenizer, model, adapted_model, ids, with_adapter):
    """The page holds the root of each probability to half of 1/255, the lower triangle row by row."""
    base, adapted = inside.look(model, ids), inside.look(adapted_model, ids) if with_adapter else None
    page = inside_page.build("", tokenizer, model, base, adapted)
    data = json.loads(re.search(r'<script type="application/json" id="attention-data">(.*?)</script>', page)[1])
    assert (data["layers"], data["heads"], len(data["tokens"])) == (2, 4, len(ids))
    looks = [base, adapted] if with_adapter else [base]
    assert [model["name"] for model in data["models"]] == ["without adapter", "with adapter"][:len(looks)]
    for held, seen in zip(data["models"], looks, strict=True):
        roots = iter(np.frombuffer(base64.b64decode(held["roots"]), np.uint8).tolist())
        for P in seen.attention.reshape(-1, len(ids), len(ids)):
            for query in range(len(ids)):
                for key in range(query + 1):
                    assert abs(next(roots) / 255 - np.sqrt(P[query, key])) <= 0.501 / 255
        assert next(roots, None) is None


def test_what_the_page_holds_is_what_its_script_asks_for(tokenizer, model, adapted_model, ids):
    page = inside_page.build("", tokenizer, model, inside.look(model, ids), inside.look(adapted_model, ids))
    script = re.search(r"<script>(.*?)</script>", page, re.S)[1]
    asked = set(re.findall(r'find\("([\w-]+)"\)', script)) | set(re.findall(r'getElementById\("([\w-]+)"\)', script))
    asked |= set(re.search(r'for \(const name of \["model", "layer", "head"\]', script)[0].split('"')[1::2])
    assert len(asked) == 8
    assert asked <= set(re.findall(r' id="([\w-]+)"', page))


def test_logit_lens(tokenizer, model, ids):
    seen = inside.look(model, ids)
    table = rows(section(inside_page.build("", tokenizer, model, seen), "Logit lens"))
    assert len(table) == len(ids)
    names = inside_page._Names(tokenizer, ids)
    for layer, logits in enumerate(inside.logit_lens(model, seen)):
        for t, (row, top) in enumerate(zip(table, logits.argmax(axis=1), strict=True)):
            assert row[1 + layer] == names.after(t, top)
    assert [row[-1] for row in table] == [names.alone(t) for t in range(1, len(ids))] + [""]


def test_what_the_adapter_changed(tokenizer, model, adapted_model, ids):
    base, adapted = inside.look(model, ids), inside.look(adapted_model, ids)
    page = inside_page.build("", tokenizer, adapted_model, base, adapted)
    before, after = inside.losses(base), inside.losses(adapted)
    tokens = rows(section(page, "Token by token"))[:-1]
    assert [row[2:5] for row in tokens] == [[f"{b:.2f}", f"{a:.2f}", f"{b - a:+.2f}"]
                                            for a, b in zip(before, after, strict=True)]
    changed = section(page, "What the adapter changed")
    divergence = inside.divergence(base, adapted)
    most = set(np.argsort(-divergence)[:inside_page.CHANGED].tolist()) | {len(ids) - 1}
    assert [(row[0], row[2]) for row in rows(changed)] == [(str(t), f"{divergence[t]:.3f}") for t in sorted(most)]
    strip = re.search(r'<div class="text">(.*?)</div>', changed, re.S)[1]
    shades = re.findall(r"--share: (\d+)%(?:; --fill: var\(--(\w+)\))?", strip)
    difference = after - before
    assert shades == [("0", "")] + [(f"{60 * abs(d) / abs(difference).max():.0f}", "up" if d > 0 else "down")
                                    for d in difference]


def test_all_else_is_of_the_adapted_model(tokenizer, adapted_model, model, ids):
    base, adapted = inside.look(model, ids), inside.look(adapted_model, ids)
    page = inside_page.build("", tokenizer, adapted_model, base, adapted)
    alone = inside_page.build("", tokenizer, adapted_model, adapted)
    for heading in ("The text", "Length of the hidden states", "Logit lens"):
        assert section(page, heading) == section(alone, heading)
    *_, last = inside.logit_lens(adapted_model, adapted)
    names = inside_page._Names(tokenizer, ids)
    assert [row[-2] for row in rows(section(page, "Logit lens"))] == [
        names.after(t, i) for t, i in enumerate(last.argmax(axis=1))]


def test_one_token(read_html, tokenizer, model, adapted_model, ids):
    base, adapted = inside.look(model, ids[:1]), inside.look(adapted_model, ids[:1])
    for seen in (None, adapted):
        page = read_html(inside_page.build("", tokenizer, model, base, seen))
        assert "The text has one token, so there is nothing to predict." in page.text
        assert "(next token)" in page.text


def test_names(tokenizer):
    """An invisible character has a sign. An id without a token shows its number."""
    names = inside_page._Names(tokenizer, [*tokenizer.encode(" the\n\t\x07"), 3072])
    assert [names.alone(t) for t in range(5)] == ["·the", "⏎", "⇥", "\\x07", "[3072]"]
    assert names.running(0) == " the"
    assert names.after(0, 3072) == "[3072]"
    assert names.sentence() == ""


def test_characters_of_several_tokens(tokenizer):
    ids = tokenizer.encode("a 你")
    names = inside_page._Names(tokenizer, ids)
    assert [names.running(t) for t in range(len(ids))] == ["a", " ", "你", "◂", "◂"]
    assert [names.alone(t) for t in range(len(ids))] == ["a", "·", "你 (1 of 3)", "你 (2 of 3)", "你 (3 of 3)"]
    assert [names.after(t, ids[t + 1]) for t in range(4)] == ["·", "\\xe4", "\\xbd", "你"]


@pytest.mark.parametrize("heading", ["The text", "What the adapter changed", "Logit lens"])
def test_numbers_are_reached_without_a_pointer(tokenizer, model, adapted_model, ids, heading):
    """Each token can have the focus, and the page has a line that then says its numbers."""
    page = inside_page.build("", tokenizer, adapted_model, inside.look(model, ids), inside.look(adapted_model, ids))
    reached = re.findall(r"<(button|td)( [^>]*title=[^>]*)>", section(page, heading))
    assert len(reached) == len(ids) * (CONFIG.n_layer + 1 if heading == "Logit lens" else 1)
    assert all(tag == "button" or 'tabindex="-1"' in attributes for tag, attributes in reached)
    assert section(page, heading).count('aria-live="polite"') == 1


def test_the_axes_of_attention(tokenizer, model, ids):
    part = section(inside_page.build("", tokenizer, model, inside.look(model, ids)), "Attention")
    last = len(ids) - 1
    assert f"rows: the token that attends, from the top, 0 to {last}" in part
    assert f"columns: the token it attends to, 0 to {last}" in part

"""The page about one text: it shows the numbers of `inside` in a browser."""

import base64
import math
from importlib import resources

import numpy as np

from npgpt.files.characters import GOES_ON, completed, labels
from npgpt.inspection import charts, html, inside
from npgpt.inspection.html import tag, tinted
from npgpt.runtime.figures import figure

ALTERNATIVES = 5  # number of likeliest tokens beside each true one
CHANGED = 8  # number of places in the table of an adapter's largest changes

STYLE = """
.text { white-space: pre-wrap; font-size: 1.05em; line-height: 1.9; max-width: 52rem; }
.text span, .text button { padding: .12em 0; border-radius: 3px; box-shadow: inset 1px 0 var(--rule); }
.text button { border: 0; color: inherit; font: inherit; white-space: pre-wrap; cursor: pointer;
  overflow-wrap: anywhere; }
.text .later { color: var(--soft); }
[aria-pressed=true] { outline: 2px solid var(--up); outline-offset: -1px; }
.chip { display: inline-block; white-space: pre; }
td .tint { padding: .1em .3em; border-radius: 3px; margin-right: .3em; }
small { color: var(--soft); }
.controls label { margin-right: 1.2rem; }
.attention { display: flex; flex-wrap: wrap; gap: 1rem 2rem; align-items: flex-start; }
canvas { image-rendering: pixelated; background: var(--page); box-shadow: 0 0 0 1px var(--rule); }
#picture { width: 100%; aspect-ratio: 1; cursor: crosshair; touch-action: none; }
.picture { width: min(26rem, 100%); margin: 0; }
.picture > div { display: flex; gap: .3rem; }
.side { writing-mode: vertical-rl; transform: rotate(180deg); text-align: center; }
.picture figcaption { text-align: center; padding-left: 1.4rem; }
.attention > div { flex: 1 1 20rem; }
#readout { min-height: 4.6em; }
.readout { min-height: 1.5em; }
#strip { max-height: 26rem; overflow-y: auto; }
#board { display: grid; gap: 5px; width: max-content; padding: 3px; }
#board button { padding: 0; border: 0; background: none; line-height: 0; cursor: pointer; }
#board canvas { width: 3rem; aspect-ratio: 1; }
.true { font-weight: 700; }
.lens td { padding-right: .35rem; padding-left: .35rem; }
.lens th:first-child, .lens td:first-child { position: sticky; left: 0; background: var(--page); }
"""


def build(title, tokenizer, model, base, adapted=None):
    """Return the page, Html.

    model    GPT2 that the text was run through, with the adapter if there is one
    base     Inside of the model without the adapter
    adapted  Inside of the same text with the adapter; None: there is no adapter
    """
    seen, names = adapted or base, _Names(tokenizer, base.ids)
    return html.page(
        title, _summary(base, adapted), _text(seen, names), _changes(base, adapted, names) if adapted else "",
        _attention(base, adapted, names), _norms(seen), _tokens(base, adapted, names), _lens(model, seen, names),
        style=STYLE, script=resources.files("npgpt.inspection").joinpath("inside.js").read_text(encoding="utf-8"))


class _Names:
    """How the tokens of a text are written, with signs for white space and control characters."""

    def __init__(self, tokenizer, ids):
        self._tokenizer, self._ids, self._labels = tokenizer, ids, labels(tokenizer, ids)

    def running(self, t):
        """Return token t as it stands in the text."""
        return _signs(self._labels[t].running, space=" ")

    def alone(self, t):
        """Return token t as it stands in a table."""
        return self._labels[t]._replace(text=_signs(self._labels[t].text)).alone

    def after(self, t, i):
        """Return token i, which is expected after token t."""
        return _signs(completed(self._tokenizer, self._ids[:t + 1], i))

    def in_lines(self, pieces):
        """Return the pieces of the text, one for each token, with a new line after each token that ends one."""
        return html.join(html.join([piece, "\n" if self.running(t).endswith("⏎") else ""])
                         for t, piece in enumerate(pieces))

    def sentence(self):
        """Return a sentence about the characters of several tokens, if there are some."""
        several = any(label.parts > 1 for label in self._labels)
        return f" {GOES_ON} is a token that belongs to the character before it." * several


def _signs(text, space="·"):
    signs = {" ": space, "\n": "⏎", "\t": "⇥"}
    letters = (signs.get(letter, letter) for letter in text)
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in letters)


def _summary(base, adapted):
    losses = [inside.losses(seen) for seen in (base, adapted) if seen]
    if not losses[0].size:
        return tag("p", "The text has one token, so there is nothing to predict.")
    perplexities = [math.exp(loss.mean()) if loss.mean() < 709 else math.inf for loss in losses]
    means = [f"{loss.mean():.3f} nats per token (perplexity {figure(perplexity, 1)})"
             for loss, perplexity in zip(losses, perplexities, strict=True)]
    return tag("p", f"{len(base.ids)} tokens; the model predicts all except the first. Mean loss: ",
               f"{means[0]} without the adapter; {means[1]} with the adapter." if adapted else f"{means[0]}.")


def _strip(seen, names, values, colour, titles):
    """Return the text, with a colour for the value, from 0 to 1, of each token after the first.

    A token's numbers are its title. The page's script writes them below the text for the token that has the focus.
    """
    titles = ["it is the first, so nothing predicts it", *titles]
    values, shades = [0, *values], [None, *(colour(t) for t in range(len(values)))]
    pieces = [tinted(names.running(t), values[t], "button", shades[t], type="button",
                     title=f"“{names.alone(t)}” (token {t}, id {i}): {titles[t]}") for t, i in enumerate(seen.ids)]
    return tag("div", tag("div", names.in_lines(pieces), class_="text"),
               tag("p", class_="readout mono", aria_live="polite"), class_="points")


def _text(seen, names):
    losses, ranks = inside.losses(seen), inside.ranks(seen)
    blind = math.log(seen.logits.shape[1])
    return html.section(
        "The text", tag("p", f"The stronger the colour, the larger the loss. The colour is full at {blind:.1f} nats "
                             "(the loss of a blind guess) and above. Point at a token or click it to see its numbers; "
                             "arrow keys go on to the next." + names.sentence(),
                        class_="note"),
        _strip(seen, names, losses / blind, lambda _: None,
               [f"loss {loss:.2f}, rank {rank:,}" for loss, rank in zip(losses, ranks, strict=True)]))


def _chips(t, ids, shares, names):
    """Return tokens that are expected after token t, with their percentages."""
    return html.join(tag("span", tinted(names.after(t, i), share, "span"), tag("small", text), "  ", class_="chip")
                     for i, (share, text) in zip(ids, shares, strict=True))


def _percent(p):
    return f"{100 * p:.{0 if p >= 0.0995 else 1}f} %"


def _right(text):
    return tag("td", text, class_="number")


def _tokens(base, adapted, names):
    seen = adapted or base
    losses, ranks = inside.losses(seen), inside.ranks(seen)
    before = inside.losses(base)
    ids, p = inside.likeliest(seen.logits, ALTERNATIVES)
    rows = []
    for t in range(1, len(seen.ids) + 1):
        expected = _chips(t - 1, ids[t - 1], [(share, _percent(share)) for share in p[t - 1]], names)
        if t == len(seen.ids):
            rows.append([_right(t), tag("small", "(next token)"), *[""] * (4 if adapted else 2), expected])
            continue
        loss = losses[t - 1]
        change = [_right(f"{before[t - 1]:.2f}"), _right(f"{loss - before[t - 1]:+.2f}")] if adapted else []
        rows.append([_right(t), tag("span", names.alone(t), class_="mono"), _right(f"{loss:.2f}"), *change,
                     _right(f"{ranks[t - 1]:,}"), expected])
    head = ["", "token", "loss", *(["without adapter", "change"] if adapted else []), "rank", "the model expected"]
    note = ("Each row is a token of the text. Rank 1: the model expected this token most. On the right are the tokens "
            "that it expected at this place, with their probabilities.")
    return html.section("Token by token", tag("p", note, class_="note"), html.table(head, rows))


def _changes(base, adapted, names):
    difference = inside.losses(adapted) - inside.losses(base)
    most = np.abs(difference).max(initial=1e-9)
    moved, divergence = inside.moved(base, adapted), inside.divergence(base, adapted)
    layers = range(len(moved))
    ids, p_base, p_adapted = inside.biggest_changes(base, adapted, ALTERNATIVES)
    last = len(base.ids) - 1
    places = sorted(np.argsort(-divergence, kind="stable")[:CHANGED].tolist())
    rows = []
    for t in places if last in places else [*places, last]:
        shares = [(after, f"{_percent(old)} → {_percent(after)}")
                  for old, after in zip(p_base[t], p_adapted[t], strict=True)]
        rows.append([_right(t), tag("span", names.alone(t), class_="mono"), _right(f"{divergence[t]:.3f}"),
                     _chips(t, ids[t], shares, names)])
    return html.section(
        "What the adapter changed",
        tag("p", "Green: the adapter lowered the loss of this token. Orange: it raised the loss. The largest change is "
                 f"{most:.2f} nats.", class_="note"),
        _strip(base, names, np.abs(difference) / most, lambda t: "up" if difference[t] > 0 else "down",
               [f"loss {change:+.2f}" for change in difference]),
        tag("p", "The places where the prediction of the next token changed most, measured by the divergence "
                 "KL(with adapter || without adapter) in nats. Beside each place are the tokens whose probability "
                 "changed most there:", class_="note"),
        html.table(["", "after", "KL", "probability without → with the adapter"], rows),
        tag("p", "How far the adapter moved the hidden states, relative to their length:", class_="note"),
        charts.line_chart({"mean over the tokens": (layers, moved.mean(axis=1)),
                           "largest": (layers, moved.max(axis=1))}, x="blocks passed", y="relative distance"))


def _attention(base, adapted, names):
    layers, heads, _, _ = base.attention.shape
    models = [{"name": label, "roots": _roots(seen.attention)}
              for label, seen in (("without adapter", base), ("with adapter", adapted)) if seen]

    def select(which, options):
        choices = (tag("option", text, value=i) for i, text in enumerate(options))
        return tag("label", f"{which} ", tag("select", *choices, id=which))

    board = [tag("button", tag("canvas", data_layer=layer, data_head=head), value=layer * heads + head, type="button",
                 title=f"layer {layer}, head {head}") for layer in range(layers) for head in range(heads)]
    strip = names.in_lines(tag("button", names.running(t), value=t, type="button", class_="tint")
                           for t in range(len(base.ids)))
    picture = tag("canvas", id="picture", tabindex=0, role="img", aria_label="attention of the chosen head; arrow keys "
                  "choose a token and the one that it attends to")
    axes = [f"{axis}: {which}, 0 to {len(base.ids) - 1}" for axis, which in (
        ("rows", "the token that attends, from the top"), ("columns", "the token it attends to"))]
    return html.section(
        "Attention",
        tag("p", "Each row of the picture is a token. Each column is a token that it can attend to. The colour shows "
                 "the square root of the attention probability. Point into the picture or use arrow keys in it, or "
                 "click a token of the text.",
            class_="note"),
        tag("p", select("model", [model["name"] for model in models]) if adapted else "",
            select("layer", range(layers)), select("head", range(heads)), class_="controls"),
        tag("div", tag("figure", tag("div", tag("div", axes[0], class_="note side"), picture),
                       tag("figcaption", axes[1]), class_="picture"),
            tag("div", tag("p", id="readout", aria_live="polite"), tag("div", strip, id="strip", class_="text")),
            class_="attention"),
        tag("p", "All heads. Each row is a layer. Click a head to see it above:", class_="note"),
        tag("div", tag("div", *board, id="board", style=f"grid-template-columns: repeat({heads}, auto)"),
            class_="wide"),
        tag("noscript", tag("p", "JavaScript draws the pictures. It is switched off in this browser.")),
        html.data("attention-data", {"tokens": [names.alone(t) for t in range(len(base.ids))], "layers": layers,
                                     "heads": heads, "models": models}))


def _roots(attention):
    """Return round(255 sqrt(P)) of the lower triangles (layers, H, T, T), row after row: bytes in base64.

    The square root keeps some digits of small probabilities.
    """
    query, key = np.tril_indices(attention.shape[-1])
    roots = np.rint(255 * np.sqrt(attention[:, :, query, key])).astype(np.uint8)
    return base64.b64encode(roots.tobytes()).decode()


def _norms(seen):
    norms = inside.norms(seen)
    layers, others = range(len(norms)), norms[:, 1:]
    series = {"first token": (layers, norms[:, 0])}
    if others.size:
        series |= {"other tokens, mean": (layers, others.mean(axis=1)),
                   "other tokens, largest": (layers, others.max(axis=1))}
    return html.section(
        "Length of the hidden states", charts.line_chart(series, x="blocks passed", y="norm", log=True))


def _lens(model, seen, names):
    top = [inside.likeliest(logits, 1) for logits in inside.logit_lens(model, seen)]
    head = ["after", "embeddings", *(f"h.{layer}" for layer in range(len(top) - 1)), "true token"]
    rows = []
    for t in range(len(seen.ids)):
        true = seen.ids[t + 1] if t + 1 < len(seen.ids) else None
        found = [(names.after(t, ids[t, 0]), ids[t, 0], _percent(p[t, 0]), p[t, 0]) for ids, p in top]
        cells = [tinted(tag("span", text, class_="true" if i == true else None), share, tabindex=-1,
                        title=f"“{text}” with {percent} after “{names.alone(t)}”") for text, i, percent, share in found]
        rows.append([tag("td", names.alone(t)), *cells, tag("small", "" if true is None else names.alone(t + 1))])
    return html.section(
        "Logit lens",
        tag("p", "What would the model predict after each token if it ended at this block? Each cell shows the "
                 "likeliest token. The stronger the colour, the higher its probability, which you see when you point "
                 "at a cell or click it; arrow keys go on to the next. Bold: this is the true next token.",
            class_="note"),
        tag("div", tag("div", html.table(head, rows), class_="lens mono"),
            tag("p", class_="readout mono", aria_live="polite"), class_="points", data_columns=len(top)))

"""report.html: what a run did, on one page that needs nothing else."""

import datetime
import math
from pathlib import Path

import numpy as np

from npgpt.files.atomic import replacing
from npgpt.inspection import charts, html
from npgpt.lora import adapted_layers
from npgpt.training.fit import best_step, smoothed


def write_report(run, model):
    """Write the report of a run that has ended into its folder. Returns its path.

    run    Run with results before and after
    model  GPT2, the trained one; where it has an adapter, the size of each update is shown
    """
    path = run.folder / "report.html"
    config, metrics, results = run.read_config(), run.metrics(), run.results()
    page = html.page(
        f"Run: {Path(run.folder).resolve().name}",
        _summary(config, metrics, results),
        _curves(metrics),
        _samples(results),
        _updates(model),
        _table("Settings", "setting", {
            name: _shown(value) for name, value in config["settings"].items() if value is not None}),
        html.section("Data", html.table(
            ["", "texts", "tokens", "learned", "fingerprint"],
            [[name.replace("_", " "), data["texts"], data["tokens"], data["learned"], _code(data["fingerprint"])]
             for name, data in config["data"].items() if data])),
        _table("Machine and versions", "", {
            **{name: str(value) for name, value in (config["machine"] | config["versions"]).items()},
            "base model's fingerprint": _code(config["model"]["fingerprint"])}),
    )
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def _summary(config, metrics, results):
    settings, seconds = config["settings"], sum(line["seconds"] for line in metrics)
    tokens = sum(line["tokens"] for line in metrics)
    what = "all weights" if settings["full"] else f"an adapter of rank {settings['rank']}"
    sentences = [
        f"{what} of {settings['model']}, trained for {len(metrics):,} steps on {tokens:,} tokens in "
        f"{datetime.timedelta(seconds=round(seconds))} ({tokens / max(seconds, 1e-9):,.0f} tokens a second)."]
    before, after = results["before"]["val_loss"], results["after"]["val_loss"]
    if after is not None:
        sentences.append(f"Held-out loss {before:.3f} before and {after:.3f} after: perplexity {_ppl(before)} and "
                         f"{_ppl(after)}.")
    evaluations = [(line["step"], line["val_loss"]) for line in metrics if "val_loss" in line]
    if evaluations:
        sentences.append(f"The lowest was measured after step {best_step(evaluations):,}.")
    text = " ".join(sentences)
    return html.join([html.tag("p", text[0].upper() + text[1:]),
                      html.tag("p", f"Written {datetime.datetime.now().astimezone():%Y-%m-%d %H:%M %Z}.",
                               class_="note")])


def _curves(metrics):
    steps = [line["step"] for line in metrics]
    losses = [line["loss"] for line in metrics]
    measured = [(line["step"], line["val_loss"]) for line in metrics if "val_loss" in line]
    series = {"of each step": (steps, losses), "running mean": (steps, list(smoothed(losses)))}
    if measured:
        series["held out"] = tuple(zip(*measured, strict=True))
    return html.join([
        html.section("Loss", charts.line_chart(series, x="step", y="nats a token")),
        html.section("Gradient norm", charts.line_chart(
            {"before clipping": (steps, [line["grad_norm"] for line in metrics])}, x="step", y="norm", log=True)),
        html.section("Learning rate", charts.line_chart(
            {"learning rate": (steps, [line["lr"] for line in metrics])}, x="step", y="learning rate")),
    ])


def _samples(results):
    before, after = results["before"]["samples"], results["after"]["samples"]
    parts = []
    for (prompt, old), (_, new) in zip(before, after, strict=True):
        parts.append(html.tag("h3", prompt))
        parts += [html.tag("p", html.tag("span", f"{name}  ", class_="note"), text)
                  for name, text in (("before", old), ("after", new))]
    return html.section("Samples", *parts) if parts else ""


def _updates(model):
    """A table of |dW| / |W|, Frobenius norms, a row a block and a column a kind of layer."""
    sizes = {}
    for name, layer in adapted_layers(model).items():
        weight = layer.base_layer.weight.data
        (update,) = layer.adapters.values()
        change = update.delta(layer.base_layer)["weight"]
        sizes[name] = float(np.linalg.norm(change) / max(np.linalg.norm(weight), 1e-30))
    if not sizes:
        return ""
    largest = max(*sizes.values(), 1e-30)
    blocks = list(dict.fromkeys(_block(name) for name in sizes))
    kinds = list(dict.fromkeys(name.removeprefix(_block(name) + ".") for name in sizes))
    rows = []
    for block in blocks:
        cells = [sizes.get(f"{block}.{kind}" if block else kind) for kind in kinds]
        rows.append([block or "model", *("" if size is None else size for size in cells)])
    body = [html.tag("tr", html.tag("td", row[0]), *(
        html.tinted(html.number(size) if size != "" else "", 0.6 * (size or 0) / largest) for size in row[1:]))
        for row in rows]
    head = html.tag("tr", *(html.tag("th", name) for name in ["", *kinds]))
    return html.section(
        "What the adapter changed", html.tag("p", "How large each update is beside the weight it is added to: the "
                                             "ratio of their Frobenius norms.", class_="note"),
        html.tag("div", html.tag("table", html.tag("thead", head), html.tag("tbody", *body)), class_="wide"))


def _block(name):
    """h.3.attn.c_attn -> h.3; a module outside the blocks -> \"\"."""
    return ".".join(name.split(".")[:2]) if name.startswith("h.") else ""


def _table(heading, first, values):
    return html.section(heading, html.table([first, "value"], [[name, value] for name, value in values.items()]))


def _shown(value):
    return str(value) if not isinstance(value, bool) else "yes" if value else "no"


def _code(text):
    return html.tag("code", text[:16])


def _ppl(loss):
    return f"{math.exp(loss):,.1f}" if loss < 700 else "beyond any number"

"""report.html: the results of a run, on one page that needs no other file."""

import datetime
import math
from pathlib import Path

import numpy as np

from npgpt.files.atomic import write_text
from npgpt.inspection import charts, html
from npgpt.lora import adapted_layers
from npgpt.runtime.figures import figure
from npgpt.training.fit import best_step, smoothed


def write_report(run, model):
    """Write the report of a finished run into its folder.

    run    Run with results before and after training
    model  the trained GPT2; if it has an adapter, the report shows the size of each update
    """
    config, metrics, results = run.read_config(), run.metrics(), run.results()
    page = html.page(
        f"Run: {Path(run.folder).resolve().name}",
        _summary(config, metrics, results),
        _curves(metrics, run.held_out()),
        _samples(results),
        _updates(model),
        _table("Settings", "setting", {
            name: _shown(value) for name, value in (config["settings"] | _data(config["settings"])).items()
            if value is not None}),
        html.section("Data", html.table(
            ["", "texts", "tokens", "learned", "fingerprint"],
            [[name.replace("_", " "), data["texts"], data["tokens"], data["learned"], _code(data["fingerprint"])]
             for name, data in config["data"].items() if data])),
        _table("Machine and versions", "", {
            **{name: str(value) for name, value in (config["machine"] | config["versions"]).items()},
            "base model's fingerprint": _code(config["model"]["fingerprint"])}),
    )
    write_text(run.report, page)


def _summary(config, metrics, results):
    settings, seconds = config["settings"], sum(line["seconds"] for line in metrics)
    tokens = sum(line["tokens"] for line in metrics)
    what = f"an adapter of rank {settings['rank']} for"
    if settings["full"] or settings["adapter"] is not None:
        what = "all weights of" if settings["full"] else f"the adapter {settings['adapter']} further for"
    sentences = [
        f"This run trained {what} {settings['model']} in {len(metrics):,} steps on {tokens:,} tokens. It took "
        f"{datetime.timedelta(seconds=round(seconds))} hours ({tokens / max(seconds, 1e-9):,.0f} tokens per second)."]
    before, after = results["before"]["val_loss"], results["after"]["val_loss"]
    if after is not None:
        sentences.append(f"The held-out loss was {before:.3f} before training (perplexity {_ppl(before)}) and "
                         f"{after:.3f} after it (perplexity {_ppl(after)}).")
    evaluations = [(line["step"], line["val_loss"]) for line in metrics if "val_loss" in line]
    if evaluations:
        sentences.append(f"It was lowest after step {best_step(evaluations):,}.")
    return html.join([html.tag("p", " ".join(sentences)),
                      html.tag("p", f"Written {datetime.datetime.now().astimezone():%Y-%m-%d %H:%M %Z}.",
                               class_="note")])


def _curves(metrics, measured):
    steps = [line["step"] for line in metrics]
    losses = [line["loss"] for line in metrics]
    series = {"each step": (steps, losses), "running mean": (steps, list(smoothed(losses)))}
    if measured:
        series["held out"] = tuple(zip(*measured, strict=True))
    return html.join([
        html.section("Loss", charts.line_chart(series, x="step", y="nats per token")),
        html.section("Gradient norm", charts.line_chart(
            {"before clipping": (steps, [line["grad_norm"] for line in metrics])}, x="step", y="norm", log=True)),
        html.section("Learning rate", charts.line_chart(
            {"learning rate": (steps, [line["lr"] for line in metrics])}, x="step", y="learning rate")),
    ])


def _samples(results):
    before, after = results["before"]["samples"], results["after"]["samples"]
    parts = []
    for (prompt, old), (_, new) in zip(before, after, strict=True):
        parts.append(html.tag("h3", f"“{prompt}”"))
        parts += [html.tag("p", html.tag("span", f"{name}: ", class_="note"), f"“{text}”")
                  for name, text in (("before", old), ("after", new))]
    return html.section("Samples", *parts) if parts else ""


def _updates(model):
    """Return a section with the size of each update: a row for each block, a column for each kind of layer."""
    sizes = _relative_sizes(model)
    if not sizes:
        return ""
    largest = max(*sizes.values(), 1e-30)
    blocks = dict.fromkeys(_block(name) for name in sizes)
    kinds = dict.fromkeys(name.removeprefix(_block(name) + ".") for name in sizes)

    def column(kind):
        found = [sizes.get(f"{block}.{kind}" if block else kind) for block in blocks]
        texts = iter(html.numbers([size for size in found if size is not None]))
        return [html.tinted("" if size is None else next(texts), 0.6 * (size or 0) / largest) for size in found]

    note = ("The size of each update, relative to the weight that it is added to: the ratio of their Frobenius norms. "
            "The stronger the colour, the larger the update.")
    rows = zip([block or "model" for block in blocks], *map(column, kinds), strict=True)
    return html.section("What the adapter changed", html.tag("p", note, class_="note"), html.table(["", *kinds], rows))


def _relative_sizes(model):
    """Return a dict layer name -> |dW| / |W|, Frobenius norms."""
    sizes = {}
    for name, layer in adapted_layers(model).items():
        weight = layer.base_layer.weight.data
        (update,) = layer.update.adapters.values()
        change = update.delta(layer.base_layer).get("weight")
        if change is not None:  # else only a bias trains here
            sizes[name] = float(np.linalg.norm(change) / max(np.linalg.norm(weight), 1e-30))
    return sizes


def _block(name):
    """Return the block of a module: h.3.attn.c_attn -> h.3; a module outside the blocks -> ""."""
    return ".".join(name.split(".")[:2]) if name.startswith("h.") else ""


def _table(heading, first, values):
    return html.section(heading, html.table([first, "value"], [[name, value] for name, value in values.items()]))


def _data(settings):
    """Return the data of a run that names none: dict."""
    return {"data": "the texts in the package"} if settings["data"] is None else {}


def _shown(value):
    return str(value) if not isinstance(value, bool) else "yes" if value else "no"


def _code(text):
    return html.tag("code", text[:16])


def _ppl(loss):
    return figure(math.exp(loss), 1) if loss < 700 else "beyond any number"

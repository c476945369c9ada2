"""Evaluate GPT-2 on a task, alone and with adapters: perplexity, or questions with known answers."""

import json
import math
import sys

from tqdm import tqdm

from npgpt import load_adapter
from npgpt.adapters import pretrained
from npgpt.commands import models
from npgpt.commands.evaluate_tasks import ANSWERS, DATA, TASKS
from npgpt.commands.flags import Flag, Parser, filled, meant, path
from npgpt.evaluation import bootstrap, tasks
from npgpt.evaluation.evaluate import exponential, mean_of_rows
from npgpt.evaluation.records import Records, complete, fingerprint
from npgpt.runtime.errors import NpgptError
from npgpt.runtime.figures import figure

PERPLEXITY, CLASSIFICATION, WRITING = "perplexity", "classification", ", ".join(ANSWERS)  # that have their own flags
FLAGS = [
    *models.MODEL,
    Flag("--adapter", "folder of a LoRA adapter to compare with the base model; may be given several times", filled,
         (), again=True, metavar="DIR"),
    Flag("--task", "what to measure", default="perplexity", choices=tuple(TASKS)),
    Flag("--data", "file to measure on; see below for what each task reads", filled, required=True, metavar="FILE"),
    Flag("--split", "where a text ends in a plain text file, as for finetune: line, blank, none, or a mark such as "
         "'<|endoftext|>' (default: line)", metavar="HOW"),
    Flag("--special-tokens", "treat <|endoftext|> and other special tokens in the data as tokens; "
         "without this flag they are plain text", bool, False),
    Flag("--limit", "take only the first N texts or questions", int, least=1, metavar="N"),
    Flag("--out", "keep each answer in this .jsonl file; the same command continues an interrupted evaluation", path,
         metavar="FILE"),
    Flag("--samples", "bootstrap samples for intervals and tests", int, bootstrap.SAMPLES, least=2),
    Flag("--seed", "seed of the bootstrap", int, 0, least=0),
    Flag("--json", "print one JSON object", bool, False),
    Flag("--protocol", f"which of {', '.join(tasks.Perplexity.PROTOCOLS)} to measure (default: all)",
         choices=tuple(tasks.Perplexity.PROTOCOLS), many="+", metavar="NAME", group=PERPLEXITY),
    Flag("--context", "tokens in a window; at most the model's context (default 1024; for completion, as in training)",
         int, least=2, group=PERPLEXITY),
    Flag("--stride", "for the protocol strided: tokens from the start of one window to the next (default: half the "
         "context)", int, group=PERPLEXITY),
    Flag("--wikitext", "the file is one of WikiText's: split it into pages and undo its tokenization; words are "
         "counted before that", bool, False, group=PERPLEXITY),
    Flag("--labels", "the label words (default: those in the data)", many="+", metavar="WORD", group=CLASSIFICATION),
    Flag("--template", "the text that is made of each record: fields in braces, \\n for a new line (default: "
         "'{text}\\nLabel:' for classification, else the template that finetune saved beside the adapter, else as for "
         "finetune)", meant, metavar="TEXT", group=f"{CLASSIFICATION}, {PERPLEXITY}, {WRITING}"),
    Flag("--separator", "what stands between prompt and answer in plain text, such as '||' (default: that of the "
         "adapter's training)", meant, metavar="TEXT", group=f"{PERPLEXITY}, {WRITING}"),
    Flag("--val-fraction", "measure only on the texts that finetune's --val-fraction holds out of this data", float,
         0.0, group=f"{PERPLEXITY}, {WRITING}"),
    Flag("--max-new-tokens", "most tokens of an answer", int, 64, least=1, group=WRITING),
    Flag("--stop", "an answer ends before this text, \\n for a new line, or at an end of text", meant, metavar="TEXT",
         group=WRITING),
]
RECORDS_ONLY = ("multiple-choice", "classification")  # tasks that read no plain text
FEW = 20  # items: with fewer of them the bootstrap is too sure
UNMEASURED = (f"\nnot measurable: the score is not finite, or its interval spans a factor of more than "
              f"{bootstrap.WIDEST:,}, so that few "
              "items\ndecide it. A perplexity per word of few words is such a score: compare nats per token")


def parse_arguments(argv):
    parser = Parser(__doc__, FLAGS, DATA)
    given, args = parser.given(argv), parser.parse(argv)
    for flag in FLAGS:
        of_tasks = flag.group.split(", ")
        if flag.group and flag.key in given and args.task not in of_tasks:
            parser.error(f"{flag.name} is for --task {' or '.join(of_tasks)}, and has no effect on {args.task}")
    if args.stride is not None and args.protocol and "strided" not in args.protocol:
        parser.error("--stride is for --protocol strided, which is not asked for")
    idle = {"--wikitext": ("split", "template", "separator", "val_fraction") if args.wikitext else (),
            f"--task {args.task}": ("split",) if args.task in RECORDS_ONLY else ()}
    for what, names in idle.items():
        for name in names:
            if name in given:
                parser.error(f"--{name.replace('_', '-')} has no effect with {what}: leave it out")
    if args.wikitext and "completion" in (args.protocol or ()):
        parser.error("--protocol completion is of what finetune learns, and has no meaning with --wikitext")
    if not 0 <= args.val_fraction < 1:
        parser.error(f"--val-fraction {args.val_fraction}: it must be at least 0 and less than 1")
    return args


def main(args):
    name = models.choose_model(args.model, args.revision, args.adapter)
    args.recipe = recipe_of(args, name)
    records, results = Records(args.out), {}
    for adapter in (None, *args.adapter):
        model, tokenizer = pretrained.base_of(name, args.revision, args.adapter, args.tokenizer)
        if adapter is not None:
            load_adapter(model, adapter, trainable=False)
        else:
            task, about, in_words = TASKS[args.task](args, tokenizer, model)
            if not task.items:
                raise NpgptError(f"{args.data} holds no item for --task {args.task}")
        quiet = args.json or not sys.stderr.isatty()
        with tqdm(total=len(task.items), disable=quiet, leave=False, desc=adapter or "base") as bar:
            answers = complete(records, fingerprint(model, adapter), task, model,
                               progress=lambda done, bar=bar: bar.update(done - bar.n))
        results[adapter] = {measure: scored(rows_of(answers), score, args)
                            for measure, (rows_of, score) in task.measures.items()}
    report = {"model": name, "adapter": args.adapter[-1] if args.adapter else None, "data": args.data,
              "task": args.task, **about, "samples": args.samples, "seed": args.seed,
              "results": [{"adapter": adapter, "measures": summary(adapter, results)} for adapter in results]}
    if args.task == "perplexity":
        report |= in_short(results[report["adapter"]], "disjoint" if args.stride is None else "strided")
    if args.json:
        print(json.dumps(finite(report), allow_nan=False))
    else:
        print(f"{args.task} of {args.data}: {in_words}\n\n{table(report)}\n\n{footnote(report)}")


def recipe_of(args, name):
    """Return the data.Recipe of the adapters, or without adapters that of the model `name`; None: there is none."""
    known = {recipe.template: recipe for recipe in models.recipes(args.adapter, name) if recipe is not None}
    if len(known) > 1 and args.template is None:
        raise NpgptError("the adapters were trained with different templates: give --template, or one --adapter")
    return next(iter(known.values()), None)


def scored(rows, score, args):
    """Return (rows, score, scores of bootstrap samples)."""
    return rows, score(rows.sum(axis=0)), bootstrap.sample_scores(score, rows, args.seed, args.samples)


def summary(adapter, results):
    """Return one system's measures with their intervals, and their differences from the base model's. A single item has
    no interval."""
    measures = {}
    for measure, (rows, value, scores) in results[adapter].items():
        _, base, base_scores = results[None][measure]
        alone = len(rows) == 1
        measures[measure] = {"items": len(rows)} | ({"value": value} if alone else
                                                    bootstrap.interval(value, scores)._asdict())
        if adapter is not None:
            measures[measure]["difference"] = {"value": value - base} if alone else (
                bootstrap.difference(value, scores, base, base_scores)._asdict())
    return measures


def in_short(results, protocol):
    """Return the loss by one protocol, or by the first there is: tokens predicted, nll, ppl."""
    rows = results.get(f"{protocol}: nats per token", next(iter(results.values())))[0]
    nll, tokens, _ = mean_of_rows(rows)
    return {"tokens": tokens, "nll": nll, "ppl": exponential(nll)}


def table(report):
    """Return a line for each measure, base and adapters side by side, then the differences."""
    systems = {result["adapter"] or report["model"]: result["measures"] for result in report["results"]}
    rows = [["", *systems]]
    for measure in next(iter(systems.values())):
        rows.append([measure, *(cell(measures[measure]) for measures in systems.values())])
    for adapter, measures in list(systems.items())[1:]:
        rows += [[""], ["", f"{adapter} - {report['model']}"]]
        rows += [[measure, cell(found["difference"], "+", report["samples"])] for measure, found in measures.items()]
    widths = [max(len(row[i]) for row in rows if len(row) > i) for i in range(len(rows[0]))]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=False)).rstrip()
                     for row in rows)


def footnote(report):
    measures = [found for result in report["results"] for found in result["measures"].values()]
    few = any(found["items"] < FEW for found in measures)
    unmeasured = any(found.get("low", 0) is None for found in measures)
    return (f"value ± standard error [95 % interval] by {report['samples']:,} bootstrap samples of the items; p by the "
            "paired bootstrap\ntest (Koehn 2004)" + f"; with fewer than {FEW} items both are too sure" * few
            + UNMEASURED * unmeasured)


def cell(found, sign="", samples=0):
    """Return value ± standard error [low, high], and p for a difference by so many bootstrap samples."""
    digits = next((digits for limit, digits in ((10, 4), (100, 2), (1000, 1)) if abs(found["value"]) < limit), 0)

    text = figure(found["value"], digits, sign)
    if "low" in found and found["low"] is None:
        return f"{text} (not measurable)"
    if "low" in found:
        low, high = (figure(found[end], digits, sign) for end in ("low", "high"))
        text += f" ± {figure(found['stderr'], digits)} [{low}, {high}]"
    if "p" in found:  # if no sample was so extreme, the true p is lower still
        text += f"  p {'<=' if found['p'] * (1 + samples) < 1.5 else '='} {found['p']:.2g}"
    return text


def finite(value):
    """Return what JSON can hold: a number that is not finite becomes None."""
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

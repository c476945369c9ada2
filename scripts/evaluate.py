"""Evaluate GPT-2, and adapters beside it, on a task: perplexity by named protocols, or questions with known answers."""

import cli

import argparse
import json
import sys

from tqdm import tqdm

from npgpt import data, load_adapter
from npgpt.adapters import pretrained
from npgpt.evaluation import bootstrap, metrics, questions, tasks
from npgpt.evaluation.evaluate import exponential, mean_of_rows
from npgpt.evaluation.records import Records, complete, fingerprint
from npgpt.files.atomic import read_text
from npgpt.runtime.errors import NpgptError


def parse_arguments(argv):
    parser = cli.Parser(description=__doc__, epilog=DATA, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_model_arguments(parser)
    parser.add_argument("--adapter", type=cli.filled, metavar="DIR", action="append", default=[],
                        help="folder of a LoRA adapter, to be set beside the base model; may be given again")
    parser.add_argument("--task", choices=TASKS, default="perplexity", help="(default %(default)s)")
    parser.add_argument("--data", required=True, type=cli.filled, metavar="FILE",
                        help="see below for what the tasks read")
    parser.add_argument("--split", metavar="HOW",
                        help="what a text is in plain text, as in finetune.py: line, blank, none or a mark between "
                             "texts such as '<|endoftext|>' (default line)")
    parser.add_argument("--special-tokens", action="store_true",
                        help="special tokens spelled out in the data, such as <|endoftext|>, become those tokens; "
                             "without this they are plain text")
    parser.add_argument("--limit", type=int, help="take only the first so many texts or questions")
    parser.add_argument("--out", type=cli.path, metavar="FILE",
                        help="keep each answer in this .jsonl file; an evaluation that was interrupted goes on from it")
    parser.add_argument("--samples", type=int, default=bootstrap.SAMPLES,
                        help="bootstrap samples for intervals and tests (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    of_tasks = {}

    def add_group(tasks_of):
        """Return what adds a flag that these tasks alone have."""
        group = parser.add_argument_group(", ".join(tasks_of))

        def add(flag, default=None, **options):
            action = group.add_argument(flag, default=argparse.SUPPRESS, **options)
            of_tasks[action.dest] = flag, tasks_of, default

        return add

    add = add_group(["perplexity"])
    add("--protocol", tasks.Perplexity.PROTOCOLS, nargs="+", choices=tasks.Perplexity.PROTOCOLS, metavar="NAME",
        help="of disjoint, strided, document (default: all)")
    add("--context", 1024, type=int, help="window in tokens, at most the model's (default 1024)")
    add("--stride", type=int,
        help="tokens between the starts of windows of the protocol strided (default: half the context)")
    add("--wikitext", False, action="store_true",
        help="the file is one of WikiText's: cut into pages, detokenised, words counted before that")
    add_group(["classification"])(
        "--labels", nargs="+", metavar="WORD", help="label words (default: those in the data)")
    add_group(["classification", *ANSWERS])(
        "--template", help="what a record is put into, its fields in braces and \\n for a new line (default for "
                           "classification: '{text}\\nLabel:', else as in finetune.py)")
    add = add_group(ANSWERS)
    add("--separator", help="in plain text, what stands between prompt and answer, such as '||'")
    add("--max-new-tokens", 64, type=int, help="most tokens of an answer (default 64)")
    add("--stop", type=cli.filled, metavar="TEXT", help="an answer ends before this text, or with an end of text")
    args = parser.parse_args(argv)
    for name, (flag, tasks_of, default) in of_tasks.items():
        if name not in args:
            setattr(args, name, default)
        elif args.task not in tasks_of:
            parser.error(f"{flag} is for --task {' or '.join(tasks_of)}, and has no effect on {args.task}")
    if args.stride is not None and "strided" not in args.protocol:
        parser.error("--stride is for --protocol strided, which is not asked for")
    if args.template is not None:
        args.template = args.template.replace("\\n", "\n").replace("\\t", "\t")
    for name, least in (("limit", 1), ("samples", 2), ("seed", 0), ("max_new_tokens", 1)):
        if getattr(args, name) is not None and getattr(args, name) < least:
            parser.error(f"--{name.replace('_', '-')} {getattr(args, name)}: it must be at least {least}")
    return args


def perplexity(args, tokenizer, model):
    """Return (task, what it is about as a dict, and in words)."""
    if args.wikitext:
        corpus = tasks.Corpus.of_wikitext(tokenizer, read_text(args.data), args.limit, not args.special_tokens)
    else:
        texts = data.read_texts(args.data, args.split)[:args.limit]
        corpus = tasks.Corpus.of_texts(tokenizer, texts, not args.special_tokens)
    context = min(args.context, model.config.n_positions)
    stride = context // 2 if args.stride is None else args.stride
    task = tasks.Perplexity(corpus, args.protocol, context, stride)
    about = {"context": context, "stride": stride, "texts": len(corpus.documents), "words": corpus.words,
             "bytes": corpus.bytes, "text_tokens": task.tokens, "predicted": task.predicted}
    means = {"disjoint": f"of {context} tokens side by side; the first of each is not predicted",
             "strided": f"of {context} tokens, {stride} apart: each is predicted from {context - stride} or more",
             "document": "each text alone, after an end of text"}
    lines = (f"{protocol:9}  {task.predicted[protocol]:,} of {task.tokens[protocol]:,} tokens predicted; windows: "
             f"{task.windows_of[protocol]:,}, {means[protocol]}" for protocol in args.protocol)
    return task, about, f"""\
{len(corpus.documents):,} texts, {corpus.words:,} words, {corpus.bytes:,} bytes
{chr(10).join(lines)}
Per token compares models of one tokenizer; per word, per byte and bits per byte compare any, on this text. Figures of
different protocols don't compare. Tokens that are not predicted are charged at the mean of those that are."""


def lambada(args, tokenizer, _model):
    items = questions.read_passages(data.read_records(args.data, args.split))[:args.limit]
    return (questions.LastWord(tokenizer, items, not args.special_tokens), {"items": len(items)},
            f"the last word of {len(items):,} passages")


def multiple_choice(args, tokenizer, _model):
    items = questions.read_questions(data.read_records(args.data))[:args.limit]
    return (questions.MultipleChoice(tokenizer, items, not args.special_tokens), {"items": len(items)},
            f"{len(items):,} questions")


def classification(args, tokenizer, _model):
    items = questions.read_labelled(data.read_records(args.data), args.template or "{text}\nLabel:", args.labels)
    items = items[:args.limit]
    labels = [word.strip() for word in items[0].choices]
    return (questions.Classification(tokenizer, items, not args.special_tokens),
            {"items": len(items), "labels": labels}, f"{len(items):,} texts, labels {', '.join(labels)}")


def answers(measures):
    """The task of writing answers, scored by `measures`."""
    def task(args, tokenizer, _model):
        documents = data.Documents(args.data, args.split, args.separator, args.template)
        items = questions.read_prompts(documents)[:args.limit]
        references = sum(len(item.references) for item in items)
        return (questions.Answers(tokenizer, items, measures, args.max_new_tokens, args.stop, not args.special_tokens),
                {"items": len(items), "references": references, "max_new_tokens": args.max_new_tokens,
                 "stop": args.stop}, f"prompts: {len(items):,}, references: {references:,}")
    return task


ANSWERS = ["exact-match", "meaning-to-text"]  # the tasks of writing
TASKS = {
    "perplexity": perplexity,
    "lambada": lambada,
    "multiple-choice": multiple_choice,
    "classification": classification,
    "exact-match": answers({"exact match": (metrics.exact_match_rows, metrics.mean_score)}),
    "meaning-to-text": answers(metrics.METRICS),
}
FEW = 20
DATA = """
data:
  any file that finetune.py reads, or a folder of one split, with these fields:
  perplexity       {"text": "..."}, or plain text, a text a line; with --wikitext a file of WikiText
  lambada          {"text": "..."}, of which the last word is asked
  multiple-choice  {"context": "...", "choices": ["...", "..."], "label": 0}, or HellaSwag's own records
  classification   {"text": "...", "label": "..."}
  exact-match, meaning-to-text
                   what finetune.py learns: prompt and completion, instruction and output, messages, or text with
                   --separator; answers to the same prompt are its references
"""


def main(args):
    name = cli.choose_model(args.model, args.revision)
    records, results = Records(args.out), {}
    for adapter in (None, *args.adapter):
        model, tokenizer = pretrained.base_of(name, args.revision, args.adapter)
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
        print(json.dumps(report))
    else:
        print(f"{args.task} of {args.data}: {in_words}\n\n{table(report)}\n\n{footnote(report)}")


def scored(rows, score, args):
    """(rows, score, scores of bootstrap samples)"""
    return rows, score(rows.sum(axis=0)), bootstrap.sample_scores(score, rows, args.seed, args.samples)


def summary(adapter, results):
    """One system's measures, with their intervals, and what sets them apart from the base model's. A single item has no
    interval."""
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
    """The loss by one protocol, or by the first there is: tokens predicted, nll, ppl."""
    rows = results.get(f"{protocol}: nats per token", next(iter(results.values())))[0]
    nll, tokens, _ = mean_of_rows(rows)
    return {"tokens": tokens, "nll": nll, "ppl": exponential(nll)}


def table(report):
    """A line a measure, base and adapters side by side, then the differences."""
    systems = {result["adapter"] or report["model"]: result["measures"] for result in report["results"]}
    rows = [["", *systems]]
    for measure in next(iter(systems.values())):
        rows.append([measure, *(cell(measures[measure]) for measures in systems.values())])
    for adapter, measures in list(systems.items())[1:]:
        rows += [[""], ["", f"{adapter} - {report['model']}"]]
        rows += [[measure, cell(found["difference"], "+")] for measure, found in measures.items()]
    widths = [max(len(row[i]) for row in rows if len(row) > i) for i in range(len(rows[0]))]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=False)).rstrip()
                     for row in rows)


def footnote(report):
    few = any(found["items"] < FEW for found in report["results"][0]["measures"].values())
    return (f"value ± standard error [95 % interval] by {report['samples']:,} bootstrap samples of the items; p by the "
            "paired bootstrap\ntest (Koehn 2004)" + f"; of fewer than {FEW} items both are too sure of it" * few)


def cell(found, sign=""):
    """value ± standard error [low, high], and p of a difference"""
    digits = next((digits for limit, digits in ((10, 4), (100, 2), (1000, 1)) if abs(found["value"]) < limit), 0)

    def figure(name, sign=""):
        return f"{found[name]:{sign},.{digits}f}"

    text = figure("value", sign)
    if "low" in found:
        text += f" ± {figure('stderr')} [{figure('low', sign)}, {figure('high', sign)}]"
    return text + (f"  p = {found['p']:.2g}" if "p" in found else "")


if __name__ == "__main__":
    sys.exit(cli.run(lambda: main(parse_arguments(None))))

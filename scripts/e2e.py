"""Repeat LoRA's experiment on the E2E data: compare low-rank updates, the last block alone, and all weights.

Each method trains the same model on the same batches for the same number of steps, with its own learning rate. To find
that rate, short runs try 1, 2, 5, 10, .. as long as the held-out loss, on a tenth of the meanings, falls. The trained
model then puts every meaning of --test into words, greedily. All words of --test for a meaning are references.

The settings come from Hu et al. 2021: rank 4, alpha 32, dropout 0.1, AdamW, weight decay 0.01, linear schedule, batches
of 8, no clipping, loss on the words alone. Three things differ. Here one update of c_attn serves queries, keys and
values; theirs are two updates, for queries and for values. Here is no label smoothing. They search with ten beams.
"""

if __name__ == "__main__":
    from npgpt.commands import start  # before the imports that take time: it handles Ctrl-C during them

    start.begin()

import dataclasses
import functools
import math
import sys
import time
from pathlib import Path

from tqdm import tqdm

import npgpt
from npgpt import data
from npgpt.commands import cli, models
from npgpt.commands.flags import Flag, Parser, path
from npgpt.evaluation import bootstrap, evaluate, metrics, questions
from npgpt.files.atomic import write_json
from npgpt.runtime.errors import DivergedError
from npgpt.runtime.memory import keep_freed_memory
from npgpt.training.train import TrainConfig, train

SEPARATOR, TEMPLATE = "||", "{prompt}||{completion}"
DROPOUT = 0.1
HELD_OUT = 0.1  # of the meanings, while a learning rate is looked for
RATES = [float(f"{digit}e{power}") for power in range(-6, 1) for digit in (1, 2, 5)]


# The methods: each makes trainable what it trains


def lora(r, targets, model, seed):
    model.set_dropout(0.0)  # dropout is on the LoRA path only
    npgpt.add_lora(model, npgpt.LoraConfig(r, lora_alpha=8 * r, lora_dropout=DROPOUT, target_modules=targets), seed)


def last_block(model, _seed):
    model.set_dropout(DROPOUT)
    model.freeze()
    for name, tensor in model.parameters().items():
        tensor.trainable = name.startswith((f"h.{model.config.n_layer - 1}.", "ln_f."))


def all_weights(model, _seed):
    model.set_dropout(DROPOUT)
    model.unfreeze()


METHODS = {
    "lora": functools.partial(lora, 4, ["c_attn"]),
    "lora-all-linear": functools.partial(lora, 4, "all-linear"),
    "last-block": last_block,
    "all-weights": all_weights,
}


FILES = f"a meaning, {SEPARATOR} and words for it on each line"
FLAGS = [
    *models.MODEL,
    Flag("--train", f"what to train on: {FILES}", path, required=True, metavar="FILE"),
    Flag("--test", "what to measure on, in the same form", path, required=True, metavar="FILE"),
    Flag("--out", "where to write all figures and what was generated", path, Path("runs/e2e.json"), metavar="FILE"),
    Flag("--epochs", "passes over --train", int, 5, least=1),
    Flag("--batch-size", "texts in a step", int, 8, least=1),
    Flag("--methods", "which methods to compare", default=tuple(METHODS), choices=tuple(METHODS), many="+",
         metavar="NAME"),
    Flag("--start", "first learning rate to try for all weights, one of 1, 2, 5, 10, .. times 1e-6; a part of the "
         "weights begins with ten times as much", float, 2e-4, tuple(RATES), metavar="RATE"),
    Flag("--short-steps", "steps of a run that tries a learning rate", int, 100, least=1),
    Flag("--limit", "put only the first N meanings into words (default: all)", int, least=1, metavar="N"),
    Flag("--seed", "decides LoRA's start, the order of the texts and dropout", int, 0),
]


def parse_arguments(argv):
    return Parser(__doc__, FLAGS).parse(argv)


def main(args):
    keep_freed_memory()
    documents, test_documents = (
        data.Documents(file, separator=SEPARATOR, template=TEMPLATE) for file in (args.train, args.test))
    name = models.choose_model(args.model, args.revision)
    model, tokenizer = models.load(name, args.revision)
    context = model.config.n_positions
    whole, _ = data.encode(tokenizer, documents, context)
    part, held_out = data.encode(tokenizer, documents, context, HELD_OUT)
    test, _ = data.encode(tokenizer, test_documents, context)
    longest = max(int(mask.sum()) for mask in whole.sequences.loss_masks)
    task = questions.Answers(tokenizer, questions.read_prompts(test_documents)[:args.limit], metrics.METRICS, longest)
    print(f"{name}; {args.train}: {whole.texts:,} texts; {args.test}: {test.texts:,} texts, "
          f"{len(task.items):,} meanings to put into words; loss before training {loss(model, test.sequences):.3f}")

    def fresh(method):
        model, _ = models.load(name, args.revision)
        METHODS[method](model, args.seed)
        return model

    def held_out_loss(method, rate):
        try:
            model = fit(fresh(method), part.sequences, rate, args, f"{method} at {rate:g}", args.short_steps)
        except DivergedError:
            return math.inf
        return loss(model, held_out.sequences)

    rows = {}
    for method in args.methods:
        start = RATES.index(args.start) + (3 if method != "all-weights" else 0)
        rate, tried = look_for_rate(functools.partial(held_out_loss, method), start)
        started = time.perf_counter()
        model = fit(fresh(method), whole.sequences, rate, args, method)
        seconds = time.perf_counter() - started
        answers = tqdm(task.results(model, range(len(task.items))), "in words", len(task.items), leave=False)
        answers = [answer for _, answer in sorted(answers, key=lambda found: found[0])]
        rows[method] = {
            "trainable": sum(tensor.data.size for tensor in model.trainable_parameters().values()), "rate": rate,
            "loss": loss(model, test.sequences), "seconds": seconds,
            "scores": {name: scored(measure, answers) for name, measure in task.measures.items()},
            "tried": {rate: tried[rate] if math.isfinite(tried[rate]) else None for rate in sorted(tried)},
            "answers": answers}
        print(f"{method}: learning rate {rate:g}, the best of {', '.join(f'{r:g}' for r in sorted(tried))}")
    write_json(args.out, {"settings": {key: str(value) for key, value in vars(args).items()}, "methods": rows})
    print_table(rows)
    print(f"figures and outputs: {args.out}")


def look_for_rate(loss_at, i):
    """Go from RATES[i] to the neighbouring rate with a lower loss until both have higher ones. Return the rate and dict
    rate -> loss of all that were tried."""
    tried = {}
    while True:
        near = [RATES[j] for j in (i, i + 1, i - 1) if 0 <= j < len(RATES)]
        tried |= {rate: loss_at(rate) for rate in near if rate not in tried}
        best = min(near, key=tried.get)
        if best == RATES[i]:
            return best, tried
        i = RATES.index(best)


def fit(model, sequences, rate, args, title, max_steps=None):
    """Train what is trainable of `model`; return it."""
    config = TrainConfig(epochs=args.epochs, max_steps=max_steps, batch_size=args.batch_size, lr=rate, grad_clip=0,
                         seed=args.seed)
    total = config.total_steps(config.order(sequences.lengths))
    config = dataclasses.replace(config, warmup=total // 20)
    opt = npgpt.AdamW(model.trainable_parameters(), rate, weight_decay=0.01)
    for _ in tqdm(train(model, sequences, opt, config), title, total, leave=False, unit="step"):
        pass
    return model


def loss(model, sequences):
    return evaluate.mean_nll(model, sequences, sequences.loss_masks).nll


def scored(measure, answers):
    """Return the score of the answers and its standard error."""
    rows = measure.rows(answers)
    value = float(measure.score(rows.sum(axis=0)))
    return value, bootstrap.interval(value, bootstrap.sample_scores(measure.score, rows)).stderr


def print_table(rows):
    table = [["", "trainable", "rate", "test loss", *metrics.METRICS, "seconds"]]
    for method, row in rows.items():
        table.append([method, f"{row['trainable']:,}", f"{row['rate']:g}", f"{row['loss']:.3f}",
                      *(f"{value:.2f} ± {error:.2f}" for value, error in row["scores"].values()),
                      f"{row['seconds']:.0f}"])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for method, *cells in table:
        print("  ".join([method.ljust(widths[0]), *map(str.rjust, cells, widths[1:])]))


if __name__ == "__main__":
    sys.exit(cli.run(lambda: main(parse_arguments(None))))

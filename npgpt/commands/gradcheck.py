"""Check gradients against finite differences, and print the errors.

Without --model, check every operation on awkward shapes, and whole small models. With --model, check the gradient of
each of the model's parameters, or of the adapter's, for the loss of a small batch. All numbers are float64.
npgpt/checking/gradcheck.py explains the method.
"""

import numpy as np

import npgpt
from npgpt.adapters.matching import token_rows
from npgpt.adapters.peft import make_room
from npgpt.adapters.stack import updates
from npgpt.checking import gradcases
from npgpt.checking.gradcheck import HEADING, check_parameters
from npgpt.commands import models
from npgpt.commands.flags import Flag, Parser, filled

FLAGS = [
    Flag("--model", "check this model instead: hub id, folder or 'tiny' (takes minutes for gpt2)", metavar="NAME"),
    models.REVISION,
    Flag("--adapter", "with --model: check the parameters of the adapter in this folder", filled, metavar="DIR"),
    Flag("--seed", "seed of the random directions", int, 0),
]


def parse_arguments(argv):
    parser = Parser(__doc__, FLAGS)
    args = parser.parse(argv)
    models.check_revision(parser, args)
    if args.adapter and not args.model:
        parser.error("--adapter needs --model, the model that it was trained on")
    return args


def reports(args):
    """Yield (name, Report)."""
    if args.model is None:
        yield from gradcases.reports(args.seed)
        return
    model, rows = npgpt.GPT2.from_pretrained(args.model, args.revision, dtype=np.float64), []
    if args.adapter:
        make_room(model, args.adapter)
        npgpt.load_adapter(model, args.adapter)
        config = next(iter(updates(model).values())).config
        rows = [i for indices in token_rows(model, config).values() for i in indices]
    batch = gradcases.small_batch(model.config.vocab_size, rows)  # the rows that train are seen in it
    yield "loss", check_parameters(lambda: model.loss(batch), model.trainable_parameters(), args.seed)


def main(args):
    groups = {}  # an operation's name, without what is special about a case -> its rows
    print(f"{'operation':<38} {HEADING}")
    for name, report in reports(args):
        for row in report.rows:
            print(f"{name:<38} {row}")
            groups.setdefault(name.split(",")[0], []).append(row)
    print(f"\n{'operation':<26} {'gradients':>9} {'worst relative error':>21}")
    for name, rows in groups.items():
        print(f"{name:<26} {len(rows):>9} {max(row.error for row in rows):>21.1e}")
    rows = [row for group in groups.values() for row in group]
    failed = sum(not row.passed for row in rows)
    print(f"{len(rows) - failed} passed, {failed} failed")
    return 1 if failed else 0


"""Check gradients against finite differences and print what was found: see npgpt/checking/gradcheck.py.

Without --model: every operation over awkward shapes, and whole small models. With it: that model's own parameters, or
those of the adapter on it, by name, for the loss of a small ragged batch. All in float64.
"""

import cli

import argparse
import sys

import numpy as np

import npgpt
from npgpt.adapters.matching import token_rows
from npgpt.adapters.peft import make_room
from npgpt.adapters.stack import updates
from npgpt.checking import gradcases
from npgpt.checking.gradcheck import HEADING, check_parameters


def parse_arguments(argv):
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="hub id, folder or 'tiny': check this model instead (minutes for gpt2)")
    parser.add_argument("--revision", help="branch, tag or commit of a model on the hub")
    parser.add_argument("--adapter", type=cli.filled, metavar="DIR",
                        help="with --model: check the adapter in this folder on it")
    parser.add_argument("--seed", type=int, default=0, help="of the random directions and cotangents (default 0)")
    args = parser.parse_args(argv)
    cli.check_revision(parser, args)
    if args.adapter and not args.model:
        parser.error("--adapter needs --model, the model it is for")
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


if __name__ == "__main__":
    sys.exit(cli.run(lambda: main(parse_arguments(None))))

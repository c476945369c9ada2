"""Check every gradient of npgpt against finite differences, and print what was found. See npgpt/gradcheck.py."""

import argparse
import sys

from npgpt import NpgptError, gradcases
from npgpt.gradcheck import HEADING


def parse_arguments(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of the random directions and cotangents")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_arguments(argv)
    count = {True: 0, False: 0}
    print(f"{'operation':<38} {HEADING}")
    try:
        for name, report in gradcases.reports(args.seed):
            for row in report.rows:
                print(f"{name:<38} {row}", flush=True)
                count[row.passed] += 1
    except NpgptError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{count[True]} passed, {count[False]} failed")
    return 1 if count[False] else 0


if __name__ == "__main__":
    sys.exit(main())

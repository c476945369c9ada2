"""EleutherAI's lm-evaluation-harness with npgpt among its models: its own command line, which --help explains."""

if __name__ == "__main__":
    from npgpt.commands import start  # before the imports that take time: it handles Ctrl-C during them

    start.begin()

import importlib
import sys

import npgpt
from npgpt.commands import cli


def main():
    try:
        from lm_eval.__main__ import cli_evaluate
    except ModuleNotFoundError as error:
        raise npgpt.NpgptError(f"there is no {error.name}; install it with: pip install '.[lm-eval]'") from error
    importlib.import_module("npgpt.evaluation.harness")  # makes the model known to lm_eval
    cli_evaluate()


if __name__ == "__main__":
    sys.exit(cli.run(main))

"""The program npgpt: finds the command that was asked for and runs it.

`npgpt finetune`, `python -m npgpt finetune` and `python scripts/finetune.py` all come here. Nothing that takes time is
imported before the command is known, so that `npgpt --help` answers at once.
"""

import sys

from npgpt.commands import start

COMMANDS = {
    "finetune": "train a LoRA adapter on your texts, and show what it changed",
    "generate": "continue a prompt, with or without adapters",
    "evaluate": "measure a model and its adapters: perplexity, or questions with known answers",
    "merge": "merge adapters into their base model, as a folder that transformers loads",
    "export-gguf": "write a model, with adapters merged into it, as a GGUF file for llama.cpp",
    "convert adapter": "convert an adapter of loralib, MLX or early PEFT to PEFT's format",
    "convert checkpoint": "convert a checkpoint of nanoGPT, minGPT or MLX to a model folder",
    "inspect-adapter": "print what an adapter does to each layer, and what may be wrong with it",
    "inspect-text": "write a page that shows what the model does with a text",
    "sweep": "fine-tune once for each combination of settings, and compare the results",
    "plot": "draw the losses of several runs in one picture",
    "gradcheck": "check the gradients against finite differences",
}
HELP = "--help", "-h"


def main(way=start.CONSOLE):
    """Run the command that the command line names. Returns the exit status."""
    words = sys.argv[1:]
    if words[:1] == ["help"]:  # npgpt help generate
        words = [*words[1:], HELP[0]]
    name = next((name for name in COMMANDS if words[:1 + name.count(" ")] == name.split()), None)
    start.begin(way, name)
    if name:
        return run(name, words[1 + name.count(" "):])
    from npgpt.commands import cli  # here and not above: Ctrl-C during the import is handled now

    return cli.run(lambda: answer(words))


def script(command):
    """Run a command whose script was started. Returns the exit status."""
    start.begin()
    return run(command, sys.argv[1:])


def run(name, argv):
    """Import a command and run it. Returns the exit status."""
    import importlib

    command = importlib.import_module(f"npgpt.commands.{start.file_name(name)}")
    from npgpt.commands import cli

    return cli.run(lambda: command.main(command.parse_arguments(argv)), command.FLAGS)


def answer(words):
    """Answer a command line that names no command."""
    import difflib

    from npgpt import __version__
    from npgpt.runtime.errors import NpgptError

    first = words[0] if words else HELP[0]
    several = [name for name in COMMANDS if name.startswith(f"{first} ")]
    if first in HELP:
        print(help_page())
    elif first == "--version":
        print(f"npgpt {__version__}")
    elif several and words[1:2] and words[1] in HELP:
        print(f"usage: {start.typed(first)} WORD [FLAG ...]\n\ncommands:\n{listing(several)}")
    elif several and words[1:] and not words[1].startswith("-"):
        raise NpgptError(f"{' '.join(words[:2])} is not a command: {' or '.join(map(start.typed, several))}")
    elif several:
        raise NpgptError(f"{start.typed(first)} needs one more word: {' or '.join(map(start.typed, several))}")
    else:
        asked = " ".join(words[:2]) if any(name.startswith(first) for name in COMMANDS) else first
        nearest = difflib.get_close_matches(asked, COMMANDS, n=1)
        raise NpgptError(f"{first} is not a command" + "".join(f"; did you mean {name}?" for name in nearest)
                         + f" (see {start.typed('--help')})")


def help_page():
    return f"""\
usage: {start.typed("COMMAND")} [FLAG ...]

GPT-2 in pure NumPy, and LoRA fine-tuning of it on a CPU.

commands:
{listing(COMMANDS)}

{start.typed("COMMAND --help")} explains a command and its flags.
{start.typed("--version")} prints the version."""


def listing(names):
    wide = max(map(len, COMMANDS))
    return "\n".join(f"  {name:{wide}}  {COMMANDS[name]}" for name in names)

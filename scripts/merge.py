"""Merge a LoRA adapter into its base: a full model folder that transformers loads."""

import sys
from pathlib import Path

import cli

import npgpt
from npgpt.errors import FileError


def parse_arguments(argv):
    parser = cli.Parser(description=__doc__)
    cli.add_model_arguments(parser)
    parser.add_argument("--adapter", required=True, metavar="DIR", help="folder of the adapter")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder to write the model to")
    return parser.parse_args(argv)


def main(args):
    if (args.out / "config.json").exists():
        raise FileError(f"{args.out} holds a model already: name another folder with --out")
    name = cli.choose_model(args.model, args.revision)
    model, tokenizer = cli.load(name, args.revision, args.adapter)
    npgpt.merge_lora(model)
    tokenizer.save(args.out)
    model.save_pretrained(args.out)
    print(f"merged {args.adapter} into {name}: {args.out}")


if __name__ == "__main__":
    arguments = parse_arguments(None)
    sys.exit(cli.run(lambda: main(arguments)))

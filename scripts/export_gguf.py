"""Write GPT-2, with LoRA adapters merged into it, as a GGUF file for llama.cpp."""

import cli

import sys

from npgpt.exchange import gguf
from npgpt.runtime.errors import FileError


def parse_arguments(argv):
    parser = cli.Parser(description=__doc__)
    cli.add_model_arguments(parser)
    parser.add_argument("--adapter", type=cli.filled, action="append", metavar="DIR",
                        help="folder of an adapter; give it several times to merge the sum of several")
    parser.add_argument("--out", required=True, type=cli.path, metavar="FILE", help="file to write, NAME.gguf")
    parser.add_argument("--dtype", choices=gguf.DTYPES, default="float16",
                        help="numbers in the matrices (default %(default)s)")
    return parser.parse_args(argv)


def main(args):
    if args.out.exists():
        raise FileError(f"{args.out} is there already: name another file with --out")
    name = cli.choose_model(args.model, args.revision)
    model, tokenizer = cli.load(name, args.revision, args.adapter)
    gguf.export(model, tokenizer, args.out, args.dtype)
    print(f"wrote {' + '.join([name, *(args.adapter or [])])}: {args.out} ({args.dtype}, "
          f"{args.out.stat().st_size / 1e6:,.1f} MB)")


if __name__ == "__main__":
    sys.exit(cli.run(lambda: main(parse_arguments(None))))

"""Write GPT-2, with LoRA adapters merged into it, as a GGUF file for llama.cpp."""

from npgpt.commands import models
from npgpt.commands.flags import Flag, Parser, filled, path
from npgpt.exchange import gguf
from npgpt.runtime.errors import FileError

FLAGS = [
    *models.MODEL,
    Flag("--adapter", "folder of an adapter; give it several times to merge the sum of several adapters", filled, (),
         again=True, metavar="DIR"),
    Flag("--out", "file to write, NAME.gguf", path, required=True, metavar="FILE"),
    Flag("--dtype", "number format of the matrices", default="float16", choices=tuple(gguf.DTYPES)),
]


def parse_arguments(argv):
    return Parser(__doc__, FLAGS).parse(argv)


def main(args):
    if args.out.exists():
        raise FileError(f"{args.out} is there already: name another file with --out")
    name = models.choose_model(args.model, args.revision, args.adapter)
    model, tokenizer = models.load(name, args.revision, args.adapter, args.tokenizer)
    gguf.export(model, tokenizer, args.out, args.dtype)
    print(f"wrote {' + '.join([name, *args.adapter])}: {args.out} ({args.dtype}, "
          f"{args.out.stat().st_size / 1e6:,.1f} MB)")


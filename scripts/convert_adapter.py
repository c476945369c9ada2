"""Turn a loralib checkpoint of GPT-2, the form of the LoRA paper's own results, or an MLX adapter into an adapter in
PEFT's form."""

import cli

import sys

import npgpt
from npgpt import loralib, mlx
from npgpt.errors import FileError


def parse_arguments(argv):
    parser = cli.Parser(description=__doc__)
    parser.add_argument("checkpoint", type=cli.path, metavar="FILE",
                        help="what torch.save wrote of loralib's, .pt or .bin (or an adapter_model.bin of PEFT until "
                             "0.2); or the folder of an MLX adapter, which needs no more than --out")
    parser.add_argument("--alpha", type=float,
                        help="LoRA alpha of the training, which a file does not hold (32 for the published ones)")
    parser.add_argument("--enable", default="q,v", metavar="LIST",
                        help="which of c_attn's outputs q, k and v have an update (default %(default)s)")
    parser.add_argument("--model", help="the base; needed where the file holds its weights as well, to compare them")
    parser.add_argument("--revision", help="branch, tag or commit of a model on the hub")
    parser.add_argument("--out", required=True, type=cli.path, metavar="DIR", help="folder to write the adapter to")
    args = parser.parse_args(argv)
    cli.check_revision(parser, args)
    if args.alpha is None and not args.checkpoint.is_dir():
        parser.error("the following arguments are required: --alpha")
    if args.checkpoint.is_dir() and (args.alpha is not None or args.model is not None):
        parser.error("--alpha and --model are for a loralib file; an MLX adapter's folder says all of it")
    return args


def main(args):
    if (args.out / "adapter_config.json").exists():
        raise FileError(f"{args.out} holds an adapter already: name another folder with --out")
    if args.checkpoint.is_dir():
        fields = mlx.convert(args.checkpoint, args.out)
    else:
        model = args.model and npgpt.GPT2.from_pretrained(args.model, args.revision)
        fields = loralib.convert(args.checkpoint, args.out, args.alpha, args.enable.split(","), model)
    print(f"converted {args.checkpoint}: rank {fields['r']}, alpha {fields['lora_alpha']:g}, scale "
          f"{fields['lora_alpha'] / fields['r']:g}, targets {', '.join(fields['target_modules'])}, "
          f"bias {fields['bias']}: {args.out}")


if __name__ == "__main__":
    sys.exit(cli.run(lambda: main(parse_arguments(None))))

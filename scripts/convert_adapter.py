"""Turn an adapter of GPT-2 in another form into PEFT's: a loralib checkpoint, as the LoRA paper's own results are, or
the folder of an adapter of MLX or of PEFT until 0.2."""

import cli

import sys

import npgpt
from npgpt.adapters.peft_config import CONFIG_FILE
from npgpt.exchange import loralib, mlx
from npgpt.files.atomic import read_json
from npgpt.runtime.errors import FileError


def parse_arguments(argv):
    parser = cli.Parser(description=__doc__)
    parser.add_argument("checkpoint", type=cli.path, metavar="FILE",
                        help="what torch.save wrote of loralib's, .pt or .bin; or a folder with adapter_config.json, "
                             "which needs no more than --out")
    parser.add_argument("--alpha", type=float,
                        help="LoRA alpha of the training, which a file does not hold (32 for the published ones)")
    parser.add_argument("--enable", metavar="LIST",
                        help="which of c_attn's outputs q, k and v have an update (default q,v)")
    parser.add_argument("--model", help="the base; needed where the file holds its weights as well, to compare them")
    parser.add_argument("--revision", help="branch, tag or commit of a model on the hub")
    parser.add_argument("--out", required=True, type=cli.path, metavar="DIR", help="folder to write the adapter to")
    args = parser.parse_args(argv)
    cli.check_revision(parser, args)
    given = [flag for flag in ("alpha", "enable", "model") if getattr(args, flag) is not None]
    if args.checkpoint.is_dir() and given:
        parser.error(f"--{given[0]} is for a loralib file; the folder of an adapter says all of it")
    if not args.checkpoint.is_dir() and (args.checkpoint.parent / CONFIG_FILE).exists():
        parser.error(f"{args.checkpoint}: name its folder, {args.checkpoint.parent}, whose {CONFIG_FILE} says the rest")
    if not args.checkpoint.is_dir() and args.alpha is None:
        parser.error("the following arguments are required: --alpha")
    return args


def main(args):
    if (args.out / CONFIG_FILE).exists():
        raise FileError(f"{args.out} holds an adapter already: name another folder with --out")
    if not args.checkpoint.is_dir():
        model = args.model and npgpt.GPT2.from_pretrained(args.model, args.revision)
        fields = loralib.convert(args.checkpoint, args.out, args.alpha, (args.enable or "q,v").split(","), model)
    elif read_json(args.checkpoint / CONFIG_FILE).get("peft_type") is None:
        fields = mlx.convert(args.checkpoint, args.out)
    else:
        fields = loralib.convert_folder(args.checkpoint, args.out)
    print(f"converted {args.checkpoint}: rank {fields['r']}, alpha {fields['lora_alpha']:g}, scale "
          f"{fields['lora_alpha'] / fields['r']:g}, targets {', '.join(fields['target_modules'])}, "
          f"bias {fields['bias']}: {args.out}")


if __name__ == "__main__":
    sys.exit(cli.run(lambda: main(parse_arguments(None))))

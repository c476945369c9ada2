"""Convert an adapter of GPT-2 to PEFT's format: from a loralib checkpoint, such as those of the LoRA paper, or
from the folder of an adapter of MLX or of PEFT up to 0.2. With --to mlx, convert PEFT's format to MLX's."""

import npgpt
from npgpt.adapters.peft_config import CONFIG_FILE, read_config
from npgpt.commands import models
from npgpt.commands.flags import Flag, Parser, path
from npgpt.exchange import loralib, mlx
from npgpt.files.atomic import read_json
from npgpt.runtime.errors import ConfigError, FileError

FLAGS = [
    Flag("checkpoint", "a loralib file that torch.save wrote, .pt or .bin; or a folder with adapter_config.json, which "
         "needs no flag but --out", path, metavar="FILE"),
    Flag("--alpha", "LoRA alpha of the training, which a loralib file does not hold (32 for the published ones)",
         float),
    Flag("--enable", "which outputs of c_attn (q, k, v) the training updated (default: q,v)", metavar="LIST"),
    Flag("--to", "format to write", default="peft", choices=("peft", "mlx")),
    Flag("--model", "the base model: for a loralib file that holds the base's weights too, to compare them; for --to "
         "mlx, if the adapter's folder does not name it", metavar="NAME"),
    models.REVISION,
    Flag("--out", "folder to write the adapter to", path, required=True, metavar="DIR"),
]


def parse_arguments(argv):
    parser = Parser(__doc__, FLAGS)
    args = parser.parse(argv)
    models.check_revision(parser, args)
    if args.to == "mlx":
        if not args.checkpoint.is_dir():
            parser.error("--to mlx needs the folder of an adapter in PEFT's format")
        return args
    given = [flag for flag in ("alpha", "enable", "model") if getattr(args, flag) is not None]
    if args.checkpoint.is_dir() and given:
        parser.error(f"--{given[0]} is for a loralib file; an adapter's folder holds this already: leave the flag out")
    if not args.checkpoint.is_dir() and (args.checkpoint.parent / CONFIG_FILE).exists():
        parser.error(f"{args.checkpoint} is part of an adapter's folder: give the folder, {args.checkpoint.parent}")
    if not args.checkpoint.is_dir() and args.alpha is None:
        parser.error("the following arguments are required: --alpha")
    return args


def main(args):
    if (args.out / CONFIG_FILE).exists():
        raise FileError(f"{args.out} holds an adapter already: name another folder with --out")
    if args.to == "mlx":
        return to_mlx(args)
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
    return 0


def to_mlx(args):
    base = args.model or read_config(args.checkpoint / CONFIG_FILE)["base_model_name_or_path"]
    if not base:
        raise ConfigError(f"{args.checkpoint} does not name its base model: give --model")
    model = npgpt.GPT2.from_pretrained(base, args.revision)
    found = mlx.export(npgpt.load_adapter(model, args.checkpoint), args.out)["lora_parameters"]
    print(f"converted {args.checkpoint} to MLX's format: rank {found['rank']}, scale {found['scale']:g}, "
          f"modules {', '.join(found['keys'])}: {args.out}")
    return 0

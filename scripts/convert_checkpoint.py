"""Turn a checkpoint of nanoGPT, minGPT or MLX into a model folder, exactly; npgpt and transformers load it."""

import cli

import os
import sys

import npgpt
from npgpt.exchange import nanogpt


def parse_arguments(argv):
    parser = cli.Parser(description=__doc__)
    parser.add_argument("checkpoint", type=cli.path, metavar="FILE",
                        help="nanoGPT's ckpt.pt, minGPT's model.pt, or MLX's model.safetensors")
    parser.add_argument("--n-head", type=int,
                        help="heads; needed where the file has no model_args, as minGPT's and MLX's have none")
    parser.add_argument("--activation", choices=("gelu", "gelu_new"),
                        help="gelu: nanoGPT since June 2023, whose files are taken for that; gelu_new: nanoGPT before, "
                             "minGPT and MLX; needed where the file has no model_args")
    parser.add_argument("--tokenizer", type=cli.filled, metavar="NAME",
                        help="also write the tokenizer: meta.pkl, which nanoGPT writes beside data of characters, or a "
                             "model that has it, gpt2 for most others")
    parser.add_argument("--out", required=True, type=cli.path, metavar="DIR", help="new folder to write the model to")
    return parser.parse_args(argv)


def main(args):
    tokenizer = None
    if args.tokenizer is not None:
        read = nanogpt.character_tokenizer if os.path.isfile(args.tokenizer) else npgpt.Tokenizer.from_pretrained
        tokenizer = read(args.tokenizer)
    model = nanogpt.convert(args.checkpoint, args.out, args.n_head, args.activation, tokenizer)
    config = model.config
    print(f"converted {args.checkpoint}: {config.n_layer} layers, {config.n_head} heads, width {config.n_embd}, "
          f"vocabulary {config.vocab_size:,}, context {config.n_positions:,}, {config.activation_function}, head "
          f"{'tied' if config.tie_word_embeddings else 'of its own'}: {args.out}")
    if tokenizer is None:
        print("it has no tokenizer yet: --tokenizer gpt2, or --tokenizer meta.pkl for characters, writes one too")
        return
    if tokenizer.vocab_size < config.vocab_size:
        print(f"ids from {tokenizer.vocab_size:,} on are in the model, padded, and not in the tokenizer")
    if tokenizer.end_id is None:
        print("its tokens have none for the end of text, which fine-tuning and evaluation need: eos_token_id in "
              f"{args.out / 'config.json'} can name one, that of a new line for instance")


if __name__ == "__main__":
    sys.exit(cli.run(lambda: main(parse_arguments(None))))

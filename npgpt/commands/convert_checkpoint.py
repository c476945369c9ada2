"""Convert a checkpoint of nanoGPT, minGPT or MLX, exactly, to a model folder that npgpt and transformers load."""

import os

import npgpt
from npgpt.commands.flags import Flag, Parser, filled, path
from npgpt.exchange import nanogpt

FLAGS = [
    Flag("checkpoint", "nanoGPT's ckpt.pt, minGPT's model.pt, or MLX's model.safetensors", path, metavar="FILE"),
    Flag("--n-head", "number of heads; needed if the file has no model_args, as with minGPT and MLX", int),
    Flag("--activation", "gelu: nanoGPT since June 2023, assumed for its files; gelu_new: nanoGPT before that, minGPT "
         "and MLX; needed if the file has no model_args", choices=("gelu", "gelu_new")),
    Flag("--tokenizer", "also write the tokenizer: meta.pkl, which nanoGPT writes for data of characters, or the "
         "name of a model that has it, gpt2 for most", filled, metavar="NAME"),
    Flag("--out", "new folder to write the model to", path, required=True, metavar="DIR"),
]


def parse_arguments(argv):
    return Parser(__doc__, FLAGS).parse(argv)


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
        print("it has no tokenizer yet: --tokenizer gpt2 writes one too, or --tokenizer meta.pkl for characters")
        return
    if tokenizer.vocab_size < config.vocab_size:
        print(f"the model pads its vocabulary: ids from {tokenizer.vocab_size:,} on are not in the tokenizer")
    if tokenizer.end_id is None:
        print("its vocabulary has no token for the end of text, which fine-tuning and evaluation need: set "
              f"eos_token_id in {args.out / 'config.json'}, to the id of a new line for instance")


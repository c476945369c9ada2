"""Continue a prompt with GPT-2, with or without an adapter."""

import sys

import cli

import npgpt


def parse_arguments(argv):
    parser = cli.Parser(description=__doc__)
    cli.add_model_arguments(parser)
    parser.add_argument("--adapter", metavar="DIR", help="folder of a LoRA adapter to put on the model")
    parser.add_argument("--prompt", required=True, help="text to continue")
    parser.add_argument("--max-new-tokens", type=int, default=50, help="most tokens to add (default %(default)s)")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 is greedy (default %(default)s)")
    parser.add_argument("--top-k", type=int, default=40,
                        help="keep the k likeliest tokens; 0: all (default %(default)s)")
    parser.add_argument("--top-p", type=float, default=1.0,
                        help="keep the likeliest tokens that reach this probability together (default %(default)s)")
    parser.add_argument("--seed", type=int, help="the same seed gives the same text (default: another text each time)")
    parser.add_argument("--num-samples", type=int, default=1, help="how many texts (default %(default)s)")
    args = parser.parse_args(argv)
    if args.num_samples < 1:
        parser.error(f"--num-samples {args.num_samples}: it must be at least 1")
    if not args.prompt:
        parser.error("--prompt is empty: give at least one word to continue")
    return args


def main(args):
    model, tokenizer = cli.load(cli.choose_model(args.model, args.revision), args.revision, args.adapter)
    prompt = tokenizer.encode(args.prompt)
    for i in range(args.num_samples):
        ids = npgpt.generate(
            model, prompt, args.max_new_tokens, args.temperature, args.top_k or None, args.top_p,
            seed=None if args.seed is None else args.seed + i, eos_id=tokenizer.eos_id)
        if i:
            print("-" * 20)
        print(tokenizer.decode(ids[ids != tokenizer.eos_id]))


if __name__ == "__main__":
    arguments = parse_arguments(None)
    sys.exit(cli.run(lambda: main(arguments)))

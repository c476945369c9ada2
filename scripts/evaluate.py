"""Perplexity of a text under GPT-2, with or without an adapter."""

import json
import sys

import cli
import numpy as np

import npgpt
from npgpt import data


def parse_arguments(argv):
    parser = cli.Parser(description=__doc__)
    cli.add_model_arguments(parser)
    parser.add_argument("--adapter", metavar="DIR", help="folder of a LoRA adapter to put on the model")
    parser.add_argument("--data", required=True, metavar="FILE",
                        help=".txt, a text a line, or .jsonl, {\"text\": ...} a line; laid end to end, each text "
                             "closed by the end-of-text token")
    parser.add_argument("--context", type=int, default=1024,
                        help="window in tokens, at most the model's (default %(default)s)")
    parser.add_argument("--stride", type=int,
                        help="tokens between the starts of windows (default: the context, windows side by side)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser.parse_args(argv)


def main(args):
    texts = data.read_texts(args.data)
    name = cli.choose_model(args.model, args.revision)
    model, tokenizer = cli.load(name, args.revision, args.adapter)
    ids = np.concatenate([np.append(tokenizer.encode(text), tokenizer.eos_id) for text in texts])
    context = min(args.context, model.config.n_positions)
    stride = context if args.stride is None else args.stride
    result = npgpt.perplexity(model, ids, context, stride)
    if args.json:
        print(json.dumps({"model": name, "adapter": args.adapter, "data": args.data, "context": context,
                          "stride": stride, "tokens": result.tokens, "nll": result.nll,
                          "ppl": result.ppl}))
    else:
        print(f"{result.tokens:,} tokens, context {context}, stride {stride}: "
              f"{result.nll:.4f} nats a token, perplexity {result.ppl:.2f}")


if __name__ == "__main__":
    arguments = parse_arguments(None)
    sys.exit(cli.run(lambda: main(arguments)))

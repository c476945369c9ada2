"""Write a page that shows what GPT-2 does with a text: losses, attention, hidden states, the logit lens, and with an
adapter, what it changed."""

import cli

import sys
from pathlib import Path

import npgpt
from npgpt.adapters import pretrained
from npgpt.files.atomic import replacing
from npgpt.inspection import inside, inside_page


def parse_arguments(argv):
    parser = cli.Parser(description=__doc__)
    cli.add_model_arguments(parser)
    parser.add_argument("--adapter", type=cli.filled, metavar="DIR",
                        help="folder of a LoRA adapter, to see what it changes")
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="the text to look at")
    parser.add_argument("--max-tokens", type=int, default=256,
                        help="look at this many tokens of it at most: the pictures grow by their square (default "
                             "%(default)s, or the model's context where that is less)")
    parser.add_argument("--out", type=cli.path, default=Path("inside.html"), metavar="FILE",
                        help="the page to write (default %(default)s)")
    args = parser.parse_args(argv)
    if args.max_tokens < 1:
        parser.error(f"--max-tokens {args.max_tokens}: it must be at least 1")
    if not args.prompt:
        parser.error("--prompt is empty: give at least one word to look at")
    return args


def main(args):
    name = cli.choose_model(args.model, args.revision)
    model, tokenizer = pretrained.base_of(name, args.revision, [args.adapter] if args.adapter else [])
    ids = tokenizer.encode(args.prompt)
    shown = ids[:min(args.max_tokens, model.config.n_positions)]
    base, adapted = inside.look(model, shown), None
    if args.adapter is not None:
        npgpt.load_adapter(model, args.adapter, trainable=False)
        adapted = inside.look(model, shown)
    title = f"Inside {name}" + (f" with {args.adapter}" if args.adapter else "")
    page = inside_page.build(title, tokenizer, model, base, adapted)
    with replacing(args.out) as temporary:
        temporary.write_text(page, encoding="utf-8")
    rest = f"; {len(ids) - len(shown):,} more were left out, see --max-tokens" if len(ids) > len(shown) else ""
    print(f"{args.out}: {len(shown)} tokens{rest}; {args.out.stat().st_size / 1e6:.1f} MB, open it in a browser")


if __name__ == "__main__":
    sys.exit(cli.run(lambda: main(parse_arguments(None))))

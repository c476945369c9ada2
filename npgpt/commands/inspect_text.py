"""Write a page that shows what GPT-2 does with a text: losses, attention, hidden states, the logit lens and, with
--adapter, what the adapter changes."""

from pathlib import Path

import npgpt
from npgpt.adapters import pretrained
from npgpt.commands import models
from npgpt.commands.flags import Flag, Parser, filled, path
from npgpt.files.atomic import replacing
from npgpt.inspection import inside, inside_page

FLAGS = [
    *models.MODEL,
    Flag("--adapter", "folder of a LoRA adapter: show what it changes", filled, metavar="DIR"),
    Flag("--prompt", "the text to look at", required=True, metavar="TEXT"),
    Flag("--max-tokens", "look at the first N tokens only, as the pictures grow with their square; at most the model's "
         "context", int, 256, least=1, metavar="N"),
    Flag("--out", "the page to write", path, Path("inside.html"), metavar="FILE"),
]


def parse_arguments(argv):
    parser = Parser(__doc__, FLAGS)
    args = parser.parse(argv)
    if not args.prompt:
        parser.error("--prompt is empty: give at least one word to look at")
    return args


def main(args):
    name = models.choose_model(args.model, args.revision)
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


"""Write a page that shows what GPT-2 does with a text: losses, attention, hidden states, the logit lens and, with
--adapter, what the adapter changes."""

from pathlib import Path

import npgpt
from npgpt.adapters import pretrained
from npgpt.commands import models
from npgpt.commands.flags import Flag, Parser, filled, path, unescaped
from npgpt.files.atomic import write_text
from npgpt.inspection import inside, inside_page
from npgpt.training.estimate import spelled

FLAGS = [
    *models.MODEL,
    Flag("--adapter", "folder of a LoRA adapter: show what it changes", filled, metavar="DIR"),
    Flag("--prompt", "the text to look at; \\n for a new line, \\t for a tab", unescaped, required=True,
         metavar="TEXT"),
    Flag("--max-tokens", "look at the first N tokens only: the page grows with the square of this; at most the model's "
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
    adapters = [args.adapter] if args.adapter else []
    name = models.choose_model(args.model, args.revision, adapters)
    model, tokenizer = pretrained.base_of(name, args.revision, adapters, args.tokenizer)
    ids = tokenizer.encode(args.prompt)
    shown = ids[:min(args.max_tokens, model.config.n_positions)]
    base, adapted = inside.look(model, shown), None
    if args.adapter is not None:
        npgpt.load_adapter(model, args.adapter, trainable=False)
        adapted = inside.look(model, shown)
    title = f"Inside {short(name)}" + (f" with {short(args.adapter)}" if args.adapter else "")
    page = inside_page.build(title, tokenizer, model, base, adapted)
    write_text(args.out, page)
    rest = f"; {len(ids) - len(shown):,} more were left out, see --max-tokens" if len(ids) > len(shown) else ""
    print(f"{args.out}: {len(shown)} tokens{rest}; {spelled(args.out.stat().st_size)}, open it in a browser")


def short(name):
    """Return the last two parts of a path, enough to know an adapter by; a hub id has no more."""
    return "/".join(Path(name).parts[-2:])


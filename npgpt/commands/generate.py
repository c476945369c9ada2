"""Continue a prompt with GPT-2, with or without adapters: once, several times, line by line (--interactive), or for
each record of a file (--records)."""

import contextlib
import functools
import json
import sys
import time

import numpy as np

import npgpt
from npgpt.adapters import pretrained
from npgpt.adapters.stack import set_adapter
from npgpt.commands import models, prompts, start
from npgpt.commands.flags import Flag, Parser, filled, meant, path, unescaped
from npgpt.commands.printing import exact
from npgpt.files.characters import completed, labels
from npgpt.generation.generate import before_stop, pieces, tokens
from npgpt.generation.sampling import Sampling

TOGETHER = 8    # samples that are made at once
RUNNERS_UP = 3  # other tokens that --show-probs lists
RULES = [  # each sets the field of Sampling with its name
    Flag("--min-p", "drop tokens whose probability is below this fraction of the highest probability", float,
         metavar="P"),
    Flag("--typical-p", "locally typical sampling: keep the tokens whose surprise is nearest to the average, up to "
         "this total probability", float,
         metavar="P"),
    Flag("--repetition-penalty", "make tokens that are in the text already less likely; 1: no change", float,
         metavar="X"),
    Flag("--frequency-penalty", "lower a token's logit by this for each time that it was generated", float,
         metavar="X"),
    Flag("--presence-penalty", "lower a token's logit by this if it was generated at all", float, metavar="X"),
    Flag("--no-repeat-ngram-size", "never repeat a sequence of this many tokens", int, metavar="N"),
    Flag("--min-new-tokens", "do not end the text before this many new tokens", int, metavar="N"),
]
FLAGS = [
    *models.MODEL,
    Flag("--adapter", "folder of a LoRA adapter; given several times, it prints the answers of the base model and of "
         "each adapter, one below the other", filled, (), again=True, metavar="DIR"),
    Flag("--prompt", "text to continue, \\n for a new line and \\t for a tab; '-', or no prompt at all, reads it from "
         "standard input", unescaped, metavar="TEXT"),
    Flag("--prompt-file", "file with the text to continue. A file and standard input lose the line end at their end, "
         "which an editor adds; if the prompt ends with a new line, end them with two", path, metavar="FILE"),
    Flag("--field", "make the prompt of a template, and give a field of it; give it once for each field before the "
         "answer", prompts.field, (), again=True, metavar="NAME=TEXT"),
    Flag("--records", "answer each record in a file, which may be all that finetune reads, or a pipe: one JSON object "
         "a line", filled, metavar="FILE"),
    Flag("--template", "the template of --field and --records, as for finetune (default: the one that finetune saved "
         "beside the adapter, else one for each kind of record); if it has one field before the answer, --prompt gives "
         "it", meant, metavar="TEXT"),
    Flag("--interactive", "continue each line that you type; Ctrl-C stops an answer, Ctrl-D ends", bool, False),
    Flag("--max-new-tokens", "most tokens to add", int, 50),
    Flag("--temperature", "above 1 more varied, below 1 more predictable; 0 always takes the likeliest token", float,
         0.8),
    Flag("--top-k", "choose among the k likeliest tokens; 0: among all", int, 40, least=0),
    Flag("--top-p", "choose among the likeliest tokens whose probabilities add up to this", float, 1.0),
    *RULES,
    Flag("--bad-word", "never generate this text, alone or after a space; may be given several times", filled, (),
         again=True, metavar="TEXT"),
    Flag("--stop", "end before this text, \\n for a new line; may be given several times", meant, (), again=True,
         metavar="TEXT"),
    Flag("--context", "what to do at the end of the model's context: whole, refuse a longer text; slide, drop the "
         "older half of the text and go on", default="whole", choices=("whole", "slide")),
    Flag("--seed", "the same seed gives the same text (default: another text each time)", int),
    Flag("--num-samples", "how many texts", int, 1, least=1),
    Flag("--show-probs", "list each new token with its probability, and the next likeliest tokens", bool, False),
    Flag("--json", "print one JSON object for each text", bool, False),
]


def parse_arguments(argv):
    parser = Parser(__doc__, FLAGS)
    args = parser.parse(argv)
    ways = {"--prompt": args.prompt is not None, "--prompt-file": args.prompt_file is not None,
            "--field": bool(args.field), "--records": args.records is not None, "--interactive": args.interactive}
    if sum(ways.values()) > 1:
        *others, last = ways
        parser.error(f"{', '.join(others)} and {last} exclude each other: give only one")
    if args.prompt == "":
        parser.error("--prompt is empty: give at least one word to continue")
    if not any(ways.values()) and sys.stdin.isatty():
        parser.error("give --prompt, --prompt-file, --field, --records or --interactive")
    args.json = args.json or args.records is not None
    return args


def main(args):
    name = models.choose_model(args.model, args.revision, args.adapter)
    model, tokenizer = pretrained.base_of(name, args.revision, args.adapter, args.tokenizer)
    voices = [("base", [])] if len(args.adapter) != 1 else []
    for i, folder in enumerate(args.adapter):
        npgpt.load_adapter(model, folder, f"adapter {i}", trainable=False)
        voices.append((folder, [f"adapter {i}"]))
    texts = [text for word in args.bad_word for text in (word, f" {word}")]
    words = [ids.tolist() for ids in tokenizer.encode_batch(texts)]
    rules = {flag.key: getattr(args, flag.key) for flag in RULES if getattr(args, flag.key) is not None}
    sampling = Sampling(args.temperature, args.top_k or None, args.top_p, bad_words_ids=words, **rules)
    say = functools.partial(answers, args, model, tokenizer, voices, sampling)
    if args.field or args.records:
        recipes = models.recipes(args.adapter, name)
        template = prompts.template_of(args, recipes)
        special_tokens = any(recipe.special_tokens for recipe in recipes if recipe)
        for prompt in prompts.of_records(args, template, tokenizer, special_tokens):
            say(prompt)
        return 0
    template = prompts.template_of(args, ())
    if args.interactive:
        return converse(lambda text: say(prompts.of_text(text, template, tokenizer)))
    say(prompts.of_text(prompts.read_text(args), template, tokenizer))
    return 0


def answers(args, model, tokenizer, voices, sampling, prompt):
    """Print the texts of each voice for a Prompt. voices: [(label, names of the active adapters), ...]"""
    for label, active in voices:
        set_adapter(model, active, trainable=False)
        heading = f"== {label}" if len(voices) > 1 and not args.json else None
        answer(args, model, tokenizer, label, heading, prompt, sampling)


def answer(args, model, tokenizer, label, heading, prompt, sampling):
    """Print the texts of one voice for a prompt, below its heading."""
    count, start = 0, time.perf_counter()
    for first in range(0, args.num_samples, TOGETHER):
        samples = range(first, min(first + TOGETHER, args.num_samples))
        made = start_tokens(args, model, tokenizer, prompt, sampling, samples)  # an error comes here, before any text
        if heading and not first:
            print(heading)
        if args.num_samples == 1 and not args.show_probs and not args.json:
            count = show(prompt.text, made, tokenizer, args.stop)
            break
        steps = [[] for _ in samples]
        for i, token, logits in made:
            steps[i].append((token, likeliest(logits, token) if args.show_probs else None))
        for i, new in zip(samples, steps, strict=True):
            count += len(new)
            if i and not args.json:
                print("-" * 20)
            print_sample(args, tokenizer, label, prompt, i, new)
    seconds = time.perf_counter() - start
    if sys.stderr.isatty():
        print(f"{count} tokens, {count / seconds:,.1f} tokens/s", file=sys.stderr)


def start_tokens(args, model, tokenizer, prompt, sampling, samples):
    """Yield (i, token, logits) for each token of these samples, which are made together."""
    seed = None if args.seed is None else args.seed + samples.start
    return tokens(model, [prompt.ids] * len(samples), args.max_new_tokens, sampling, seed,
                  tokenizer.end_ids, args.stop, tokenizer, args.context)


def show(prompt, made, tokenizer, stop):
    """Print a text while it is made. Returns how many tokens it has."""
    count = 0

    def counted():
        nonlocal count
        for _, token, _ in made:
            count += 1
            yield token

    text = pieces(counted(), tokenizer, stop)
    begin = next(text, "")  # an error is raised here, before any text
    print(prompt + begin, end="", flush=True, file=exact())
    try:
        for piece in text:
            print(piece, end="", flush=True, file=exact())
    finally:
        print()
    return count


def likeliest(logits, token):
    """Return [(id, probability), ...] of the token and of the likeliest other tokens. The probabilities are the model's
    own, before temperature and rules."""
    p = Sampling().probabilities(logits)
    others = [i for i in np.argsort(-p, kind="stable")[:RUNNERS_UP + 1].tolist() if i != token][:RUNNERS_UP]
    return [(i, float(p[i])) for i in (token, *others)]


def print_sample(args, tokenizer, label, prompt, i, new):
    """Print one finished sample: its text, its tokens with their probabilities, or all as JSON."""
    ids = [token for token, _ in new]
    text, stopped = before_stop(tokenizer.decode([token for token in ids if token not in tokenizer.end_ids]), args.stop)

    if args.json:
        ended = "stop" if stopped else "eos" if ids and ids[-1] in tokenizer.end_ids else "length"
        probs = {}
        if args.show_probs:
            probs["probs"] = [[(tokenizer.decode([token]), p) for token, p in choices] for _, choices in new]
        seed = None if args.seed is None else args.seed + i
        found = {"adapter": label, "prompt": prompt.text, "text": text, "ids": ids, "seed": seed, "ended": ended}
        print(json.dumps(prompt.about | found | probs, default=str))
        return
    print(prompt.text + text, file=exact())
    if args.show_probs:
        for at, (written, (_, choices)) in enumerate(zip(labels(tokenizer, ids), new, strict=True)):
            (_, p), *others = choices
            listed = "  ".join(f"{completed(tokenizer, ids[:at], token)!r} {q:.2%}" for token, q in others)
            print(f"{p:8.2%}  {written.alone!r:16}  {listed}")


def converse(say):
    """Call say(line) for each line that is typed, until the input ends."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  input() then has a history and can be edited
    print("Type the beginning of a text. Ctrl-C stops a reply, Ctrl-D ends.")
    while True:
        try:
            prompt = input("> ")
        except EOFError:
            print()
            return 0
        except KeyboardInterrupt:
            if not start.by_ctrl_c():
                raise
            print()
            continue
        try:
            if prompt:
                say(prompt)
        except KeyboardInterrupt:
            if not start.by_ctrl_c():
                raise
            print("[stopped]")
        except npgpt.NpgptError as error:  # a prompt that is too long, say
            print(f"error: {error}", file=sys.stderr)


"""Continue a prompt with GPT-2, with or without adapters: once, several times, or line by line (--interactive)."""

import cli

import contextlib
import json
import sys
import time

import numpy as np

import npgpt
from npgpt.adapters import pretrained
from npgpt.adapters.stack import set_adapter
from npgpt.generation.generate import before_stop, pieces, tokens
from npgpt.generation.sampling import Sampling
from npgpt.runtime.errors import ConfigError, FileError

TOGETHER = 8    # samples made at once
RUNNERS_UP = 3  # beside each token of --show-probs
RULES = {"min_p": float, "typical_p": float, "repetition_penalty": float, "frequency_penalty": float,
         "presence_penalty": float, "no_repeat_ngram_size": int, "min_new_tokens": int}


def parse_arguments(argv):
    parser = cli.Parser(description=__doc__)
    cli.add_model_arguments(parser)
    parser.add_argument("--adapter", type=cli.filled, metavar="DIR", action="append", default=[],
                        help="folder of a LoRA adapter to put on the model; given again: the answers of the base model "
                             "and of each adapter, one below the other")
    parser.add_argument("--prompt", help="text to continue; '-', or neither this nor a file: standard input")
    parser.add_argument("--prompt-file", type=cli.path, metavar="FILE", help="file that holds the text to continue")
    parser.add_argument("--interactive", action="store_true",
                        help="continue each line that is typed; Ctrl-C stops a reply, Ctrl-D ends")
    parser.add_argument("--max-new-tokens", type=int, default=50, help="most tokens to add (default %(default)s)")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 is greedy (default %(default)s)")
    parser.add_argument("--top-k", type=int, default=40,
                        help="keep the k likeliest tokens; 0: all (default %(default)s)")
    parser.add_argument("--top-p", type=float, default=1.0,
                        help="keep the likeliest tokens that reach this probability together (default %(default)s)")
    for name, kind in RULES.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar="N" if kind is int else "X",
                            help="see npgpt.generation.sampling.Sampling")
    parser.add_argument("--bad-word", type=cli.filled, metavar="TEXT", action="append", default=[],
                        help="never complete this text, as it is or after a space; may be given again")
    parser.add_argument("--stop", type=cli.filled, metavar="TEXT", action="append", default=[],
                        help="end before this text; may be given again")
    parser.add_argument("--context", choices=["whole", "slide"], default="whole",
                        help="slide: go on past the context, letting go of its older half (default %(default)s)")
    parser.add_argument("--seed", type=int, help="the same seed gives the same text (default: another text each time)")
    parser.add_argument("--num-samples", type=int, default=1, help="how many texts (default %(default)s)")
    parser.add_argument("--show-probs", action="store_true",
                        help="list each new token with the probability the model gave it, and the runners-up")
    parser.add_argument("--json", action="store_true", help="print one JSON object a text")
    args = parser.parse_args(argv)
    if args.num_samples < 1:
        parser.error(f"--num-samples {args.num_samples}: it must be at least 1")
    if sum([args.prompt is not None, args.prompt_file is not None, args.interactive]) > 1:
        parser.error("--prompt, --prompt-file and --interactive exclude each other")
    if args.prompt == "":
        parser.error("--prompt is empty: give at least one word to continue")
    if args.prompt is None and not args.prompt_file and not args.interactive and sys.stdin.isatty():
        parser.error("give --prompt, --prompt-file or --interactive")
    return args


def main(args):
    model, tokenizer = pretrained.base_of(cli.choose_model(args.model, args.revision), args.revision, args.adapter)
    voices = [("base", [])] if len(args.adapter) != 1 else []
    for i, folder in enumerate(args.adapter):
        npgpt.load_adapter(model, folder, f"adapter {i}", trainable=False)
        voices.append((folder, [f"adapter {i}"]))
    words = [tokenizer.encode(text).tolist() for word in args.bad_word for text in (word, f" {word}")]
    rules = {name: getattr(args, name) for name in RULES if getattr(args, name) is not None}
    sampling = Sampling(args.temperature, args.top_k or None, args.top_p, bad_words_ids=words, **rules)
    if args.interactive:
        return converse(args, model, tokenizer, voices, sampling)
    prompt = read_prompt(args)
    answers(args, model, tokenizer, voices, prompt, sampling)
    return 0


def read_prompt(args):
    """The text to continue, from wherever it comes, without a file's last line end."""
    if args.prompt not in (None, "-"):
        return args.prompt
    source = args.prompt_file or "standard input"
    try:
        raw = args.prompt_file.read_bytes() if args.prompt_file else sys.stdin.buffer.read()
        text = raw.decode("utf-8").rstrip("\r\n")
    except OSError as error:
        raise FileError(f"cannot read {source}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{source} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    if not text:
        raise ConfigError(f"the prompt from {source} is empty: give --prompt, or text in a file or on standard input")
    return text


def answers(args, model, tokenizer, voices, prompt, sampling):
    """Print the texts that each voice makes of a prompt."""
    for label, active in voices:
        set_adapter(model, active, trainable=False)
        heading = f"== {label}" if len(voices) > 1 and not args.json else None
        answer(args, model, tokenizer, label, heading, prompt, sampling)


def answer(args, model, tokenizer, label, heading, prompt, sampling):
    """Print the texts that one voice makes of a prompt, below its heading."""
    count, start = 0, time.perf_counter()
    for first in range(0, args.num_samples, TOGETHER):
        samples = range(first, min(first + TOGETHER, args.num_samples))
        made = start_tokens(args, model, tokenizer, prompt, sampling, samples)  # or an error comes, before any text
        if heading and not first:
            print(heading)
        if args.num_samples == 1 and not args.show_probs and not args.json:
            count = show(prompt, made, tokenizer, args.stop)
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
    """(i, token, logits) for each token of these samples, made together."""
    seed = None if args.seed is None else args.seed + samples.start
    return tokens(model, [tokenizer.encode(prompt)] * len(samples), args.max_new_tokens, sampling, seed,
                  tokenizer.end_id, args.stop, tokenizer, args.context)


def show(prompt, made, tokenizer, stop):
    """Print a text as it is made, and return how many tokens that took."""
    count = 0

    def counted():
        nonlocal count
        for _, token, _ in made:
            count += 1
            yield token

    text = pieces(counted(), tokenizer, stop)
    begin = next(text, "")  # an error comes here, before any text
    print(prompt + begin, end="", flush=True)
    try:
        for piece in text:
            print(piece, end="", flush=True)
    finally:
        print()
    return count


def likeliest(logits, token):
    """[(id, probability), ...]: the token, then those that were likeliest beside it. The model's own probabilities,
    before temperature and rules."""
    p = Sampling().probabilities(logits)
    others = [i for i in np.argsort(-p, kind="stable")[:RUNNERS_UP + 1].tolist() if i != token][:RUNNERS_UP]
    return [(i, float(p[i])) for i in (token, *others)]


def print_sample(args, tokenizer, label, prompt, i, new):
    """Print one finished sample: its text, its tokens with their probabilities, or all as JSON."""
    ids = [token for token, _ in new]
    text, stopped = before_stop(tokenizer.decode([token for token in ids if token != tokenizer.end_id]), args.stop)

    def named(choices):
        return [(tokenizer.decode([token]), p) for token, p in choices]

    if args.json:
        ended = "stop" if stopped else "eos" if ids[-1:] == [tokenizer.end_id] else "length"
        probs = {"probs": [named(choices) for _, choices in new]} if args.show_probs else {}
        seed = None if args.seed is None else args.seed + i
        print(json.dumps({"adapter": label, "prompt": prompt, "text": text, "ids": ids, "seed": seed, "ended": ended}
                         | probs))
        return
    print(prompt + text)
    if args.show_probs:
        for _, choices in new:
            (chosen, p), *others = named(choices)
            print(f"{p:8.2%}  {chosen!r:16}  {'  '.join(f'{token!r} {q:.2%}' for token, q in others)}")


def converse(args, model, tokenizer, voices, sampling):
    """Continue each line that is typed, until the input ends."""
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
            print()
            continue
        try:
            if prompt:
                answers(args, model, tokenizer, voices, prompt, sampling)
        except KeyboardInterrupt:
            print("[stopped]")
        except npgpt.NpgptError as error:  # a prompt that is too long, say
            print(f"error: {error}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(cli.run(lambda: main(parse_arguments(None))))

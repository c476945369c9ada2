"""Merge LoRA adapters into their base: a full model folder that transformers loads, compared with what was merged."""

import cli

import shutil
import sys
from pathlib import Path

import npgpt
from npgpt import data
from npgpt.exchange import merge
from npgpt.files import atomic, hub
from npgpt.runtime.errors import HubError

TEXT = Path(npgpt.__file__).parent / "texts" / "validation.txt"
# What goes from the base's folder into the merged one as it is, where it is there.
CARRIED = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json",
           "added_tokens.json", "chat_template.jinja", "generation_config.json")
# The largest |Δlogit|, as a part of the largest |logit|, that rounding explains: many times what was ever seen.
ROUNDING = {"float32": 1e-4, "float16": 1e-2}


def parse_arguments(argv):
    parser = cli.Parser(description=__doc__)
    cli.add_model_arguments(parser)
    parser.add_argument("--adapter", required=True, type=cli.filled, action="append", metavar="DIR",
                        help="folder of an adapter; give it several times to merge the sum of several")
    parser.add_argument("--out", required=True, type=cli.path, metavar="DIR", help="new folder to write the model to")
    parser.add_argument("--dtype", choices=merge.DTYPES, default="float32",
                        help="numbers in the file (default %(default)s)")
    parser.add_argument("--max-shard-size", type=cli.size, metavar="SIZE",
                        help="such as 500MB: more than that goes into several files (default: one file)")
    parser.add_argument("--text", type=cli.path, metavar="FILE",
                        help="text for the certificate (default: one of the package)")
    parser.add_argument("--no-certificate", action="store_true",
                        help="do not run the merged model beside the unmerged one")
    args = parser.parse_args(argv)
    if args.text and args.no_certificate:
        parser.error("--text is for the certificate, and has no effect beside --no-certificate")
    return args


def main(args):
    place = args.text or TEXT
    text = None if args.no_certificate else "\n".join(data.read_texts(place))
    name = cli.choose_model(args.model, args.revision)
    with atomic.new_folder(args.out) as folder:
        model, tokenizer = cli.load(name, args.revision, args.adapter)
        merge.save_merged(model, folder, args.dtype, args.max_shard_size)
        left_out = carry_over(name, args.revision, folder)
        if tokenizer.to_dict() != npgpt.Tokenizer.from_pretrained(name, args.revision).to_dict():
            tokenizer.save(folder)  # an adapter's, with tokens that were added
    written = [path.stat().st_size for path in args.out.glob("model*.safetensors")]
    print(f"merged {' + '.join(args.adapter)} into {name}: {args.out} ({args.dtype}, {sum(written) / 1e6:,.1f} MB"
          f"{f' in {len(written)} files' if len(written) > 1 else ''})")
    if left_out:
        print(f"not in the cache, so not carried over: {', '.join(left_out)}")
    if model.config.tie_word_embeddings != atomic.read_json(args.out / "config.json")["tie_word_embeddings"]:
        print("the token table or the head was changed, so these are two matrices now, no longer tied")
    if text is None:
        return 0
    ids = tokenizer.encode(text, split_special_tokens=True)
    found = merge.certify(model, npgpt.GPT2.from_pretrained(args.out), ids)
    place = f"npgpt/texts/{TEXT.name}" if place == TEXT else place
    print(f"certificate, of the folder as it was written, on {found.merged.tokens:,} tokens of {place}")
    print(f"  largest |difference of logits|  {found.difference:.1e}, of logits up to {found.largest:.1f}")
    print(f"  KL divergence                   {found.kl:.1e} nats a token")
    print(f"  perplexity                      {found.unmerged.ppl:.4f} unmerged, {found.merged.ppl:.4f} merged")
    if not found.relative <= ROUNDING[args.dtype]:
        print(f"  they DIFFER by {found.relative:.1e} of the largest logit: more than rounding to {args.dtype} does")
        return 1
    return 0


def carry_over(name, revision, folder):
    """Copy the tokenizer's files and the generation settings of the model `name`; return those that may be missing."""
    left_out, online = [], hub.folder(name) is not None or hub.reachable()
    for filename in CARRIED:
        try:
            path = hub.file(name, filename, revision, local_files_only=not online)
        except HubError:
            left_out.append(filename)
            continue
        if path is not None:
            shutil.copyfile(path, folder / filename)
    return left_out


if __name__ == "__main__":
    sys.exit(cli.run(lambda: main(parse_arguments(None))))

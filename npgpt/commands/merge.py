"""Merge LoRA adapters into their base model: a new model folder, which transformers loads too.

A certificate then says how far its outputs are from the outputs of the unmerged model.
"""

import shutil
from pathlib import Path

import npgpt
from npgpt import data
from npgpt.commands import models
from npgpt.commands.flags import Flag, Parser, filled, path, size
from npgpt.exchange import merge
from npgpt.files import atomic, hub
from npgpt.runtime.errors import HubError
from npgpt.runtime.figures import figure

TEXT = Path(npgpt.__file__).parent / "texts" / "validation.txt"
# Files of the base's folder that are copied into the merged one, if they are there.
CARRIED = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json",
           "added_tokens.json", "chat_template.jinja", "generation_config.json")
# The largest |Δlogit| that rounding explains, as a part of the largest |logit|: many times more than was ever seen.
ROUNDING = {"float32": 1e-4, "float16": 1e-2}


FLAGS = [
    *models.MODEL,
    Flag("--adapter", "folder of an adapter; give it several times to merge the sum of several adapters", filled,
         required=True, again=True, metavar="DIR"),
    Flag("--out", "new folder to write the model to", path, required=True, metavar="DIR"),
    Flag("--dtype", "number format in the file", default="float32", choices=tuple(merge.DTYPES)),
    Flag("--max-shard-size", "split the weights into files of at most this size, such as 500MB (default: one file)",
         size, metavar="SIZE"),
    Flag("--text", "text on which the certificate compares the outputs (default: one of the package)", path,
         metavar="FILE"),
    Flag("--no-certificate", "do not compare the merged model with the unmerged one", bool, False),
]


def parse_arguments(argv):
    parser = Parser(__doc__, FLAGS)
    args = parser.parse(argv)
    if args.text and args.no_certificate:
        parser.error("--text is for the certificate, and has no effect with --no-certificate")
    return args


def main(args):
    place = args.text or TEXT
    text = None if args.no_certificate else "\n".join(data.read_texts(place))
    name = models.choose_model(args.model, args.revision, args.adapter)
    with atomic.new_folder(args.out) as folder:
        model, tokenizer = models.load(name, args.revision, args.adapter, args.tokenizer)
        merge.save_merged(model, folder, args.dtype, args.max_shard_size)
        left_out = carry_over(name, args.revision, folder)
        recipe = models.recipes(args.adapter, name)[0] if len(args.adapter) == 1 else None
        if recipe is not None:
            recipe.save(folder)
        if args.tokenizer or tokenizer.to_dict() != models.load_tokenizer(name, args.revision).to_dict():
            tokenizer.save(folder)  # not the base's own: named, or an adapter's with tokens that were added
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
    print(f"certificate, of the folder as it was written, on {found.merged.tokens:,} tokens of {place} "
          f"in windows of {merge.WINDOW}")
    print(f"  largest |difference of logits|  {found.difference:.1e}, of logits up to {found.largest:.1f}")
    print(f"  KL divergence                   {found.kl:.1e} nats a token")
    print(f"  perplexity                      {figure(found.unmerged.ppl, 4)} unmerged, {figure(found.merged.ppl, 4)} "
          "merged")
    if not found.relative <= ROUNDING[args.dtype]:
        print(f"  they DIFFER by {found.relative:.1e} of the largest logit: more than by rounding to {args.dtype}")
        return 1
    return 0


def carry_over(name, revision, folder):
    """Copy the tokenizer's files and the generation settings of the model `name`. Returns those that may be missing."""
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


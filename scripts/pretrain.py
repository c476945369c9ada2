"""Train a GPT-2 from scratch on the documentation inside Python and NumPy. With no arguments it makes npgpt/tiny again.

    python scripts/pretrain.py --out runs/pretrain

The folder then holds a whole model: config.json, model.safetensors (float16), tokenizer.json and a model card. They are
written each time the loss on held-out documents reaches a new low, so stopping early loses little.
"""

if __name__ == "__main__":
    from npgpt.commands import start  # before the imports that take time: it handles Ctrl-C during them

    start.begin()

import math
import platform
import time
import zlib
from pathlib import Path

import corpus
import numpy as np
import tokenizers
from tqdm import tqdm

import npgpt
from npgpt import data, optim
from npgpt.autograd import no_grad
from npgpt.commands import cli
from npgpt.commands.flags import Flag, Parser, path, threads
from npgpt.files import atomic
from npgpt.files.tokenizer import END_OF_TEXT, Tokenizer
from npgpt.runtime import seeding
from npgpt.runtime.memory import keep_freed_memory
from npgpt.runtime.threads import workers

EVALUATIONS = 20  # how many times a run looks at the held-out documents
BETAS = (0.9, 0.99)  # of AdamW; the second is smaller than usual, for a short run
CARD = """\
# npgpt tiny

A GPT-2 of {parameters:,} parameters, small enough to live inside the package: it lets every command of npgpt run
without a download. It writes recognisable English in the tone of Python's documentation and knows nothing else.

| | |
|---|---|
| shape | {c.n_layer} layers, {c.n_head} heads, width {c.n_embd}, context {c.n_positions}, tied head |
| tokenizer | byte-level BPE, {c.vocab_size:,} tokens, {characters_per_token:.2f} characters a token on its text; \
end of text is {c.eos_token_id} |
| data | {documents:,} docstrings and help topics of the standard library of Python {python} and of NumPy {numpy}, \
cleaned down to prose: {characters:,} characters, {tokens:,} tokens |
| held out | {held_out:,} further documents ({held_out_tokens:,} tokens), chosen by a hash of the text |
| training | {step:,} steps of about {batch_tokens:,} tokens: {seen:,} tokens seen, {epochs:.1f} passes; \
{minutes:.0f} minutes on {threads} CPU threads |
| train loss | {train_loss:.3f} nats a token (perplexity {train_perplexity:.1f}), without dropout, on {sampled:,} \
of the documents |
| held-out loss | {held_out_loss:.3f} nats a token (perplexity {held_out_perplexity:.1f}) |

AdamW with learning rate {lr:g}, betas {betas}, weight decay {weight_decay:g}, gradients clipped to norm 1; cosine
schedule of {steps:,} steps with {warmup} of warm-up; dropout {c.resid_pdrop:g} on the embeddings and the residual
branches; seed {seed}. Made by npgpt's own script, in NumPy:

    {command}

Limits: it has read two megabytes of one kind of text. It is no source of facts, not even about Python, and follows no
instructions; it is there to be trained further and to show what training does.

The text comes from Python (PSF licence) and NumPy (BSD licence). None of it is included here, only weights and tokens.
"""


FLAGS = [
    Flag("--out", "folder to write", path, Path("runs/pretrain"), metavar="DIR"),
    Flag("--steps", "optimizer steps", int, 4000, least=1),
    Flag("--warmup", "steps in which the learning rate rises", int, 150, least=0),
    Flag("--batch-tokens", "tokens in a step, about", int, 4096, least=2),
    Flag("--lr", "highest learning rate", float, 2e-3),
    Flag("--weight-decay", "weight decay of every parameter", float, 0.1),
    Flag("--dropout", "dropout of embeddings and residual branches", float, 0.2),
    Flag("--vocab-size", "tokens in the vocabulary", int, 3072, least=257),
    Flag("--n-positions", "longest sequence in tokens", int, 256, least=2),
    Flag("--n-embd", "width", int, 192),
    Flag("--n-layer", "number of blocks", int, 4),
    Flag("--n-head", "attention heads in a block", int, 4),
    Flag("--seed", "decides weights, order and dropout", int, 0, least=0),
    Flag("--threads", "CPU threads", threads, 2, metavar="N"),
]


def parse_arguments(argv):
    """Return the settings, and the command line that gives them, which the model card quotes."""
    args = Parser(__doc__, FLAGS).parse(argv)
    given = [f" {flag.name} {getattr(args, flag.key)}" for flag in FLAGS
             if flag.key != "out" and getattr(args, flag.key) != flag.default]
    return args, "python scripts/pretrain.py" + "".join(given)


def split(texts):
    """Return (texts to train on, one text in fifty held out). A hash decides, so new texts move no old one."""
    held_out = [text for text in texts if zlib.crc32(text.encode()) % 50 == 0]
    return [text for text in texts if zlib.crc32(text.encode()) % 50], held_out


def train_tokenizer(texts, vocab_size):
    """Return a byte-level BPE like GPT-2's: all 256 bytes, merges learned from `texts`, end of text as the last id."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=vocab_size - 1, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([END_OF_TEXT])
    return tokenizer


def pack(pieces, length):
    """Yield the pieces in order, laid end to end into sequences of at most `length` ids. No piece is cut.

    So a sequence begins with the beginning of a document, at position 0, as a prompt will; and after each end of text
    another document begins.
    """
    block = []
    for piece in pieces:
        if block and sum(map(len, block)) + len(piece) > length:
            yield np.concatenate(block)
            block = []
        block.append(piece)
    yield np.concatenate(block)


def batches(pieces, length, tokens):
    """Yield Batches of packed sequences, each of the first whole number of sequences that reaches `tokens` ids."""
    sequences, size = [], 0
    for sequence in pack(pieces, length):
        sequences.append(sequence)
        size += len(sequence)
        if size >= tokens:
            yield npgpt.Batch.from_sequences(sequences)
            sequences, size = [], 0
    if sequences:
        yield npgpt.Batch.from_sequences(sequences)


def epochs(pieces, length, tokens, seed):
    """Yield batches for ever. Each pass over the pieces has a new order, and so other sequences."""
    epoch = 0
    while True:
        order = seeding.generator(seed, "order", epoch).permutation(len(pieces))
        yield from batches((pieces[i] for i in order), length, tokens)
        epoch += 1


def train(model, sequences, args):
    """Train the model, and stop for a look EVALUATIONS times: yield (steps done, tokens seen)."""
    opt = npgpt.AdamW(model.parameters(), args.lr, BETAS, weight_decay=args.weight_decay)
    stream, seen = epochs(sequences, model.config.n_positions, args.batch_tokens, args.seed), 0
    for step in (progress := tqdm(range(1, args.steps + 1), unit="step")):
        opt.lr = args.lr * optim.schedule("cosine", step, args.steps + 1, args.warmup)
        rng = seeding.generator(args.seed, "dropout", step)
        result = npgpt.train_step(model, next(stream), opt, max_grad_norm=1.0, rng=rng, threads=args.threads)
        seen += result.tokens
        progress.set_postfix(loss=f"{result.loss:.3f}", refresh=False)
        if step % math.ceil(args.steps / EVALUATIONS) == 0 or step == args.steps:
            yield step, seen


def mean_loss(model, sequences, args):
    """Return the mean loss over all targets of the sequences, in nats, without dropout."""
    total = count = 0
    with no_grad(), workers(args.threads):
        for batch in batches(sequences, model.config.n_positions, args.batch_tokens):
            total += float(model.loss(batch).data) * batch.n_targets
            count += batch.n_targets
    return total / count


def save(model, folder, card):
    """Write the weights in float16, half the size and still good to three digits, and the model card."""
    half = npgpt.GPT2(model.config, seed=None, dtype=np.float16)
    for name, tensor in half.parameters().items():
        tensor.data[...] = model.parameters()[name].data
    half.save_pretrained(folder)
    with atomic.replacing(folder / "README.md") as temporary:
        temporary.write_text(card, encoding="utf-8")


def run(args, command):
    """Collect the text, train the tokenizer and the model, and save the model with the lowest held-out loss."""
    keep_freed_memory()
    texts, held_out = split(corpus.documents())
    bpe = train_tokenizer(texts, args.vocab_size)
    tokenizer = Tokenizer(bpe)
    config = npgpt.GPT2Config(
        vocab_size=tokenizer.vocab_size, n_positions=args.n_positions, n_embd=args.n_embd, n_layer=args.n_layer,
        n_head=args.n_head, resid_pdrop=args.dropout, embd_pdrop=args.dropout, attn_pdrop=0.0,
        bos_token_id=tokenizer.eos_id, eos_token_id=tokenizer.eos_id)
    with atomic.replacing(args.out / "tokenizer.json") as temporary:
        temporary.write_text(bpe.to_str(), encoding="utf-8")

    encoded, held_out_encoded, sample_encoded = (
        data.encode_texts(tokenizer, part, config.n_positions)
        for part in (texts, held_out, texts[:: len(texts) // len(held_out)]))
    model = npgpt.GPT2(config, args.seed)
    facts = {
        **vars(args), "command": command, "c": config, "betas": BETAS,
        "parameters": sum(tensor.data.size for tensor in model.parameters().values()),
        "python": platform.python_version(), "numpy": np.__version__,
        "documents": len(texts), "characters": sum(map(len, texts)), "tokens": encoded.tokens,
        "characters_per_token": sum(map(len, texts)) / encoded.tokens,
        "held_out": len(held_out), "held_out_tokens": held_out_encoded.tokens, "sampled": sample_encoded.texts,
    }
    print("{documents:,} documents, {characters:,} characters, {tokens:,} tokens; {parameters:,} parameters"
          .format(**facts))

    started, lowest = time.perf_counter(), math.inf
    for step, seen in train(model, encoded.sequences, args):
        train_loss = mean_loss(model, sample_encoded.sequences, args)
        held_out_loss = mean_loss(model, held_out_encoded.sequences, args)
        tqdm.write(f"step {step}  train loss {train_loss:.3f}  held-out loss {held_out_loss:.3f}")
        if held_out_loss < lowest:
            lowest = held_out_loss
            save(model, args.out, CARD.format(
                **facts, step=step, seen=seen, epochs=seen / encoded.tokens,
                minutes=(time.perf_counter() - started) / 60,
                train_loss=train_loss, train_perplexity=math.exp(train_loss),
                held_out_loss=held_out_loss, held_out_perplexity=math.exp(held_out_loss)))
    print(f"saved the weights with the lowest held-out loss, {lowest:.3f}, in {args.out}")


if __name__ == "__main__":
    raise SystemExit(cli.run(lambda: run(*parse_arguments(None))))

"""What finetune prints: every line is made here. A line begins with a word that says what it is about."""

import re
import shlex
from pathlib import Path

from npgpt.adapters.stack import updates
from npgpt.adapters.tables import OnTable, TrainedRows
from npgpt.commands import dataset, start
from npgpt.commands.flags import escaped, unescaped
from npgpt.commands.settings import PROMPTS, TINY_REASON
from npgpt.data import located
from npgpt.evaluation.evaluate import Perplexity
from npgpt.lora import LowRank
from npgpt.runtime.errors import printable
from npgpt.runtime.figures import figure
from npgpt.training import estimate

LONGEST_PROMPT = 100  # characters of a sample's prompt that are shown, its last ones


class Printer:
    """detail(*lines) prints unless --quiet was given; result(*lines) always prints."""

    def __init__(self, quiet):
        self.quiet = quiet

    def detail(self, *lines):
        if not self.quiet:
            self.result(*lines)

    def result(self, *lines):
        for line in lines:
            print(line)


def count(n, word):
    return f"{n:,} {word}{'' if n == 1 else 's'}"


def model(name, config, tiny_defaults):
    yield (f"model      {name}: {config.n_layer} layers, {config.n_head} heads, width {config.n_embd}, vocabulary "
           f"{config.vocab_size:,}, context {config.n_positions}")
    if tiny_defaults:
        chosen = ", ".join(f"{key} {value}" for key, value in tiny_defaults.items())
        yield f"           for this model {chosen} by default: {TINY_REASON}"


def added_tokens(tokens, ids, tokenizer, before, after):
    """tokens, ids: those asked for and those that were added; before, after: rows of the token table."""
    if ids:
        added = {tokenizer.token(i): i for i in ids}
        listed = ", ".join(f"{token!r} ({i})" for token, i in added.items())
        known = ", ".join(repr(token) for token in dict.fromkeys(tokens) if token not in added)
        yield (f"added      {listed}; rows of the token table: {before:,} -> {after:,}"
               + (f"; in the vocabulary already: {known}" if known else ""))


def data(settings, documents, encoded, length, tokenizer):
    """documents, encoded: what `dataset.read` and `dataset.encode` return; length: most tokens of a sequence."""
    if uses := dataset.uses(settings):
        below = f"{Path(located(settings['data'])).as_posix()}/"
        yield f"files      {settings['data']}: {'; '.join(f'{name.removeprefix(below)} {use}' for name, use in uses)}"
    template = None
    for i, (place, e) in enumerate(encoded):
        here = documents[min(i, len(documents) - 1)][1].template
        if template is None or here.text != template:
            template = here.text
            yield f"template   {here}"
            if tokens := here.spelled(tokenizer.special_tokens):
                yield f"           special tokens in it: {', '.join(tokens)}"
        yield f"{('data', 'held out')[i]:10} {place}: {summary(e, length)}"


def summary(e, length):
    """Return what became of the documents of an Encoded."""
    figures = f"{e.tokens:,} tokens, {e.targets:,} learned"
    if e.texts:
        line = f"{count(e.texts, 'text')}, {figures}, end of text learned in {e.ended:,} of {e.texts:,}"
    else:  # blocks of texts that are counted on the other side, with the ends that are in these blocks
        line = f"{count(len(e.sequences), 'block')}, {figures}"
        line += f", among them the end of {count(e.ended, 'text')}" if e.ended else ""
    if e.blank:
        line += f"; {e.blank:,} blank left out"
    if e.split:
        line += (f"; {e.split:,} longer than {length} tokens {'was' if e.split == 1 else 'were'} split: "
                 f"{count(len(e.sequences), 'sequence')}")
    if e.cut:
        line += f", {e.cut:,} tokens in none"
    if e.spelled:
        line += f"; {count(e.spelled, 'special token')} spelled out, taken as plain text (see --special-tokens)"
    return line


def adapter(config, trained, added, begun=None):
    """config: LoraConfig, None if all weights train; trained: the model; added: ids of added tokens; begun: folder of
    the adapter that is trained further, if it is not new."""
    if begun is not None:
        yield f"adapter    {begun} is trained further"
    if config is not None:
        patterns = " (some modules have others)" if config.rank_pattern or config.alpha_pattern else ""
        yield (f"LoRA       rank {config.r}, alpha {config.lora_alpha:g}, scale {config.scale:g}{patterns}, "
               f"dropout {config.lora_dropout:g}")
        kinds = {}
        for name, update in updates(trained).items():
            if update.parameters():
                kinds.setdefault(re.sub(r"^h\.\d+\.", "", name), []).append(update)
        for kind, each in kinds.items():
            size = sum(tensor.data.size for update in each for tensor in update.parameters().values())
            yield f"           {kind:12} {extent(each, added)}: {size:>9,}"
    total = sum(tensor.data.size for tensor in trained.parameters().values())
    size = sum(tensor.data.size for tensor in trained.trainable_parameters().values())
    yield f"           {size:,} of {total:,} parameters train ({100 * size / total:.2f} %)"


def extent(alike, added):
    """Return what updates of one kind change, as text. added: ids of added tokens."""
    update = alike[0].inner if isinstance(alike[0], OnTable) else alike[0]
    if isinstance(update, TrainedRows):
        return count(len(update.indices), "row") + (" for added tokens" if added else " of the table")
    if isinstance(update, LowRank):
        return f"{update.lora_A.shape[1]:>5} -> {update.lora_B.shape[0]:<5} in {len(alike)} layers"
    return f"{'whole':14} in {len(alike)} layers"


def fitted(takes, texts, config, checkpointing):
    """Micro-batches that were chosen for --max-memory: bytes they take, texts in one, TrainConfig."""
    yield (f"memory     {estimate.spelled(takes)} by micro-batches of {texts} texts, {config.accumulate} a step"
           + ", with --checkpoint" * checkpointing)


def resumed(run, done, total):
    yield f"resumed    {run.folder} after step {done} of {total}"


def training(order, config, total, settings):
    tokens = config.batch_tokens and config.batch_tokens * config.accumulate
    size = f"about {tokens} tokens" if tokens else count(config.batch_size * config.accumulate, "text")
    epochs = total / order.steps_per_epoch
    spared = ", biases and norms without" if settings["full"] and not settings["decay_all"] else ""
    yield (f"training   {count(total, 'step')} of {size}, {epochs:.3g} epoch{'' if epochs == 1 else 's'}; AdamW, "
           f"learning rate {config.lr:g} ({config.schedule}), weight decay {settings['weight_decay']:g}{spared}")


def cost(memory, tokens, seconds):
    """memory: estimate.Memory, with a micro-batch of so many tokens; seconds: of the whole run."""
    unknown = "" if memory.process else " beside what the process holds, which this system does not tell"
    yield (f"estimate   {estimate.spelled(memory.total)} of memory at the most{unknown}, "
           f"{estimate.spelled(memory.saved)} of it saved for the backward pass of {tokens:,} tokens; about "
           f"{estimate.duration(seconds)} in all")


def stopped(run, done, total, place):
    """place: where the adapter was saved; None: it was not, as the run was stopped within a step."""
    if place is None:
        yield f"stopped    within a step; {way_on(run)}"
    else:
        way = f"go on with --resume {run.folder}" if done in run.steps() else way_on(run)
        yield f"stopped    after step {done} of {total}: saved in {place}; {way}"


def way_on(run):
    """Return what the user can do after something went wrong."""
    steps = run.steps()
    if not steps:
        return f"there was no checkpoint yet: --resume {run.folder} begins again"
    return f"the checkpoint of step {steps[-1]} is whole, and --resume {run.folder} goes on from it"


def losses(run, best):
    """best: the step whose adapter is kept; None: it is the last."""
    results = run.results()
    old, new = results["before"]["val_loss"], results["after"]["val_loss"]
    if new is None:
        found = [values["loss"] for values in run.metrics()]
        yield f"training   loss {found[0]:.3f} at the first step, {found[-1]:.3f} at the last"
        return
    best = f" at step {best}, the lowest" if best else ""
    ppl = [figure(Perplexity(loss, 1).ppl, 1) for loss in (old, new)]
    yield f"held out   loss {old:.3f} -> {new:.3f}{best}, perplexity {ppl[0]} -> {ppl[1]}"


def samples(run):
    results = run.results()
    for (prompt, old), (_, new) in zip(results["before"]["samples"], results["after"]["samples"], strict=True):
        shown = printable(escaped(prompt))
        shown = shown if len(shown) <= LONGEST_PROMPT else f"..{shown[2 - LONGEST_PROMPT:]}"
        yield f"\n{shown}\n  before   {old}\n  after    {new}"
    yield ""


def page(run):
    if run.report.exists():
        yield f"report     {run.report}"


def saved(place, seconds):
    size = estimate.spelled(sum(path.stat().st_size for path in place.iterdir()))
    yield f"saved      {place} ({size}) after {seconds:.1f} s"


def use(settings, place, prompts):
    """prompts: (text, ids) of the samples; the first that can be typed is in the line."""
    model = ["--model", place] if settings["full"] else ["--model", settings["model"], "--adapter", place]
    texts = (text for text, _ in prompts if escaped(text).isprintable() and unescaped(escaped(text)) == text)
    yield (f"use it     {start.typed('generate')} {shlex.join(map(str, model))} --prompt "
           f"{in_quotes(escaped(next(texts, PROMPTS[0])))}")


def in_quotes(text):
    """Return text as a shell reads it as one word: in the double quotes that every system has, if that is enough."""
    return shlex.quote(text) if re.search(r'["$`!%]|\\(?![nt])', text) else f'"{text}"'

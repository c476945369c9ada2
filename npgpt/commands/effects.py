"""Settings of finetune that cannot take effect in a run: a line for each, which becomes a warning."""

from npgpt.adapters.stack import updates
from npgpt.commands import lines


def missing(job):
    """Yield what is to be said about the settings of a running.Job that cannot take effect."""
    config, steps = job.config, lines.count(job.total, "step")
    per_epoch = config.order(job.training.sequences.lengths).steps_per_epoch
    if config.warmup >= job.total:
        yield f"--warmup {config.warmup}: this run has {steps}, so the learning rate never reaches {config.lr:g}"
    if config.max_steps is not None and config.max_steps > config.epochs * per_epoch:
        yield (f"--max-steps {config.max_steps}: the run ends earlier, after --epochs {config.epochs}, which "
               f"{'is' if job.total == 1 else 'are'} {steps}")
    measured = -(-job.total // (job.keeping.eval_every or per_epoch))
    if job.keeping.patience is not None and job.keeping.patience >= measured - 1:
        yield (f"--patience {job.keeping.patience}: this run measures {lines.count(measured, 'time')}, so it cannot "
               "stop before its end; give a smaller --eval-every or --patience, or more --epochs")
    if not job.settings["full"]:
        yield from _too_high_a_rank(job.model)


def _too_high_a_rank(model):
    """Yield a line if the rank of an update is above what its weight can have."""
    ranks = {(update.lora_A.shape[0], min(update.lora_A.shape[1], update.lora_B.shape[0]), name.rpartition(".")[2])
             for name, update in updates(model).items() if hasattr(update, "lora_A")}
    for rank, most, name in sorted(ranks):
        if rank > most:
            yield (f"--rank {rank}: an update of {name} has rank {most} at the most, so a larger --rank takes memory "
                   "and changes nothing")

"""How much memory and time a run will take, before it starts; and the micro-batches that fit into --max-memory."""

import dataclasses

from npgpt.commands.running import SAMPLE_TOKENS
from npgpt.runtime.errors import NpgptError
from npgpt.runtime.threads import blas_threads
from npgpt.training import estimate, forecast
from npgpt.training.recompute import set_gradient_checkpointing


def cost(job, held):
    """Return what the rest of the run takes: (estimate.Memory, tokens of the largest micro-batch, seconds).

    held  bytes that the process held before the estimate
    """
    held_out = job.held_out and job.held_out.sequences
    with blas_threads(job.threads):
        batch = estimate.largest_micro_batch(job.training.sequences, job.config)
        memory = estimate.memory(job.model, batch, job.config.threads, held, job.config.accumulate, held_out)
        amounts, typical = forecast.left(
            job.training.sequences, job.config, job.keeping, job.opt.steps,
            measured=int(held_out.lengths.sum()) if held_out else 0, sampled=job.settings["samples"] * SAMPLE_TOKENS,
            before="before" not in job.run.results())
        prices = forecast.tried(job.model, typical, amounts, job.config, held_out, job.run.folder)
    return memory, len(batch.ids), forecast.seconds(amounts, prices)


def fit_into(most, held, model, sequences, config, checkpoint, held_out=None):
    """Choose micro-batches and checkpointing with which training takes at most `most` bytes; the process holds `held`
    of them already. Sets the model's checkpointing. Returns (TrainConfig, bytes, texts in a micro-batch).

    checkpoint  whether blocks are computed again anyway, as --checkpoint asks for
    held_out    the sequences that are measured, data.Sequences; None: there are none
    Raises NpgptError if nothing fits.
    """
    least = None
    for batch_size, batch_tokens, accumulate, checkpointing in estimate.ways(config):
        if checkpointing < checkpoint:
            continue
        set_gradient_checkpointing(model, checkpointing)
        tried = dataclasses.replace(config, batch_size=batch_size, batch_tokens=batch_tokens, accumulate=accumulate)
        batch = estimate.largest_micro_batch(sequences, tried)
        takes = estimate.memory(model, batch, config.threads, held, accumulate, held_out).total
        if takes <= most:
            return tried, takes, len(batch.lengths)
        least = min(takes, least or takes)
    raise NpgptError(f"--max-memory {estimate.spelled(most)}: the least that this training takes is "
                     f"{estimate.spelled(least)}; a shorter --max-length or a smaller model takes less")

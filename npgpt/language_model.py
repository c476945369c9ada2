"""What every language model shares: the loss, the logits, the hidden states of a batch.

A model reads token ids and gives, for each token, the logits of the token that follows. A batch is sequences laid end
to end: every layer works on rows (N, C), N tokens in all, and only attention has to know where one sequence stops and
the next begins. Attention is therefore a function that is passed down, attend(layer, qkv, scale) -> values: training
passes causal attention over the batch's lengths, generation passes one that keeps keys and values in a cache, and each
model is written once.
"""

import dataclasses

import numpy as np

from npgpt import ops
from npgpt.autograd import no_grad
from npgpt.files import checkpoint
from npgpt.nn import Embedding, Module
from npgpt.runtime.errors import ConfigError


class LanguageModel(Module):
    """A subclass sets `config_class`, calls __init__ with a configuration, and has

        wte                                     Embedding, the token table
        hidden(ids, positions, attend, rng)     ids (N,), positions (N,) -> the last hidden states, Tensor (N, C)
        head()                                  the table (V, C) that turns hidden states into logits, a Tensor

    The rest of the package asks a model for these, for the attributes below, and for sizes in its configuration. Beyond
    them, `inspection.inside` and `training.estimate` name parts of GPT-2, and `files.checkpoint` names its tensors.

    config        the configuration; here n_head, attn_pdrop, n_positions and vocab_size are read
    name_or_path  where the weights came from, or None; an adapter names its base by it
    kept_rows     after `resize_token_embeddings`, how many rows of the token table come from the weights; None: all
    run_block     how a block runs; `training.recompute` sets another way
    """

    run_block = staticmethod(lambda block, *inputs: block(*inputs))

    def __init__(self, config):
        self.config, self.name_or_path, self.kept_rows = config, None, None

    def loss(self, batch, rng=None):
        """Mean cross-entropy in nats over the batch's targets, a scalar Tensor. Dropout if and only if rng is given."""
        hidden = self.hidden_states(batch.ids, batch.lengths, rng)
        return ops.cross_entropy(hidden, self.head(), batch.targets)

    def logits(self, ids):
        """ids (T,) or (B, T) -> logits (T, V) or (B, T, V), an array. Keeps no graph; no dropout.

        Raises ConfigError for ids outside the vocabulary and sequences longer than the context.
        """
        ids = np.asarray(ids)
        if ids.ndim not in (1, 2) or ids.size == 0 or ids.dtype.kind not in "iu":
            raise ConfigError(f"ids of shape {ids.shape}, {ids.dtype}: logits takes integers (T,) or (B, T), T >= 1")
        T = ids.shape[-1]
        with no_grad():
            hidden = self.hidden_states(ids.ravel(), np.full(ids.size // T, T))
            logits = hidden.data @ self.head().data.T                       # (N, C) -> (N, V)
        return logits.reshape(*ids.shape, -1)

    def hidden_states(self, ids, lengths, rng=None):
        """Run whole sequences, each from position 0: ids (N,), lengths (B,) -> hidden states, Tensor (N, C)."""
        config = self.config
        self.check_ids(ids, lengths.max())
        starts = np.cumsum(lengths) - lengths
        positions = np.arange(len(ids)) - np.repeat(starts, lengths)

        def attend(_layer, qkv, scale):
            return ops.causal_attention(qkv, lengths, config.n_head, scale, config.attn_pdrop, rng)

        return self.hidden(ids, positions, attend, rng)

    def check_ids(self, ids, longest):
        """Raise ConfigError if an id is outside the vocabulary or a sequence longer than the context."""
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= self.config.vocab_size:
            raise ConfigError(f"token id {low if low < 0 else high} is outside this model's vocabulary of "
                              f"{self.config.vocab_size}; the text was made with another tokenizer")
        if longest > self.config.n_positions:
            raise ConfigError(f"a sequence of {longest} tokens is longer than this model's context of "
                              f"{self.config.n_positions}; shorten or split it")

    def resize_token_embeddings(self, n):
        """Give the token table, and the head if it is a table of its own, n rows: tokens 0 to n - 1. In place.

        Each new row is the mean of the old rows of its table, so a new token is at most as likely as an old one is on
        average (Jensen's inequality), and the model says much the same as before. A smaller n drops the last rows.
        Raises ConfigError for n < 1, and if an adapter changes a table.
        Source    Hewitt 2021, "Initializing New Word Embeddings for Pretrained Language Models".
        """
        if not isinstance(n, int | np.integer) or n < 1:
            raise ConfigError(f"resize_token_embeddings({n!r}): the number of tokens must be whole, and at least 1")
        tables = {name: module for name, module in vars(self).items() if name in ("wte", "lm_head")}
        changed = [name for name, table in tables.items() if type(table) is not Embedding]
        if changed:
            raise ConfigError(f"cannot resize the vocabulary: an adapter changes {' and '.join(sorted(changed))}; "
                              "resize the base before you add an adapter")
        old = self.config.vocab_size
        if n == old:
            return
        for table in tables.values():
            rows = table.weight.data
            mean = rows.mean(axis=0, dtype=np.float64).astype(rows.dtype)
            table.weight.data = np.concatenate([rows[:n], np.broadcast_to(mean, (max(n - old, 0), len(mean)))])
        self.config = dataclasses.replace(self.config, vocab_size=int(n))
        self.kept_rows = min(self.kept_rows or old, int(n))

    @classmethod
    def from_pretrained(cls, name, revision=None, dtype=np.float32, local_files_only=False):
        """Load a model: a hub id ("gpt2"), a folder, or "tiny". See `files.checkpoint.load`."""
        return checkpoint.load(cls, name, revision, dtype, local_files_only)

    def save_pretrained(self, folder):
        """Write config.json and model.safetensors, which transformers loads. See `files.checkpoint.save`."""
        checkpoint.save(self, folder)

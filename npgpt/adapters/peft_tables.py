"""The token table and the head in an adapter's file. They are there if the vocabulary was resized."""

import warnings

import numpy as np

from npgpt.adapters.matching import short_name, whole_names
from npgpt.adapters.tables import OnTable, TiedRows, TrainedRows
from npgpt.adapters.updates import Replacement
from npgpt.files.checkpoint import cast
from npgpt.runtime.errors import FormatError, one_line

TABLES = ("transformer.wte", "lm_head")


def take_tables(path, model, config, made, tensors):
    """Move whole tables from the tensors of an adapter's file to its updates, if they differ from the model's tables.

    path     of the file, for messages
    made     dict whole name -> update, changed in place: a table is put under the update of its module
    tensors  dict name -> [(key, array), ...] of the file, changed in place: "wte.weight", "lm_head.weight" and their
             repetitions are removed

    Raises FormatError if a table has another shape than the model's, or if two that must be equal differ.
    """
    layers, tied = whole_names(model), model.config.tie_word_embeddings
    found = _pop_tables(path, tied, made, tensors)
    foreign = False
    for name, (key, array) in found.items():
        base = layers[name].weight
        if array.shape != base.shape or array.dtype.kind != "f":
            raise FormatError(f"{path}: {key!r} has shape {array.shape}, {array.dtype}, but this model's table has "
                              f"shape {base.shape}{other_vocabulary(model, array.shape, base.shape)}")
        table = cast(f"{path}: {key}", array, base.dtype)
        if not np.array_equal(table, base.data):
            made[name] = OnTable(config, table, made.get(name))
            foreign |= not np.array_equal(table[:model.kept_rows], base.data[:model.kept_rows])
    if foreign:
        text = f"{path} has its own token table, whose rows differ from this model's: was it made for this base?"
        warnings.warn(one_line(text), stacklevel=3)
    if tied:
        _tie(made)


def _pop_tables(path, tied, made, tensors):
    """Remove whole tables from `tensors` and return them: dict whole name -> (key, array). See `take_tables`."""
    found = {}
    for name in TABLES:
        key = f"{short_name(name)}.weight"
        tensors.pop(f"{short_name(name)}.original_module.weight", None)  # the base's table, beside its trained copy
        if key in tensors:
            tensors[key] = [_one(path, tensors[key])]
            if not isinstance(made.get(name), Replacement):
                (found[name],) = tensors.pop(key)
    if tied and found:
        table = _one(path, list(found.values()))
        found = {name: table for name in TABLES if not isinstance(made.get(name), Replacement)}
    if isinstance(made.get("lm_head"), TiedRows):
        rows = [entry for name in TABLES for entry in tensors.pop(f"{short_name(name)}.trainable_tokens_delta", [])]
        if rows:
            tensors["wte.trainable_tokens_delta"] = [_one(path, rows)]
    return found


def with_tables(model, made):
    """Return `made`, dict whole name -> update, with the model's own tables under the updates, so that a file of these
    updates holds the tables."""
    layers, config, made = whole_names(model), next(iter(made.values())).config, dict(made)
    for name in TABLES:
        if not _has_table(made.get(name)):
            made[name] = OnTable(config, layers[name].weight.data, made.get(name))
    if model.config.tie_word_embeddings:
        _tie(made)
    return made


def needs_tables(model, made):
    """Tell whether an adapter of these updates needs new rows that it does not hold.

    It then needs the tables in its file: another program that resizes the base makes other rows.
    """
    new = range(model.kept_rows or model.config.vocab_size, model.config.vocab_size)

    def holds(update):
        return _has_table(update) or isinstance(update, TiedRows) or (
            isinstance(update, TrainedRows) and set(new) <= set(update.indices.tolist()))

    return len(new) > 0 and not all(holds(made.get(name)) for name in TABLES)


def other_vocabulary(model, theirs, ours):
    """Return advice for a message, "; ...", if only the size of the vocabulary is wrong in a shape, and else ""."""
    differing = [(there, here) for there, here in zip(theirs, ours, strict=False) if there != here]
    if len(theirs) != len(ours) or len(differing) != 1 or differing[0][1] != model.config.vocab_size:
        return ""
    rows = differing[0][0]
    if rows > model.config.vocab_size:
        return f"; the adapter was trained after tokens were added: call model.resize_token_embeddings({rows}) first"
    return f"; the adapter is for a vocabulary of {rows}: load it onto the base without added tokens"


def _one(path, entries):
    """Return the first of [(key, array), ...]. Raises FormatError unless all arrays are equal."""
    (key, array), *others = entries
    for other, repeated in others:
        if not np.array_equal(array, repeated):
            raise FormatError(f"{path}: {key!r} and {other!r} mean the same tensor and differ; they must be equal")
    return key, array


def _has_table(update):
    """Tell whether an update holds the whole table."""
    update = update.update if isinstance(update, TiedRows) else update
    return isinstance(update, OnTable | Replacement)


def _tie(made):
    """Let the head follow the token table if both have the same; so they stay one table when they are merged."""
    table, head = (made.get(name) for name in TABLES)
    if (isinstance(table, OnTable) and isinstance(table.inner, TrainedRows | None)
            and isinstance(head, OnTable) and isinstance(head.inner, TiedRows | None)):
        made["lm_head"] = TiedRows(table)

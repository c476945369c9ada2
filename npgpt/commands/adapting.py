"""What a run trains: added tokens, the adapter or all weights, and the optimizer over them."""

import dataclasses
import warnings

import npgpt
from npgpt.adapters import matching
from npgpt.adapters.loraplus import loraplus
from npgpt.adapters.stack import updates
from npgpt.runtime.errors import ConfigError, NpgptError


def add_tokens(model, tokenizer, tokens):
    """Add tokens to the tokenizer, and rows for them to the model. Returns their ids."""
    if not tokens:
        return []
    ids = tokenizer.add_tokens(tokens)
    if not ids:
        raise NpgptError(f"--add-tokens {' '.join(tokens)}: the vocabulary has all of them already; leave the flag out")
    if ids[-1] >= model.config.vocab_size:
        model.resize_token_embeddings(ids[-1] + 1)
    return ids


def check_added_occur(added, sequences, tokenizer):
    """Warn about added tokens that the data do not contain: nothing can be learned about them."""
    missing = sequences.missing(added)
    if missing:
        tokens = ", ".join(repr(tokenizer.token(i)) for i in missing)
        warnings.warn(f"--add-tokens: the data hold no token {tokens}; in --template it is always read as a token, in "
                      "the data only with --special-tokens", stacklevel=2)


def prepare(model, config, added, settings):
    """Make trainable what the run trains. Returns the LoraConfig of the adapter; None if all weights train.

    config  LoraConfig of a new adapter; None: all weights train, or the adapter that --adapter names
    added   ids of tokens that were added; their rows train, unless the adapter updates the whole table anyway
    """
    if settings["full"]:
        try:
            model.set_dropout(settings["dropout"])
        except ConfigError as error:
            raise NpgptError(f"--dropout {settings['dropout']}: it must be a probability in [0, 1)") from error
        return None
    model.set_dropout(0.0)  # the only dropout is before the LoRA update
    if settings["adapter"] is not None:
        npgpt.load_adapter(model, settings["adapter"])
        return next(iter(updates(model).values())).config
    tables = [name for name in matching.tables(model) if name not in matching.match_targets(model, config)]
    if added and tables:
        config = dataclasses.replace(config, trainable_token_indices=dict.fromkeys(tables, added))
    npgpt.add_lora(model, config, seed=settings["seed"])
    return config


def optimizer(model, settings):
    """Return the AdamW over what trains."""
    params = model.trainable_parameters()
    if settings["full"]:
        of_its_kind = {"undecayed": () if settings["decay_all"] else vectors(params)}
    else:
        of_its_kind = {"ratios": loraplus(params, settings["lr_ratio"])}
    return npgpt.AdamW(params, settings["lr"], weight_decay=settings["weight_decay"], **of_its_kind)


def vectors(params):
    """Return the names of the biases and of the weights of norms: all parameters that are no matrix.

    Weight decay keeps matrices from growing; biases and norms need to reach what the data ask for.
    Source    transformers' Trainer leaves out the same (get_decay_parameter_names).
    """
    return [name for name, tensor in params.items() if len(tensor.shape) < 2]

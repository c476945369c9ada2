"""A model's config.json, and which of its keys, and of the configurations beside it, npgpt uses.

A key that changes what transformers computes must not be passed over in silence. So each key of config.json,
generation_config.json and tokenizer_config.json is used, or is known to change nothing here, or is named in a warning.
"""

import dataclasses
import warnings

from npgpt.files import atomic, hub
from npgpt.runtime.errors import ConfigError, FileError, one_line

# Other names for fields of GPT-2's files; transformers' GPT2Config accepts them too.
ALIASES = {"hidden_size": "n_embd", "max_position_embeddings": "n_positions", "num_attention_heads": "n_head",
           "num_hidden_layers": "n_layer"}
UNQUANTISED = "load it with the library that quantised it, and save it dequantised (transformers: model.dequantize())"
# Keys of config.json that are used, besides GPT2Config's fields, and keys that change nothing in a language model:
# notes about the file, what other heads need, how transformers returns results and saves memory.
CONFIG = {
    *ALIASES, "add_cross_attention", "model_type", "quantization_config",
    "_attn_implementation_autoset", "_name_or_path", "_num_labels", "architectures", "attn_implementation", "auto_map",
    "chunk_size_feed_forward", "dtype", "finetuning_task", "gradient_checkpointing", "id2label", "label2id", "n_ctx",
    "num_labels", "output_attentions", "output_hidden_states", "output_past", "pad_token_id", "predict_special_tokens",
    "problem_type", "return_dict", "sep_token_id", "summary_activation", "summary_first_dropout",
    "summary_proj_to_labels", "summary_type", "summary_use_proj", "task_specific_params", "tf_legacy_loss",
    "tokenizer_class", "torch_dtype", "torchscript", "transformers_version", "use_bfloat16", "use_cache",
}  # fmt: skip
# Keys that say how transformers generates by default, with the value that changes nothing; generate has flags for most.
GENERATION = {
    "diversity_penalty": 0.0, "early_stopping": False, "encoder_no_repeat_ngram_size": 0, "length_penalty": 1.0,
    "min_length": 0, "no_repeat_ngram_size": 0, "num_beam_groups": 1, "num_beams": 1, "num_return_sequences": 1,
    "repetition_penalty": 1.0, "temperature": 1.0, "top_k": 50, "top_p": 1.0, "typical_p": 1.0,
}  # fmt: skip
# Keys of generation_config.json that are used or change nothing: a command line always says how much to generate, and
# whether to sample.
GENERATION_CONFIG = {
    "_from_model_config", "bos_token_id", "do_sample", "eos_token_id", "max_length", "max_new_tokens",
    "output_attentions", "output_hidden_states", "output_logits", "output_scores", "pad_token_id",
    "return_dict_in_generate", "transformers_version", "use_cache",
}  # fmt: skip
CONFIG |= GENERATION_CONFIG


def read_config(config_class, name, revision=None, local_files_only=False):
    """Return the configuration of a model without loading its weights. Arguments and errors are those of `load`.

    config_class  GPT2Config
    """
    path = hub.file(name, "config.json", revision=revision, local_files_only=local_files_only)
    if path is None:
        raise FileError(f"{name} has no config.json; a GPT-2 folder has config.json and {hub.WEIGHTS[0]}")
    with hub.reading(name, path.name, revision):
        values = atomic.read_json(path)
    if quantisation := values.get("quantization_config"):
        method = quantisation.get("quant_method") if isinstance(quantisation, dict) else quantisation
        raise ConfigError(f"{path}: quantization_config: the weights are quantised ({method}), and npgpt reads floats; "
                          f"{UNQUANTISED}")
    warn_of_unused(path, values, {field.name for field in dataclasses.fields(config_class)} | CONFIG, GENERATION)
    for alias, field in ALIASES.items():
        if alias in values and values.setdefault(field, values[alias]) != values[alias]:
            raise ConfigError(f"{path}: {field} = {values[field]!r} and {alias} = {values[alias]!r} are two names of "
                              "one field; they must be equal")
    try:
        return config_class.from_dict(values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def warn_of_unused(path, values, known, harmless=None):
    """Warn of the keys in `values` that npgpt does not know: one line that names them with their values.

    known     set of keys
    harmless  dict key -> the value with which it changes nothing; for any other key these are null, false and empty
    """
    unused = [f"{key} = {value!r}" for key, value in sorted(values.items())
              if key not in known and value != (harmless or {}).get(key, False) and value not in (None, "", [], {})]
    if unused:
        warnings.warn(one_line(f"{path}: npgpt does not use {', '.join(unused)}; with transformers the result may be "
                               "another one"), stacklevel=4)

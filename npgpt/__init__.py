"""GPT-2 in pure NumPy, forward and backward, with LoRA.

The files at the top and the folder ops/ are the path: read them in the order in which they stand here. Each folder says
in its own __init__.py what is in it, in which order to read it, and what it may import. A file imports only from files
and folders above it in these lists.

    runtime/     errors, random numbers, threads, memory: what everything stands on
    files/       where models are, and how tensors, models and tokenizers are read and written
    autograd.py  Tensor, the record of operations, backward: knows no operation
    ops/         every differentiable operation: formula, derivation, both directions
    nn.py        layers: parameters and their names
    batch.py     sequences laid end to end, with what each token should predict
    language_model.py  what every model shares, from hidden states to the loss
    gpt2.py      the model, from its configuration to its hidden states
    lora.py      LoRA: A, B, the scale, dropout, add, merge
    optim.py     AdamW, clipping, learning-rate schedules
    adapters/    what an adapter can be beyond plain LoRA, several at once, PEFT's files
    exchange/    files of other programs; merged models
    data/        from files to the batches of each step
    generation/  text from a model
    evaluation/  how good a model is
    inspection/  what a model does with a text, what an adapter is
    checking/    finite differences
    training/    a training run: its steps, its folder, its cost, its report
    commands/    the command lines: npgpt finetune, npgpt generate, ...
    __main__.py  python -m npgpt
    texts/       the texts that the first run learns from
    tiny/        the embedded model

The public names below are imported when they are first used, so that `npgpt --help` starts without NumPy.
"""

__version__ = "0.1.0"

_PUBLIC = {  # module -> its public names
    "adapters.combine": ["add_weighted_adapter"],
    "adapters.lora_config": ["LoraConfig"],
    "adapters.mixed_batch": ["mixed_batch"],
    "adapters.peft": ["load_adapter", "save_adapter"],
    "adapters.stack": ["add_lora", "delete_adapter", "disable_adapter", "merge_lora", "set_adapter"],
    "autograd": ["Tensor", "backward"],
    "batch": ["Batch"],
    "checking.gradcheck": ["gradcheck"],
    "evaluation.evaluate": ["perplexity"],
    "files.tokenizer": ["Tokenizer"],
    "generation.beam": ["beam_search"],
    "generation.generate": ["generate", "generate_batch", "stream"],
    "gpt2": ["GPT2", "GPT2Config"],
    "optim": ["AdamW", "clip_grad_norm"],
    "runtime.errors": ["NpgptError"],
    "training.train": ["train_step"],
}
__all__ = sorted(name for names in _PUBLIC.values() for name in names)


def __getattr__(name):
    """Import a public name, or a module such as npgpt.ops, when it is first used."""
    from importlib import import_module

    for module, names in _PUBLIC.items():
        if name in names:
            globals()[name] = getattr(import_module(f"npgpt.{module}"), name)
            return globals()[name]
    try:
        if not name.startswith("_"):
            return import_module(f"npgpt.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"npgpt.{name}":  # a package that the module needs
            raise
    raise AttributeError(f"module 'npgpt' has no attribute {name!r}")


def __dir__():
    return sorted({*globals(), *__all__})

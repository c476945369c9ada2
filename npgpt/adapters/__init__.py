"""Adapters beyond plain LoRA: what they can be, how several work together, and PEFT's files.

Read the files in this order. A file imports only from files above it.

What an adapter is:

    lora_config.py  LoraConfig: what an adapter changes, in PEFT's words
    expressions.py  regular expressions that come from a file, matched in bounded time
    matching.py     PEFT's rules: which modules a LoraConfig names
    lora_init.py    the values A and B start with, and what each start does to the base weight
    dora.py         the operation of DoRA: a weight split into direction and magnitude
    index_copy.py   the operation that replaces rows of a table
    updates.py      what an adapter can do to one layer: LoRA's variants, DoRA, biases, a trained copy
    tables.py       what an adapter can do to the token table and the head
    loraplus.py     LoRA+: another learning rate for B

Several adapters:

    stack.py        add_lora, set_adapter, merge_lora: the adapters of a model, by name
    mixed_batch.py  one batch, in which each sequence goes through its own adapter
    combine.py      one adapter made of several (PEFT's add_weighted_adapter)

Files:

    peft_config.py  PEFT's adapter_config.json: which fields are used, ignored, refused
    peft_tables.py  the token table and the head in an adapter's file
    peft.py         PEFT's adapter files <-> an adapter
    pretrained.py   a base model with its tokenizer, made ready for adapters that were trained on it

This room may import from the path, `files` and `runtime`.
"""

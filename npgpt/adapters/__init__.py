"""What an adapter can be beyond plain LoRA: where it goes, how it starts, and its variants.

Read in this order; within the folder, a file imports only from files above it:

    lora_config.py  LoraConfig, and PEFT's rules for which modules it means
    lora_init.py    the values A and B start with, and what each start does to the base weight
    updates.py      what one adapter does to one layer: LoRA, DoRA, biases, a trained copy
    tables.py       what an adapter does to the token table and to the head
    combine.py      one adapter made of several (PEFT's add_weighted_adapter)

May import from the path (`autograd` to `lora`) and from `runtime`.
"""

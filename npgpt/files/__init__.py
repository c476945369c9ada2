"""Where models are, and how models, tokenizers and adapters are read and written.

Read in this order; within the folder, a file imports only from files above it:

    atomic.py          files and folders that are written whole or not at all; JSON
    names.py           the names of parameters in other programs' files
    hub.py             finding a model: in this package, in a folder, in Hugging Face's cache, on the hub
    safetensors.py     the safetensors format
    pickles.py         reading pickles without running them
    torchfile.py       reading PyTorch's own format without torch
    tokenizer.py       text to ids and back
    checkpoint.py      Hugging Face's files <-> GPT2
    vocabulary.py      new tokens: their rows in a model, and the tables that an adapter then saves
    adapter_config.py  PEFT's adapter_config.json: which fields are used, ignored and refused
    adapter.py         PEFT's adapter files <-> an adapter
    pretrained.py      a base model and its tokenizer, prepared for the adapters that were trained on it
    loralib.py         loralib's checkpoints -> PEFT's adapter files
    mlx.py             MLX's adapter folders -> PEFT's adapter files
    nanogpt.py         nanoGPT's and minGPT's checkpoints -> a model folder
    merge.py           a model with adapters -> a folder of plain weights, with a certificate
    gguf.py            GPT2 -> a GGUF file for llama.cpp

This folder may import from the path, `adapters` and `runtime`.
"""

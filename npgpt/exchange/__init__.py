"""Files of other programs, and plain models made of a model with adapters.

Read the files in this order. A file imports only from files above it:

    loralib.py  loralib's checkpoints -> PEFT's adapter files
    mlx.py      MLX's adapter folders -> PEFT's adapter files
    nanogpt.py  nanoGPT's and minGPT's checkpoints -> a model folder
    merge.py    a model with adapters -> a folder of plain weights, with a certificate
    gguf.py     a model -> a GGUF file for llama.cpp

This room may import from the path, `adapters`, `files` and `runtime`.
"""

"""Where models are found, and how tensors, models and tokenizers are read and written.

Read in this order; within the folder, a file imports only from files above it:

    atomic.py       files and folders that are written whole or not at all; JSON
    names.py        the names of parameters in other programs' files
    hub.py          finding a model: in this package, in a folder, in Hugging Face's cache, on the hub
    safetensors.py  the safetensors format
    pickles.py      pickles, read without running what is in them
    torchfile.py    PyTorch's own format, read without torch
    tokenizer.py    text to ids and back
    checkpoint.py   Hugging Face's files <-> a model

May import from `runtime`.
"""

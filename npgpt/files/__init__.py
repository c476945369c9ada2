"""Where models are, and how tensors, models and tokenizers are read and written.

Read the files in this order. A file imports only from files above it:

    content.py      the bytes of a file, mapped if the file system can, and Git LFS's pointers
    atomic.py       files and folders that are written whole or not at all; JSON
    lock.py         a lock on a folder
    names.py        the names of parameters in other programs' files
    hub.py          finding a model: in this package, in a folder, in Hugging Face's cache, on the hub
    safetensors.py  the safetensors format
    pickles.py      reading pickles without running them
    torchfile.py    reading PyTorch's own format without torch
    model_config.py  config.json, and which keys of the configurations are used
    tokenizer_files.py  all files of a tokenizer, and the errors of the library `tokenizers`
    tokenizer.py    text to ids and back
    characters.py   tokens as text, if several tokens make one character
    checkpoint.py   Hugging Face's files <-> a model

This room may import from `runtime`.
"""

"""The base that everything else uses: errors, random numbers, threads and memory. Nothing here knows a model.

Read the files in this order. A file imports only from files above it:

    errors.py     the exceptions; each message is one line for people
    checks.py     rules for the fields of a configuration
    figures.py    numbers as text
    encodings.py  how a text file is encoded
    seeding.py    random generators, each made from a seed and the name of its purpose
    cores.py      how many processors this process may use
    threads.py    how many threads work, and the workers that share one job
    shares.py     how an operation cuts its arithmetic into shares for those workers
    tiles.py      how attention cuts its sequences and heads into tiles for them
    erf.py        the error function
    memory.py     how much memory the process holds, and how to keep freed memory for the next step
    machine.py    the processor, the libraries and the versions that made a result

This room imports nothing else of npgpt. You can read the path without it: `shares.product(a, b)` is a @ b, and
`threads.spread` calls a function once for each share of the work.
"""

"""Text from a model.

Read in this order; within the folder, a file imports only from files above it:

    warpers.py   the rules that change the scores of the next token
    sampling.py  the settings, the order of the rules, and the draw
    decoding.py  the logits of the next token, with the key/value cache
    generate.py  one token after another, for one prompt or many, whole or piece by piece
    beam.py      beam search

May import from the path and from `runtime`.
"""

"""How a model writes text: one token after another.

Read the files in this order. A file imports only from files above it:

    warpers.py   the rules that change the scores of the next token
    sampling.py  the settings, the order of the rules, and the draw
    decoding.py  the logits of the next token, with the key/value cache
    generate.py  text for one prompt or many, all at once or piece by piece
    beam.py      beam search

This room may import from the path and from `runtime`.
"""

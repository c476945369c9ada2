"""Proof that the derivatives are right: finite differences.

Read in this order; within the folder, a file imports only from files above it:

    gradcheck.py  a gradient against finite differences: npgpt's own, or any function's
    gradcases.py  the cases: every operation over awkward shapes, and whole small models

May import from the path, `adapters` and `runtime`.
"""

"""Proof that the derivatives are right, by finite differences.

Read the files in this order. A file imports only from files above it:

    gradcheck.py  compares a gradient with finite differences, for npgpt's operations or any function
    gradcases.py  the cases: every operation with unusual shapes, and whole small models

This room may import from the path, `adapters` and `runtime`.
"""

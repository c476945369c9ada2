"""A training run: its steps, its folder, its cost and its report.

Read the files in this order. A file imports only from files above it:

    recompute.py  gradient checkpointing: a block runs again in the backward pass
    train.py      one step, and the loop of steps
    fit.py        a whole run: it measures, logs, saves, and can stop early
    run.py        the folder of a run, and how a run resumes from it
    estimate.py   an estimate of the memory, before training starts
    forecast.py   a forecast of the time, before training starts
    report.py     report.html: the results of the run on one page

This room may import from the path and from all other rooms.
"""

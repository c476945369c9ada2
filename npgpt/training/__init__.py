"""A training run: its steps, its folder, its cost and its report.

Read in this order; within the folder, a file imports only from files above it:

    recompute.py  gradient checkpointing: blocks that run again in the backward pass
    train.py      one step, and the loop of steps
    fit.py        a whole run: measured, logged, saved, ended early where that is asked
    run.py        the run's folder, and what is needed to go on from it
    estimate.py   the memory that training takes, before it starts
    forecast.py   the time that a run takes, before it starts
    report.py     report.html: what the run did, on one page

May import from the path and from all other rooms.
"""

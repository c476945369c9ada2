"""Looking inside: what a model does with a text, what an adapter is, and the pages that show it.

Read in this order; within the folder, a file imports only from files above it:

    html.py         pages that are one file: text, tables and charts
    inside.py       losses, ranks, attention, hidden states and the logit lens of one text
    inside_page.py  the page about one text; `inside.js` is the script in it
    spectrum.py     the singular values of a low-rank update
    anatomy.py      how large an adapter's updates are, in which directions, and what can go wrong

May import from the path, `adapters`, `files` and `runtime`.
"""

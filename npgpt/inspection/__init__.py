"""Looking inside: what a model does with a text, what an adapter contains, and the pages that show it.

Read the files in this order. A file imports only from files above it:

    html.py         pages that are a single file: text, tables, tinted cells
    charts.py       charts of lines for these pages
    inside.py       losses, ranks, attention, hidden states and the logit lens of one text
    inside_page.py  the page about one text; `inside.js` is its script
    spectrum.py     the singular values of a low-rank update
    anatomy.py      an adapter's updates: their size, their directions, and possible problems

This room may import from the path, `adapters`, `files` and `runtime`.
"""

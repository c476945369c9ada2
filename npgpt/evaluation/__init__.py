"""How good a model is: perplexity, questions, generated text, and how certain these numbers are.

Read the files in this order. A file imports only from files above it:

    evaluate.py   the loss of each token, and perplexity by named protocols
    wikitext.py   WikiText: its pages, and its text without tokenisation marks
    items.py      what the metrics of generated text share: words, n-grams, scores from sums
    mteval.py     BLEU and NIST
    coco.py       ROUGE-L and CIDEr
    metrics.py    exact match, and the table of the metrics above
    bootstrap.py  intervals and a paired test, by resampling the items
    tasks.py      a task: the items that a model is asked, and the measures of its answers
    records.py    the file of answers, from which an interrupted evaluation goes on
    pairs.py      a context and its continuation as ids
    questions.py  LAMBADA, multiple choice, labels, and free answers
    harness.py    npgpt as a model in EleutherAI's lm-evaluation-harness

This room may import from the path, `files`, `data`, `generation` and `runtime`.
"""

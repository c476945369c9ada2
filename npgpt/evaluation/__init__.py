"""How good a model is: perplexity, questions, generated text, and how sure one can be of the numbers.

Read in this order; within the folder, a file imports only from files above it:

    evaluate.py   the loss of each token, and perplexity by named protocols
    wikitext.py   WikiText: its pages, and its text without tokenisation marks
    metrics.py    BLEU, NIST, ROUGE-L, CIDEr and exact match
    bootstrap.py  intervals and a paired test, by resampling the items
    tasks.py      tasks: what a model is asked, and the measures made of its answers
    records.py    the file of answers, with which an evaluation goes on where it stopped
    questions.py  LAMBADA, multiple choice, labels, and answers in the model's own words
    harness.py    npgpt as a model in EleutherAI's lm-evaluation-harness

May import from the path, `files`, `data`, `generation` and `runtime`.
"""

"""WikiText as it is evaluated: its pages, and its text without the marks of its tokenisation.

The file has words apart by spaces, numbers as "1 @,@ 000", and a page's title as " = Title = ". Use the raw variant
(wiki.test.raw, no <unk>) for GPT-2, which has a token for everything.
"""

import re

# In this order. Source: wikitext_detokenizer of Megatron-LM and lm-evaluation-harness, by which published numbers were
# made. The second is as published, though it can hardly have been meant.
_RULES = [(re.compile(pattern), replacement) for pattern, replacement in (
    (r"s '", "s'"), (r"/' [0-9]/", "/'[0-9]/"),
    (r" @-@ ", "-"), (r" @,@ ", ","), (r" @\.@ ", "."),
    (r" : ", ": "), (r" ; ", "; "), (r" \. ", ". "), (r" ! ", "! "), (r" \? ", "? "), (r" , ", ", "),
    (r"\(\s*([^\)]*?)\s*\)", r"(\1)"), (r"\[\s*([^\]]*?)\s*\]", r"[\1]"), (r"{\s*([^}]*?)\s*}", r"{\1}"),
    (r'"\s*([^"]*?)\s*"', r'"\1"'), (r"'\s*([^']*?)\s*'", r"'\1'"),
    (r"= = = =", "===="), (r"= = =", "==="), (r"= =", "=="),
    (r" ° ", "°"), (r" \n", "\n"), (r"\n ", "\n"), (r" N ", " 1 "), (r" 's", "'s"),
)]  # fmt: skip


def detokenise(page):
    """Return the page as it was before WikiText was tokenised, as nearly as published numbers have it."""
    for pattern, replacement in _RULES:
        page = pattern.sub(replacement, page)
    return page


def pages(text):
    """Cut the text of a WikiText file at its titles, " = Title = ": a list of str, each with its title.

    Source    lm-evaluation-harness, whose data set wikitext_document_level is cut so.
    """
    found, page = [], []
    for line in text.split("\n"):
        if _is_title(line.strip()) and page:
            found.append("\n".join(page))
            page = []
        page.append(line)
    found.append("\n".join(page))
    return found if found[0].strip() else found[1:]


def _is_title(line):
    return line.startswith("= ") and line.endswith(" =") and not line.startswith("= = ")


def joined(text):
    """Return the text as Hugging Face's documentation joins the lines of the data set wikitext: each line keeps its
    end, a blank one is empty, and "\\n\\n" stands between two."""
    lines = text.split("\n")
    return "\n\n".join(line + "\n" if line.strip() else "" for line in lines[:-1] + lines[-1:] * bool(lines[-1]))


def words(text):
    """How many words a text has, as lm-evaluation-harness counts: pieces between runs of white space, with those,
    empty, before the first run and after the last."""
    return len(re.split(r"\s+", text))

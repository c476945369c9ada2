"""WikiText as it is evaluated: its pages, and its text without the marks of its tokenisation.

In the file, spaces separate all words and punctuation, a number is written "1 @,@ 000", and the title of a page is
" = Title = ". For GPT-2, which has a token for everything, use the raw variant (wiki.test.raw, without <unk>).
"""

import re

# They apply in this order. Source: wikitext_detokenizer of Megatron-LM and lm-evaluation-harness, which the published
# numbers come from; a copy, because neither package can be a dependency. The second rule looks wrong, but is published.
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
    """Undo WikiText's tokenisation of a page, in the same approximate way as the published numbers."""
    for pattern, replacement in _RULES:
        page = pattern.sub(replacement, page)
    return page


def pages(text):
    """Cut the text of a WikiText file before each title, " = Title = ". Returns a list of str, each with its title.

    Source    the data set wikitext_document_level of lm-evaluation-harness has the same pages.
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
    """Join the lines as Hugging Face's documentation joins the data set wikitext.

    A line keeps its newline, a blank line becomes empty, and "\\n\\n" stands between two lines.
    """
    lines = text.split("\n")
    return "\n\n".join(line + "\n" if line.strip() else "" for line in lines[:-1] + lines[-1:] * bool(lines[-1]))


def words(text):
    """Count the words of a text as lm-evaluation-harness does.

    It counts the pieces between runs of white space. White space at the start or the end adds an empty piece.
    """
    return len(re.split(r"\s+", text))

"""A sequence as lines of text to look at: token by token, with the learned tokens marked."""

from npgpt.files.characters import labels
from npgpt.runtime.errors import printable

BOUND = "\N{BOX DRAWINGS LIGHT VERTICAL}"
GREEN, DIM, PLAIN = "\33[32m", "\33[2m", "\33[0m"


def preview(ids, loss_mask, tokenizer, width=100, colour=False):
    """Return a sequence as lines of text of at most `width` characters (more if one token is longer).

    ids, loss_mask  (T,), one of `Sequences` and its mask
    width           of the terminal; a line also ends where a line of the text ends
    colour          True: learned tokens are green and the others dim, for a terminal with colours

    A learned token is in brackets, [ the]. A vertical line separates two tokens that are not learned. Invisible
    characters are written as in Python: \\n for a new line. If several tokens make one character, the first shows it,
    and the others are a small triangle (`npgpt.files.characters`).
    """
    learned = [False, *(bool(mark) for mark in loss_mask[1:])]  # nothing predicts the first token
    lines, line, room = [], "", width
    for i, label in enumerate(labels(tokenizer, ids)):
        text = printable(label.running)
        shown = f"[{text}]" if learned[i] else text + BOUND * (i + 1 < len(ids) and not learned[i + 1])
        if line and len(shown) > room:
            lines.append(line)
            line, room = "", width
        line += f"{GREEN if learned[i] else DIM}{shown}{PLAIN}" if colour else shown
        room -= len(shown)
        if label.text.endswith("\n"):
            lines.append(line)
            line, room = "", width
    return lines + ([line] if line else [])


"""Sequences to look at: token by token, those that are learned marked."""

from npgpt.runtime.errors import printable

BOUND = "\N{BOX DRAWINGS LIGHT VERTICAL}"
GREEN, DIM, PLAIN = "\33[32m", "\33[2m", "\33[0m"


def preview(ids, loss_mask, tokenizer, width=100, colour=False):
    """Return a sequence as lines of text of at most `width` characters, where its tokens let it.

    ids, loss_mask  (T,), one of `Sequences` and its mask
    width           of the terminal; a line also ends where the text's lines do
    colour          for a terminal that shows it: what is learned is green, the rest dim

    A token that is learned stands in brackets, [ the]; between those that are not is a line. What could not be seen is
    written as in Python, \\n for a new line, and \\xe2 for a byte where a token is but a part of a character.
    """
    learned = [False, *(bool(mark) for mark in loss_mask[1:])]  # the first is predicted from nothing
    lines, line, room = [], "", width
    for i, token in enumerate(map(tokenizer.token, ids.tolist())):
        text = printable(token)
        shown = f"[{text}]" if learned[i] else text + BOUND * (i + 1 < len(ids) and not learned[i + 1])
        if line and len(shown) > room:
            lines.append(line)
            line, room = "", width
        line += f"{GREEN if learned[i] else DIM}{shown}{PLAIN}" if colour else shown
        room -= len(shown)
        if token.endswith("\n"):
            lines.append(line)
            line, room = "", width
    return lines + ([line] if line else [])


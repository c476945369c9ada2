"""Tokens as text, if several tokens make one character.

A token of GPT-2 is a run of bytes. A character outside ASCII has two to four bytes, so it may need several tokens, and
none of these is text by itself.
"""

from typing import NamedTuple

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # what `Tokenizer.decode` returns for bytes that are not text
LONGEST = 16  # tokens that make text together
GOES_ON = "\N{BLACK LEFT-POINTING SMALL TRIANGLE}"


class Label(NamedTuple):
    """text: of `parts` tokens together; part: the place of this token among them, from 1 on."""

    text: str
    part: int = 1
    parts: int = 1

    @property
    def running(self):
        """The label within its text: the first token shows all, the others show GOES_ON."""
        return self.text if self.part == 1 else GOES_ON

    @property
    def alone(self):
        """The label outside its text."""
        return self.text if self.parts == 1 else f"{self.text} ({self.part} of {self.parts})"


def labels(tokenizer, ids):
    """Return a Label for each of `ids`.

    A token that is no text, neither alone nor with the tokens after it, is written as bytes, \\xf0\\x9f. An id without
    a token is written as [id]: a model's head may have more rows than its tokenizer has tokens.
    """
    ids, found = [int(i) for i in ids], []
    while len(found) < len(ids):
        start = len(found)
        for end in range(start + 1, min(start + LONGEST, len(ids)) + 1):
            text = _text(tokenizer, ids[start:end])
            if text is not None:
                found += [Label(text, part, end - start) for part in range(1, end - start + 1)]
                break
        else:
            found.append(Label(_alone(tokenizer, ids[start])))
    return found


def completed(tokenizer, before, i):
    """Return token `i` as text after the tokens `before`. If it completes a character, this is the character."""
    ids = [*map(int, before[-LONGEST + 1:]), int(i)]
    suffixes = (ids[start:] for start in range(len(ids) - 1, -1, -1))
    return next((text for suffix in suffixes if (text := _text(tokenizer, suffix)) is not None), _alone(tokenizer, i))


def _text(tokenizer, ids):
    """Return the text of `ids`, or None if they are not whole characters."""
    if max(ids) >= tokenizer.vocab_size:
        return None
    text = tokenizer.decode(ids)
    return None if REPLACEMENT in text else text


def _alone(tokenizer, i):
    return tokenizer.token(int(i)) if i < tokenizer.vocab_size else f"[{i}]"

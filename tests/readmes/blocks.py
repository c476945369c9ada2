"""What a README says: its fenced blocks, the commands in them, and whether a printed line is the line it promises.

The first line of a block says what the tests do with it:

    ```console          A line that begins with "$ " is a command, and is run. The lines below it are what it prints:
                        all of it, where "..." alone in a line stands for any lines. No lines: anything may be printed.
    ```console no-run   The commands need gpt2, the network, other packages, or minutes. They are only parsed.
    ```python           Run, with the names of the blocks of Python above it.
    ```python no-run    Only compiled.
    ```output           What the block of Python above it prints.
    ```text, ```toml    Neither a command nor Python.

A comment above a console block, such as `<!-- varies: before, after -->`, names the first words of lines in which a
model wrote text. Such lines are compared up to these words: another processor rounds otherwise, and the text changes.
"""

import re
import shlex
from typing import NamedTuple

KINDS = "console", "console no-run", "python", "python no-run", "output", "text", "toml"
FENCE = re.compile(r"^```(.*)\n((?:.*\n)*?)^```$", re.MULTILINE)
VARIES = re.compile(r"<!-- varies: (.*?) -->\s*\Z")
NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")
# What must be there and may be any: speeds, durations, clock times, dates, lengths of bars, white space, and the way in
# which npgpt was started.
ANY = [(re.compile(pattern), word) for pattern, word in [
    (r"\b[\d,.]+ ?(?:steps?/s|s/step|tokens/s)", "<speed>"), (r"\b[\d,.]+ (?:s|min|h)\b", "<duration>"),
    (r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d(-\d+)?", "<date>"), (r"\d+:\d\d(:\d\d)?", "<clock>"), (r"#+", "#"), (r"\s+", " "),
    (r"python -m npgpt", "npgpt")]]

# How far a printed number may be from the one in a README. Counts must be equal. With other kernels of BLAS, training
# ends in slightly other weights, so losses and norms differ too. Files hold paths and versions, so sizes differ.
RELATIVE = 0.05  # of a number with a decimal point, or a unit of its last digit; of all numbers in a line with ±
SIZE = 0.2  # of a number of kB, MB or GB
ERROR = 100  # the factor by which a number with an exponent may be larger: it is a rounding error


class Block(NamedTuple):
    line: int
    kind: str
    text: str
    varies: tuple[str, ...]


class Command(NamedTuple):
    line: int
    words: list[str]
    printed: list[str]
    varies: tuple[str, ...]


def blocks(markdown):
    """Return the fenced blocks of a text, in order: list of Block."""
    found = []
    for match in FENCE.finditer(markdown):
        varies = VARIES.search(markdown[:match.start()])
        found.append(Block(markdown.count("\n", 0, match.start()) + 1, match[1], match[2],
                           tuple(varies[1].split(", ")) if varies else ()))
    return found


def commands(block):
    """Return the commands of a console block, in order: list of Command; one for each part of `one && other`."""
    found, lines = [], block.text.splitlines()
    for number, line in enumerate(lines, block.line + 1):
        if line.startswith("$ "):
            for part in line[2:].split(" && "):
                found.append(Command(number, shlex.split(part, comments=True), [], block.varies))
        elif found:
            found[-1].printed.append(line)
        else:
            raise ValueError(f"line {number}: the block does not begin with a command")
    return found


def difference(promised, printed, varies=()):
    """Return the first line of `promised` that `printed` has not in its place, or None. Both are lists of lines."""
    promised, printed = list(promised), list(printed)
    while promised:
        line = promised.pop(0)
        if line.strip() == "...":
            while printed and not (promised and same_line(promised[0], printed[0], varies)):
                printed.pop(0)
        elif not printed or not same_line(line, printed.pop(0), varies):
            return line
    return printed[0] if printed else None


def same_line(promised, printed, varies=()):
    """Tell whether a printed line is the promised one: the same words, and numbers that are near enough."""
    for word in varies:
        if promised.split()[:len(word.split())] == word.split():
            return printed.split()[:len(word.split())] == word.split()
    promised, printed = plain(promised), plain(printed)
    words, numbers = NUMBER.split(promised), zip(NUMBER.findall(promised), NUMBER.findall(printed), strict=False)
    return words == NUMBER.split(printed) and all(
        near(one, other, behind, "±" in promised) for (one, other), behind in zip(numbers, words[1:], strict=True))


def plain(line):
    """The line with one word for each thing that may be any."""
    for pattern, word in ANY:
        line = pattern.sub(word, line)
    return line.strip()


def near(promised, printed, behind, about):
    """Tell whether a printed number is near enough to the promised one; `behind` is the text that follows it."""
    one, other = float(promised.replace(",", "")), float(printed.replace(",", ""))
    unit = 1.01 * 10.0 ** -len(promised.partition(".")[2])
    if re.match(r" ?[kMG]B\b", behind):
        return abs(one - other) <= max(SIZE * abs(one), unit)
    if "e" in promised + printed:
        return abs(other) <= ERROR * abs(one)
    if "." in promised or about:
        return abs(one - other) <= max(RELATIVE * abs(one), unit)
    return one == other

"""English text that is on every machine with Python: the documentation inside the standard library and NumPy.

`documents()` returns it as a list of short texts, one a docstring or help topic, each paragraph on one line. Nothing is
downloaded, and the same Python and NumPy give the same list. Run this file to print its size and a sample.
"""

if __name__ == "__main__":
    from npgpt.commands import start  # before the imports that take time: it handles Ctrl-C during them

    start.begin()

import ast
import importlib
import inspect
import pydoc_data.topics
import re
import sys
import sysconfig
import warnings
from pathlib import Path

import numpy

from npgpt.commands import cli

SKIPPED_FOLDERS = {"test", "tests", "idle_test", "idlelib", "lib2to3", "turtledemo", "encodings", "site-packages"}
# Functions written in C have no source to parse: these modules are imported and their objects asked.
NUMPY_C_MODULES = ["numpy", "numpy.linalg", "numpy.random", "numpy.random.bit_generator", "numpy.char"]
# Sections of NumPy docstrings that hold names and numbers rather than sentences.
DROPPED_SECTIONS = {"see also", "references", "methods"}
PROSE_DIRECTIVES = {"note", "warning", "tip", "important", "caution", "attention", "hint", "admonition"}

LIST_ITEM = re.compile(r"(?:[-*+o\u2022]|\(?\w[.)]|\d\d[.)])\s+(?=\S)")
UNDERLINE = re.compile(r"([-=~*^+#\"'.])\1{2,}$")
TYPOGRAPHY = str.maketrans({
    "\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2013": "-", "\u2014": "-", "\u2026": "...",
})  # fmt: skip
MARKUP = [
    (re.compile(r":[a-z:]+:`~?([^`<]*?)\s*(?:<[^`]*>)?`"), r"\1"),  # :func:`name`, :ref:`text <label>`
    (re.compile(r"`(\w[^`']*)'"), r"'\1'"),  # the old `quotes'
    (re.compile(r"\\(?=\W)"), ""),
    (re.compile(r"`+~?([^`<]*?)\s*(?:<[^`]*>)?`+_*"), r"\1"),  # `name`, ``code``, `text <link>`_
    (re.compile(r"\*\*(\w[^*]*)\*\*"), r"\1"),
    (re.compile(r"(?<![\w*])\*(\w(?:[^*]*\w)?)\*(?![\w*])"), r"\1"),
    (re.compile(r" ?\[\w+\]_"), ""),  # a citation, [1]_
    (re.compile(r"\s+"), " "),
]
# A word in plain letters, perhaps hyphenated, in quotes or brackets, or with a comma or the like behind it.
PLAIN_WORD = re.compile(r"[\"'(]?[A-Za-z]+(?:[-'][a-z]+)*[\"')]?[.,;:!?]*")
SENTENCE_END = re.compile(r"[.!?:][)\"']*$")
UNFINISHED = re.compile(r"\b(then|by|is|are|as|of|and|the|where|to|with|if|when|for|or)$")
NOT_PROSE = re.compile(
    r"https?:|www\.|\S@\S+\.\w|->|::|>>>|---|===|[{}<>|\\^$~]{2}|\\[A-Za-z]{3}|\||Copyright|XXX|TODO"
    r"|^(Changed|New|Added|Deprecated|Since) (in|since)"
)


def source_docstrings(root):
    """Yield the docstrings below `root` (a folder or one .py file), in order of file name and then of position."""
    for path in sorted(root.rglob("*.py")) if root.is_dir() else [root]:
        if SKIPPED_FOLDERS.isdisjoint(path.relative_to(root.parent).parts):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # old escapes in other people's strings
                tree = ast.parse(path.read_bytes())
            for node in ast.walk(tree):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                    yield ast.get_docstring(node)


def live_docstrings(module_name):
    """Yield the docstrings of a module's objects, and of the members of its classes, in order of name."""
    for _, value in sorted(vars(importlib.import_module(module_name)).items()):
        yield getattr(value, "__doc__", None)
        if inspect.isclass(value):
            for _, member in sorted(vars(value).items()):
                yield getattr(member, "__doc__", None)


def raw_documents():
    """Yield every help topic and docstring as it stands; some are None, and many come more than once."""
    for _, topic in sorted(pydoc_data.topics.topics.items()):
        yield topic
    library = Path(sysconfig.get_paths()["stdlib"])
    for name in sorted(sys.stdlib_module_names - SKIPPED_FOLDERS):
        for path in (library / name, library / f"{name}.py"):
            if path.exists():
                yield from source_docstrings(path)
    for name in sorted(sys.builtin_module_names):
        yield from live_docstrings(name)
    yield from source_docstrings(Path(numpy.__file__).parent)
    for name in NUMPY_C_MODULES:
        yield from live_docstrings(name)


def blocks(text):
    """Yield the blocks of a docstring as (depth, is_item, text): lines of one indentation, or one item of a list.

    Dropped on the way: section headings and whole DROPPED_SECTIONS, examples up to the blank line that ends them,
    directives other than PROSE_DIRECTIVES, and what is indented under them or under a line that ends in "::".
    """
    lines = [line.rstrip() for line in inspect.cleandoc(text).expandtabs().split("\n")]
    lines.append("")  # ends the last block
    block, depth, is_item = [], 0, False
    hidden_below = None  # lines deeper than this belong to something dropped
    in_example = in_dropped_section = False
    for number, raw in enumerate(lines):
        line, here = raw.strip(), len(raw) - len(raw.lstrip())
        following = lines[number + 1].strip() if number + 1 < len(lines) else ""
        heading = line and UNDERLINE.match(following)
        underline = UNDERLINE.match(line)
        item = LIST_ITEM.match(line)
        # The second line of an item, or of a long first line, may be set deeper and still go on with it.
        hanging = len(block) == 1 and here > depth and (is_item or re.match(r"(?!.* : ).{40,}[^.:]$", block[0]))
        if block and (not line or heading or underline or item or (here != depth and not hanging)):
            yield depth, is_item, " ".join(block)
            block = []
        elif hanging:
            depth = here
        if heading:
            in_dropped_section = line.lower() in DROPPED_SECTIONS
        in_example = bool(line) and (in_example or line.startswith(">>>"))
        if line and hidden_below is not None and here <= hidden_below:
            hidden_below = None
        if not line or heading or underline or in_example or in_dropped_section or hidden_below is not None:
            continue
        directive = re.match(r"\.\. *(?:([\w-]+)::)?", line)
        if directive and directive[1] not in PROSE_DIRECTIVES:
            hidden_below = here
        elif not directive:
            if not block:
                depth, is_item = here, bool(item)
                line = LIST_ITEM.sub("", line, count=1) if item else line
            if line.endswith("::"):
                line, hidden_below = line[:-1], here
            block.append(line)


def prose(text, first, is_item):
    """Return a block as a clean paragraph, or "" if it is not made of sentences.

    first, is_item    whether the block opens its document, and whether it is an item of a list; both are often written
                      without a capital and a full stop, which are supplied
    """
    text = text.translate(TYPOGRAPHY)
    for pattern, replacement in MARKUP:
        text = pattern.sub(replacement, text)
    text = text.strip()
    if re.match(r"[a-z]+,? [a-z]+ ", text) and (first or is_item or text.endswith(".")):
        text = text[0].upper() + text[1:]
    if is_item:
        text = re.sub(r"[;,]( and| or)?$", ".", text)
    if re.match(r"[A-Z1-9].*[\w)'\"\]]$", text) and not SENTENCE_END.search(text) and not UNFINISHED.search(text):
        text += "."
    words = text.split()
    good = (
        len(words) >= 4
        and sum(bool(PLAIN_WORD.fullmatch(word)) for word in words) >= 0.7 * len(words)
        and text.isascii()
        and re.match(r"[A-Z1-9\"'(]", text)
        and SENTENCE_END.search(text)
        and not NOT_PROSE.search(text)
    )
    return text if good else ""


def clean(text, seen):
    """Return a docstring's paragraphs as lines of prose, without those whose letters are already in the set `seen`."""
    kept = []
    for depth, is_item, block in blocks(text):
        paragraph = prose(block, not kept and depth == 0, is_item)
        letters = re.sub("[^a-z]", "", paragraph.lower())
        if letters and letters not in seen:
            seen.add(letters)
            kept.append((paragraph, is_item))
    lines = []
    for i, (paragraph, _) in enumerate(kept):
        list_follows = i + 1 < len(kept) and kept[i + 1][1]
        if paragraph.endswith(":") and not list_follows:  # its last sentence announced something that was dropped
            paragraph = paragraph[: max(paragraph.rfind(end) for end in (". ", "? ", "! ")) + 1]
        lines.append(paragraph)
    return "\n".join(filter(None, lines))


def documents():
    """Return the documents, cleaned, each paragraph of the whole collection once."""
    seen = set()
    unique = dict.fromkeys(filter(lambda text: isinstance(text, str), raw_documents()))
    return [text for text in (clean(raw, seen) for raw in unique) if text]


def main():
    found = documents()
    print(f"{len(found):,} documents, {sum(map(len, found)):,} characters")
    print("\n\n".join(found[:: len(found) // 20]))


if __name__ == "__main__":
    sys.exit(cli.run(main))

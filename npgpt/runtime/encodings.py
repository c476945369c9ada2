"""How a text file is encoded: UTF-8, or what the byte order mark at its start says."""

import codecs

# A mark of UTF-32 begins like one of UTF-16, so it comes first.
MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF32_LE, "utf-32-le"), (codecs.BOM_UTF32_BE, "utf-32-be"),
         (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
LONGEST_MARK = 4  # bytes


def encoding(start):
    """Return (name of the encoding, number of bytes of the mark) of a file with the bytes `start` at its start."""
    return next(((name, len(mark)) for mark, name in MARKS if start.startswith(mark)), ("utf-8", 0))


def decoded(raw):
    """Return the bytes of a text file as text, without a mark. Raises UnicodeDecodeError."""
    name, mark = encoding(raw)
    return raw[mark:].decode(name)

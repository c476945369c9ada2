"""Which files a path stands for, who reads each, and which of a folder's are for training."""

import re
from pathlib import Path

from npgpt.data.parquet import read_parquet
from npgpt.data.readers import SPLITS, read_csv, read_json, read_jsonl, read_text
from npgpt.runtime.errors import ConfigError, FileError, FormatError

READERS = {".txt": read_text, ".jsonl": read_jsonl, ".ndjson": read_jsonl, ".json": read_json, ".csv": read_csv,
           ".parquet": read_parquet}
ALSO_TEXT = ("", ".text", ".md", ".raw", ".tokens")  # as a single file; in a folder they are not what is meant
ADVICE = {
    "save the table as .csv": ".tsv .tab .xls .xlsx .ods",
    "unpack it, and name what is in it": ".gz .zip .bz2 .xz .zst .tar .tgz .7z .rar",
    "save the text in it as .txt": ".pdf .doc .docx .odt .rtf .epub .html .htm",
    "save it as .parquet": ".arrow .feather",
}
# Words in the name of a file, or of a folder it lies in, by which `datasets` knows its split.
SPLIT_WORDS = {"train": "train", "training": "train",
               "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
               "test": "test", "testing": "test", "eval": "test", "evaluation": "test"}


def read_records(path, split=None, separator=None):
    """Yield the records of a file, a folder, or a list of files, in order.

    .jsonl    a JSON object a line; .ndjson likewise
    .json     an array of JSON objects, or objects one after another
    .csv      a record a row, its fields named by the first row; a first or last column without a name is left out
    .parquet  a record a row, the values as in JSON; needs pyarrow
    folder    every file of the formats here in it and below it, in the order of their names, but none that is hidden
    other     UTF-8 text (.txt, .text, .md, .raw, .tokens, or no ending), divided as `split` says: "line", a text a
              line; "blank", a text a paragraph, blank lines between them; "none", the whole file is one text; a mark
              such as "<|endoftext|>", the texts that stand between its occurrences. None stands for "line", and in a
              folder for "none". A text is the field "text"; with a `separator`, what stands before it is "prompt" and
              what follows is "completion".

    A byte-order mark, "\\r" before "\\n", blank lines and white space at the end of a line are no part of a text.
    Raises FileError (missing, unreadable, a folder of several splits), FormatError (not what it should be) and
    ConfigError (an unusable option, pyarrow is missing).
    """
    if split not in (None, *SPLITS) and not re.search(r"[^\w\s]", split):  # a misspelt word is no mark
        raise ConfigError(f"split = {split!r}: it must be one of {', '.join(SPLITS)}, or the mark that stands between "
                          "two texts, such as '<|endoftext|>'")
    if separator == "" or (separator and split == "none"):
        raise ConfigError(f"separator = {separator!r}: it must be what stands between prompt and completion in each "
                          "text, so it does not go with split none")
    if split is None:
        folder = not isinstance(path, list) and Path(path).is_dir() and not splits(path)
        split = "none" if folder and not separator else "line"
    for file, reader in files(path):
        yield from reader(file) if reader is not read_text else read_text(file, split, separator)


def is_text(path):
    """Whether `path` is, or holds, plain text, which can be split and have a separator."""
    return any(reader is read_text for _, reader in files(path))


def files(path):
    """Return [(file, its reader), ...] for a file, a folder or a list of files. Raises FileError for a folder without
    any or with files of several splits, FormatError for a file that nobody here can read."""
    if isinstance(path, list):
        return [found for file in path for found in files(file)]
    if not str(path):
        raise FileError("cannot read '': expected the name of a file or folder")
    path = Path(path)
    if not path.is_dir():
        return [(path, _reader(path))]
    found, of_splits = _files_below(path), splits(path)
    named = {split: of_splits[split] for split in of_splits if split != "other"}
    if len(named) > 1:
        raise FileError(f"{path} holds files of the splits {', '.join(named)}: name one of the files, such as "
                        f"{list(named.values())[-1][0]}")
    if not found:
        raise FileError(f"{path} is a folder without data: expected files that end in {', '.join(READERS)}")
    return [(file, READERS[file.suffix.lower()]) for file in (*named.values(), found)[0]]


def splits(path):
    """Return the data files below the folder `path` by their splits, as `datasets` names them: dict of "train",
    "validation", "test" and, for what is none of these, "other", to lists of files.

    A file is of the split whose word its folder's name holds, else its own: train-00000-of-00002.parquet,
    data/valid.jsonl, test/a.txt. Empty where `path` is no folder, or has no names of this kind: where no file has one,
    or some have none and no other is for training.
    """
    folder, found = str(path) and Path(path).is_dir(), {}
    for file in _files_below(Path(path)) if folder else ():
        parts = file.relative_to(path).parts
        words = [word for part in parts for word in re.split(r"[-._ 0-9]+", part.lower())]
        split = next((SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS), "other")
        found.setdefault(split, []).append(file)
    if "train" not in found and "other" in found:
        return {}
    return {split: found[split] for split in ("train", "validation", "test", "other") if split in found}


def _files_below(folder):
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in READERS and file.is_file()
                  and not any(part.startswith((".", "__")) for part in file.relative_to(folder).parts))


def _reader(path):
    ending = path.suffix.lower()
    if path.exists() and not path.is_file():
        raise FileError(f"{path} is no file but a pipe or a device: data are read more than once; write them to a file")
    if ending in READERS or ending in ALSO_TEXT:
        return READERS.get(ending, read_text)
    advice = [what for what, endings in ADVICE.items() if ending in endings.split()]
    raise FormatError(f"{path}: files that end in {ending} are not read here; "
                      + (*advice, f"expected {', '.join(READERS)}; plain text must end in .txt")[0])

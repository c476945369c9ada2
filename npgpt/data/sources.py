"""Which files a path means, which reader reads each, and which files of a folder are for training."""

import functools
import re
from pathlib import Path

from npgpt.data.parquet import read_parquet
from npgpt.data.readers import SPLITS, read_csv, read_json, read_jsonl, read_text, read_tsv
from npgpt.data.text_files import Copied, open_file, readable_again
from npgpt.files import hub
from npgpt.runtime.encodings import encoding
from npgpt.runtime.errors import ConfigError, FileError, FormatError

READERS = {".txt": read_text, ".jsonl": read_jsonl, ".ndjson": read_jsonl, ".jsonlines": read_jsonl,
           ".json": read_json, ".csv": read_csv, ".tsv": read_tsv, ".parquet": read_parquet}
ALSO_TEXT = ("", ".text", ".md", ".raw", ".tokens")  # read if they are named; in a folder they are passed over
ADVICE = {
    "save the table as .csv": ".tab .xls .xlsx .ods",
    "unpack it, and name the file in it, or a pipe such as <(zcat FILE)": ".gz .zip .bz2 .xz .zst .tar .tgz .7z .rar",
    "save the text in it as .txt": ".pdf .doc .docx .odt .rtf .epub .html .htm",
    "save it as .parquet": ".arrow .feather",
}
# Words in the name of a file or of its folders -> the file's split, as in the library `datasets`.
SPLIT_WORDS = {"train": "train", "training": "train",
               "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
               "test": "test", "testing": "test", "eval": "test", "evaluation": "test"}


def located(path):
    """Return where the data are: `path`, or for hf://datasets/OWNER/NAME[@REVISION][/FILE OR FOLDER] their place in the
    cache, to which they are downloaded if they are not there.

    Raises ConfigError, FileError and HubError.
    """
    if not isinstance(path, str) or not path.startswith("hf://"):
        return path
    found = re.fullmatch(r"hf://datasets/([^/@]+/[^/@]+)(?:@([^/]+))?(?:/(.*[^/]))?/?", path)
    if not found:
        raise ConfigError(f"{path}: expected hf://datasets/OWNER/NAME, or with @REVISION and /FOLDER behind it")
    return _downloaded(*found.groups())


@functools.cache  # the hub is asked once
def _downloaded(name, revision, inside):
    below = f"{inside}/" if inside else ""
    patterns = ["README.md", *filter(None, [inside]), *(f"{below}*{ending}" for ending in READERS)]
    folder = hub.data_folder(name, patterns, revision)
    place = folder / (inside or "")
    if not place.exists():
        raise FileError(f"the data set {name!r} has no {inside} that npgpt can read; a file must end in "
                        f"{', '.join(READERS)}")
    return place


def read_records(path, split=None, separator=None):
    """Yield the records of a file, a folder, or a list of files, in order.

    .jsonl    one JSON object in each line; .ndjson and .jsonlines are the same
    .json     an array of JSON objects, or objects one after another
    .csv      one record in each row; the first row names the fields; a first or last column without a name is left out
    .tsv      the same, with tabs between the columns
    .parquet  one record in each row, with values as in JSON; needs pyarrow
    hf://     a data set on the hub: hf://datasets/OWNER/NAME[@REVISION][/FILE OR FOLDER]; see `located`
    folder    all files of these formats (and .txt) in the folder and below, in the order of their names; no hidden ones
    other     UTF-8 text (.txt, .text, .md, .raw, .tokens, or no ending). `split` says where a text ends. "line": each
              line is a text. "blank": each paragraph is a text, and blank lines separate them. "none": the whole file
              is one text. A mark such as "<|endoftext|>": it separates two texts. None means "line", and in a folder
              "none". A text becomes the field "text". With a `separator`, the part before it becomes "prompt" and the
              part after it "completion".

    pipe      the same by its name's ending; without one, JSON objects (in an array or not) and Parquet are recognised,
              and anything else is plain text. It is copied into a temporary file first

    Text is UTF-8, or what a byte order mark at its start says (UTF-16, UTF-32). A line ends with "\\n", "\\r\\n" or
    "\\r". The mark, blank lines and white space at the end of a line do not belong to a text.
    Raises FileError (missing, unreadable, a folder of several splits), FormatError (wrong content) and ConfigError (an
    unusable option, pyarrow is missing).
    """
    if split not in (None, *SPLITS) and not re.search(r"[^\w\s]", split):  # a misspelt word is not a mark
        raise ConfigError(f"split = {split!r}: it must be one of {', '.join(SPLITS)}, or the mark between two texts, "
                          "such as '<|endoftext|>'")
    if separator == "" or (separator and split == "none"):
        raise ConfigError(f"separator = {separator!r}: it must stand between prompt and completion in each text, so it "
                          "cannot be empty or be used with split none")
    if split is None:
        place = located(path)
        folder = isinstance(place, str | Path) and Path(place).is_dir() and not splits(path)
        split = "none" if folder and not separator else "line"
    for file, reader in files(readable_again(path)):
        yield from reader(file) if reader is not read_text else read_text(file, split, separator)


def is_text(path):
    """Tell whether `path` is or holds plain text, for which `split` and `separator` are."""
    return any(reader is read_text for _, reader in files(path))


def files(path):
    """Return [(file, its reader), ...] for a file, a Copied, a folder or a list of them.

    Raises FileError if a folder has no data files or has files of several splits, FormatError if a file has no reader.
    """
    if isinstance(path, list):
        return [found for file in path for found in files(file)]
    if isinstance(path, Copied):
        return [(path, _reader(path))]
    if not str(path):
        raise FileError("cannot read '': expected the name of a file or folder")
    path = Path(located(path))
    if not path.is_dir():
        return [(path, _reader(path))]
    if len(names := _data_sets(path)) > 1:
        raise FileError(f"{path} holds several data sets, {', '.join(names)}, as its README.md says: name a folder or "
                        "a file of one of them")
    found, of_splits = _files_below(path), splits(path)
    named = {split: of_splits[split] for split in of_splits if split != "other"}
    if len(named) > 1:
        raise FileError(f"{path} holds files of the splits {', '.join(named)}: name one of the files, such as "
                        f"{list(named.values())[-1][0]}")
    if not found:
        raise FileError(f"{path} is a folder without data: expected files that end in {', '.join(READERS)}")
    return [(file, READERS[file.suffix.lower()]) for file in (*named.values(), found)[0]]


def splits(path):
    """Return the data files below the folder `path` by their splits: dict split -> list of files.

    The splits are `datasets`' names, "train", "validation" and "test", and "other" for the rest. A word in the name of
    a file's folder tells its split, or else a word in the file's own name: train-00000-of-00002.parquet,
    data/valid.jsonl, test/a.txt. The dict is empty if `path` is not a folder or its names tell no splits: no file has
    such a word, or some have none and no file is for training.
    """
    path = located(path)
    folder, found = isinstance(path, str | Path) and str(path) and Path(path).is_dir(), {}
    for file in _files_below(Path(path)) if folder else ():
        parts = file.relative_to(path).parts
        words = [word for part in parts for word in re.split(r"[-._ 0-9]+", part.lower())]
        split = next((SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS), "other")
        found.setdefault(split, []).append(file)
    if "train" not in found and "other" in found:
        return {}
    return {split: found[split] for split in ("train", "validation", "test", "other") if split in found}


def _data_sets(folder):
    """Return the names of the data sets that the head of a README.md names, as the hub has it (`config_name`)."""
    try:
        readme = (folder / "README.md").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    head = re.match(r"---\s*\n(.*?)\n---", readme, re.DOTALL)
    return list(dict.fromkeys(re.findall(r"^\s*-?\s*config_name:\s*(\S+)", head[1], re.MULTILINE))) if head else []


def _files_below(folder):
    """Return the data files in the folder and below, sorted, without hidden ones."""
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in READERS and file.is_file()
                  and not any(part.startswith((".", "__")) for part in file.relative_to(folder).parts))


def _reader(path):
    """Return the reader of a single file, or of a Copied. Raises FormatError."""
    ending = path.suffix.lower()
    if isinstance(path, Copied) and not ending:
        return _recognised(path)
    if ending in READERS or ending in ALSO_TEXT:
        return READERS.get(ending, read_text)
    advice = [what for what, endings in ADVICE.items() if ending in endings.split()]
    raise FormatError(f"{path}: npgpt cannot read files that end in {ending}; "
                      + (*advice, f"expected {', '.join(READERS)}; plain text may also end in "
                      ".md, .raw, .text, .tokens or nothing")[0])


def _recognised(copied):
    """Return the reader for what came through a pipe whose name says nothing."""
    with open_file(copied) as file:
        start = file.read(1 << 10)
    name, mark = encoding(start)
    if start.startswith(b"PAR1"):
        return read_parquet
    return read_json if re.match(r'\s*(\[\s*)?\{\s*"', start[mark:].decode(name, "ignore")) else read_text

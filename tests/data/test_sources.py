"""Which files are read, by which reader, and for which split."""

import sys

import pytest

from npgpt.data import Documents, is_text, read_records, sources, splits
from npgpt.runtime.errors import ConfigError, FileError, FormatError

# Files in a folder, and those that `datasets` 5.2 loads; tests/parity/test_datasets.py asks it again.
LAYOUTS = {
    "train.jsonl validation.jsonl test.jsonl": {"train": ["train.jsonl"], "validation": ["validation.jsonl"],
                                                "test": ["test.jsonl"]},
    "train.txt valid.txt": {"train": ["train.txt"], "validation": ["valid.txt"]},
    "train.json val.json": {"train": ["train.json"], "validation": ["val.json"]},
    "training.csv dev.csv eval.csv": {"train": ["training.csv"], "validation": ["dev.csv"], "test": ["eval.csv"]},
    "train-00000-of-00002.parquet train-00001-of-00002.parquet validation-00000-of-00001.parquet": {
        "train": ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"],
        "validation": ["validation-00000-of-00001.parquet"]},
    "README.md data/train-00000-of-00001.parquet data/test-00000-of-00001.parquet": {
        "train": ["data/train-00000-of-00001.parquet"], "test": ["data/test-00000-of-00001.parquet"]},
    "train/a.txt train/b.txt validation/c.txt test/d.txt": {
        "train": ["train/a.txt", "train/b.txt"], "validation": ["validation/c.txt"], "test": ["test/d.txt"]},
    "data/train/a.txt data/test/train.txt": {"train": ["data/train/a.txt"], "test": ["data/test/train.txt"]},
    "my-train-file.jsonl my.test.jsonl my_dev.jsonl": {
        "train": ["my-train-file.jsonl"], "validation": ["my_dev.jsonl"], "test": ["my.test.jsonl"]},
    "train1.jsonl train2.jsonl": {"train": ["train1.jsonl", "train2.jsonl"]},
    "test.jsonl validation.jsonl": {"validation": ["validation.jsonl"], "test": ["test.jsonl"]},
    "train.jsonl .ipynb_checkpoints/train-checkpoint.jsonl ._train.jsonl __pycache__/valid.jsonl": {
        "train": ["train.jsonl"]},
}


def make(folder, names):
    for name in names.split():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("text\n" if name.endswith(("csv", "txt")) else "")
    return folder


def relative(folder, found):
    return {split: [file.relative_to(folder).as_posix() for file in files] for split, files in found.items()}


@pytest.mark.parametrize("names", LAYOUTS)
def test_a_folder_has_its_splits_by_names(tmp_path, names):
    assert relative(tmp_path, splits(make(tmp_path, names))) == LAYOUTS[names]


@pytest.mark.parametrize("names, found", [
    ("a.txt b.txt", {}), ("constrained.txt latest.txt", {}),
    ("valid.txt b.txt", {}),  # a name may be a word by chance, where nothing is for training
    ("Train.jsonl Valid.jsonl", {"train": ["Train.jsonl"], "validation": ["Valid.jsonl"]}),  # not so in `datasets`
    ("train/a.txt valid.jsonl x.csv", {"train": ["train/a.txt"], "validation": ["valid.jsonl"], "other": ["x.csv"]}),
])
def test_where_there_are_no_such_names_or_some(tmp_path, names, found):
    assert relative(tmp_path, splits(make(tmp_path, names))) == found
    assert splits(tmp_path / names.split()[0]) == splits("missing") == {}


def texts_of(path, **options):
    return [record.fields["text"] for record in read_records(path, **options)]


def test_files_of_several_splits_are_not_mixed(written, tmp_path):
    for name, text in (("train.txt", "one\ntwo"), ("dev.txt", "three"), ("more.txt", "four")):
        written(f"d/{name}", text)
    with pytest.raises(FileError, match=r"d holds files of the splits train, validation: name one .*/d/dev\.txt$"):
        texts_of(tmp_path / "d")
    files = splits(tmp_path / "d")
    assert texts_of(files["train"] + files["validation"]) == ["one", "two", "three"]
    assert len(list(Documents(files["train"]))) == 2 and is_text(files["train"])
    (tmp_path / "d" / "dev.txt").unlink()
    assert texts_of(tmp_path / "d") == ["one", "two"], "a text a line, as in a single file"


def test_what_is_hidden_in_a_folder_is_not_data(written, tmp_path):
    for name in ("d/a.txt", "d/.ipynb_checkpoints/a-checkpoint.txt", "d/._a.txt", "d/__macosx/a.txt"):
        written(name, name)
    assert [record.where for record in read_records(tmp_path / "d")] == [f"{tmp_path}/d/a.txt:1"]
    assert len(list(read_records(written(".hidden/a.txt", "x").parent))) == 1


@pytest.mark.parametrize("name, message", [
    ("x.tab", "npgpt cannot read files that end in .tab; save the table as .csv"),
    ("x.XLSX", "npgpt cannot read files that end in .xlsx; save the table as .csv"),
    ("x.jsonl.gz", "npgpt cannot read files that end in .gz; unpack it, and name the file in it, or a pipe such as "
                   "<(zcat FILE)"),
    ("x.pdf", "npgpt cannot read files that end in .pdf; save the text in it as .txt"),
    ("x.arrow", "npgpt cannot read files that end in .arrow; save it as .parquet"),
    ("x.dat", "npgpt cannot read files that end in .dat; expected .txt, .jsonl, .ndjson, .jsonlines, .json, .csv, "
              ".tsv, .parquet; plain text may also end in .md, .raw, .text, .tokens or nothing"),
])
def test_endings_that_nobody_knows_are_refused(written, name, message):
    path = written(name, "a text\n")
    for read in (texts_of, is_text, Documents):
        with pytest.raises(FormatError) as caught:
            read(path)
        assert str(caught.value) == f"{path}: {message}"


@pytest.mark.parametrize("name", ["data", "data.txt", "data.TEXT", "data.md", "wiki.test.raw", "wiki.train.tokens"])
def test_what_is_plain_text(written, name):
    assert texts_of(written(name, "one\ntwo\n")) == ["one", "two"]


def test_parquet_without_pyarrow(written, monkeypatch):
    for name in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)  # as where it is not installed
    path = written("x.parquet", b"PAR1")
    with pytest.raises(ConfigError) as caught:
        texts_of(path)
    assert str(caught.value) == f"{path}: .parquet needs pyarrow: pip install '.[parquet]', or save the file as .jsonl"


def test_each_ending_has_one_reader():
    endings = [*sources.READERS, *sources.ALSO_TEXT, *" ".join(sources.ADVICE.values()).split()]
    assert len(set(endings)) == len(endings)


@pytest.mark.parametrize("split", ["word", "lines", "", " ", "\n", "1 2"])
def test_a_split_is_a_kind_or_a_mark(written, split):
    with pytest.raises(ConfigError, match=r"it must be one of line, blank, none, or the mark between two"):
        texts_of(written("data.txt", "one\n"), split=split)

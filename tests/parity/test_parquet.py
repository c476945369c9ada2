"""Parquet files, where pyarrow is installed: its own `to_pylist`, and JSON, say what is right."""

import datetime
import json
import re
import tracemalloc

import pytest

pytest.importorskip("pyarrow")

import pyarrow
from pyarrow import parquet

from npgpt.data import Documents, read_records
from npgpt.runtime.errors import FormatError

CHATS = [
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "na\u00efve"}], "name": "Ann"},
                  {"role": "assistant", "content": [], "name": None}], "id": 1},
    {"messages": [], "id": None},
    {"messages": None, "id": 3},
]


def write(path, rows, **options):
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, **options)
    return path


def fields_of(path):
    return [record.fields for record in read_records(path)]


def test_nested_values_are_what_json_gives(tmp_path):
    path = write(tmp_path / "train.parquet", CHATS)
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in CHATS))
    assert fields_of(path) == CHATS == fields_of(tmp_path / "train.jsonl")
    assert [record.where for record in read_records(path)] == [f"{path}:{row}" for row in (1, 2, 3)]


@pytest.mark.parametrize("options", [{"row_group_size": 7}, {"row_group_size": 1000, "compression": "gzip"},
                                     {"use_dictionary": False, "compression": "none"}, {"data_page_size": 100}])
def test_rows_come_in_order_whatever_the_file_is_made_of(tmp_path, options):
    rows = [{"text": f"text number {i}", "n": i, "x": i / 2, "ok": i % 2 == 0} for i in range(1500)]
    assert fields_of(write(tmp_path / "x.PARQUET", rows, **options)) == rows


def test_prompts_from_parquet_are_documents(tmp_path):
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": ""}]
    documents = Documents(write(tmp_path / "x.parquet", rows))
    assert [document.segments[:2] for document in documents] == [[("a", False), ("b", True)], []]
    with pytest.raises(FormatError, match=r"x\.parquet:1: no \"question\"; it has \"prompt\", \"completion\""):
        list(Documents(tmp_path / "x.parquet", template="{question}"))


def test_values_that_json_does_not_have_are_named(tmp_path):
    for value, kind in ((b"bytes", "bytes"), (datetime.date(2020, 1, 1), "date")):
        path = write(tmp_path / "x.parquet", [{"text": value}])
        with pytest.raises(FormatError, match=rf"x\.parquet:1: its \"text\" is of the kind {kind}, expected a string"):
            list(Documents(path))


def test_memory_does_not_grow_with_the_file(tmp_path):
    """A file of ten times as many row groups takes as much: beside Python's own objects, what pyarrow allocates."""
    def peak(groups):
        path = tmp_path / f"{groups}.parquet"
        rows = pyarrow.table({"text": [f"{i} " + "x" * 1000 for i in range(500)]})
        with parquet.ParquetWriter(path, rows.schema, compression="none", use_dictionary=False) as writer:
            for _ in range(groups):
                writer.write_table(rows)
        pool, most, read = pyarrow.default_memory_pool(), 0, 0
        before = pool.bytes_allocated()
        tracemalloc.start()
        for record in read_records(path):
            read += len(record.fields)
            most = max(most, pool.bytes_allocated() - before)
        most += tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert read == 500 * groups
        return most

    small, large = peak(4), peak(40)  # of 2 and 20 MB
    assert large < small + 500_000, "half a row group, for what is freed late"


@pytest.mark.parametrize("content", [b"", b"PAR1", b"no table at all" * 9])
def test_what_is_no_parquet_file_is_named(tmp_path, content):
    (tmp_path / "x.parquet").write_bytes(content)
    with pytest.raises(FormatError, match=r"x\.parquet:1: not a Parquet file that pyarrow can read: .") as caught:
        fields_of(tmp_path / "x.parquet")
    assert str(caught.value).isprintable()


def test_a_file_cut_short_is_named(tmp_path):
    path = write(tmp_path / "x.parquet", [{"text": "x" * 100}] * 500)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(FormatError, match=re.escape(f"{path}:1: not a Parquet file")):
        fields_of(path)

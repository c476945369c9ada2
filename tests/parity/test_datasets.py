"""What Hugging Face's `datasets` makes of folders and of Parquet files."""

import pytest

pytest.importorskip("datasets")

import datasets
from datasets.data_files import DataFilesDict, get_data_patterns

from npgpt.data import read_records, splits
from tests.data.test_sources import LAYOUTS, make, relative


@pytest.mark.parametrize("names", LAYOUTS)
def test_folders_have_the_splits_that_datasets_gives_them(tmp_path, names):
    make(tmp_path, names)
    patterns = get_data_patterns(str(tmp_path))
    found = DataFilesDict.from_patterns(patterns, base_path=str(tmp_path), allowed_extensions=[
        ".txt", ".jsonl", ".json", ".csv", ".parquet"])
    theirs = {str(split): [file.removeprefix(f"{tmp_path}/") for file in files] for split, files in found.items()}
    assert relative(tmp_path, splits(tmp_path)) == theirs


def test_a_parquet_file_that_datasets_writes(tmp_path):
    rows = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "n": 1},
            {"messages": [{"role": "user", "content": None}], "n": None}]
    dataset = datasets.Dataset.from_list(rows)
    dataset.to_parquet(tmp_path / "train.parquet")
    assert [record.fields for record in read_records(tmp_path / "train.parquet")] == rows == dataset.to_list()

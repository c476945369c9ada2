"""Parquet files to records. pyarrow reads them; it is an extra (pip install '.[parquet]')."""

from npgpt.data.readers import Record
from npgpt.data.text_files import open_file
from npgpt.runtime.errors import ConfigError, FormatError

ROWS = 256  # that become Python objects at a time


def read_parquet(path):
    """Yield a Record for each row; its place is the row's number, from 1. Memory holds a part of a row group at a time.

    As in JSON, nested values are lists and dicts, and a missing value is None.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ConfigError(f"{path}: .parquet needs pyarrow: pip install '.[parquet]', or save the file as .jsonl"
                          ) from error
    number = 1
    with open_file(path) as file:
        try:
            table = parquet.ParquetFile(file)
            for group in range(table.num_row_groups):
                for batch in table.iter_batches(ROWS, row_groups=[group]):
                    for fields in batch.to_pylist():
                        yield Record(f"{path}:{number}", fields)
                        number += 1
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise FormatError(f"{path}:{number}: not a Parquet file that pyarrow can read: {reason}") from error

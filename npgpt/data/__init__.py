"""Data: files -> records -> documents -> sequences of ids with loss masks -> the batches of each step.

Read the files in this order. A file imports only from files above it:

    text_files.py  a file as text; pipes are copied, so that they can be read again
    readers.py     files to records: a reader for each format
    parquet.py     Parquet files to records
    sources.py     which files a path means, and which reader reads each
    fields.py      the fields of a record, and the messages for wrong fields
    chats.py       conversations, in the forms in which people save them
    templates.py   records to text, and which part of the text is learned
    documents.py   a file, or a folder of files, as documents
    recipe.py      how a run made its documents, kept beside its adapter
    sequences.py   sequences of ids with loss masks
    encoding.py    documents to sequences, kept in a file
    order.py       which sequences each step sees
    preview.py     a sequence as lines of text, token by token

This room may import `batch`, and from `files` and `runtime`. The library `datasets` reads most of these formats too,
but it needs pyarrow, which is large, and it keeps no line numbers for messages.
"""

from npgpt.data.documents import Documents, read_texts
from npgpt.data.encoding import encode, encode_prompt, encode_texts, is_held_out
from npgpt.data.order import Order
from npgpt.data.preview import preview
from npgpt.data.readers import SPLITS, Record, Stream
from npgpt.data.recipe import Recipe, documents_like
from npgpt.data.sequences import Encoded, Sequences
from npgpt.data.sources import is_text, located, read_records, splits
from npgpt.data.templates import END, TEMPLATES, Document, Template, Text
from npgpt.data.text_files import Copied, readable_again

__all__ = ["END", "SPLITS", "TEMPLATES", "Copied", "Document", "Documents", "Encoded", "Order", "Recipe", "Record",
           "Sequences", "Stream", "Template", "Text", "documents_like", "encode", "encode_prompt", "encode_texts",
           "is_held_out", "is_text", "located", "preview", "read_records", "read_texts", "readable_again", "splits"]

"""Data: files -> records -> documents -> sequences of ids with loss masks -> the batches of each step."""

from npgpt.data.documents import Documents, read_texts
from npgpt.data.encoding import Encoded, Sequences, encode, encode_prompt, encode_texts
from npgpt.data.order import Order
from npgpt.data.preview import preview
from npgpt.data.readers import SPLITS, Record, Stream
from npgpt.data.sources import is_text, read_records, splits
from npgpt.data.templates import END, TEMPLATES, Document, Template, Text

__all__ = ["END", "SPLITS", "TEMPLATES", "Document", "Documents", "Encoded", "Order", "Record", "Sequences", "Stream",
           "Template", "Text", "encode", "encode_prompt", "encode_texts", "is_text", "preview", "read_records",
           "read_texts", "splits"]

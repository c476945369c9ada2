"""A data file, or a folder of them, as documents."""

from npgpt.data.readers import Stream
from npgpt.data.sources import read_records
from npgpt.data.templates import TEMPLATES, Template
from npgpt.data.text_files import readable_again
from npgpt.runtime.errors import FormatError


class Documents:
    """The documents in a file, a folder or a list of files. Each iteration reads the files again; a pipe is copied.

    path             as for `read_records`, with `split` and `separator`
    template         text of a `Template`; None: the template for the first record's kind
    train_on_prompt  learn the prompts too

    The constructor reads the first record, so that an error in all records shows at once. Raises what `read_records`
    and `Template` raise, and FormatError if there is no record.
    """

    def __init__(self, path, split=None, separator=None, template=None, train_on_prompt=False):
        self._arguments = readable_again(path), split, separator
        first = next(read_records(*self._arguments), None)
        if first is None:
            raise FormatError(f"{path} holds no text: expected at least one line that is not blank")
        if template is None and separator is not None and "prompt" in first.fields:
            literal = separator.replace("{", "{{").replace("}", "}}")
            template = TEMPLATES["prompt"].replace("}{", f"}}{literal}{{")
        self.template = Template.of(first, template, train_on_prompt)

    def __iter__(self):
        return map(self.template.document, read_records(*self._arguments))


def read_texts(path, split=None):
    """Return the texts in the file or folder `path`: a list of at least one str, none of them blank.

    Each record must have a "text", as the records of plain text have. `path` and `split` are as for `read_records`.
    Blank texts are skipped. Raises FileError or FormatError.
    """
    documents = (document.segments for document in Documents(path, split, template=TEMPLATES["text"]))
    texts = ["".join(text) if isinstance(text, Stream) else text for segments in documents for text, _ in segments[:1]]
    if not texts:
        raise FormatError(f"{path} holds no text: expected at least one that is not blank")
    return texts

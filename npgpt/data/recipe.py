"""How a run made its sequences of its data: a file of ours beside the adapter, which PEFT does not read."""

import dataclasses
from pathlib import Path

from npgpt.data.chats import has_messages
from npgpt.data.documents import Documents
from npgpt.data.sources import is_text, read_records
from npgpt.data.templates import KINDS, OPTIONAL, Template
from npgpt.data.text_files import readable_again
from npgpt.files.atomic import read_json, write_json
from npgpt.runtime.errors import ConfigError, FormatError

FILE = "npgpt_data.json"


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What turns records into sequences.

    kind, template, train_on_prompt  those of the run's `Template`
    split, separator                 as for `read_records`
    special_tokens                   whether special tokens that the data spell out are those tokens
    max_length                       ids in the longest sequence
    """

    kind: str
    template: str
    train_on_prompt: bool = False
    split: str | None = None
    separator: str | None = None
    special_tokens: bool = False
    max_length: int | None = None

    def save(self, folder):
        """Write the recipe into the folder of an adapter or model. Raises FileError."""
        write_json(Path(folder) / FILE, dataclasses.asdict(self))

    @classmethod
    def load(cls, folder):
        """Return the Recipe in a folder, or None if there is none. Raises FileError, FormatError."""
        path = Path(folder) / FILE
        if not path.is_file():
            return None
        values, names = read_json(path), [field.name for field in dataclasses.fields(cls)]
        try:
            recipe = cls(**values)
            recipe.made()
        except (TypeError, AttributeError, ConfigError) as error:
            raise FormatError(f"{path}: expected {', '.join(names)}, as finetune writes them: {error}") from error
        return recipe

    def made(self):
        """Return the Template."""
        if self.kind not in (*KINDS, "fields"):
            raise ConfigError(f"kind = {self.kind!r}: it must be one of {', '.join(KINDS)}, fields")
        return Template(self.kind, self.template, self.train_on_prompt)

    def fits(self, fields):
        """Tell whether a record with these fields has what the template needs."""
        if self.kind == "messages" or has_messages(fields):
            return self.kind == "messages" and has_messages(fields)
        return all(name in fields or name in OPTIONAL for name in self.made().fields)


def documents_like(recipe, path, split=None, separator=None, template=None):
    """Return the Documents in `path`, made as `recipe` says.

    recipe  None: as finetune makes them by default. If it does not fit the records, the same
    others  as for `Documents`; what is given here is used instead of what the recipe says
    """
    path, learn = readable_again(path), False
    if recipe is not None:
        if is_text(path):
            split = recipe.split if split is None else split
            separator = _separator(recipe, path, split) if separator is None and template is None else separator
        first = next(read_records(path, split, separator), None)
        if template is None and first is not None and recipe.fits(first.fields):
            template, learn = recipe.template, recipe.train_on_prompt
    return Documents(path, split, separator, template, learn)


def _separator(recipe, path, split):
    """Return the recipe's separator, if the first text has it."""
    first = next(read_records(path, split), None) if recipe.separator and split != "none" else None
    return recipe.separator if first is not None and recipe.separator in first.fields["text"] else None

"""Flag: everything that is known about a flag of a command, declared once; and the parser that is made of flags."""

import argparse
import contextlib
import dataclasses
import difflib
import math
import re
import shutil
import textwrap
from collections.abc import Callable
from pathlib import Path

from npgpt.commands import start

METAVARS = {int: "N", float: "X"}


@dataclasses.dataclass(frozen=True)
class Flag:
    """One flag of a command, or one argument that has no flag.

    name      "--batch-size", or without dashes, "runs", for an argument that has no flag
    help      what --help says; the default is added to it
    type      makes the value of what is typed; bool: a switch, which takes no value
    default   the value if the flag is not given; None: no value, or one that is chosen later
    choices   the values that are allowed
    many      "+": one or more values; "*": any number of values
    again     the flag may be given several times
    metavar   what stands for the value in --help
    group     heading in --help
    required  the flag must be given
    least     the smallest number that is allowed

    For flags of finetune, which are the settings of a run:

    sets         the class and the field of the configuration that the flag sets
    made         makes the field's value from the flag's value; None: they are the same
    tiny         the default for the embedded model; None: the same as for others
    idle_with    keys of flags; if one of them is given, this flag has no effect
    needs        key of a flag; without that, this one has no effect
    place        the value is a file or folder, so that two spellings of one path are the same value
    of_the_call  belongs to this call only, and is no setting of the run
    """

    name: str
    help: str
    type: Callable = str
    default: object = None
    choices: tuple | None = None
    many: str = ""
    again: bool = False
    metavar: str | None = None
    group: str = ""
    required: bool = False
    least: int | None = None
    sets: tuple = (None, "")
    made: Callable | None = None
    tiny: object = None
    idle_with: tuple = ()
    needs: str = ""
    place: bool = False
    of_the_call: bool = False

    @property
    def key(self):
        """The name in Python, in files of settings and in config.json: batch_size."""
        return self.name.lstrip("-").replace("-", "_")

    def text(self):
        """Return what --help says."""
        if self.default is None or self.default is False or self.default == ():
            return self.help
        tiny = "" if self.tiny is None else f"; {spelled(self.tiny)} for tiny"
        return f"{self.help} (default {spelled(self.default)}{tiny})"

    def add_to(self, parser):
        """Add the flag to a parser of argparse, or to a group of one."""
        options = {"help": self.text().replace("%", "%%")}
        if self.type is bool:
            options["action"] = "store_true"
        else:
            metavar = self.metavar or (None if self.choices else METAVARS.get(self.type))
            options |= {"type": NUMBERS.get(self.type, self.type), "choices": self.choices, "metavar": metavar,
                        "nargs": self.many or None}
        if self.again:
            options["action"] = "extend" if self.many else "append"
        if self.required:
            options["required"] = True
        parser.add_argument(self.name, **options)


class Parser(argparse.ArgumentParser):
    """Ends with one line and exit status 2 if an argument is wrong."""

    def __init__(self, description, flags, epilog=None):
        super().__init__(prog=start.prog, usage=usage(flags), description=filled_paragraphs(description), epilog=epilog,
                         formatter_class=argparse.RawDescriptionHelpFormatter, argument_default=argparse.SUPPRESS,
                         allow_abbrev=False)  # a new flag could change what an abbreviation means
        self._flags, groups = flags, {"": self}
        for flag in flags:
            if flag.group not in groups:
                groups[flag.group] = self.add_argument_group(flag.group)
            flag.add_to(groups[flag.group])

    def given(self, argv):
        """Return what argv gives, and nothing that it does not give: dict key -> value."""
        given, unknown = self.parse_known_args(argv)
        if unknown:
            known = {flag.name.lstrip("-"): flag.name for flag in self._flags}
            nearest = difflib.get_close_matches(unknown[0].lstrip("-").partition("=")[0], known, n=1)
            self.error(f"unrecognized arguments: {' '.join(unknown)}"
                       + "".join(f"; did you mean {known[name]}?" for name in nearest))
        given = vars(given)
        for flag in self._flags:
            value = given.get(flag.key)
            if flag.least is not None and value is not None and value < flag.least:
                self.error(f"{flag.name} {value}: it must be at least {flag.least}")
        return given

    def parse(self, argv):
        """Return what argv gives, and the default of each other flag: argparse.Namespace."""
        defaults = {flag.key: list(flag.default) if isinstance(flag.default, tuple) else flag.default
                    for flag in self._flags}
        return argparse.Namespace(**defaults | self.given(argv))

    def error(self, message):
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")

    def _print_message(self, message, file=None):
        """argparse passes over an error here, and --help on a full disk would end as if it had been printed."""
        file.write(message)


def spelled(default):
    """Return a default as a user would type it."""
    if isinstance(default, tuple):
        return " ".join(default)
    return f"{default:g}" if isinstance(default, float) else default


def usage(flags):
    """Return the line of usage: what must be given, and that there are flags."""
    words, last = ["%(prog)s"], []
    for flag in flags:
        if not flag.name.startswith("-"):
            several = f"[{flag.metavar} ...]"
            words += {"": [flag.metavar], "+": [flag.metavar, several], "*": []}[flag.many]
            last += [several] if flag.many == "*" else []
    required = [f"{flag.name} {flag.metavar}" for flag in flags if flag.required]
    return " ".join([*words, *required, "[FLAG ...]", *last])


def filled_paragraphs(text):
    """Return text with each paragraph as wide as the terminal. Indented ones, such as examples, stay as they are."""
    width = min(shutil.get_terminal_size((100, 1)).columns, 100) - 2
    return "\n\n".join(paragraph if paragraph.startswith(" ") else textwrap.fill(paragraph, width)
                       for paragraph in (text or "").strip("\n").split("\n\n"))


def named(message, flags):
    """Return an error's message with flags in place of the fields of configurations, which no user typed."""
    for flag in flags:
        field = flag.sets[1] or flag.key
        message = re.sub(rf"(?:^[A-Za-z ]+ |(?<![\w./-])){field} = ", f"{flag.name} ", message)
        if "_" in field:  # else it may be any word
            message = re.sub(rf"(?<![\w./-]){field}\b", flag.name, message)
    return message


# Types of values


def whole(text):
    """Return a whole number."""
    try:
        return int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from error


def real(text):
    """Return a number."""
    with contextlib.suppress(ValueError):
        if math.isfinite(float(text)):
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a finite number")


NUMBERS = {int: whole, float: real}


def filled(text):
    """Return text that must not be empty. The shell makes an empty one of a variable that is not set."""
    if not text:
        raise argparse.ArgumentTypeError("it must not be empty")
    return text


def unescaped(text):
    """Return text with a new line in place of each \\n and a tab in place of each \\t; \\\\n stays \\n, and so does
    \\\\t. None stays None."""
    meant = {"n": "\n", "t": "\t"}
    return text and re.sub(r"\\(\\[nt]|[nt])", lambda found: meant.get(found[1], found[1]), text)


def escaped(text):
    """Return the text that `unescaped` makes `text` of."""
    return re.sub(r"\\(?=[nt])", r"\\\\", text).replace("\n", "\\n").replace("\t", "\\t")


def meant(text):
    """Return the text that is meant by a word on the command line, which must not be empty."""
    return unescaped(filled(text))


def path(text):
    """Return a Path. An empty text would be the working directory, which nobody means by it."""
    return Path(filled(text))


def positive(text):
    """Return a number above 0."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError("it must be a positive number")
    return value


def threads(text):
    """Return a number of threads."""
    from npgpt.runtime.errors import ConfigError
    from npgpt.runtime.threads import checked

    count = int(text)
    try:
        return checked(count)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("threads = ")) from error


def size(text):
    """Return the bytes of 3GB, 800MB, 2GiB or 2.5e9."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?(?:e\d+)?)\s*([KMGT]?)(I?)B?", text.strip().upper().replace("E", "e"))
    count = float(match[1]) * (1024 if match[3] else 1000) ** " KMGT".index(match[2] or " ") if match else 0
    if count < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size, such as 3GB or 800MB")
    return int(count)

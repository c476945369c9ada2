"""Rules for the fields of a configuration: a field's type says which values it takes.

    @dataclasses.dataclass
    class Config:
        layers: Count = 12
        dropout: Probability = 0.1

        def __post_init__(self):
            check_fields(self, "the model's configuration")
"""

import dataclasses
import sys
from typing import Annotated

from npgpt.runtime.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Rule:
    """holds(value) tells whether a value is right; `right` says in words what it must be."""

    right: str
    holds: object


def is_count(value):
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def is_number(value):
    return isinstance(value, int | float) and -sys.float_info.max <= value <= sys.float_info.max


Count = Annotated[int, Rule("a whole number of at least 1", is_count)]
CountOrNone = Annotated[int | None, Rule("a whole number of at least 1", lambda v: v is None or is_count(v))]
Id = Annotated[int | None, Rule("a whole number or null", lambda v: type(v) in (int, type(None)))]
Ids = Annotated[int | list[int] | tuple[int, ...] | None, Rule(
    "a whole number, a list of them or null",
    lambda v: v is None or all(type(i) is int for i in (v if isinstance(v, list | tuple) else [v])))]
Positive = Annotated[float, Rule("a positive number", lambda v: is_number(v) and v > 0)]
Probability = Annotated[float, Rule("a probability in [0, 1)", lambda v: is_number(v) and 0 <= v < 1)]
Flag = Annotated[bool, Rule("true or false", lambda v: isinstance(v, bool))]


def one_of(choices):
    """The type of a field that takes one of these strings."""
    return Annotated[str, Rule(f"one of {', '.join(choices)}", lambda v: isinstance(v, str) and v in choices)]


def check_fields(config, place):
    """Raise ConfigError for the first field of a dataclass whose value breaks the rule of the field's type."""
    for field in dataclasses.fields(config):
        for rule in getattr(field.type, "__metadata__", ()):
            value = getattr(config, field.name)
            check(rule.holds(value), field.name, value, place, rule.right)


def check(holds, name, value, place, right):
    """Raise ConfigError unless the field called `name` has a right value."""
    if not holds:
        raise ConfigError(f"{name} = {value!r} in {place}: it must be {right}")

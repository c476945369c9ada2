import dataclasses
import math

import numpy as np
import pytest

from npgpt.runtime.checks import Count, CountOrNone, Flag, Id, Positive, Probability, check_fields, one_of
from npgpt.runtime.errors import ConfigError

TYPES = {"count": Count, "count or none": CountOrNone, "id or none": Id, "positive": Positive,
         "probability": Probability, "flag": Flag, "one of": one_of(("a", "b"))}


def checked(kind, value):
    """Check a configuration with two fields, of which the second has the value."""
    made = dataclasses.make_dataclass("Config", [("first", int), ("second", TYPES[kind])])(0, value)
    check_fields(made, "a file")


@pytest.mark.parametrize(("kind", "value"), [
    ("count", 1), ("count or none", 2), ("count or none", None), ("id or none", 0), ("id or none", -1),
    ("id or none", None), ("positive", 1), ("positive", 1e-300), ("probability", 0), ("probability", 0.999),
    ("flag", False), ("one of", "b"),
])
def test_values_that_a_rule_takes(kind, value):
    checked(kind, value)


@pytest.mark.parametrize(("kind", "value", "right"), [
    ("count", 0, "a whole number of at least 1"), ("count", True, "a whole number"), ("count", 1.0, "a whole number"),
    ("count", None, "a whole number"), ("count or none", 0, "a whole number of at least 1"),
    ("id or none", True, "a whole number or null"), ("id or none", "3", "a whole number or null"),
    ("positive", 0, "a positive number"), ("positive", math.inf, "a positive number"),
    ("positive", math.nan, "a positive number"), ("positive", "1", "a positive number"),
    ("probability", 1, "a probability in [0, 1)"), ("probability", -0.1, "a probability in [0, 1)"),
    ("flag", 1, "true or false"), ("flag", np.bool_(True), "true or false"), ("one of", "c", "one of a, b"),
    ("one of", ["a"], "one of a, b"),
])
def test_values_that_a_rule_refuses(kind, value, right):
    with pytest.raises(ConfigError) as error:
        checked(kind, value)
    assert str(error.value).startswith(f"second = {value!r} in a file: it must be {right}")

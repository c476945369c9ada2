"""Numbers as text."""

import math

import pytest

from npgpt.runtime.figures import figure


@pytest.mark.parametrize("arguments, expected", [
    ((133.4321, 1), "133.4"), ((25624.8, 1), "25,624.8"), ((999_999_999, 0), "999,999,999"), ((-1.5, 2, "+"), "-1.50"),
    ((8.842981e86, 0), "8.84e+86"), ((8.842981e86, 4, "+"), "+8.84e+86"), ((-1e9, 2), "-1e+09"),
    ((1.5, 2, "+"), "+1.50"),
    ((math.inf, 1), "inf"), ((math.nan, 1), "nan"), ((-math.inf, 1, "+"), "-inf"),
])
def test_a_figure_can_be_read(arguments, expected):
    assert figure(*arguments) == expected
